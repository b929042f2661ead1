"""A page of wrong answers with their pictures: one file, no network, light and dark."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quecc_jax.pages.page import Section, html_page, paragraph, write_atomically

if TYPE_CHECKING:
    from quecc_jax.evaluate.tasks.base import Judged

SHOWN = 100
"""Answers shown of one benchmark."""
_SIDE = 320
_STYLE = """
main { max-width: 72rem; }
nav { position: sticky; top: 0; background: var(--paper); padding: .75rem 0; z-index: 1; display: flex;
  flex-wrap: wrap; gap: .5rem 1rem; align-items: center; border-bottom: 1px solid var(--line); }
nav a { color: var(--accent); }
nav input { flex: 1 1 14rem; font: inherit; padding: .35rem .6rem; border: 1px solid var(--line);
  border-radius: 6px; background: var(--soft); color: var(--ink); }
section:first-of-type { display: contents; }
section > a { display: block; scroll-margin-top: 4rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem; }
.card { background: var(--soft); border-radius: 10px; padding: .75rem; font-size: .88rem; line-height: 1.45;
  overflow-wrap: anywhere; }
.card img { display: block; max-width: 100%; max-height: 15rem; margin: 0 auto .6rem; border-radius: 6px; }
.card p { margin: .35rem 0; white-space: pre-wrap; }
.card b { color: var(--muted); font-weight: 600; }
.card .said { border-left: 3px solid var(--accent); padding-left: .6rem; }
.card[hidden] { display: none; }
"""
_SCRIPT = """<script>
addEventListener("DOMContentLoaded", () => {
const field = document.querySelector("nav input"), count = document.querySelector("nav output");
const cards = [...document.querySelectorAll(".card")];
function search() {
  const words = field.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let shown = 0;
  for (const card of cards) {
    const text = card.textContent.toLowerCase();
    card.hidden = !words.every(word => text.includes(word));
    shown += !card.hidden;
  }
  count.textContent = shown + " of " + cards.length;
}
field.addEventListener("input", search);
search();
});
</script>"""


def write_failures(path: Path, results: Mapping[str, Any], judged: "Mapping[str, Sequence[Judged]]") -> None:
    """Writes the page: for each benchmark answers that are not fully right, or any where none is scored.

    At most SHOWN of a benchmark, spread evenly over it. A text field narrows them down.
    """
    sections, links = [], []
    for name, answers in judged.items():
        wrong = [one for one in answers if one.score is None or one.score < 1]
        step = max(1, -(-len(wrong) // SHOWN))
        shown = wrong[::step]
        task = results["tasks"][name]
        scored = task["headline"] is not None
        told = (
            f"{len(wrong):,} of {len(answers):,} answers are not fully right"
            if scored
            else (f"{len(answers):,} answers; {task['submit']} tells how right they are")
        )
        part = f"; {len(shown)} of them below" if len(shown) < len(wrong) else ""
        cards = "".join(map(_card, shown))
        sections.append(
            Section(
                name,
                [
                    f'<a id="{html.escape(name)}"></a>',
                    paragraph(f"{task['about']}. {told}{part}.", "muted"),
                    f'<div class="cards">{cards}</div>',
                ],
            )
        )
        links.append(f'<a href="#{html.escape(name)}">{html.escape(name)}</a>')
    search = '<input type="search" placeholder="words in question or answer" aria-label="Search">'
    bar = Section("Benchmarks", [f"<nav>{' '.join(links)}{search}<output></output></nav>", _SCRIPT])
    lead = f"Wrong answers of {results['model']} with {results['visual_tokens']} visual tokens a picture."
    write_atomically(path, html_page("Where the answers fail", [bar, *sections], lead, _STYLE))


def _card(one: "Judged") -> str:
    pictures = "".join(f'<img alt="" src="{_thumbnail(image)}">' for image in one.sample.images)
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
    body = "".join(f'<p class="{kind}"><b>{label}</b> {html.escape(text)}</p>' for label, text, kind in lines)
    return f'<article class="card">{pictures}{body}</article>'


def _thumbnail(image: str | bytes) -> str:
    """A small JPEG as a data URI."""
    from quecc_jax.data.images import open_image

    picture = open_image(io.BytesIO(image) if isinstance(image, bytes) else image)
    picture.thumbnail((_SIDE, _SIDE))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
