"""A tokenizer of CLIP's kind that needs no download: bytes and nothing merged."""

from pathlib import Path

from transformers import CLIPTokenizer


def write_clip_tokenizer(directory: Path) -> int:
    """Saves it and returns the size of its vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names = dict(zip(printable, map(chr, printable), strict=True))
    names |= {byte: chr(256 + n) for n, byte in enumerate(b for b in range(256) if b not in names)}
    words = [*names.values(), *(f"{name}</w>" for name in names.values()), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer({word: n for n, word in enumerate(words)}, []).save_pretrained(directory)
    return len(words)
