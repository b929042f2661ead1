"""Mutants that no test can see, since they do what the original does: by module and changed line."""

from typing import NamedTuple


class Equivalent(NamedTuple):
    """A mutant by its place and what stands there instead, both without the blanks in front."""

    module: str
    line: str
    mutated: str
    reason: str


EQUIVALENT: tuple[Equivalent, ...] = (
    Equivalent(
        "scaling/solver.py", "jnp.inf * one,", "jnp.inf + one,", "Infinite either way, and of the same type."
    ),
    Equivalent(
        "scaling/intervals.py",
        "_FAR = 100.0",
        "_FAR = 99.0",
        "Errors are shares: so far away the constants end on their bounds all the same.",
    ),
    Equivalent(
        "scaling/intervals.py",
        "for _ in range(40):",
        "for _ in range(41):",
        "Forty halvings already end below round-off.",
    ),
    Equivalent(
        "quecc_jax/models/compressors/quecc.py",
        'nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=(0, 1)),',
        'nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=(1, 1)),',
        "The kernel is square, so that both products are k^2.",
    ),
    Equivalent(
        "quecc_jax/train/resume.py",
        "elif jax.process_index() == 0:",
        "elif jax.process_index() <= 0:",
        "No process has a negative number.",
    ),
    Equivalent(
        "quecc_jax/train/loss.py",
        "counts = targets != IGNORE",
        "counts = targets > IGNORE",
        "IGNORE lies below every label.",
    ),
    Equivalent(
        "quecc_jax/data/plans/packing.py",
        "@dataclasses.dataclass(frozen=True, eq=False)",
        "@dataclasses.dataclass(frozen=False, eq=False)",
        "Nothing assigns to it; hashing goes by identity either way.",
    ),
    Equivalent(
        "quecc_jax/data/plans/packing.py",
        "longest = int(self.of_rows.tokens[real].max(initial=0))",
        "longest = int(self.of_rows.tokens[real].max(initial=1))",
        "The shortest length of a batch holds one token.",
    ),
    Equivalent(
        "quecc_jax/data/plans/packing.py",
        "room, slots = length + 1, -1",
        "room, slots = length << 1, -1",
        "Any number above the length of a row is more room than a row can have.",
    ),
    Equivalent(
        "quecc_jax/data/plans/packing.py",
        "room, slots = length + 1, -1",
        "room, slots = length + 1, -2",
        "Any negative number says that no row has been found.",
    ),
    Equivalent(
        "quecc_jax/data/sampler.py",
        "times = [(count + 0.5) / share for count, share in zip(counts, self.shares, strict=True)]",
        "times = [(count + 0.5) / share for count, share in zip(counts, self.shares, strict=False)]",
        "The counts are made from the shares, so that they are as many.",
    ),
    Equivalent(
        "quecc_jax/models/compressors/tokenpacker.py",
        "heads: int = 8",
        "heads: int = 9",
        "`build` always gives the settings' heads.",
    ),
    Equivalent(
        "quecc_jax/models/compressors/fusion.py",
        "jnp.where(takes_part, batch.segments, 0),",
        "jnp.where(takes_part, batch.segments, -1),",
        "What takes no part reads only its like, is read by nobody, and is replaced by the text.",
    ),
)


def _packed(line: str) -> str:
    """Without blanks, which cosmic-ray puts in front of numbers."""
    return line.replace(" ", "")


def reason_of(module: str, diff: str) -> str | None:
    """Why the mutant of a diff, a unified one, is equivalent; None if it is not listed."""
    lines = diff.splitlines()
    gone = [line[1:].strip() for line in lines if line.startswith("-") and not line.startswith("---")]
    come = [line[1:].strip() for line in lines if line.startswith("+") and not line.startswith("+++")]
    for one in EQUIVALENT:
        if (one.module, [one.line], [_packed(one.mutated)]) == (module, gone, [_packed(x) for x in come]):
            return one.reason
    return None
