"""A trained run as a whole model: its own parameters, and the tower's where another run holds them."""

import dataclasses
import os
from typing import Any, cast, get_args

import jax
from jax.sharding import Mesh

from quecc_jax.config import ImageDecoding, MeshConfig, RunConfig
from quecc_jax.config.shapes import at_visual_tokens
from quecc_jax.config.validation import validate
from quecc_jax.config.weights import FORMS, Form, Weights
from quecc_jax.data.batch import batch_spec
from quecc_jax.data.text.templates import check_name
from quecc_jax.errors import UserError
from quecc_jax.generate.engine import Engine
from quecc_jax.models.kernel_forms import as_wanted, in_form
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
    weights: Weights = "run",
    merge: bool = True,
) -> tuple[RunConfig, Tree]:
    """A run's settings and all parameters that answer questions about pixels.

    A run on cached features has no tower, of images or of questions; it comes from the run that its
    `tower_from` names. A run on text alone needs none.

    Args:
      mesh: where the parameters go, sharded by the logical rules; None for the first device.
      visual_tokens: V of a model that serves several; 0 is its own or largest.
      template: conversation template to ask with; "" is the run's own.
      weights: `float32` and `bfloat16` become the config's model.dtype; `int8`, `int4` and `nf4` are the form of
        the matrices of the decoder's layers, see `models.quantized`.
      merge: whether adapters are merged into the decoder, whose config then has none. Those of a decoder of few
        bits stay beside its matrices, which they were trained with.

    Returns:
      The run's config (with its own tokenizer) and parameters by top-level name, float32 but for such matrices.

    Raises:
      UserError: not a run's directory, or one of other shapes than its config says; no tower, or one
        of another model; the model does not make so many visual tokens; no such template or weights; or
        matrices that do not take their form.
    """
    config = with_dtype(load_run_config(run_dir), weights)
    if template:
        data = dataclasses.replace(config.data, template=cast(Any, check_name(template)))
        config = dataclasses.replace(config, data=data)
    validate(config)
    config = dataclasses.replace(config, model=at_visual_tokens(config.model, visual_tokens))
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]) if mesh is None else mesh
    data = dataclasses.replace(config.data, cached_queries=False)
    abstract = abstract_params(config, mesh, batch_spec(config.model, data, 1))
    form = form_named(weights)
    if form is not None:
        abstract["decoder"] = in_form(abstract["decoder"], config.model.decoder, form)
    _, params = load_params(run_dir, abstract=abstract)
    missing = abstract.keys() - params.keys()
    if missing and missing <= {"vision", "text"}:
        params |= _towers(config, run_dir, {name: abstract[name] for name in missing})
    elif missing:
        raise UserError(
            f"{run_dir} has no parameters {', '.join(sorted(missing))}; give the directory of a whole model"
        )
    if not merge or form is not None:
        return config, joined(params)
    params = merged(params, config.model.lora)
    return dataclasses.replace(config, model=without_adapters(config.model)), params


def form_named(weights: str) -> Form | None:
    """The form of few bits that weights have, if they have one."""
    return next((form for form in FORMS if form == weights), None)


def in_weights(params: Tree, config: RunConfig, weights: str) -> Tree:
    """Parameters of a run that is loaded already, with the decoder's matrices in the form that weights have.

    Raises:
      UserError: they do not take it.
    """
    form, decoder, model = form_named(weights), params["decoder"], config.model.decoder
    if form is None:
        return params
    wanted = in_form(jax.eval_shape(lambda: decoder), model, form)
    return {**params, "decoder": as_wanted(decoder, wanted, model, config.out)}


def with_dtype(config: RunConfig, weights: str) -> RunConfig:
    """The settings with another model.dtype, where the weights are of such a type.

    Raises:
      UserError: there are no such weights.
    """
    if weights not in get_args(Weights):
        raise UserError(f"weights {weights} are none of {', '.join(get_args(Weights))}; name one of them")
    if weights not in ("float32", "bfloat16"):
        return config
    return dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=cast(Any, weights)))


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
    weights: Weights = "run",
) -> Engine:
    """A run's whole model, ready to answer; a mesh of one device, or None, is the first device. The other arguments
    are as for `load_vlm`.

    Raises:
      UserError: as `load_vlm`, or the mesh does not fit the devices.
    """
    over = None if mesh is None or mesh == MeshConfig(1, 1, 1) else make_mesh(mesh)
    config, params = load_vlm(run_dir, over, visual_tokens, template, weights)
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
