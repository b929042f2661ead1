"""Opens the sources of a run, of every kind; a new kind is one more branch here."""

import dataclasses
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import cast

from quecc_jax.config import DataConfig, ModelConfig, SourceConfig
from quecc_jax.data.elastic import text_length
from quecc_jax.data.images import ImageReader
from quecc_jax.data.references import ImageRef, Row
from quecc_jax.data.sources import easy_vqa
from quecc_jax.data.sources.array_record import check_recipe, open_prepared, prepared_images
from quecc_jax.data.sources.feature_store import read_features, read_tower_features
from quecc_jax.data.sources.folders import Folders
from quecc_jax.data.sources.mixture import open_rows
from quecc_jax.data.sources.parquet import ParquetRows
from quecc_jax.data.sources.pool import read_pool
from quecc_jax.data.sources.pool_source import PoolSource
from quecc_jax.data.sources.questions import Questions, check_questions
from quecc_jax.data.sources.source import Arrange, Layout, RowSource, Source
from quecc_jax.data.text.tokenizer import Tokenizer, load_tokenizer
from quecc_jax.errors import UserError


def check_vocabularies(tokenizer: Tokenizer, model: ModelConfig) -> None:
    """Raises UserError if a tokenizer has more tokens than what reads them."""
    readers = [
        ("model.decoder", tokenizer, model.decoder.vocab_size),
        ("model.query.text", tokenizer.questions, model.query.text.vocab_size),
    ]
    for name, one, room in readers:
        if one is not None and len(one) > room:
            raise UserError(
                f"the tokenizer in {one.directory} has {len(one)} tokens, but {name}.vocab_size "
                f"is {room}; raise it or give the model's own tokenizer"
            )


def open_sources(
    data: DataConfig,
    model: ModelConfig,
    fingerprint: str | None = None,
    asked: int | None = None,
    latest: bool = False,
) -> list[Source]:
    """Opens the sources of a run in the order of the config.

    Args:
      data: Sources, tokenizer, template and lengths.
      model: Gives the visual tokens of an image and the tower's sizes.
      fingerprint: The tower that cached features must be of; None takes any.
      asked: Lay rows out for generation: stop where the answer to this human turn, from 0, begins.
      latest: With `asked`: that turn conditions every image, not the one that holds it.

    Raises:
      UserError: no source, an empty or unreadable one, one without the features that are asked for, or
        a tokenizer with more tokens than the model.
    """
    if not data.sources:
        raise UserError("data.sources is empty; name at least one data set")
    tokenizer = load_tokenizer(data.tokenizer, data.query_tokenizer)
    check_vocabularies(tokenizer, model)
    text = dataclasses.replace(data, max_length=text_length(data, model))
    layout = Layout(tokenizer, data, model.visual_tokens, asked, latest, text)
    sources = [_open_source(config, layout, model, fingerprint) for config in data.sources]
    for config, source in zip(data.sources, sources, strict=True):
        if not len(source):
            raise UserError(f"source {config.path or config.kind} has no rows; remove it or fill it")
    return sources


def _open_source(config: SourceConfig, layout: Layout, model: ModelConfig, fingerprint: str | None) -> Source:
    if config.kind == "pool":
        return PoolSource(config.path, layout, model, fingerprint)
    data, vision, rows = layout.data, model.vision, _readable_rows(config, layout.data)
    queries, read = None, None
    if config.kind == "array_record":
        images = prepared_images(open_prepared(config.path), vision, data)
        if data.cached_features and data.images_per_row:
            read = read_tower_features(config.path, model, fingerprint).of_image
        if data.cached_queries:
            queries = read_features(config.path, name="queries")
            check_questions(config.path, queries, Questions(rows, layout))
    elif config.kind == "tfds":
        check_recipe(config.path, rows.recipe, vision, data)  # type: ignore[attr-defined]
        images = ImageReader(cast(Callable[[ImageRef], BytesIO], BytesIO), vision, data)
    elif isinstance(rows, ParquetRows):
        images = ImageReader(rows.image, vision, data)
    else:
        images = ImageReader(Folders(config.roots).find, vision, data)
    if vision.tiles and data.images_per_row:
        layout = layout._replace(arrange=Arrange(images.size, model))
    return RowSource(config.path or f"easy-VQA {config.split}", rows, read or images, layout, queries)


def _readable_rows(config: SourceConfig, data: DataConfig) -> Sequence[Row]:
    """The rows of a source that is no pool, if it can hold what the run reads beside them."""
    if data.cached_queries and config.kind != "array_record":
        raise UserError(
            f"data.cached_queries needs prepared data, but a source is {config.kind}; make "
            "it with launch.prepare_data, or set data.cached_queries = False"
        )
    if data.cached_features and config.kind != "array_record":
        raise UserError(
            "data.cached_features needs prepared data or pools, but a source is "
            f"{config.kind}; make it with launch.prepare_data, or set "
            "data.cached_features = False"
        )
    return read_rows(config)


def read_rows(config: SourceConfig) -> Sequence[Row]:
    """The LLaVA-format rows of one source, as they stand in it.

    Raises:
      UserError: the source cannot be read or is not a list of rows. Where rows are parsed one by one,
        a damaged one raises when it is asked for.
    """
    if config.kind == "pool":
        return read_pool(config.path).rows
    if config.kind == "easy_vqa":
        if config.split not in ("train", "test"):
            raise UserError(f"easy-VQA has no split {config.split!r}; take train or test")
        return easy_vqa.rows(config.split)  # type: ignore[arg-type]
    if config.kind == "array_record":
        return open_prepared(config.path).rows
    if config.kind == "tfds":
        # Imported late: it takes a second, and few runs read such data.
        from quecc_jax.data.sources.tfds import TfdsRows

        return TfdsRows(config.path, config.split)
    return ParquetRows(config.path, config.split) if config.kind == "parquet" else open_rows(config.path)
