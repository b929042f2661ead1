"""Adapters in and out of a run: kept apart as its parameters `lora`, merged, or as a directory of their own."""

import dataclasses
from pathlib import Path

import numpy as np

from quecc_jax.config import LoraConfig
from quecc_jax.config.io import differences
from quecc_jax.config.shapes import adapted_matrices, decoder_matrices
from quecc_jax.config.validation import validate
from quecc_jax.convert import transfer
from quecc_jax.convert.formats import families, llava
from quecc_jax.convert.formats.compressors.registry import holds_projector, is_beside
from quecc_jax.convert.formats.decoder_rules import TABLES, body_prefix, decoder_rules, embedding_name
from quecc_jax.convert.formats.peft import PREFIX, pair_rules, peft_settings
from quecc_jax.convert.io.adapter_files import CONFIG, OTHERS, WEIGHTS, Adapter, Renamed, with_product
from quecc_jax.convert.io.layer_store import SlabReader
from quecc_jax.convert.io.pickles import save_pickle
from quecc_jax.convert.io.tensors import open_tensors
from quecc_jax.convert.io.writer import ShardWriter
from quecc_jax.convert.options import DType
from quecc_jax.convert.plan import ImportPlan, Part, Source, plan_import
from quecc_jax.convert.rules import Rule, Slab
from quecc_jax.convert.sidecar_files import Opened, kept_sources
from quecc_jax.convert.targets import Target, with_positions
from quecc_jax.convert.tower_history import tower_was_trained
from quecc_jax.data.files import write_json
from quecc_jax.errors import UserError
from quecc_jax.json_text import JsonObject
from quecc_jax.models.lora import NAME, PAIR
from quecc_jax.train.initial import refuse_other_model

_WHOLE = 1 << 62
"""Bytes of a shard of which there is to be one."""


def projector_beside(adapter: Adapter, model: Opened) -> Opened | None:
    """What LLaVA trained beside an adapter and its base has not, as the projector's own directory; None without.

    Raises:
      UserError: nothing says what it is, or the base lacks more than a projector.
    """
    names = {ours: given for ours, given in adapter.replaced.items() if ours not in model.source.found}
    if not names:
        return None
    for ours, given in names.items():
        if not is_beside(ours, body_prefix(families.family_of(model.source.hf))):
            raise adapter.lacks(given, ours, model.source.where)
    if adapter.hf is None:
        raise UserError(
            f"{adapter.directory} holds {min(names)} and no config.json, which says what that is of; put the one "
            "that was written with the adapter there"
        )
    tensors = Renamed(adapter.tensors, names)
    where = f"{adapter.directory} ({OTHERS})"
    return Opened(Source(adapter.hf, tensors.shapes, where), tensors, adapter.directory)


def without_tied_head(adapter: Adapter, model: Opened) -> Adapter:
    """The adapter without an output matrix that repeats its embedding, where the base has one matrix for both: PEFT
    saves both of a table that it trains tied (ensure_weight_tying)."""
    given = adapter.replaced
    heads = [name for name in given if name.endswith("lm_head.weight") and name not in model.source.found]
    tables = [name for name in given if name.endswith(TABLES)]
    if len(heads) != 1 or len(tables) != 1:
        return adapter
    head, table = (adapter.tensors.read(given[name]) for name in (heads[0], tables[0]))
    if not np.array_equal(head, table):
        return adapter
    kept = {ours: theirs for ours, theirs in given.items() if ours != heads[0]}
    return dataclasses.replace(adapter, replaced=kept)


def misses_projector(adapter: Adapter, model: Opened) -> bool:
    """Whether LLaVA trained an adapter beside a projector that neither the adapter nor its base holds."""
    held = [*adapter.replaced, *model.source.found]
    original = adapter.hf is not None and llava.is_original(adapter.hf)
    return original and not holds_projector(held)


