"""Imports weights into a run's directory and exports a run's weights, one group of tensors at a time."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from quecc_jax.config.io import save_config
from quecc_jax.convert.io.layer_store import SlabReader, SlabWriter
from quecc_jax.convert.io.pickles import save_pickle
from quecc_jax.convert.io.tensors import SafetensorsFile, TensorSource, open_tensors
from quecc_jax.convert.io.writer import ShardWriter, Spec
from quecc_jax.convert.plan import ImportPlan, Layout, plan_import
from quecc_jax.convert.rules import Path as LeafPath
from quecc_jax.convert.rules import Rule, leaf_shapes
from quecc_jax.convert.sidecar_files import (
    CARRIED,
    Opened,
    keep_sources,
    left_unread,
    open_checkpoint,
    tower_beside,
)
from quecc_jax.convert.targets import Format, Only, Target, check_leaves, export_targets
from quecc_jax.convert.template_match import TOLD, Kind, choose_template, keep_template
from quecc_jax.data.files import fresh_directory
from quecc_jax.data.text.templates import check_name
from quecc_jax.distributed import notice
from quecc_jax.errors import UserError
from quecc_jax.progress import byte_bar
from quecc_jax.train.run_dir import TOKENIZERS

DType = Literal["keep", "float32", "bfloat16", "float16"]
"""What floating-point numbers become; "keep" changes none."""
KINDS: dict[Layout, Kind] = {"llava_hf": "llava_hf", "decoder": "decoder"}
"""Whose conversation templates the layouts have; the original project's where none is named."""
Count = Callable[[int], None]
"""Told how many bytes are done."""


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
) -> ImportPlan:
    """Writes the weights of another project as a run directory, which `init_from`, `tower_from` and
    `load_vlm` read.

    Args:
      source: a directory of weights, one file with its config.json beside it, or a GGUF file.
      out: the run's directory; it appears whole or not at all.
      vision: a CLIP tower's directory; None takes the one that the source's config.json names, if it
        lies beside it.
      projector: the original's mm_projector file, or its directory.
      text: a CLIP model's directory, whose text tower and tokenizer are to encode the questions.
      dtype: how floating-point numbers are stored.
      allow_pickle: whether pickles may be read.
      template: the conversation template; "" takes the one that the source's chat template renders as.

    Raises:
      UserError: see `open_checkpoint`, `plan_import` and `choose_template`; `out` exists, or cannot be
        written.
    """
    _refuse_existing(out, "--out")
    if template:
        check_name(template)
    with contextlib.ExitStack() as stack:
        paths = {"model": source, "vision": vision, "projector": projector, "text": text}
        opened: dict[str, Opened] = {}
        for name, path in paths.items():
            if name == "vision" and path is None and projector is None:
                path = tower_beside(opened["model"])
            if path is not None:
                opened[name] = open_checkpoint(path, allow_pickle, name == "projector", projector)
                stack.callback(opened[name].tensors.close)
        sources = {name: one.source for name, one in opened.items()}
        others = (sources.get(name) for name in ("vision", "projector", "text"))
        plan = plan_import(sources["model"], *others)
        if unread := left_unread(opened):
            notice(unread)
        tensors = {name: opened[name].tensors for name in plan.parts}
        types = {n: leaf_dtypes(part.rules, tensors[n].dtypes, dtype) for n, part in plan.parts.items()}
        carried = {
            n: {k: _form(tensors[n], k) for k in part.ignored if part.carried}
            for n, part in plan.parts.items()
        }
        total = sum(
            _form(tensors[name], tensor).size
            for name, part in plan.parts.items()
            for tensor in (*carried[name], *(t for rule in part.rules for t in rule.theirs))
        )
        aside = stack.enter_context(_new_directory(out, "--out"))
        keep_sources(aside, opened)
        plan = _with_template(plan, source, opened["model"], aside, template)
        merged = {path: kind for part in types.values() for path, kind in part.items()}
        count = stack.enter_context(byte_bar(f"importing {source.name}", total))
        with SlabWriter(aside / "checkpoints" / "0", plan.rules, merged) as writer:
            for name, part in plan.parts.items():
                fill(writer, part.rules, tensors[name], types[name], count)
        for name, specs in carried.items():
            if specs:
                with ShardWriter(aside / "source" / name, specs, sum_bytes(specs), CARRIED) as shard:
                    _carry(shard, specs, tensors[name], count)
        held = {name: str(out / name) if (aside / name).is_dir() else "" for name in TOKENIZERS}
        data = dataclasses.replace(
            plan.config.data, tokenizer=held["tokenizer"], query_tokenizer=held["query_tokenizer"]
        )
        save_config(dataclasses.replace(plan.config, out=str(out), data=data), aside / "config.json")
    return plan


