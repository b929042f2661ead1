"""A run for vLLM: its decoder as a plain Hugging Face model, and what makes prompt embeddings as a run of ours.

decoder/   config.json of the decoder's own architecture, safetensors, tokenizer
adapter/   the run's adapters as PEFT's directory, where they are to stay apart
encoder/   tower, compressor, projector and token embeddings; the decoder's layers too, where the compressor
           reads the question by them
"""

import dataclasses
from pathlib import Path

from quecc_jax.config import RunConfig
from quecc_jax.config.io import save_config
from quecc_jax.convert import transfer
from quecc_jax.convert.adapted import MergedReader, write_adapter
from quecc_jax.convert.io.layer_store import SlabReader, SlabWriter
from quecc_jax.convert.options import AdapterForm, DType
from quecc_jax.convert.rules import Path as LeafPath
from quecc_jax.convert.rules import Rule, Slab, same
from quecc_jax.convert.run import files_of, new_directory, refuse_existing, write_targets
from quecc_jax.convert.targets import Target, check_leaves, export_targets
from quecc_jax.errors import UserError
from quecc_jax.generate.embeddings import takes_part
from quecc_jax.models.lora import without_adapters
from quecc_jax.progress import byte_bar
from quecc_jax.train.run_dir import TOKENIZERS, copy_tokenizer, list_run

HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Widths of heads that vLLM's attention is made for; with another it starts, and dies at the first question."""
NOT_THERE = {"mpt"}
"""Families whose architecture vLLM has no more."""


def export_for_vllm(
    run: Path,
    to: Path,
    *,
    dtype: DType = "keep",
    shard_bytes: int = 5_000_000_000,
    adapter: AdapterForm = "merge",
) -> list[Path]:
    """Writes a run's newest weights as vLLM and the front before it take them.

    Args:
      run: the run's directory.
      to: the directory to write; it appears whole or not at all.
      dtype: what floating-point numbers become.
      shard_bytes: bytes of tensors above which a further file is begun.
      adapter: what becomes of a run's adapters: merged, or apart in PEFT's form. The encoder has them merged.

    Returns:
      The files written.

    Raises:
      UserError: the run is no whole model, vLLM cannot run its decoder, or as `run.export_weights`.
    """
    refuse_existing(to, "--to")
    if adapter == "llava":
        raise UserError(
            "--format vllm keeps adapters apart in PEFT's form; give --adapter peft, or leave it out"
        )
    merged = MergedReader(run)
    _check_whole(merged)
    reader = SlabReader(run) if adapter == "peft" else merged
    targets = export_targets(reader, "auto", "decoder")
    _check_runs(reader.config, targets[0])
    check_leaves(reader, targets, whole=False)
    with new_directory(to, "--to") as aside:
        write_targets(reader, targets, aside / "decoder", dtype, shard_bytes)
        if adapter == "peft":
            (aside / "adapter").mkdir()
            write_adapter(reader, aside / "adapter", dtype, whole=False)
        _write_encoder(merged, aside / "encoder", to / "encoder", dtype)
        names = files_of(aside)
    return [to / name for name in names]


def _check_whole(reader: SlabReader) -> None:
    parts = {path[0] for path in reader.shapes}
    needed = {"decoder"} if reader.config.data.images_per_row == 0 else {"vision", "projector", "decoder"}
    if missing := sorted(needed - parts):
        raise UserError(
            f"{reader.run} has no {' and no '.join(missing)}, of which prompt embeddings are made; give a whole model"
        )


def _check_runs(config: RunConfig, target: Target) -> None:
    """Raises UserError where vLLM cannot run the decoder."""
    decoder, family = config.model.decoder, (target.hf or {})["model_type"]
    if family in NOT_THERE:
        raise UserError(
            f"vLLM has no architecture for a decoder of model_type {family}; answer with our own engine"
        )
    if decoder.head_dim not in HEAD_DIMS:
        raise UserError(
            f"vLLM has no attention for heads of {decoder.head_dim} numbers (model.decoder.head_width, or width / "
            f"heads), only of {', '.join(map(str, HEAD_DIMS))}; answer with our own engine"
        )


def _write_encoder(reader: SlabReader, folder: Path, named: Path, dtype: DType) -> None:
    """Writes the encoder's run.

    Args:
      folder: where to.
      named: the place that it is to have.
    """
    config = reader.config
    model = without_adapters(config.model)
    rules = [rule for path in reader.shapes if takes_part(model, path) for rule in _copied(reader, path)]
    specs = transfer.tensor_specs(rules, reader.dtypes, dtype)
    types = {slab.path: specs[rule.theirs[0]].dtype for rule in rules for slab in rule.ours}
    folder.mkdir()
    with (
        byte_bar("exporting the encoder", transfer.sum_bytes(specs)) as count,
        SlabWriter(folder / "checkpoints" / "0", rules, types) as writer,
    ):
        for rule in rules:
            (slab,) = rule.ours
            writer.write(slab, transfer.cast(reader.read(slab), types[slab.path], rule.theirs[0]))
            count(specs[rule.theirs[0]].size)
    for name in TOKENIZERS:
        copy_tokenizer(getattr(config.data, name), folder / name)
    copies = {name: str(named / name) if (folder / name).is_dir() else "" for name in TOKENIZERS}
    own = dataclasses.replace(
        config,
        model=model,
        data=dataclasses.replace(
            config.data, tokenizer=copies["tokenizer"], query_tokenizer=copies["query_tokenizer"]
        ),
        out=str(named.absolute()),
        init_from="",
        tower_from="",
    )
    save_config(own, folder / "config.json")
    list_run(folder)


def _copied(reader: SlabReader, path: LeafPath) -> list[Rule]:
    """The rules of a leaf that stays as it is; of a stack, one for each layer."""
    shape, name = reader.shapes[path], "/".join(path)
    if "layers" not in path:
        return [same(name, Slab(path, None, shape))]
    return [same(f"{name}/{layer}", Slab(path, layer, shape[1:])) for layer in range(shape[0])]
