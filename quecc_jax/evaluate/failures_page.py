"""A page of wrong answers with their images: one file, no network, light and dark."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from quecc_jax.evaluate.results import Results, Scored
from quecc_jax.evaluate.tasks.base import Judged
from quecc_jax.pages.page import data_uri, render, write_atomically

SHOWN = 100
"""Answers shown of one benchmark."""
_SIDE = 320


def write_failures(path: Path, results: Results, judged: Mapping[str, Sequence[Judged]]) -> None:
    """Writes the page: for each benchmark answers that are not fully right, or any where none is scored.

    At most SHOWN of a benchmark, spread evenly over it. A text field narrows them down.
    """
    tasks = [_task(name, results["tasks"][name], answers) for name, answers in judged.items()]
    lead = f"Wrong answers of {results['model']} with {results['visual_tokens']} visual tokens an image."
    title = "Where the answers fail"
    write_atomically(path, render("evaluate/failures.html", title=title, lead=lead, tasks=tasks))


def _task(name: str, task: Scored, answers: Sequence[Judged]) -> dict[str, object]:
    """What the template says of one benchmark."""
    wrong = [one for one in answers if one.score is None or one.score < 1]
    shown = wrong[:: max(1, -(-len(wrong) // SHOWN))]
    said = f"{len(wrong):,} of {len(answers):,} answers are not fully right"
    if task["headline"] is None and "submit" in task:
        said = f"{len(answers):,} answers; {task['submit']} tells how right they are"
    part = f"; {len(shown)} of them below" if len(shown) < len(wrong) else ""
    return {"name": name, "said": f"{task['about']}. {said}{part}.", "cards": [_card(one) for one in shown]}


def _card(one: Judged) -> dict[str, object]:
    """The question's id, an answer's images, as URIs, and its lines: label, text, CSS class."""
    truth = one.sample.truth
    lines = [("asked", one.sample.prompt, ""), ("answered", one.answer or "(nothing)", "said")]
    if one.parsed != one.answer:
        lines.append(("read as", one.parsed or "(nothing)", ""))
    if truth is not None:
        every = truth if isinstance(truth, list) else [truth]
        lines.append(("right", ", ".join(dict.fromkeys(map(str, every))), ""))
    if one.score is not None:
        lines.append(("score", f"{one.score:.2f}", ""))
    lines.append(("id", str(one.sample.id), ""))
    images = [_thumbnail(image) for image in one.sample.images]
    return {"id": one.sample.id, "images": images, "lines": lines}


def _thumbnail(content: str | bytes) -> str:
    """A small JPEG as a data URI."""
    from quecc_jax.data.images import open_image

    image = open_image(io.BytesIO(content) if isinstance(content, bytes) else content)
    image.thumbnail((_SIDE, _SIDE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return data_uri(out.getvalue(), "jpeg")