def _with_template(plan: ImportPlan, source: Path, model: Opened, aside: Path, given: str) -> ImportPlan:
    """The plan with the conversation template of what is imported; that of a tower has none."""
    if plan.family is None:
        return plan
    kind, within = KINDS.get(plan.layout, "original"), source if source.suffix == ".gguf" else None
    tokenizer = model.directory or aside / "tokenizer"
    name, why = choose_template(tokenizer, plan.family, kind, given, within, model.source.hf.get(TOLD))
    data: Any = {"template": name}
    config = dataclasses.replace(plan.config, data=dataclasses.replace(plan.config.data, **data))
    return dataclasses.replace(plan, config=config, why=why)


def parameters(plan: ImportPlan) -> dict[str, int]:
    """Numbers that each top-level part of the parameters has."""
    counts: dict[str, int] = {}
    for path, shape in leaf_shapes(plan.rules).items():
        counts[path[0]] = counts.get(path[0], 0) + math.prod(shape)
    return counts


def fill(
    writer: SlabWriter,
    rules: Iterable[Rule],
    tensors: TensorSource,
    types: Mapping[LeafPath, np.dtype],
    count: Count,
) -> None:
    """Streams tensors into a checkpoint; one rule's tensors are in memory at a time."""
    for rule in rules:
        theirs = tuple(tensors.read(name) for name in rule.theirs)
        size = sum(array.nbytes for array in theirs)
        for slab, array in zip(rule.ours, rule.to_ours(theirs), strict=True):
            writer.write(slab, cast(array, types[slab.path], rule.theirs[0]))
        del theirs, array
        count(size)


def leaf_dtypes(
    rules: Iterable[Rule], found: Mapping[str, np.dtype], dtype: DType = "keep"
) -> dict[LeafPath, np.dtype]:
    """How each leaf is to be stored.

    Args:
      rules: what fills the leaves.
      found: types of their tensors.
      dtype: the type of all of them, or "keep" for their own.

    Raises:
      UserError: tensors of one leaf differ in type, or are not floating-point numbers.
    """
    types: dict[LeafPath, np.dtype] = {}
    for rule in rules:
        for name in rule.theirs:
            if not jnp.issubdtype(found[name], jnp.floating):
                raise UserError(
                    f"{name} is stored as {found[name]}; quantised weights are not read, "
                    "give the model in half precision"
                )
            for slab in rule.ours:
                kind = types.setdefault(slab.path, found[name])
                if dtype == "keep" and kind != found[name]:
                    leaf = "/".join(slab.path)
                    raise UserError(
                        f"{name} is {found[name]} and others that make up {leaf} are {kind}; "
                        "choose one type with --dtype"
                    )
    return types if dtype == "keep" else dict.fromkeys(types, _numpy(dtype))


