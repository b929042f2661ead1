"""Makes word-level tokenizers of a text, for the testbed, whose models are not pretrained."""

import collections
from collections.abc import Iterable
from pathlib import Path

from quecc_jax.data.files import fresh_directory
from quecc_jax.data.text.templates import template_text
from quecc_jax.data.text.tokenizer import SPECIALS
from quecc_jax.data.text.tokenizer_files import import_transformers


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

    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    # Conversations repeat their lines many times over, and counting is cheaper than splitting.
    lines = collections.Counter(line for text in texts for line in text.splitlines())
    counts: collections.Counter[str] = collections.Counter()
    for line, times in lines.items():
        for word, _ in split.pre_tokenize_str(line):
            counts[word] += times
    always = [word for word, _ in split.pre_tokenize_str(template_text() + " 0123456789")]
    frequent = sorted(
        (word for word, count in counts.items() if count >= minimum and word not in SPECIALS),
        key=lambda word: (-counts[word], word),
    )
    words = dict.fromkeys((*SPECIALS, *frequent, *always))
    backend = Backend(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = split
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    pad, bos, eos, unk = SPECIALS
    tokenizer = import_transformers().PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=pad, bos_token=bos, eos_token=eos, unk_token=unk
    )
    with fresh_directory(directory) as aside:
        tokenizer.save_pretrained(str(aside))
    return len(words)
