"""Inspected rows on a terminal."""

import numpy as np
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from quecc_jax.data.preview.rows import Conversation, Row, Seen

STYLES = {"prompt": "dim", "answer": "bold green", "image": "black on cyan"}
WIDTH = 16
"""Columns of an image; a line of text holds two lines of pixels."""


def show(seen: Seen, console: Console | None = None) -> None:
    """Prints the facts and every row; colours say what carries loss."""
    console = console or Console()
    table = Table.grid(padding=(0, 2))
    for name, value in seen.facts:
        table.add_row(Text(name, "dim"), Text(value))
    console.print(table)
    legend = Text("prompt, no loss", STYLES["prompt"]) + Text("  ") + Text("carries loss", STYLES["answer"])
    console.print(legend + Text("  ") + Text(" visual tokens ", STYLES["image"]))
    for number, row in enumerate(seen.rows, start=1):
        console.print(_panel(number, row))


def _panel(number: int, row: Row) -> Panel:
    used = sum(talk.tokens for talk in row.talks)
    images = sum(len(talk.views) for talk in row.talks)
    title = (
        f"{number}: batch {row.batch}, row {row.number}, {used} of {row.length} tokens, "
        f"{images} of {row.images} images"
    )
    parts = [_talk(segment, talk) for segment, talk in enumerate(row.talks, start=1)]
    parts += [Group(Text(f"left out: {why}", "bold red")) for why in row.left_out]
    return Panel(Group(*parts), title=title, title_align="left")


def _talk(segment: int, talk: Conversation) -> Group:
    text = Text()
    for span in talk.spans:
        text.append(f" {span.text} " if span.kind == "image" else span.text, STYLES[span.kind])
        text.append(" ")
    head = Text(f"segment {segment}: {talk.tokens} tokens, {talk.learned} carry loss", "bold")
    queries = [
        Text(f"query {k} ({view.tokens} tokens): {view.query}", "magenta")
        for k, view in enumerate(talk.views, start=1)
    ]
    shown = [half_blocks(view.pixels) for view in talk.views if view.pixels is not None]
    beside = Table.grid(padding=(0, 2))
    beside.add_row(*([Group(*shown)] if shown else []), Group(text, *queries))
    return Group(head, Text(talk.where, "dim"), beside, Text(""))


def half_blocks(pixels: np.ndarray, width: int = WIDTH) -> Text:
    """An image in half blocks of its colours, `width` columns wide."""
    step = pixels.shape[0] / width
    at = (np.arange(width) * step + step / 2).astype(int)
    small = pixels[at][:, at]
    text = Text()
    for upper, lower in zip(small[0::2], small[1::2], strict=False):
        for a, b in zip(upper.tolist(), lower.tolist(), strict=True):
            text.append("▀", f"rgb({a[0]},{a[1]},{a[2]}) on rgb({b[0]},{b[1]},{b[2]})")
        text.append("\n")
    return text
