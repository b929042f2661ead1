"""What compare.json holds."""

from typing import NotRequired, TypedDict


class Number(TypedDict):
    """An estimate in percent, or points; errors are None where they are undefined."""

    value: float | None
    standard_error: float | None
    low: float | None
    """End of the 95 % interval."""
    high: float | None


class Against(TypedDict):
    """A model against the first, on one benchmark or on the mean of all."""

    model: str
    difference: Number
    """Points in the model's favour."""
    p: float
    """By the paired bootstrap."""
    p_corrected: float
    """By Holm, over all of the comparison."""
    first_alone: NotRequired[int]
    model_alone: NotRequired[int]
    mcnemar_p: NotRequired[float]
    mcnemar_p_corrected: NotRequired[float]


class Part(TypedDict):
    """Some questions of a benchmark: a kind, a turn, or those that one size of shrunk images answers first."""

    name: str
    questions: int
    scores: dict[str, Number]
    differences: dict[str, Number]
    """To the first model."""


class Compared(TypedDict):
    """One benchmark."""

    questions: int
    images: int
    """Or, of answers that do not tell their image, questions."""
    scorer: str
    headlines: dict[str, str]
    scores: dict[str, Number]
    against: list[Against]
    retention: dict[str, Number]
    fineness: list[Part]
    turns: list[Part]
    kinds: list[Part]


class Model(TypedDict):
    """A folder of answers."""

    name: str
    folder: str
    visual_tokens: int


class Comparison(TypedDict):
    """What compare.json holds."""

    models: list[Model]
    first: str
    uncompressed: str | None
    downsample: list[str]
    resamples: int
    seed: int
    tasks: dict[str, Compared]
    overall: NotRequired[list[Against]]
    overall_retention: NotRequired[dict[str, Number]]
    notes: list[str]
