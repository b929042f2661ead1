"""How large a table of scores may be, so that a fit and its page take about ten seconds on two cores."""

from quecc_jax.errors import UserError

FILE_BYTES = 8 * 2**20
"""A file of scores; the largest table, of all tasks and five seeds, takes less."""
SCORES = 100_000
"""Single scores in a file, of all tasks and seeds together."""
AXIS = 50
"""Sizes, or numbers of visual tokens; each has a colour, a column or a marker on the page."""
CELLS = 500
"""Pairs of both; the fit is repeated without each of them, and a thousand times on noise, on all the others."""
TASKS = 24
"""Tasks, each fitted by itself with a thousand refits of its own."""
TASK_CELLS = 1200
"""Cells of all tasks together."""
LETTERS = 200
"""Letters of a name that titles and tables show."""
MOST_TOKENS = 1e7
"""Visual tokens, or text tokens of a query: more than any model reads."""
LEAST = 1e-9
"""Billions of parameters, or visual tokens: one parameter, and less than any compressor leaves on average."""
CHOICES = 1000
"""Pairs of LLM and visual tokens that a plan compares, each counted part by part."""
PREDICTIONS = 20_000_000
"""Errors that a plan predicts, a choice by a refit each: of all choices by ten thousand refits, 160 MB twice."""
WEIGHED = 16_000
"""Noisy scores that a proposal weighs, of each candidate for each cell, draw and budget, in half a minute."""


def refuse_axis(count: int, key: str) -> None:
    """Raises UserError for more numbers along one axis than a figure can tell apart."""
    if count > AXIS:
        raise UserError(
            f"{key!r} lists {count:,} numbers, and a fit takes at most {AXIS}, since each has a colour or a "
            "column on its page; keep fewer, spread evenly on a logarithmic scale."
        )


def refuse_table(sizes: int, counts: int, tasks: int) -> None:
    """Raises UserError for a table that would take minutes."""
    refuse_axis(sizes, "params_b")
    refuse_axis(counts, "visual_tokens")
    if sizes * counts > CELLS:
        raise UserError(
            f"{sizes} sizes by {counts} numbers of visual tokens are {sizes * counts:,} cells, and a fit takes "
            f"at most {CELLS}, since it is repeated without each of them; leave sizes or numbers out."
        )
    if tasks > TASKS or (tasks > 1 and tasks * sizes * counts > TASK_CELLS):
        raise UserError(
            f"There are scores of {tasks:,} tasks in {sizes * counts} cells, and a fit takes at most {TASKS} tasks "
            f"and {TASK_CELLS:,} cells of all tasks together, since each is refitted a thousand times by itself; "
            "average tasks first, or leave some out."
        )


def refuse_letters(text: str, what: str) -> None:
    """Raises UserError for a name that no title or table can hold."""
    if len(text) > LETTERS:
        raise UserError(
            f"{what} {text[:40]!r}... has {len(text):,} letters, and titles and tables have room for {LETTERS}; "
            "shorten it."
        )


def refuse_choices(choices: int, refits: int) -> None:
    """Raises UserError for a plan that would take minutes, or more memory than there may be."""
    if choices > CHOICES:
        raise UserError(
            f"There are {choices:,} pairs of LLM and visual tokens to choose from, and a plan takes at most "
            f"{CHOICES:,}, since it counts each part by part; name fewer with --llms and --visual-tokens."
        )
    if choices * refits > PREDICTIONS:
        raise UserError(
            f"{choices:,} choices by {refits:,} refits of the fit are {choices * refits:,} predictions, and a "
            f"plan makes at most {PREDICTIONS:,}; fit again with fewer --refits, or name fewer choices."
        )


def refuse_cells(cells: int, scores: int) -> None:
    """Raises UserError for a proposal that would take minutes; each candidate gets `scores` noisy scores."""
    if cells > CELLS:
        raise UserError(
            f"There are {cells:,} cells to choose from, and a proposal weighs at most {CELLS}; name fewer with --llms "
            "and --visual-tokens."
        )
    if cells * scores > WEIGHED:
        raise UserError(
            f"{cells:,} candidates by {scores:,} noisy scores (--count, by --draws, by budgets) are "
            f"{cells * scores:,}, and a proposal weighs at most {WEIGHED:,}; lower one of them."
        )
