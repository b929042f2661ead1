"""What a run starts from: random parameters, those of other runs, and stored features that must fit them."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Literal

import jax

from quecc_jax.config import DecoderConfig, ModelConfig, RunConfig
from quecc_jax.data.sources.feature_store import read_features
from quecc_jax.distributed import notice
from quecc_jax.errors import UserError
from quecc_jax.fingerprint import query_fingerprint, tower_fingerprint
from quecc_jax.models.kernel_forms import as_wanted, in_form
from quecc_jax.models.lora import NAME as LORA
from quecc_jax.models.lora import merged
from quecc_jax.models.teacher import TEACHER, own_parts
from quecc_jax.train.checkpoint import Tree, load_params
from quecc_jax.train.run_dir import load_run_config
from quecc_jax.train.state import TrainState
from quecc_jax.train.step import Trainer


def initial_state(config: RunConfig, trainer: Trainer, tell: Callable[[str], None] = notice) -> TrainState:
    """A fresh state from the run's seed, with the parameters of `init_from` where both runs have them,
    and the towers of `tower_from` that it has not.

    Raises:
      UserError: `init_from` is not a run, shares no parameters with this one, has other shapes, or cannot teach it.
    """
    abstract = {**trainer.abstract_state.trainable, **trainer.abstract_state.frozen}
    if TEACHER in abstract:
        abstract[TEACHER] = _taken_teacher(config, abstract[TEACHER])
    params: Tree = {}
    if config.init_from:
        params = borrowed("init_from", config.init_from, config.model, abstract)
        if not params:
            known = ", ".join(sorted(abstract))
            raise UserError(f"init_from {config.init_from} has none of this run's parameters ({known})")
    if TEACHER in abstract and (absent := sorted({"projector", "decoder"} & abstract.keys() - params.keys())):
        raise UserError(
            f"init_from {config.init_from} has no parameters {', '.join(absent)}, and its teacher would guess; name a "
            "model that reads images"
        )
    towers: Tree = {k: abstract[k] for k in ("vision", "text") if k in abstract and k not in params}
    if config.tower_from and "vision" in params:
        tell(
            f"tower_from {config.tower_from} is not read for images: init_from {config.init_from} has a tower"
        )
    if config.tower_from and towers:
        params |= borrowed("tower_from", config.tower_from, config.model, towers)
        if absent := sorted(towers.keys() - params.keys()):
            raise UserError(
                f"tower_from {config.tower_from} has no parameters {', '.join(absent)}; name a "
                "run that has them"
            )
    if params and (fresh := sorted(abstract.keys() - params.keys() - {TEACHER})):
        tell(f"not in {config.init_from or config.tower_from} and started at random: {', '.join(fresh)}")
        if stay := [name for name in fresh if name in trainer.abstract_state.frozen]:
            tell(f"WARNING: this run trains none of these, which stay random: {', '.join(stay)}")
    if not params and "decoder" in trainer.abstract_state.frozen:
        names = ", ".join(sorted(trainer.abstract_state.frozen))
        tell(
            f"WARNING: no init_from is given: {names} are random, and stay so, for this run trains none of them"
        )
    return trainer.start(params, jax.random.key(config.train.seed))


def _taken_teacher(config: RunConfig, own: Tree) -> Tree:
    """Those of the teacher's own parameters that come from `init_from`, itself a distilled run, if any; the others
    are as the run begins.

    Raises:
      UserError: what `init_from` holds is no teacher of this run.
    """
    start = config.init_from
    found = load_run_config(start)
    here, there = config.model, found.model
    parts = own_parts(found) if found.train.distil.weight else ()
    said = ""
    if not found.train.distil.weight:
        if there.compressor.name != "none":
            said = (
                f"compresses images (model.compressor.name {there.compressor.name}), but a teacher has all visual "
                "tokens; name a run with compressor none"
            )
        elif there.lora.rank and here.lora.rank:
            said = "has adapters, which would go on and are the teacher's too; merge them, or train without model.lora"
    elif set(parts) > own.keys():
        said = "has a teacher with a decoder of its own; train the whole decoder in stage 2 again, or name its start"
    elif there.lora.rank and not here.lora.rank:
        said = "has adapters, which its teacher has not; keep model.lora, or name the run it started from"
    for field in ("select_index", "keep_cls", "scales", "tiles"):
        theirs, ours = getattr(there.vision, field), getattr(here.vision, field)
        if theirs != ours and not said:
            name = field.replace("index", "layer")
            said = f"read images with vision.{name} {theirs}, and this run with {ours}; give both the same"
    if said:
        raise UserError(f"train.distil: init_from {start} {said}")
    return {name: own[name] for name in parts}


def borrowed(
    setting: str, run: str, model: ModelConfig, abstract: Tree, names: Iterable[str] | None = None
) -> Tree:
    """Parameters of another run for a model that computes the same with them.

    A tower may hold CLIP's final norm where this model has none, for no feature passes through it. Adapters that
    this model has not are merged into the decoder.

    Args:
      setting: what named that run, for messages.
      run: its directory.
      model: that is to read them.
      abstract: as for `load_params`.
      names: as for `load_params`.

    Raises:
      UserError: as `load_params`, or the two models compute otherwise with parameters of the same shapes.
    """
    there = load_run_config(run).model
    spare_norm = "vision" in abstract and there.vision.post_norm and not model.vision.post_norm
    if spare_norm:
        vision = abstract["vision"]
        abstract = {**abstract, "vision": {**vision, "post_norm": vision["pre_norm"]}}
    merge = there.lora.rank and not model.lora.rank and "decoder" in abstract
    wanted = abstract
    if merge:
        abstract = {**abstract, "decoder": in_form(abstract["decoder"], model.decoder, None)}
    _, params = load_params(run, names, abstract)
    if merge and "decoder" in params:
        params = merged(params | load_params(run, [LORA])[1], there.lora)
        params["decoder"] = as_wanted(params["decoder"], wanted["decoder"], model.decoder, run)
    if spare_norm and "vision" in params:
        del params["vision"]["post_norm"]
    refuse_other_model(setting, run, there, model, params)
    return params


def refuse_other_model(
    setting: str, run: str, there: ModelConfig, here: ModelConfig, names: Iterable[str]
) -> None:
    """Compares what two models compute with parameters of the same shapes.

    Which states of a tower are read, and of which squares, is the reader's choice and may differ; what their pixels
    are made into is not.

    Args:
      setting: what named the other run, for messages.
      run: its directory.
      there: its model.
      here: the model that is to read its parameters.
      names: of the parameters, by top level.

    Raises:
      UserError: naming the first setting that differs.
    """
    tower = ("heads", "norm_eps", "activation")
    # Exports alone read the positions, and a head's width shows in shapes.
    decoder = {f.name for f in dataclasses.fields(DecoderConfig)} - {"max_positions", "head_width"}
    parts: tuple[tuple[str, str, object, object, Iterable[str]], ...] = (
        ("decoder", "decoder", there.decoder, here.decoder, decoder),
        # Rank and targets show in shapes.
        (LORA, LORA, there.lora, here.lora, ("alpha", "rank_stabilised")),
        ("text", "query.text", there.query.text, here.query.text, tower),
        ("vision", "vision", there.vision, here.vision, tower),
        (
            "vision",
            "vision.pixels",
            there.vision.pixels,
            here.vision.pixels,
            ("mean", "std", "resample", "fit"),
        ),
    )
    for name, where, theirs, ours, fields in parts:
        if name not in names:
            continue
        for field in sorted(fields):
            found, wanted = getattr(theirs, field), getattr(ours, field)
            if found != wanted:
                raise UserError(
                    f"{setting} {run} has model.{where}.{field} {found}, and this run {wanted}; give both the "
                    "same, or change it in the other's config.json if you mean the difference"
                )


def named_tower(config: RunConfig) -> str | None:
    """Fingerprint of the tower that a run on cached features names; None where it names none.

    Raises:
      UserError: `tower_from` has no tower, or `init_from` has another one.
    """
    if not config.data.cached_features:
        return None
    params = _named(config, "vision")
    if not params:
        return None
    named = tower_fingerprint(params["vision"], config.model.tower, config.data)
    if config.tower_from and config.init_from:
        own = _named(dataclasses.replace(config, tower_from=""), "vision")
        if own and tower_fingerprint(own["vision"], config.model.tower, config.data) != named:
            raise UserError(
                f"init_from {config.init_from} has a tower of its own, as after a stage that trained it, and "
                f"tower_from {config.tower_from} has another; leave tower_from out and store features anew"
            )
    return named


def _named(config: RunConfig, name: Literal["vision", "text"]) -> Tree:
    """{name: parameters} of a tower, from `tower_from`, or else from `init_from` if that has one; or empty.

    Raises:
      UserError: `tower_from` is given and neither has one.
    """
    absent: UserError | None = None
    for run in filter(None, (config.tower_from, config.init_from)):
        try:
            return load_params(run, [name])[1]
        except UserError as error:
            absent = absent or error
    if absent is not None and config.tower_from:
        raise absent
    return {}


def check_queries(config: RunConfig, state: TrainState) -> None:
    """Raises UserError if stored query features are of another encoder than the run's, which is frozen.

    A text tower takes no part in such a run; it is the one that `tower_from` or `init_from` names, any if
    they name none.
    """
    if not config.data.cached_queries:
        return
    own = not config.model.query.reads_decoder
    params = _named(config, "text") if own else state.frozen
    ours = query_fingerprint(params, config.model) if params else f"{config.model.query.encoder}:"
    for source in config.data.sources:
        theirs = read_features(source.path, name="queries").fingerprint.rpartition("-")[0]
        if not (theirs == ours or (not params and theirs.startswith(ours))):
            raise UserError(
                f"the queries of {source.path} are of another encoder ({theirs}, not {ours}); "
                "write them anew, or set data.cached_queries = False"
            )
