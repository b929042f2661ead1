"""A trained run as a whole model: its own parameters, and the tower's where another run holds them."""

import dataclasses
import os
from typing import Any, cast, get_args

import jax
from jax.sharding import Mesh

from quecc_jax.config import ImageDecoding, MeshConfig, RunConfig
from quecc_jax.config.shapes import at_visual_tokens
from quecc_jax.config.validation import validate
from quecc_jax.data.batch import batch_spec
from quecc_jax.data.text.templates import check_name
from quecc_jax.errors import UserError
from quecc_jax.generate.engine import Engine
from quecc_jax.models.lora import joined, merged, without_adapters
from quecc_jax.sharding import make_mesh
from quecc_jax.train.checkpoint import Tree, load_params
from quecc_jax.train.initial import borrowed
from quecc_jax.train.run_dir import load_run_config
from quecc_jax.train.step import abstract_params


def load_vlm(
    run_dir: str | os.PathLike[str],
    mesh: Mesh | None = None,
    visual_tokens: int = 0,
    template: str = "",
    merge: bool = True,
) -> tuple[RunConfig, Tree]:
    """A run's settings and all parameters that answer questions about pixels.

    A run on cached features has no tower, of images or of questions; it comes from the run that its
    `tower_from` names. A run on text alone needs none.

    Args:
      mesh: where the parameters go, sharded by the logical rules; None for the first device.
      visual_tokens: V of a model that serves several; 0 is its own or largest.
      template: conversation template to ask with; "" is the run's own.
      merge: whether adapters are merged into the decoder, whose config then has none.

    Returns:
      The run's config (with its own tokenizer) and float32 parameters by top-level name.

    Raises:
      UserError: not a run's directory, or one of other shapes than its config says; no tower, or one
        of another model; the model does not make so many visual tokens; or no such template.
    """
    config = load_run_config(run_dir)
    if template:
        data = dataclasses.replace(config.data, template=cast(Any, check_name(template)))
        config = dataclasses.replace(config, data=data)
    validate(config)
    config = dataclasses.replace(config, model=at_visual_tokens(config.model, visual_tokens))
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]) if mesh is None else mesh
    data = dataclasses.replace(config.data, cached_queries=False)
    abstract = abstract_params(config, mesh, batch_spec(config.model, data, 1))
    _, params = load_params(run_dir, abstract=abstract)
    missing = abstract.keys() - params.keys()
    if missing and missing <= {"vision", "text"}:
        params |= _towers(config, run_dir, {name: abstract[name] for name in missing})
    elif missing:
        raise UserError(
            f"{run_dir} has no parameters {', '.join(sorted(missing))}; give the directory of a whole model"
        )
    if not merge:
        return config, joined(params)
    params = merged(params, config.model.lora)
    return dataclasses.replace(config, model=without_adapters(config.model)), params


def with_decoding(config: RunConfig, decoding: str) -> RunConfig:
    """The settings with another data.image_decoding; "run" leaves them as they are.

    Raises:
      UserError: there is no such decoding.
    """
    if decoding == "run":
        return config
    if decoding not in get_args(ImageDecoding):
        raise UserError(
            f"image_decoding {decoding} is none of {', '.join(get_args(ImageDecoding))}; name one of them"
        )
    data = dataclasses.replace(config.data, image_decoding=cast("ImageDecoding", decoding))
    return dataclasses.replace(config, data=data)


def load_engine(
    run_dir: str | os.PathLike[str],
    mesh: MeshConfig | None = None,
    visual_tokens: int = 0,
    template: str = "",
) -> Engine:
    """A run's whole model, ready to answer; a mesh of one device, or None, is the first device.

    Raises:
      UserError: as `load_vlm`, or the mesh does not fit the devices.
    """
    over = None if mesh is None or mesh == MeshConfig(1, 1, 1) else make_mesh(mesh)
    config, params = load_vlm(run_dir, over, visual_tokens, template)
    return Engine(config, params, mesh=over)


def _towers(config: RunConfig, run_dir: str | os.PathLike[str], abstract: Tree) -> Tree:
    if not config.tower_from:
        raise UserError(
            f"{run_dir} was trained on cached features and names no tower; set tower_from in its "
            "config.json to the run that holds the tower"
        )
    try:
        return borrowed("the tower of", config.tower_from, config.model, abstract, abstract)
    except UserError as error:
        raise UserError(f"tower_from of {run_dir}: {error}") from None
