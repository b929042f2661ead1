"""Rows with their images' records in them, as tensorflow-datasets stores them."""

from collections.abc import Iterator
from typing import cast

from quecc_jax.data.preparing.image_shards import stored
from quecc_jax.data.preparing.prepare import finder, open_filled
from quecc_jax.data.references import image_refs
from quecc_jax.data.sources.array_record import Recipe
from quecc_jax.data.sources.source import Placed
from quecc_jax.errors import BadRow, UserError
from quecc_jax.paths import AnyPath


def inline_rows(
    data: AnyPath, images: tuple[str, ...], recipe: Recipe, *, split: str = "train", skip_bad: bool = False
) -> Iterator[dict[str, object]]:
    """The rows of a LLaVA file, or of Parquet, with their images' records in them, as `tfds.LlavaRows` takes them.

    Raises:
      UserError: the file cannot be read or has no rows; and from the iterator, a row or an image cannot be
        read; with `skip_bad` such rows are left out.
    """
    return _inline(open_filled(data, images, split), images, recipe, skip_bad)


def _inline(
    rows: Placed, images: tuple[str, ...], recipe: Recipe, skip_bad: bool
) -> Iterator[dict[str, object]]:
    find = finder(rows, images)
    for number in range(len(rows)):
        try:
            row = rows[number]
            try:
                found = [stored(find(ref), recipe) for ref in image_refs(row)]
                said = cast(list[dict[str, str]], row["conversations"])
                turns = [{"from": turn["from"], "value": turn["value"]} for turn in said]
            except (AttributeError, KeyError, TypeError):
                raise BadRow(
                    "turns", "it has no list of conversations with 'from' and 'value'; write one"
                ) from None
        except BadRow as error:
            if not skip_bad:
                raise UserError(
                    f"{error.at(rows.where(number))}; or leave such rows out with --bad skip"
                ) from None
            continue
        yield {"id": str(row.get("id", number)), "images": found, "conversations": turns}
