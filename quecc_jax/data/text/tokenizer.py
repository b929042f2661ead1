"""The tokenizer of a run, read from a directory: text to token ids, and back."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from quecc_jax.data.text.byte_pieces import byte_pieces
from quecc_jax.data.text.sentencepiece import BLANK
from quecc_jax.data.text.tokenizer_files import read_tokenizer
from quecc_jax.errors import UserError
from quecc_jax.paths import as_path, local_copy

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")


class Tokenizer:
    """A transformers tokenizer as the data pipeline sees it: text to ids, and back.

    `encode` adds no BOS or EOS, but finds the special tokens that a text spells out. It remembers
    recent answers, since conversations repeat their fixed parts; instances pickle as their directories.
    """

    def __init__(self, directory: str | Path, questions: str | Path = "", setting: str = "data.tokenizer"):
        if not str(directory):
            raise UserError(
                f"{setting} is empty; give a directory that holds tokenizer.json or another file "
                "of a tokenizer"
            )
        self.directory = str(directory)
        if not as_path(directory).is_dir():
            raise UserError(
                f"{setting} {self.directory!r} is not a directory; give one that holds "
                "tokenizer.json or another file of a tokenizer"
            )
        try:
            with local_copy(directory) as files:
                read = read_tokenizer(files)
        except UserError as error:
            raise error.at(setting) from error
        except Exception as error:
            cause = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise UserError(
                f"{setting} {self.directory} holds no tokenizer that transformers reads "
                f"({cause}); save one there with save_pretrained"
            ) from error
        self.hf = read.hf
        if self.hf.eos_token_id is None:
            raise UserError(
                f"the tokenizer in {self.directory} has no eos token, which closes every "
                "answer; set eos_token in its tokenizer_config.json"
            )
        self.bos_token_id: int | None = read.bos
        """What stands in front of every text; None where this tokenizer's models expect nothing."""
        self.eos_token_id: int = self.hf.eos_token_id
        self.bos_token: str = self.hf.bos_token or ""
        self.eos_token: str = self.hf.eos_token
        others = (self.bos_token_id, self.eos_token_id, self.hf.pad_token_id)
        self.unknown_id: int | None = None if self.hf.unk_token_id in others else self.hf.unk_token_id
        """What stands for a word that the vocabulary has not; None where that is no token of its own."""
        self.ends = read.ends
        """Tokens that end an answer by the generation_config.json beside it; EOS may be among them."""
        self.questions = Tokenizer(questions, setting="data.query_tokenizer") if questions else None
        """What reads bare questions where their encoder has its own vocabulary."""
        self.added, self._raw = read.added, read.encode
        """The tokens that are found in a text before any splitting, by number; the ids of a whole text."""
        self._byte_pieces = byte_pieces(self.hf)
        self._encode = functools.lru_cache(maxsize=1 << 16)(self._encode_now)
        # Only tokenizers of the SentencePiece kind write a blank before a text's first word.
        blank = self.hf.convert_ids_to_tokens(list(self._raw("\n")))[:1]
        self._anchor = self._raw("\n") if blank == [BLANK] else ()
        behind = self.hf.convert_ids_to_tokens(list(self._raw(f"{self.hf.eos_token}a")))[1:2]
        self._blank_behind_special = bool(behind) and behind[0].startswith(BLANK)

    def _encode_now(self, text: str, inside: bool) -> tuple[int, ...]:
        if not inside or not self._anchor:
            return self._raw(text)
        # A line break keeps the blank away from the text, and is never part of a longer token.
        return self._raw("\n" + text)[len(self._anchor) :]

    def encode(self, text: str, after: int | None = None) -> tuple[int, ...]:
        """Ids of a text, without BOS or EOS.

        Args:
          text: may be a part of a longer text; special tokens in it are found.
          after: the token in front of it; None where a text begins, or behind an image. Tokenizers
            of the SentencePiece kind write a blank where a text begins, and the legacy ones behind
            special tokens too; some special tokens take the white space that follows them.

        Returns:
          The ids that the text has there: a text cut into parts at words gives the ids of the whole.
        """
        special = None if after is None else self.added.get(after)
        if special is not None and special.rstrip:
            text = text.lstrip()
        begins = after is None or (special is not None and self._blank_behind_special)
        return self._encode(text, not begins) if text else ()

    def unknown_words(self, text: str) -> tuple[str, ...]:
        """Words of a text that all become `unknown_id`, each once and in order; empty where words cannot."""
        if self.unknown_id is None or self.unknown_id not in self.encode(text):
            return ()
        read = self.hf.backend_tokenizer.encode(text, add_special_tokens=False)
        spans = zip(read.ids, read.offsets, strict=True)
        return tuple(dict.fromkeys(text[a:b] for number, (a, b) in spans if number == self.unknown_id))

    def decode(
        self, ids: Sequence[int] | np.ndarray, skip_special_tokens: bool = True, strip: bool = True
    ) -> str:
        """Readable text of ids.

        Args:
          ids: those that are no token are left out.
          skip_special_tokens: leave special tokens out.
          strip: leave out blanks at both ends.
        """
        kept = list(map(int, ids))
        if self._byte_pieces is not None:
            # What is left out does not part the bytes of a character.
            out = {i for i, token in self.added.items() if token.special and skip_special_tokens}
            names = self.hf.convert_ids_to_tokens(kept)
            kept = [i for i, name in zip(kept, names, strict=True) if name is not None and i not in out]
            kept = self._byte_pieces.mended(kept)
        text = str(self.hf.decode(kept, skip_special_tokens=skip_special_tokens))
        return text.strip() if strip else text

    def __len__(self) -> int:
        """Embeddings that its ids need: one more than the highest, which is not their number where they have
        gaps."""
        return max(self.hf.get_vocab().values()) + 1

    def __reduce__(self) -> tuple:
        return Tokenizer, (self.directory, self.questions.directory if self.questions else "")


def load_tokenizer(directory: str | Path, questions: str | Path = "") -> Tokenizer:
    """The tokenizer that is saved in a directory, with that of bare questions if it is another.

    Raises:
      UserError: there is no such directory, no readable tokenizer in it, or it has no eos token.
    """
    return Tokenizer(directory, questions)
