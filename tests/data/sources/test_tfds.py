"""The same rows as a tensorflow-datasets data set, without TensorFlow."""

import dataclasses
import sys

import numpy as np
import pytest

from quecc_jax.config import DataConfig, SourceConfig
from quecc_jax.data.pipeline import make_iterator
from quecc_jax.data.preparing.inline import inline_rows
from quecc_jax.data.sources.array_record import Recipe
from quecc_jax.errors import UserError
from tests.data.every_row import eval_batches
from tests.data.photos import write_llava


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(LLaVA file, data set's directory)."""
    from quecc_jax.data.sources.tfds import LlavaRows

    folder = tmp_path_factory.mktemp("tfds")
    path, _ = write_llava(folder)
    rows = inline_rows(path, (str(folder),), Recipe())
    LlavaRows(rows=lambda: rows, data_dir=str(folder / "data")).download_and_prepare()
    return path, folder / "data"


def settings(source, tokenizer):
    return DataConfig(
        sources=(source,),
        tokenizer=tokenizer.directory,
        template="short",
        max_length=48,
        query_length=24,
        images_per_row=2,
    )


def test_batches_are_those_of_the_folder(made, tokenizer, model):
    path, directory = made
    source = settings(SourceConfig("llava_json", str(path), str(path.parent)), tokenizer)
    ours = settings(SourceConfig("tfds", str(directory)), tokenizer)
    for a, b in zip(eval_batches(ours, model, 5), eval_batches(source, model, 5), strict=True):
        for name, left, right in zip(a._fields, a, b, strict=True):
            assert (left is None) == (right is None), name
            assert left is None or np.array_equal(left, right), name
    assert "tensorflow" not in sys.modules


def test_training_resumes_exactly(made, tokenizer, model):
    data = settings(SourceConfig("tfds", str(made[1])), tokenizer)
    with make_iterator(data, model, 4, 0) as iterator:
        next(iterator)
        state = iterator.get_state()
        wanted = next(iterator)
    with make_iterator(data, model, 4, 0) as iterator:
        iterator.set_state(state)
        found = next(iterator)
    for left, right in ((found.ids, wanted.ids), (found.pixels, wanted.pixels)):
        np.testing.assert_array_equal(left, right)


def test_resized_images_are_those_that_the_run_reads_or_refused(made, tokenizer, model, tmp_path):
    from quecc_jax.data.sources.tfds import LlavaRows

    path, _ = made
    recipe = Recipe(24, "square", "png", decoding="original")
    rows = inline_rows(path, (str(path.parent),), recipe)
    LlavaRows(rows=lambda: rows, recipe=recipe, data_dir=str(tmp_path)).download_and_prepare()
    data = settings(SourceConfig("tfds", str(tmp_path)), tokenizer)
    asked = dataclasses.replace(data, image_aspect="square", image_decoding="original")
    assert list(eval_batches(asked, model, 2))
    for change, message in (
        ({"image_aspect": "pad"}, "aspect square, but the run asks for 24, pad"),
        ({"image_decoding": "upright"}, "were decoded original, but"),
    ):
        with pytest.raises(UserError, match=message):
            list(eval_batches(dataclasses.replace(asked, **change), model, 2))


def test_what_is_missing_is_said(made, tokenizer, model, tmp_path):
    for directory, split, what in (
        (made[1], "test", "Unknown split 'test'"),
        (tmp_path, "train", "holds 0 data sets"),
    ):
        source = SourceConfig("tfds", str(directory), split=split)
        with pytest.raises(UserError, match=what):
            list(eval_batches(settings(source, tokenizer), model, 2))
