"""A joint fit over compressors in words: its record, its tables and its page."""

import math

from quecc_jax.pages.page import Section, bullets, html_page, paragraph, table_html
from scaling.diagnostics.joint import FTest, Joint, JointFit, formula, half_width
from scaling.formatting import Record
from scaling.law import PARAMETERS

Table = tuple[list[str], list[list[str]]]
"""Header and rows."""
_IN_WORDS = {
    "one": "one law for all",
    "rates": "own beta",
    "tokens": "own A and beta",
    "separate": "a law for each",
}


def advice(found: Joint) -> str:
    """Whether the law depends on the compressor, and in what."""
    depends, size_too = found.depends, found.size_too
    if not depends.rejects:
        said = f"These scores do not show that the law depends on the compressor ({_f_text(depends)})"
    else:
        said = f"The law depends on the compressor: own A and beta explain more than noise would ({_f_text(depends)})"
    if size_too.rejects:
        return f"{said}. So does what size is worth: an own alpha and D explain still more ({_f_text(size_too)})."
    return f"{said}. One alpha and one D serve all: own ones explain no more than noise would ({_f_text(size_too)})."


def notes(found: Joint) -> list[str]:
    """What a reader must know before acting on it."""
    best = min(found.fits.values(), key=lambda fit: fit.aicc)
    t = "visual tokens V" if found.tokens == "V" else "text and visual tokens Q + V"
    said = [
        f"By AICc the best of the four is {_IN_WORDS[best.name]} ({formula(best.name)}), with "
        f"{100 * best.weight:.0f} % of the belief.",
        f"T counts {t}. The tests suppose noise of one size, independent from cell to cell: compressors that were "
        "trained on one language model share its luck.",
    ]
    rates = next(test for test in found.tests if (test.smaller, test.larger) == ("rates", "tokens"))
    if found.tokens == "V" and not rates.rejects:
        said.append(
            f"With one visual token the compressors are not told apart: an own A explains no more ({_f_text(rates)})."
        )
    return said


def tables(found: Joint) -> dict[str, Table]:
    """The four laws, the tests and the joint law's constants, by their titles."""
    best = min(fit.aicc for fit in found.fits.values())
    laws = [
        [
            _IN_WORDS[name],
            formula(name),
            str(fit.n_parameters),
            f"{fit.sse:.4e}",
            f"+{fit.aicc - best:.1f}",
            f"{100 * fit.weight:.0f} %",
        ]
        for name, fit in found.fits.items()
    ]
    tests = [
        [
            _IN_WORDS[t.smaller],
            _IN_WORDS[t.larger],
            _number(t.statistic),
            f"{t.dof[0]}, {t.dof[1]}",
            f"{t.p:.2g}",
        ]
        for t in found.tests
    ]
    joint, half = found.fits["tokens"], half_width(found, "tokens")
    a, beta = joint.constants.A, joint.constants.beta
    constants = [
        [name, str(found.n_points[c]), _with(a[c], a[c] * half.A[c]), _with(beta[c], half.beta[c])]
        for c, name in enumerate(found.names)
    ]
    shared = ", ".join(
        f"{name} {_with(getattr(joint.constants, name)[0], getattr(half, name)[0])}"
        for name in ("alpha", "D")
    )
    return {
        "Laws of all compressors together": (["law", "error =", "constants", "SSE", "AICc", "weight"], laws),
        "F tests": (["law", "against", "F", "degrees of freedom", "p"], tests),
        f"The joint law's constants; shared: {shared}": (
            ["compressor", "scores", "A_c", "beta_c"],
            constants,
        ),
    }


def record(found: Joint) -> Record:
    """What joint.json holds; plain JSON values, null where a number does not exist."""
    return {
        "tokens_convention": found.tokens,
        "compressors": [
            {"name": name, "query_tokens": q, "n_points": count}
            for name, q, count in zip(found.names, found.query_tokens, found.n_points, strict=True)
        ],
        "laws": [_law_record(found, fit) for fit in found.fits.values()],
        "tests": [
            {
                "smaller": t.smaller,
                "larger": t.larger,
                "F": t.statistic if math.isfinite(t.statistic) else None,
                "dof": list(t.dof),
                "p": t.p,
            }
            for t in found.tests
        ],
        "advice": advice(found),
        "notes": notes(found),
    }


def _law_record(found: Joint, fit: JointFit) -> Record:
    half = half_width(found, fit.name)
    return {
        "name": fit.name,
        "formula": formula(fit.name),
        "n_parameters": fit.n_parameters,
        "sse": fit.sse,
        "aicc": fit.aicc,
        "weight": fit.weight,
        "constants": {
            name: {
                p: {
                    "value": float(getattr(fit.constants, p)[c]),
                    # Of A as a share of it.
                    "half_width_95": _plain(float(getattr(half, p)[c])),
                }
                for p in PARAMETERS
            }
            for c, name in enumerate(found.names)
        },
    }


def page(found: Joint) -> str:
    """The whole document."""
    made = tables(found)
    sections = [
        Section(
            "Does the law depend on the compressor?",
            [paragraph(advice(found)), bullets(notes(found), "note")],
        ),
        *(Section(title, [table_html(rows, header, title)]) for title, (header, rows) in made.items()),
    ]
    return html_page(
        f"Joint law: {', '.join(found.names)}", sections, f"{formula('tokens')}, c the compressor"
    )


def _f_text(test: FTest) -> str:
    return f"F({test.dof[0]}, {test.dof[1]}) = {_number(test.statistic)}, p = {test.p:.2g}"


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "infinite"


def _with(value: float, half: float) -> str:
    return f"{value:.4g}" + (f" ± {half:.2g}" if math.isfinite(half) else " (on its bound)")


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
