"""Which directories an export consists of, and what stands in each."""

import dataclasses
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

from quecc_jax.config import RunConfig
from quecc_jax.convert.formats.compressors.project import PROJECTOR
from quecc_jax.convert.formats.compressors.registry import PROJECTS
from quecc_jax.convert.formats.towers.families import KINDS
from quecc_jax.convert.image_processor import processor_settings
from quecc_jax.convert.io.layer_store import SlabReader
from quecc_jax.convert.options import Format, Only
from quecc_jax.convert.plan import ImportPlan, Layout, Source, plan_export, plan_import
from quecc_jax.convert.processor import image_token, write_processor
from quecc_jax.convert.rules import Path as LeafPath
from quecc_jax.convert.rules import Rule, leaf_shapes
from quecc_jax.convert.sidecar_files import copy_beside, copy_tokenizer_files, kept_sources, tower_name
from quecc_jax.convert.tower_history import tower_was_trained
from quecc_jax.data.files import write_json
from quecc_jax.data.text.templates import stops
from quecc_jax.data.text.tokenizer import load_tokenizer
from quecc_jax.distributed import notice
from quecc_jax.errors import Note, UserError
from quecc_jax.json_text import JsonObject
from quecc_jax.train.run_dir import load_run_config

PARTS: dict[Only, Layout] = {
    "projector": "projector",
    "decoder": "decoder",
    "vision": "tower",
    "text": "clip_text",
}
"""The formats of a model's parts."""
_BESIDE = "clip"
"""The folder of a tower that was not published."""


@dataclasses.dataclass(frozen=True)
class Target:
    """One directory of an export."""

    folder: str
    """Relative to the whole export."""
    rules: tuple[Rule, ...]
    hf: JsonObject | None = None
    """Its config.json, where none was kept."""
    kept: Path | None = None
    """The kept files of the source that it came from."""
    carried: tuple[str, ...] = ()
    """Tensors of that source that go with it."""
    name: str = "model"
    """What the names of its weights begin with."""

    def describe(self, reader: SlabReader, folder: Path, dtype: str | None) -> None:
        """Writes everything but the weights.

        Args:
          reader: of the run.
          folder: where to.
          dtype: type of most numbers in the weights; None without weights.

        Raises:
          UserError: the tokenizer's files cannot take up the image's token.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if self.kept is not None:
            copy_beside(self.kept, folder)
        kind = (self.hf or {}).get("model_type")
        tokenizer = reader.run / ("query_tokenizer" if kind == "clip_text_model" else "tokenizer")
        has_text = kind == "clip_text_model" or (self.folder == "" and kind not in KINDS)
        if has_text and tokenizer.is_dir():
            copy_tokenizer_files(tokenizer, folder)
        if self.hf is None:
            return
        ids, ends = special_settings(tokenizer, reader.config) if has_text else ({}, {})
        hf = {**self.hf, **ids, **({"torch_dtype": dtype} if dtype else {})}
        if "text_config" in hf:
            hf["text_config"] = {**hf["text_config"], **ids, "torch_dtype": dtype}
        write_json(folder / "config.json", hf)
        if ends and kind != "clip_text_model":
            write_json(folder / "generation_config.json", ends)
        if "image_token_index" in hf and tokenizer.is_dir():
            write_processor(folder, reader.config, hf)
        elif not has_text or "vision_config" in hf:
            write_json(folder / "preprocessor_config.json", processor_settings(reader.config.model.vision))


def special_settings(tokenizer: Path, config: RunConfig) -> tuple[JsonObject, JsonObject]:
    """What config.json and generation_config.json say of a saved tokenizer's special ids; empty without a
    tokenizer, and (with a notice) where it cannot be read, since weights are exported all the same."""
    if not tokenizer.is_dir():
        return {}, {}
    try:
        read = load_tokenizer(tokenizer)
    except UserError as error:
        notice(f"WARNING: the config.json written names no special tokens: {error}")
        return {}, {}
    found = {key: getattr(read.hf, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    ids = {key: number for key, number in found.items() if number is not None}
    return ids, {**ids, "eos_token_id": list(stops(config.data.template, read).ids)}


def export_targets(reader: SlabReader, layout: Format, only: Only | None) -> list[Target]:
    """What to write where; the first target is the export's own directory.

    Raises:
      UserError: the format cannot express the model, or the run is no whole model.
    """
    family = None
    if kept := kept_sources(reader.run):
        plan = plan_import(**kept)
        family = plan.family
        if layout == "auto" and only is None and not (plan.layout == "decoder" and "vision" in plan.parts):
            return _as_it_came(reader, plan, kept)
    form = PARTS[only] if only else _usual_layout(reader) if layout == "auto" else layout
    tokenizer = reader.run / "tokenizer"
    number = image_token(tokenizer) if form == "llava_hf" and tokenizer.is_dir() else None
    # A tower's config.json says nothing of the decoder.
    config = reader.config if form in ("tower", "clip_text") else with_positions(reader.config)
    whole = plan_export(config, form, family, number)
    if form == "llava" and tower_name(whole.hf) != _BESIDE and tower_was_trained(reader.run):
        # The original reads the published one wherever its name stands.
        whole = dataclasses.replace(whole, hf=whole.hf | {"mm_vision_tower": _BESIDE})
    targets = [
        Target("", whole.rules, whole.hf, name=projector_name(config) if form == "projector" else "model")
    ]
    if form == "llava" and (folder := tower_name(whole.hf)) == _BESIDE:
        # The original reads its tower from a directory of its own, whatever the model's file holds.
        tower = plan_export(reader.config, "tower")
        targets.append(Target(folder, tower.rules, tower.hf))
    return targets


def projector_name(config: RunConfig) -> str:
    """The name of a projector's file, but for its suffix."""
    project = PROJECTS.get(config.model.compressor.name)
    return (project.stage_one if project else PROJECTOR).removesuffix(".")


