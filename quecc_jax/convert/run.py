"""Imports weights into a run's directory and exports a run's weights, one group of tensors at a time."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from quecc_jax.config.io import save_config
from quecc_jax.convert import sidecar_files, transfer
from quecc_jax.convert.adapted import (
    MergedReader,
    beside_adapters,
    check_base,
    misses_projector,
    projector_beside,
    with_adapter,
    without_tied_head,
    write_adapter,
)
from quecc_jax.convert.io.adapter_files import OTHERS, Adapter, Overlaid, open_adapter
from quecc_jax.convert.io.layer_store import SlabReader, SlabWriter
from quecc_jax.convert.io.pickles import save_pickle
from quecc_jax.convert.io.tensors import SafetensorsFile, TensorSource, open_tensors
from quecc_jax.convert.io.writer import ShardWriter, Spec
from quecc_jax.convert.options import AdapterForm, DType, Format, Only
from quecc_jax.convert.plan import ImportPlan, plan_import
from quecc_jax.convert.rules import Path as LeafPath
from quecc_jax.convert.rules import leaf_shapes
from quecc_jax.convert.targets import Target, check_leaves, export_targets
from quecc_jax.convert.template_match import (
    TEMPLATE_KEY,
    check_same_chat_template,
    choose_template,
    keep_template,
    kind_of,
)
from quecc_jax.data.files import fresh_directory
from quecc_jax.data.text.templates import check_name
from quecc_jax.distributed import notice
from quecc_jax.errors import UserError
from quecc_jax.paths import as_path
from quecc_jax.progress import byte_bar
from quecc_jax.train.run_dir import TOKENIZERS, list_run


def import_weights(
    source: Path,
    out: Path,
    *,
    vision: Path | None = None,
    projector: Path | None = None,
    text: Path | None = None,
    dtype: DType = "keep",
    allow_pickle: bool = False,
    template: str = "",
    adapter: Path | None = None,
    merge_adapter: bool = False,
    origins: Mapping[str, str] | None = None,
) -> ImportPlan:
    """Writes the weights of another project as a run directory, which `init_from`, `tower_from` and
    `load_vlm` read.

    Args:
      source: a directory of weights, one file with its config.json beside it, or a GGUF file.
      out: the run's directory; it appears whole or not at all.
      vision: a vision tower's directory; None takes the one that the source's config.json names, if it
        lies beside it.
      projector: the original's mm_projector file, or its directory.
      text: a CLIP model's directory, whose text tower and tokenizer are to encode the questions.
      dtype: how floating-point numbers are stored.
      allow_pickle: whether pickles may be read.
      template: the conversation template; "" takes the one that the source's chat template renders as.
      adapter: a LoRA of the source's weights, in PEFT's form or in that of the original's training.
      merge_adapter: whether it is merged into them, instead of staying apart as the run's adapters.
      origins: ORG/NAME@COMMIT of what came from the Hub, by "model", "vision", "projector", "text" or "adapter"; the
        run keeps it.

    Raises:
      UserError: see `open_checkpoint`, `plan_import`, `open_adapter` and `choose_template`; `out` exists, or
        cannot be written.
    """
    out = as_path(out)
    refuse_existing(out, "--out")
    if template:
        check_name(template)
    if merge_adapter and adapter is None:
        raise UserError("--merge-adapter needs an adapter; name its directory with --adapter")
    with contextlib.ExitStack() as stack:
        paths = {"model": source, "vision": vision, "projector": projector, "text": text}
        opened: dict[str, sidecar_files.Opened] = {}
        for name, path in paths.items():
            if name == "vision" and path is None and projector is None:
                path = sidecar_files.tower_beside(opened["model"])
            if path is not None:
                opened[name] = sidecar_files.open_checkpoint(
                    path, allow_pickle, name == "projector", projector, adapter if name == "model" else None
                )
                stack.callback(opened[name].tensors.close)
        held = None
        if adapter is not None:
            held = open_adapter(adapter, allow_pickle)
            stack.callback(held.tensors.close)
            held = without_tied_head(held, opened["model"])
            _take_projector(held, opened)
        plan = plan_import(**{name: one.source for name, one in opened.items()})
        if held is not None:
            check_base(plan, held, opened["model"])
            plan = plan if merge_adapter else with_adapter(plan, held)
        keys = sidecar_files.keys_unread(opened["model"].source.hf, plan.family)
        penalty = sidecar_files.penalty_unread(opened["model"])
        for unread in filter(None, (sidecar_files.left_unread(opened, adapter), keys, penalty)):
            notice(unread)
        tensors: dict[str, TensorSource] = {name: one.tensors for name, one in opened.items()}
        if held is not None:
            tensors["model"] = Overlaid(tensors["model"], held, merge_adapter)
            tensors["adapter"] = held.tensors
        types: dict[LeafPath, np.dtype] = {}
        carried: dict[str, dict[str, Spec]] = {}
        total = 0
        for name, part in plan.parts.items():
            types |= transfer.leaf_dtypes(part.rules, tensors[name].dtypes, dtype)
            carried[name] = transfer.specs_of(tensors[name], part.ignored if part.carried else ())
            read = transfer.specs_of(tensors[name], (tensor for rule in part.rules for tensor in rule.theirs))
            total += transfer.sum_bytes(carried[name]) + transfer.sum_bytes(read)
        aside = stack.enter_context(new_directory(out, "--out"))
        sidecar_files.keep_sources(aside, opened, origins or {})
        plan = _with_template(plan, source, opened["model"], aside, template, held)
        count = stack.enter_context(byte_bar(f"importing {source.name}", total))
        with SlabWriter(aside / "checkpoints" / "0", plan.rules, types) as writer:
            for name, part in plan.parts.items():
                transfer.fill(writer, part.rules, tensors[name], types, count)
        for name, specs in carried.items():
            if specs:
                with ShardWriter(
                    aside / "source" / name, specs, transfer.sum_bytes(specs), sidecar_files.CARRIED
                ) as shard:
                    transfer.carry(shard, specs, tensors[name], count)
        copies = {name: str(out / name) if (aside / name).is_dir() else "" for name in TOKENIZERS}
        data = dataclasses.replace(
            plan.config.data, tokenizer=copies["tokenizer"], query_tokenizer=copies["query_tokenizer"]
        )
        save_config(dataclasses.replace(plan.config, out=str(out), data=data), aside / "config.json")
        list_run(aside)
    return plan


def _take_projector(adapter: Adapter, opened: dict[str, sidecar_files.Opened]) -> None:
    """Adds the projector that was trained beside an adapter to what is opened.

    Raises:
      UserError: another one was given, or none is there.
    """
    beside = projector_beside(adapter, opened["model"])
    if beside is None:
        if "projector" not in opened and misses_projector(adapter, opened["model"]):
            raise UserError(
                f"{adapter.directory} has no {OTHERS}, in which the original's training keeps the projector; put it "
                "there, or give the projector's directory with --projector"
            )
        return
    if "projector" in opened:
        raise UserError(f"{adapter.directory} brings a projector of its own; leave --projector out")
    opened["projector"] = beside


def _with_template(
    plan: ImportPlan,
    source: Path,
    model: sidecar_files.Opened,
    aside: Path,
    given: str,
    adapter: Adapter | None,
) -> ImportPlan:
    """The plan with the conversation template of what is imported; that of a tower has none."""
    if plan.family is None:
        return plan
    hf, within = model.source.hf, source if source.suffix == ".gguf" else None
    tokenizer = model.directory or aside / "tokenizer"
    if adapter is not None and not given:
        check_same_chat_template(adapter.directory, tokenizer, str(source))
    name, why = choose_template(tokenizer, plan.family, kind_of(hf), given, within, hf.get(TEMPLATE_KEY))
    data = dataclasses.replace(plan.config.data, template=cast(Any, name))
    return dataclasses.replace(plan, config=dataclasses.replace(plan.config, data=data), why=why)


def parameters(plan: ImportPlan) -> dict[str, int]:
    """How many numbers each top-level part of the parameters has."""
    counts: dict[str, int] = {}
    for path, shape in leaf_shapes(plan.rules).items():
        counts[path[0]] = counts.get(path[0], 0) + math.prod(shape)
    return counts


def export_weights(
    run: Path,
    to: Path,
    *,
    layout: Format = "auto",
    only: Only | None = None,
    dtype: DType = "keep",
    shard_bytes: int = 5_000_000_000,
    adapter: AdapterForm = "merge",
) -> list[Path]:
    """Writes a run's newest weights in another project's format.

    A bare projector is written as mm_projector.bin too, which is all that the original reads.

    Args:
      run: the run's directory.
      to: the directory to write; it appears whole or not at all.
      layout: "auto" gives an imported run the form in which it came, with the same names; other runs
        the original's, or that of a language model or tower if they are no more.
      only: a part of the model alone.
      dtype: what floating-point numbers become.
      shard_bytes: bytes of tensors above which a further file is begun.
      adapter: what becomes of a run's adapters.

    Returns:
      The files written.

    Raises:
      UserError: the run has not what the format needs, or more; the format cannot express the model;
        `to` exists, or cannot be written.
    """
    refuse_existing(to, "--to")
    if adapter != "merge":
        return _export_adapter(run, to, layout, only, dtype, adapter)
    reader = MergedReader(run)
    targets = export_targets(reader, layout, only)
    check_leaves(reader, targets, whole=only is None)
    with new_directory(to, "--to") as aside:
        write_targets(reader, targets, aside, dtype, shard_bytes)
        names = files_of(aside)
    return [to / name for name in names]


def write_targets(
    reader: SlabReader, targets: Sequence[Target], to: Path, dtype: DType, shard_bytes: int
) -> None:
    """Writes the directories of an export into one that nobody sees yet."""
    carried = [_carried(target) for target in targets]
    specs = [transfer.tensor_specs(target.rules, reader.dtypes, dtype) for target in targets]
    total = sum(map(transfer.sum_bytes, specs)) + sum(transfer.sum_bytes(extra) for _, extra in carried)
    with byte_bar(f"exporting {reader.run.name}", total) as count:
        for target, made, (kept, extra) in zip(targets, specs, carried, strict=True):
            folder = to / target.folder
            target.describe(reader, folder, transfer.main_dtype(made))
            if target is targets[0]:
                keep_template(folder, reader.config.data.template)
            if not made:
                continue
            with ShardWriter(folder, {**made, **extra}, shard_bytes, target.name) as writer:
                transfer.drain(reader, target.rules, made, writer, count)
                if kept is not None:
                    transfer.carry(writer, extra, kept, count)
    if (name := targets[0].name) != "model":
        save_pickle(open_tensors(to), to / f"{name}.bin")


def _export_adapter(
    run: Path, to: Path, layout: Format, only: Only | None, dtype: DType, form: AdapterForm
) -> list[Path]:
    """Writes a run's adapters as a directory of their own."""
    if only is not None or layout != "auto":
        raise UserError(f"--adapter {form} writes adapters alone; leave --only and --format out")
    reader = SlabReader(run)
    with new_directory(to, "--to") as aside:
        write_adapter(reader, aside, dtype, whole=form == "llava")
        names = files_of(aside)
    if form == "peft" and (rest := beside_adapters(reader)):
        notice(f"PEFT's form has no place for {' and '.join(rest)}; an export of the whole model has them")
    return [to / name for name in names]


def files_of(directory: Path) -> list[Path]:
    """All files below, relative to it."""
    return sorted(p.relative_to(directory) for p in directory.rglob("*") if p.is_file())


def _carried(target: Target) -> tuple[TensorSource | None, dict[str, Spec]]:
    """Tensors that an import set aside for this target, and their forms."""
    if not target.carried or target.kept is None:
        return None, {}
    file = SafetensorsFile(target.kept / f"{sidecar_files.CARRIED}.safetensors")
    return file, transfer.specs_of(file, target.carried)


def refuse_existing(path: Path, option: str) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{option} {path} exists already; give a new directory, or delete that one")


@contextlib.contextmanager
def new_directory(path: Path, option: str) -> Iterator[Path]:
    """A directory that takes its name when the block succeeds, where nothing may be yet."""
    refuse_existing(path, option)
    try:
        # Lists of files and the arrays' store take absolute paths without `..`.
        with fresh_directory(as_path(path)) as aside:
            yield aside
    except OSError as error:
        raise UserError(f"{option} {path} cannot be written ({error}); choose another") from None