def check_base(plan: ImportPlan, adapter: Adapter, model: Opened) -> None:
    """Compares an adapter with the base that it is given for.

    Raises:
      UserError: it is of another one, or changes it in a way that the plan's decoder cannot have.
    """
    adapter.check(model.source.found, model.source.where)
    decoder = plan.config.model.decoder
    if adapter.hf is not None and llava.is_original(adapter.hf):
        _check_settings(plan, adapter, adapter.hf, model.source.where)
    for weight in adapter.replaced if plan.family and decoder.tie_embeddings else ():
        module = weight.removesuffix(".weight")
        if weight.endswith(embedding_name(plan.family or "")) and module.endswith(adapter.copied):
            raise UserError(
                f"{adapter.directory} trained a copy of {weight} (modules_to_save) and left the output matrix, which "
                "config.json ties to it (tie_word_embeddings), as it was; merge it by PEFT into a base that keeps them "
                "apart"
            )


def _check_settings(plan: ImportPlan, adapter: Adapter, hf: JsonObject, where: str) -> None:
    """Raises UserError where the model that LLaVA builds of the adapter's config.json is not the plan's."""
    ours = plan.config.model
    theirs = dataclasses.replace(ours, decoder=families.decoder_config(hf))
    refuse_other_model("--adapter", str(adapter.directory), theirs, ours, ["decoder"])
    if plan.layout != "llava" and "projector" not in plan.parts:
        return
    built = llava.original_model(hf, dataclasses.replace(ours.vision, tiles=(), scales=(1,)))
    theirs = dataclasses.replace(
        ours, vision=built.vision, compressor=built.compressor, projector=built.projector
    )
    aspect = plan.config.data.image_aspect if built.vision.tiles else hf.get("image_aspect_ratio") or "square"
    data = dataclasses.replace(plan.config.data, image_aspect=aspect)
    if said := list(differences(dataclasses.replace(plan.config, model=theirs, data=data), plan.config)):
        raise UserError(
            f"{adapter.directory} was trained with other settings than those of {where} ({', '.join(said)}); give the "
            f"base that it was trained on{adapter.base}"
        )


def with_adapter(plan: ImportPlan, adapter: Adapter) -> ImportPlan:
    """The plan of a model whose adapters stay apart.

    Raises:
      UserError: one is not of a matrix of the decoder's layers, or not of all layers.
    """
    rules: list[Rule] = []
    layers: dict[str, int] = {}
    left = dict(adapter.pairs)
    for rule in plan.rules:
        weight = rule.theirs[0]
        pair = left.get(weight)
        if pair is None or (made := pair_rules(rule, pair, adapter.lora.rank)) is None:
            continue
        del left[weight]
        rules += made
        name = rule.ours[0].path[2]
        layers[name] = layers.get(name, 0) + 1
    depth = plan.config.model.decoder.depth
    few = {name: count for name, count in layers.items() if count < depth}
    if left or few:
        why = f"in {min(few.values())} of {depth} layers" if few else f"of {min(left)}"
        raise UserError(
            f"{adapter.directory} has adapters {why}, which cannot stand apart beside our stacked matrices; add "
            "--merge-adapter"
        )
    every = layers.keys() == decoder_matrices(plan.config.model.decoder).keys()
    lora = dataclasses.replace(adapter.lora, targets=("*",) if every else tuple(sorted(layers)))
    config = dataclasses.replace(plan.config, model=dataclasses.replace(plan.config.model, lora=lora))
    validate(config)
    return dataclasses.replace(plan, config=config, parts=plan.parts | {"adapter": Part(tuple(rules))})


