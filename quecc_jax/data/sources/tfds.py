"""LLaVA rows as a tensorflow-datasets data set, written and read without TensorFlow.

What needs TensorFlow is avoided: the files are ArrayRecord, images go in and come out as the bytes of
their files, and reading is random access (`as_data_source`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import tensorflow_datasets as tfds

from quecc_jax.data.references import Row
from quecc_jax.data.sources.array_record import Recipe
from quecc_jax.errors import UserError

T = TypeVar("T")


class LlavaRows(tfds.core.GeneratorBasedBuilder):
    """LLaVA conversations and their images, in the order of their file."""

    VERSION = tfds.core.Version("1.0.0")
    # Nothing is downloaded; looking up checksums would need a package that training does not.
    url_infos: ClassVar[dict[str, object]] = {}

    def __init__(
        self,
        split: str = "train",
        rows: Callable[[], Iterable[Mapping[str, object]]] = tuple,
        recipe: Recipe | None = None,
        **more: Any,
    ):
        """
        Args:
          split: the name of the only split.
          rows: gives {"id": text, "images": list of files' bytes, "conversations": turns}.
          recipe: how the images were made, kept beside them; None where they are as they were.
          more: as for every builder.
        """
        self._split, self._rows, self._recipe = split, rows, recipe or Recipe()
        super().__init__(file_format="array_record", **more)

    def _info(self) -> tfds.core.DatasetInfo:
        turn = {"from": tfds.features.Text(), "value": tfds.features.Text()}
        features = tfds.features.FeaturesDict(
            {
                "id": tfds.features.Text(),
                "images": tfds.features.Sequence(tfds.features.Image()),
                "conversations": tfds.features.Sequence(turn),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self,
            features=features,
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(recipe=vars(self._recipe)),
            description="LLaVA conversations with their images.",
        )

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator[tuple[int, Mapping[str, object]]]]:
        del dl_manager
        return {self._split: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, Mapping[str, object]]]:
        yield from enumerate(self._rows())


class Undecoded(tfds.decode.Decoder):
    """Leaves images as the bytes of their files."""

    def decode_example(self, serialized_example: T) -> T:
        return serialized_example

    def decode_example_np(self, serialized_example: T) -> T:
        return serialized_example

    def decode_batch_example_np(self, serialized_example: T) -> T:
        return serialized_example


class TfdsRows(Sequence[Row]):
    """Rows in LLaVA's form; "image" holds the bytes of the images' files.

    Args:
      directory: a data set of tensorflow-datasets with the features of `LlavaRows`; the folder that
        holds dataset_info.json, or one above.
      split: which of its splits.

    Raises:
      UserError: it is none, or has not this split or these features.
    """

    def __init__(self, directory: str, split: str):
        found = sorted({info.parent for info in Path(directory).rglob("dataset_info.json")})
        if len(found) != 1:
            raise UserError(
                f"{directory} holds {len(found)} data sets of tensorflow-datasets; name the "
                "folder of one dataset_info.json"
            )
        self.directory, self.split = str(found[0]), split
        try:
            builder = tfds.builder_from_directory(self.directory)
            self._source = builder.as_data_source(split, decoders={"images": Undecoded()})
        except Exception as error:
            # Each wrong file, name or feature has its own exception there.
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"{self.directory}, split {split} cannot be read ({reason}); make it with python "
                "-m launch.prepare_data --format tfds"
            ) from None
        kept = (builder.info.metadata or {}).get("recipe")
        self.recipe = Recipe(**kept) if kept else Recipe()
        missing = {"images", "conversations"} - set(builder.info.features or ())
        if missing:
            raise UserError(
                f"{self.directory} has no {' and no '.join(sorted(missing))}; make it with "
                "python -m launch.prepare_data --format tfds"
            )

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, row: int) -> Row:  # type: ignore[override]
        found = self._source[row]
        said = found["conversations"]
        turns = [
            {"from": who.decode(), "value": text.decode()}
            for who, text in zip(said["from"], said["value"], strict=True)
        ]
        made = {"id": found["id"].decode()} if "id" in found else {}
        return {**made, "image": list(found["images"]), "conversations": turns}