def cast(array: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """The array in another floating-point type.

    Raises:
      UserError: a number is too large for the type.
    """
    if array.dtype == dtype:
        return array
    # NumPy notices what overflows between its own types only.
    wide = array.astype(np.float32) if array.dtype.itemsize < 4 else array
    try:
        with np.errstate(over="raise", invalid="ignore"):
            return wide.astype(dtype)
    except FloatingPointError:
        raise UserError(f"{name} holds numbers too large for {dtype}; use --dtype bfloat16") from None


def export_weights(
    run: Path,
    to: Path,
    *,
    layout: Format = "auto",
    only: Only | None = None,
    dtype: DType = "keep",
    shard_bytes: int = 5_000_000_000,
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

    Returns:
      The files written.

    Raises:
      UserError: the run has not what the format needs, or more; the format cannot express the model;
        `to` exists, or cannot be written.
    """
    _refuse_existing(to, "--to")
    reader = SlabReader(run)
    targets = export_targets(reader, layout, only)
    check_leaves(reader, targets, whole=only is None)
    carried = [_carried(target) for target in targets]
    specs = [_specs(target.rules, reader.dtypes, dtype) for target in targets]
    total = sum(map(sum_bytes, specs)) + sum(sum_bytes(forms) for _, forms in carried)
    with _new_directory(to, "--to") as aside, byte_bar(f"exporting {run.name}", total) as count:
        for target, forms, (extra, extra_forms) in zip(targets, specs, carried, strict=True):
            folder = aside / target.folder
            target.describe(reader, folder, _most(forms))
            if target is targets[0]:
                keep_template(folder, reader.config.data.template)
            if not forms:
                continue
            with ShardWriter(folder, {**forms, **extra_forms}, shard_bytes, target.name) as writer:
                drain(reader, target.rules, forms, writer, count)
                if extra is not None:
                    _carry(writer, extra_forms, extra, count)
        if targets[0].name == "mm_projector":
            save_pickle(open_tensors(aside), aside / "mm_projector.bin")
        names = sorted(p.relative_to(aside) for p in aside.rglob("*") if p.is_file())
    return [to / name for name in names]


def drain(
    reader: SlabReader, rules: Iterable[Rule], specs: Mapping[str, Spec], writer: ShardWriter, count: Count
) -> None:
    """Streams a checkpoint's slabs into shards; one rule's slabs are in memory at a time."""
    for rule in rules:
        theirs = rule.to_theirs(tuple(reader.read(slab) for slab in rule.ours))
        for name, array in zip(rule.theirs, theirs, strict=True):
            writer.write(name, cast(array, specs[name].dtype, name))
            count(specs[name].size)
        del theirs, array


def _specs(rules: Iterable[Rule], have: Mapping[LeafPath, np.dtype], dtype: DType) -> dict[str, Spec]:
    specs: dict[str, Spec] = {}
    for rule in rules:
        kinds = {have[slab.path] for slab in rule.ours} if dtype == "keep" else {_numpy(dtype)}
        if len(kinds) > 1:
            raise UserError(
                f"{rule.theirs[0]} would be made of {' and '.join(map(str, kinds))}; "
                "choose one type with --dtype"
            )
        (kind,) = kinds
        specs |= {name: Spec(shape, kind) for name, shape in zip(rule.theirs, rule.shapes, strict=True)}
    return specs


def _most(specs: Mapping[str, Spec]) -> str | None:
    """The type of most numbers."""
    sizes: dict[str, int] = {}
    for spec in specs.values():
        sizes[str(spec.dtype)] = sizes.get(str(spec.dtype), 0) + math.prod(spec.shape)
    return max(sizes, key=lambda kind: sizes[kind]) if sizes else None


def _carried(target: Target) -> tuple[TensorSource | None, dict[str, Spec]]:
    """Tensors that an import set aside for this target, and their forms."""
    if not target.carried or target.kept is None:
        return None, {}
    file = SafetensorsFile(target.kept / f"{CARRIED}.safetensors")
    return file, {name: _form(file, name) for name in target.carried}


def _carry(writer: ShardWriter, names: Iterable[str], tensors: TensorSource, count: Count) -> None:
    for name in names:
        array = tensors.read(name)
        writer.write(name, array)
        count(array.nbytes)


def _refuse_existing(path: Path, option: str) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{option} {path} exists already; give a new directory, or delete that one")


@contextlib.contextmanager
def _new_directory(path: Path, option: str) -> Iterator[Path]:
    """A directory that takes its name when the block succeeds, where nothing may be yet."""
    _refuse_existing(path, option)
    try:
        with fresh_directory(path) as aside:
            yield aside
    except OSError as error:
        raise UserError(f"{option} {path} cannot be written ({error}); choose another") from None


def _form(tensors: TensorSource, name: str) -> Spec:
    return Spec(tensors.shapes[name], tensors.dtypes[name])


def sum_bytes(specs: Mapping[str, Spec]) -> int:
    """Bytes of all tensors."""
    return sum(spec.size for spec in specs.values())


def _numpy(dtype: DType) -> np.dtype:
    return np.dtype(getattr(jnp, dtype))