class MergedReader(SlabReader):
    """A run's parameters with its adapters merged, and thus without any.

    What is merged is read as float32, of which whoever stores it rounds once; its type is said to be the base's.
    """

    def __init__(self, run_dir: Path):
        super().__init__(run_dir)
        self._pairs = {path for path in self.shapes if path[0] == NAME}
        for path in self._pairs:
            del self.shapes[path], self.dtypes[path]

    def read(self, slab: Slab) -> np.ndarray:
        weight = super().read(slab)
        paths = [(NAME, *slab.path[1:-1], one) for one in PAIR]
        if slab.path[0] != "decoder" or slab.path[-1] != "kernel" or not self._pairs.issuperset(paths):
            return weight
        first, second = (super(MergedReader, self).read(Slab(path, slab.layer, ())) for path in paths)
        return with_product(weight, first, second, self.config.model.lora.scale)


def beside_adapters(reader: SlabReader) -> list[str]:
    """The parts that a run trains beside its adapters."""
    own = {"compressor", "projector"} | ({"vision"} if tower_was_trained(reader.run) else set())
    return sorted({path[0] for path in reader.shapes} & own)


def write_adapter(reader: SlabReader, to: Path, dtype: DType, whole: bool) -> None:
    """Writes a run's adapters as a directory of their own.

    Args:
      reader: of the run.
      to: an existing directory.
      dtype: what floating-point numbers become.
      whole: whether compressor and projector go with them, as in LLaVA's training with LoRA, where PEFT has
        the adapters alone.

    Raises:
      UserError: the run has none, the decoder's family keeps several of our matrices in one, or the original cannot
        express the model.
    """
    if not any(path[0] == NAME for path in reader.shapes):
        raise UserError(f"{reader.run} has no adapters (model.lora); leave --adapter out")
    model, lora = reader.config.model, reader.config.model.lora
    kept = kept_sources(reader.run)
    family = (plan_import(**kept).family if kept else None) or families.guess_family(model.decoder)
    if whole and tower_was_trained(reader.run):
        raise UserError(
            f"the tower of {reader.run} was trained, and the original's form of adapters has no place for it; leave "
            "--adapter out, and the export holds all of the model"
        )
    names, rules = _pairs_out(reader, family, lora)
    specs = transfer.tensor_specs(rules, reader.dtypes, dtype)
    with ShardWriter(to, specs, _WHOLE, WEIGHTS) as writer:
        transfer.drain(reader, rules, specs, writer, lambda _: None)
    write_json(to / CONFIG, peft_settings(lora, names))
    if not whole:
        return
    others = llava.adapter_rules(model, family, f"{PREFIX}{body_prefix(family)}")
    specs = transfer.tensor_specs(others, reader.dtypes, dtype)
    hf = llava.hf_original(with_positions(reader.config), family)
    Target("", tuple(others), hf).describe(reader, to, transfer.main_dtype(specs))
    with ShardWriter(to, specs, _WHOLE, OTHERS) as writer:
        transfer.drain(reader, others, specs, writer, lambda _: None)
    save_pickle(open_tensors(to / f"{OTHERS}.safetensors"), to / f"{OTHERS}.bin")


def _pairs_out(reader: SlabReader, family: str, lora: LoraConfig) -> tuple[list[str], list[Rule]]:
    """Names of the weights that have adapters, and the rules of these."""
    wanted, names, rules = adapted_matrices(reader.config.model), list[str](), list[Rule]()
    for rule in decoder_rules(reader.config.model.decoder, family):
        if not any(slab.path[1] == "layers" and slab.path[2] in wanted for slab in rule.ours):
            continue
        if not rule.theirs[0].endswith("weight") or rule.ours[0].path[-1] != "kernel":
            continue
        module = f"{PREFIX}{rule.theirs[0].removesuffix('.weight')}"
        made = pair_rules(rule, (f"{module}.lora_A.weight", f"{module}.lora_B.weight"), lora.rank)
        if made is None:
            raise UserError(
                f"model_type {family} keeps {len(rule.ours)} of our matrices in {rule.theirs[0]}, which one adapter "
                "of PEFT's cannot express; leave --adapter out, and the weights are merged"
            )
        names.append(rule.theirs[0])
        rules += made
    return names, rules
