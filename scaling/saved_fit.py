"""A fit as `plan` needs it: read from `fit.json`, or made from a published table."""

import dataclasses
import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from quecc_jax.errors import UserError
from scaling.formatting import Record
from scaling.law import PARAMETERS, Law, Params
from scaling.scores import PUBLISHED, is_published, is_scores, published
from scaling.table import ScoreTable, parse_scores


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
    findings: tuple[str, ...] = ()
    table: ScoreTable | None = None
    other: Law | None = None
    """The law of the same scores under the other meaning of T."""

    def with_text(self, tokens: float) -> "SavedFit":
        """The same laws for queries of so many text tokens."""
        laws = (law and dataclasses.replace(law, query_tokens=tokens) for law in (self.law, self.other))
        law, other = laws
        return self._replace(law=law or self.law, other=other)


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
            tuple(trust.findings),
            table,
            fit_law(table, "Q+V", seed=seed).law,
        )
    path = Path(source)
    path = path / "fit.json" if path.is_dir() else path
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise UserError(
            f"Cannot read the fit {path}: {problem.strerror}; give a fit.json of `scaling fit` or the name "
            f"of a published table ({', '.join(PUBLISHED)})."
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise UserError(f"{path} is not JSON; give a fit.json of `scaling fit`.") from None
    try:
        return _from_record(record)
    except UserError as problem:
        raise UserError(f"{path}: {problem}") from None
    except (AttributeError, KeyError, TypeError, ValueError) as problem:
        raise UserError(
            f"{path} is not a fit.json of `scaling fit` ({type(problem).__name__}: {problem}); make it anew."
        ) from None


def _from_record(record: Record) -> SavedFit:
    if is_scores(record):
        raise UserError("it is a scores file; run `scaling fit` on it first and give the fit.json it writes.")
    text = float(record["query_tokens"])
    law = _law(record, text)
    if not all(map(math.isfinite, law.params)):
        raise UserError("its constants are not numbers.")
    leaves = [np.asarray(record.get("samples", {}).get(name, []), np.float64) for name in PARAMETERS]
    if len({leaf.shape for leaf in leaves}) != 1 or not np.isfinite(leaves).all():
        raise UserError("its samples are not lists of the same number of numbers.")
    if (leaves[0] < 0).any():
        raise UserError("its samples hold a negative A, by which larger models would err more; fit it anew.")
    others = [_law(each, text) for each in record.get("rivals", {}).values()]
    other = next((each for each in others if each.tokens != law.tokens), None)
    sizes, counts = (np.asarray(record[key], np.float64) for key in ("params_b", "visual_tokens"))
    table = None
    if "score" in record:
        table = parse_scores({key: record[key] for key in ("params_b", "visual_tokens", "score")})
    return SavedFit(
        str(record.get("name", "scores")),
        law,
        Params(*leaves) if leaves[0].size else None,
        sizes,
        counts,
        tuple(map(str, record.get("findings", ()))),
        table,
        other,
    )


def _law(record: Record, text: float) -> Law:
    params = Params(*(float(record[name]) for name in PARAMETERS))
    return Law(params, record["tokens_convention"], text)
