"""A fit as `plan` needs it: read from `fit.json`, or made from a published table."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
from jaxtyping import Float

from quecc_jax.errors import UserError
from quecc_jax.paths import write_text
from quecc_jax.records import Finite, NonNegative, json_value, sealed, unsealed
from scaling.formatting import Record
from scaling.law import PARAMETERS, Law, Params, Reach, Tokens
from scaling.scores import PUBLISHED, is_published, is_scores, published
from scaling.table import ScoreTable, parse_scores

_Axis = Annotated[list[Annotated[float, msgspec.Meta(gt=0, lt=2**63)]], msgspec.Meta(min_length=1)]


class SavedFit(NamedTuple):
    """A fitted law with its resampled constants.

    samples: leaves [refits], None where the fit has no intervals. params_b (billions) and visual_tokens are the
    sizes and counts it was fitted on, ascending; `table` holds the scores
    where they are known.
    """

    name: str
    law: Law
    samples: Params[np.ndarray] | None
    params_b: Float[np.ndarray, " N"]
    visual_tokens: Float[np.ndarray, " V"]
    reach: Reach
    """What was fitted, with the fit's own text tokens; `with_text` leaves it as it is."""
    findings: tuple[str, ...] = ()
    table: ScoreTable | None = None
    other: Law | None = None
    """The law of the same scores under the other meaning of T."""
    fixed: tuple[str, ...] = ()
    """Constants that were held."""

    def with_text(self, tokens: float) -> "SavedFit":
        """The same laws for queries of so many text tokens."""
        laws = (law and dataclasses.replace(law, query_tokens=tokens) for law in (self.law, self.other))
        law, other = laws
        return self._replace(law=law or self.law, other=other)


def save_fit(path: Path, record: Record) -> None:
    """Writes a fit.json with its checksum, whole or not at all."""
    write_text(path, json.dumps(sealed(record), indent=2, allow_nan=False) + "\n")


def load_fit(source: str, seed: int = 0) -> SavedFit:
    """The fit of a `fit.json`, or of a published table's name.

    Raises:
      UserError: the file cannot be read, or lacks what a plan needs.
    """
    if is_published(source):
        # Imported here: a plan from a file needs no jax.
        from scaling.diagnostics.assess import assess
        from scaling.fit import fit_law

        table = published(source)
        fit = fit_law(table, seed=seed)
        trust = assess(table, fit, seed=seed)
        return SavedFit(
            table.name,
            fit.law,
            trust.samples,
            table.params_b,
            table.visual_tokens,
            fit.law.reach(*table.observed_axes),
            tuple(trust.findings),
            table,
            fit_law(table, "Q+V", seed=seed).law,
        )
    path = Path(source)
    path = path / "fit.json" if path.is_dir() else path
    try:
        raw = path.read_bytes()
    except OSError as problem:
        raise UserError(
            f"Cannot read the fit {path}: {problem.strerror}; give a fit.json of `scaling fit` or the name "
            f"of a published table ({', '.join(PUBLISHED)})."
        ) from None
    told = unsealed(json_value(raw, str(path), "give a fit.json of `scaling fit`"), str(path), "fit anew")
    try:
        return _from_record(told)
    except UserError as problem:
        raise UserError(f"{path}: {problem}") from None
    except (msgspec.ValidationError, OverflowError) as problem:
        raise UserError(f"{path} is not a fit.json of `scaling fit` ({problem}); make it anew.") from None


class StoredLaw(msgspec.Struct):
    """What it says of a law, as of those beside its own."""

    A: Finite
    alpha: Finite
    beta: Finite
    D: Finite
    tokens_convention: Tokens

    def law(self, text: float) -> Law:
        return Law(Params(self.A, self.alpha, self.beta, self.D), self.tokens_convention, text)


class _Record(StoredLaw):
    """What a plan reads of it."""

    query_tokens: NonNegative
    params_b: _Axis
    visual_tokens: _Axis
    name: str = "scores"
    samples: dict[str, list[Finite]] = {}
    rivals: dict[str, StoredLaw] = {}
    findings: list[str] = []
    score: list[list[Finite | None]] | None = None
    stderr: list[list[Finite | None]] | None = None
    fixed: list[str] = []


def _from_record(told: object) -> SavedFit:
    if is_scores(told):
        raise UserError("it is a scores file; run `scaling fit` on it first and give the fit.json it writes.")
    record = msgspec.convert(told, _Record)
    text = record.query_tokens
    law = record.law(text)
    leaves = [np.asarray(record.samples.get(name, []), np.float64) for name in PARAMETERS]
    if len({leaf.shape for leaf in leaves}) != 1:
        raise UserError("its samples are not lists of the same number of numbers.")
    if (leaves[0] < 0).any():
        raise UserError("its samples hold a negative A, by which larger models would err more; fit it anew.")
    others = [each.law(text) for each in record.rivals.values()]
    other = next((each for each in others if each.tokens != law.tokens), None)
    sizes, counts = np.asarray(record.params_b, np.float64), np.asarray(record.visual_tokens, np.float64)
    table = None
    if record.score is not None:
        content = {"params_b": record.params_b, "visual_tokens": record.visual_tokens, "score": record.score}
        table = parse_scores(content if record.stderr is None else content | {"stderr": record.stderr})
    return SavedFit(
        record.name,
        law,
        Params(*leaves) if leaves[0].size else None,
        sizes,
        counts,
        law.reach(*(table.observed_axes if table is not None else (sizes, counts))),
        tuple(record.findings),
        table,
        other,
        tuple(record.fixed),
    )
