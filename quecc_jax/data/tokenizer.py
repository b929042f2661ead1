"""Tokenizers: reading one from a directory, and making a small word-level one for the demo."""

import collections
import functools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quecc_jax.data.files import fresh_directory
from quecc_jax.errors import UserError

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")


class Tokenizer:
    """A transformers tokenizer as the data pipeline sees it: bare text to ids, and back.

    `encode` adds no special tokens and remembers recent answers, since conversations repeat their
    fixed parts; instances pickle as their directory.
    """

    def __init__(self, directory: str | Path):
        self.directory = str(directory)
        if not Path(directory).is_dir():
            raise UserError(f"data.tokenizer {self.directory!r} is not a directory; give one that holds "
                            "tokenizer.json or another file that transformers' AutoTokenizer reads")
        try:
            self.hf = _transformers().AutoTokenizer.from_pretrained(self.directory, local_files_only=True)
        except Exception as error:
            raise UserError(f"data.tokenizer {self.directory} holds no tokenizer that transformers reads "
                            f"({type(error).__name__}); save one there with save_pretrained") from error
        if self.hf.eos_token_id is None:
            raise UserError(f"the tokenizer in {self.directory} has no eos token, which closes every "
                            "answer; set eos_token in its tokenizer_config.json")
        self.bos_token_id: int | None = self.hf.bos_token_id
        self.eos_token_id: int = self.hf.eos_token_id
        self._encode = functools.lru_cache(maxsize=1 << 16)(self._encode_now)

    def _encode_now(self, text: str) -> tuple[int, ...]:
        return tuple(self.hf.encode(text, add_special_tokens=False))

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of the text alone, without BOS or EOS."""
        return self._encode(text)

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special_tokens: bool = True) -> str:
        """Readable text of ids."""
        return str(self.hf.decode(list(map(int, ids)), skip_special_tokens=skip_special_tokens)).strip()

    def __len__(self) -> int:
        """Size of the vocabulary, special tokens included."""
        return len(self.hf)

    def __reduce__(self) -> tuple:
        return Tokenizer, (self.directory,)


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """The tokenizer that is saved in a directory.

    Raises:
      UserError: there is no such directory, no readable tokenizer in it, or it has no eos token.
    """
    return Tokenizer(directory)


def train_word_tokenizer(texts: Iterable[str], directory: str | Path, minimum: int = 1) -> int:
    """Saves a word-level tokenizer whose vocabulary is the words of `texts` in order of frequency.

    Text is split at whitespace, which is dropped, and at punctuation; every digit is a token of its
    own. Case is kept. Decoding puts spaces between words, but none before a punctuation mark.

    Args:
      texts: What the vocabulary must cover; the words of the conversation templates are added.
      directory: Written whole or not at all; replaced when it exists.
      minimum: Times a word must occur to enter the vocabulary; rarer ones become <unk>.

    Returns:
      The size of the vocabulary, <pad> <bos> <eos> <unk> (ids 0 to 3) included.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    from quecc_jax.data.conversation import template_text

    split = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(),
                                     pre_tokenizers.Digits(individual_digits=True)])
    # Conversations repeat their lines many times over, and counting is cheaper than splitting.
    lines = collections.Counter(line for text in texts for line in text.splitlines())
    counts: collections.Counter[str] = collections.Counter()
    for line, times in lines.items():
        for word, _ in split.pre_tokenize_str(line):
            counts[word] += times
    always = [word for word, _ in split.pre_tokenize_str(template_text() + " 0123456789")]
    frequent = sorted((word for word, count in counts.items() if count >= minimum and word not in SPECIALS),
                      key=lambda word: (-counts[word], word))
    words = dict.fromkeys((*SPECIALS, *frequent, *always))
    backend = Backend(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = split
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    pad, bos, eos, unk = SPECIALS
    tokenizer = _transformers().PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=pad, bos_token=bos, eos_token=eos, unk_token=unk)
    with fresh_directory(directory) as aside:
        tokenizer.save_pretrained(str(aside))
    return len(words)


def _transformers() -> Any:
    """The package, imported without its notice that PyTorch is absent: nothing here needs it."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers

    return transformers