def with_positions(config: RunConfig) -> RunConfig:
    """The run with its decoder's max_positions: its own, or those of the run that it started from."""
    decoder, run = config.model.decoder, config
    try:
        while not run.model.decoder.max_positions and run.init_from:
            run = load_run_config(run.init_from)
    except UserError as error:
        notice(f"WARNING: {error}")
    positions = run.model.decoder.max_positions
    if not positions:
        warnings.warn(
            "nothing says how many positions the decoder was made for; the config.json written says "
            f"data.max_length, {config.data.max_length}",
            Note,
            stacklevel=2,
        )
    decoder = dataclasses.replace(decoder, max_positions=positions)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, decoder=decoder))


def _as_it_came(reader: SlabReader, plan: ImportPlan, kept: Mapping[str, Source]) -> list[Target]:
    """The directories of an imported run, with the files and names that it came with."""
    source = reader.run / "source"
    main, tower = plan.parts["model"], plan.parts.get("vision")
    name = projector_name(reader.config) if plan.layout == "projector" else "model"
    targets = [Target("", main.rules, kept=source / "model", carried=main.ignored, name=name)]
    if (source / "vision").is_dir():
        folder = tower_name(kept["model"].hf)
        if tower is not None:
            rules, carried = tower.rules, tower.ignored
        else:
            rules, carried = plan_export(reader.config, "tower").rules if plan.layout == "llava" else (), ()
        targets.append(Target(folder, rules, kept=source / "vision", carried=carried))
    if "text" in plan.parts:
        text = plan_export(reader.config, "clip_text")
        targets.append(Target("text", text.rules, text.hf))
    return targets


def _usual_layout(reader: SlabReader) -> Layout:
    """The original's format for a whole model; otherwise that of the part that a run is."""
    have = {path[0] for path in reader.shapes}
    known: list[tuple[set[str], Layout]] = [
        ({"decoder"}, "decoder"),
        ({"vision"}, "tower"),
        ({"compressor", "projector"}, "projector"),
        ({"projector"}, "projector"),
        (have | {"vision", "decoder", "projector"}, "llava"),
    ]
    for parts, layout in known:
        if have == parts:
            return layout
    raise UserError(
        f"{reader.run} holds {' and '.join(sorted(have))}, which is no whole model; "
        "export one part with --only projector, decoder, vision or text"
    )


def check_leaves(reader: SlabReader, targets: Iterable[Target], whole: bool) -> None:
    """Compares a run's parameters with those that the targets' rules need.

    Args:
      whole: whether the run may have no others.

    Raises:
      UserError: naming those that are missing, of another shape, or left over.
    """
    needed: dict[LeafPath, tuple[int, ...]] = {}
    for target in targets:
        needed |= leaf_shapes(target.rules)
    problems = {
        "lacks": [p for p in needed if p not in reader.shapes],
        "has in another shape": [p for p in needed if reader.shapes.get(p, needed[p]) != needed[p]],
        "has beyond what the format can hold": [p for p in reader.shapes if whole and p not in needed],
    }
    for problem, paths in problems.items():
        if paths:
            listed = ", ".join("/".join(p) for p in paths[:20])
            raise UserError(
                f"{reader.run} {problem} {len(paths)} parameters: {listed}; does its config.json "
                "belong to it, and is this the right format?"
            )
