"""How far the scores of one model move with the seed of its training, as three seeds of the demo showed it."""

import json
from importlib import resources

FILE = "seed_spread.json"
"""Standard deviations by decoder and kind of question: `stats.seed_spreads` of the rows in
docs/demo.json."""


def seed_spreads(decoder: str) -> tuple[tuple[str, float], ...]:
    """Standard deviation over seeds of a decoder's share of right answers, by kind of question; empty for one
    that the demo does not train."""
    measured = json.loads(resources.files(__package__).joinpath(FILE).read_text())
    return tuple(measured.get(decoder, {}).items())
