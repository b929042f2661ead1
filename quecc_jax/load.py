"""A trained run as a whole model: its own parameters, and the tower's where another run holds them."""

import dataclasses
import os
from typing import Any, cast, get_args

import jax
from jax.sharding import Mesh

from quecc_jax.config import ImageDecoding, MeshConfig, ModelConfig, RunConfig
from quecc_jax.config.shapes import at_visual_tokens
from quecc_jax.config.validation import validate
from quecc_jax.config.weights import FORMS, Weights
from quecc_jax.data.batch import batch_spec
from quecc_jax.data.text.templates import check_name
from quecc_jax.errors import UserError
from quecc_jax.generate.decode import in_compute_type
from quecc_jax.generate.embeddings import encoder_part
from quecc_jax.generate.engine import Engine
from quecc_jax.generate.stand_ins import stand_ins, with_dtype
from quecc_jax.groups import answering_mesh
from quecc_jax.models.lora import NAME as LORA
from quecc_jax.models.lora import joined, merged, without_adapters
from quecc_jax.sharding import make_mesh, replicated
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
    towers: bool = True,
    layers: bool = True,
) -> tuple[RunConfig, Tree]:
    """A run's settings and all parameters that answer questions about pixels, in the type that it computes with.

    Each process reads the parts of its own devices, in that type; norms are float32. A decoder with adapters is read
    as float32 and cast when they are merged.

    A run on cached features has no tower, of images or of questions; it comes from the run that its
    `tower_from` names. A run on text alone needs none.

    Args:
      mesh: where the parameters go, sharded by the logical rules; None for this process's first device.
      visual_tokens: V of a model that serves several; 0 is its own or largest.
      template: conversation template to ask with; "" is the run's own.
      weights: `float32` and `bfloat16` become the config's model.dtype; `int8`, `int4` and `nf4` are the form of
        the matrices of the decoder's layers, see `models.quantized`.
      merge: whether adapters are merged into the decoder, whose config then has none. Those of a decoder of few
        bits stay beside its matrices, which they were trained with.
      towers: False leaves out the tower of images, for questions about its stored states.
      layers: False leaves out the decoder's layers, for prompt embeddings, unless these depend on them.

    Returns:
      The run's config (with its own tokenizer) and parameters by top-level name.

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
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.local_devices()[:1]) if mesh is None else mesh
    plain = stand_ins(config, mesh, weights, towers)
    if not layers:
        plain = encoder_part(config.model, plain)
    abstract = in_compute_type(plain, config.model)
    merge = merge and weights not in FORMS and LORA in plain
    if merge:
        # Sums are rounded once.
        abstract |= {name: plain[name] for name in ("decoder", LORA)}
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
    model = without_adapters(config.model)
    return dataclasses.replace(config, model=model), in_compute_type(merged(params, config.model.lora), model)


def load_query_encoder(
    run_dir: str | os.PathLike[str], config: RunConfig, mesh: Mesh | None = None
) -> tuple[ModelConfig, Tree]:
    """The model and the parameters of a run that encode questions, as `config.model.query` names them.

    Args:
      config: of the run, but for the encoder.
      mesh: as for `load_vlm`.

    Returns:
      The model without adapters, which are merged, and parameters by top-level name, float32 or as they are stored.

    Raises:
      UserError: as `train.checkpoint.load_params`.
    """
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.local_devices()[:1]) if mesh is None else mesh
    names = ["decoder"] if config.model.query.reads_decoder else ["text"]
    if config.model.lora.rank and config.model.query.reads_decoder:
        names.append(LORA)
    data = dataclasses.replace(config.data, cached_queries=False)
    plain = abstract_params(config, mesh, batch_spec(config.model, data, 1, True))
    known = {name: plain[name] for name in names if name in plain}
    if len(known) == len(names):
        _, params = load_params(run_dir, names, known)
    else:
        # A text tower that the run's own compressor does not read; it is small.
        _, found = load_params(run_dir, names)
        params = jax.tree.map(
            lambda x: jax.make_array_from_callback(x.shape, replicated(mesh), lambda part: x[part]), found
        )
    return without_adapters(config.model), merged(params, config.model.lora)


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
    """A run's whole model, ready to answer; a mesh of one device, or None, is the first device. Of several processes
    all ask the same at the same time. The other arguments are as for `load_vlm`.

    Raises:
      UserError: as `load_vlm`, or the mesh does not fit the devices.
    """
    over = answering_mesh(mesh)
    config, params = load_vlm(run_dir, over, visual_tokens, template, weights)
    return Engine(config, params, mesh=over)


def load_encoder(
    run_dir: str | os.PathLike[str],
    mesh: MeshConfig | None = None,
    visual_tokens: int = 0,
    template: str = "",
    weights: Weights = "run",
) -> Engine:
    """As `load_engine`, for `generate.embeddings.prompt_embeddings` alone, without the decoder's layers where these do
    not depend on them; of a whole run, or of the encoder that an export for vLLM writes."""
    over = answering_mesh(mesh)
    config, params = load_vlm(run_dir, over, visual_tokens, template, weights, layers=False)
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
