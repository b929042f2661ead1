"""Inspected rows as one self-contained page, light and dark."""

import io

import numpy as np
from PIL import Image

from quecc_jax.data.preview.rows import Row, Seen
from quecc_jax.pages.page import data_uri, render, table_html

SIDE = 336
"""Pixels of an image on the page, at most."""
_LEAD = (
    "The first rows of the first batches, read back from the arrays that the model gets: images as the tower "
    "sees them, and every token that carries loss marked."
)


def page(seen: Seen) -> str:
    """The whole document."""
    return render(
        "data/preview/page.html",
        title=f"Data of {seen.config.out}",
        lead=_LEAD,
        facts=table_html(seen.facts, ["of the stream", "value"], "Facts about the stream"),
        rows=[_row(row) for row in seen.rows],
    )


def _row(row: Row) -> dict[str, object]:
    """What the template says of a row: its fields, sums over its conversations, and images as URIs."""
    used = sum(talk.tokens for talk in row.talks)
    talks = []
    for talk in row.talks:
        views = [
            view._asdict() | {"image": None if view.pixels is None else _image(view.pixels)}
            for view in talk.views
        ]
        talks.append(talk._asdict() | {"views": views})
    images = sum(len(talk.views) for talk in row.talks)
    return row._asdict() | {
        "talks": talks,
        "used": used,
        "share": f"{used / row.length:.0%}",
        "shown": images,
    }


def _image(pixels: np.ndarray) -> str:
    """A data URI of pixels [height, width, 3], uint8, made smaller where they are more than SIDE."""
    image, held = Image.fromarray(pixels), io.BytesIO()
    if max(image.size) > SIDE:
        image.thumbnail((SIDE, SIDE))
    kind = "png" if max(image.size) < 128 else "jpeg"
    image.save(held, kind.upper(), quality=88)
    return data_uri(held.getvalue(), kind)
