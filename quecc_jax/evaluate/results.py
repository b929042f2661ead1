"""What results.json holds of a run on benchmarks."""

from typing import NotRequired, TypedDict

from quecc_jax.generate.reuse import Reused


class Metric(TypedDict):
    """A metric in the units of its benchmark, mostly %; the error is None where it is undefined."""

    value: float
    standard_error: float | None


class UsedScorer(TypedDict):
    """The rule that read the answers, the program it follows, and what else could have read them."""

    name: str
    follows: str
    others: list[str]


class Summary(TypedDict):
    """What results.json says of the answers to one benchmark."""

    about: str
    questions: int
    units: int
    """Questions that are drawn together count once."""
    unread: int
    """Answers in which the scorer found nothing."""
    scorer: UsedScorer
    headline: str | None
    """None where the truth is not public, or no question was asked that the headline counts."""
    metrics: dict[str, Metric]
    submit: NotRequired[str]
    note: NotRequired[str]


class Scored(Summary):
    """One benchmark of results.json."""

    cut_questions: int
    """Questions of which data.query_length cut what the compressor reads."""
    seconds: float
    reuse: dict[str, Reused]


class Results(TypedDict):
    """What results.json holds."""

    model: str
    checkpoint: str
    visual_tokens: int
    weights: str
    image_decoding: str
    limit: int | None
    resamples: int
    seed: int
    tasks: dict[str, Scored]
