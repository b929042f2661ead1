"""The questions of rows, for storing their features and for checking that stored ones are of them."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from quecc_jax.data.references import Row
from quecc_jax.data.sources.feature_store import Features
from quecc_jax.data.sources.source import Layout
from quecc_jax.errors import BadRow, UserError

SAMPLED = 256
"""Rows whose questions tell tokenizers apart."""


class Questions:
    """The bare questions of rows as token ids for their encoder, by row."""

    def __init__(self, rows: Sequence[Row], layout: Layout):
        self.rows, self.limit = rows, layout.data.query_length
        # A question depends on no template and no length but its own.
        data = dataclasses.replace(
            layout.data,
            template="v1",
            query_length=layout.data.query_limit,
            max_length=1 << 20,
            images_per_row=64,
        )
        self.layout = layout._replace(data=data, text=None, arrange=None)

    def ids(self, row: int) -> np.ndarray:
        """int32 [<= Q]: token ids of the question about a row's images, none without an image.

        Raises:
          BadRow: the row cannot be read, or different turns ask about its images.
        """
        made = self.layout(self.rows[row])
        if len(set(made.query_ends.tolist())) > 1:
            raise BadRow(
                "turns",
                "its images stand in different turns, and stored queries are one a row; "
                "set data.cached_queries = False, or make a row of each turn",
            )
        return made.queries

    def __call__(self, row: int) -> np.ndarray:
        """int32 [data.query_limit + 1]: the row's `ids`, zeros behind them, and their number. Raises BadRow."""
        ids = self.ids(row)
        room = self.layout.data.query_limit - len(ids)
        return np.concatenate([ids, np.zeros(room, np.int32), [len(ids)]]).astype(np.int32)

    def fingerprint(self) -> str:
        """Hash of the limit that is set, and of what the tokenizer makes of SAMPLED rows."""
        total = hashlib.sha256(str(self.limit).encode())
        for row in np.linspace(0, len(self.rows) - 1, min(SAMPLED, len(self.rows))).astype(int).tolist():
            with contextlib.suppress(BadRow):
                ids = self.ids(row)
                total.update(np.array([len(ids), *ids], np.int32).tobytes())
        return total.hexdigest()[:16]


def check_questions(name: str, queries: Features, questions: Questions) -> None:
    """Raises UserError if stored query features are of questions in other tokens."""
    if queries.fingerprint.rpartition("-")[2] != questions.fingerprint():
        raise UserError(
            f"the queries of {name} were made with another tokenizer or data.query_length; write "
            "them anew with launch.prepare_data --queries, or set data.cached_queries = False"
        )
