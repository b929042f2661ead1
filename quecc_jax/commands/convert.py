"""Weights in and out: `python -m launch.convert import --from DIR --out RUN`, and `export`."""

import dataclasses
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import tyro

from quecc_jax.commands.checks import refuse_unread
from quecc_jax.config.shapes import listed
from quecc_jax.convert.options import AdapterForm, DType, ExportFormat, Only
from quecc_jax.errors import UserError
from quecc_jax.paths import write_text

if TYPE_CHECKING:
    from quecc_jax.convert.hub import Role


@dataclasses.dataclass(frozen=True)
class Import:
    """Writes weights of another project as a run directory."""

    from_: Annotated[Path, tyro.conf.arg(name="from")]
    """Directory, or ORG/NAME[@REVISION] of the Hugging Face Hub, of weights with their config.json: LLaVA, QueCC,
    TokenPacker, MQT-LLaVA, M3 or LLaVA-Mini in their projects' formats, LLaVA in llava-hf's, a language model, a vision
    tower, a stage 1 projector. Also a GGUF file."""
    out: Path
    """Run directory to write; training takes it as init_from or tower_from."""
    vision: Path | None = None
    """Directory of a vision tower, where the weights do not bring one; this one and the three below may be of the Hub
    too."""
    projector: Path | None = None
    """mm_projector file of the original project, to stand before a bare language model."""
    text: Path | None = None
    """Directory of a CLIP model whose text tower is to encode the questions (model.query.encoder
    clip_text)."""
    dtype: DType = "keep"
    """Stored type of all numbers; "keep" changes none."""
    allow_pickle: bool = False
    """Also read .bin files, by torch's weights-only loader, and fetch them."""
    template: str = ""
    """Conversation template, one of data.template; by default the one that its chat template renders as."""
    adapter: Path | None = None
    """Directory of a LoRA of these weights, as PEFT or the original's finetune_lora.sh leaves it; it stays
    apart as the run's adapters (model.lora), which training goes on with."""
    merge_adapter: bool = False
    """Merge the adapter into the weights instead."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Writes a run's weights in another project's format."""

    checkpoint: Path
    """Directory of a run, imported or trained."""
    to: Path
    """Directory to write."""
    format: ExportFormat = "auto"
    """The form in which an imported run came, or the original project's; or one of these by name; or for vLLM, the
    decoder as a plain language model beside what makes its prompt embeddings."""
    only: Only | None = None
    """Only this part of the model; the projector is also written as mm_projector.bin, as the original's."""
    dtype: DType = "keep"
    """Type of all numbers in the files."""
    shard_gb: float = 5.0
    """Size of one file, in 10^9 bytes."""
    adapter: AdapterForm = "merge"
    """What becomes of the run's adapters: merged into the weights; alone, as PEFT's directory; or with
    compressor and projector beside them, as the original's finetune_lora.sh leaves them."""
    push: str = ""
    """ORG/NAME of a new repository of the Hugging Face Hub, to which what was written goes, with a page about it."""
    license: str = ""
    """Of what is pushed, as the Hub calls it: apache-2.0, llama2, other, ..."""
    scores: tuple[Path, ...] = ()
    """Directories that launch.evaluate wrote of this run, for its page."""
    private: bool = False
    """Whether a repository that is made by the push is to be seen by its owners alone."""


Options = Import | Export


def run(options: Options) -> None:
    """Converts, and prints what came of it."""
    import_(options) if isinstance(options, Import) else export(options)


def import_(options: Import) -> None:
    """Imports and says what was found."""
    # Imported late, so that --help and mistakes in the command line answer at once.
    from quecc_jax.convert.hub import locate
    from quecc_jax.convert.run import import_weights, parameters

    started = time.monotonic()
    pickles = options.allow_pickle
    found = {"model": locate(options.from_, "--from", pickles)}
    for name, path in {
        "vision": options.vision,
        "projector": options.projector,
        "text": options.text,
        "adapter": options.adapter,
    }.items():
        if path is not None:
            role = cast("Role", name if name in ("projector", "adapter") else "model")
            found[name] = locate(path, f"--{name}", pickles, role)
    at = {name: one.path for name, one in found.items()}
    plan = import_weights(
        at["model"],
        options.out,
        vision=at.get("vision"),
        projector=at.get("projector"),
        text=at.get("text"),
        adapter=at.get("adapter"),
        dtype=options.dtype,
        allow_pickle=options.allow_pickle,
        template=options.template,
        merge_adapter=options.merge_adapter,
        origins={name: one.origin for name, one in found.items() if one.origin},
    )
    for name, one in found.items():
        if one.origin:
            print(f"{name}: {one.origin}")
    counts = ", ".join(f"{name} {count:,}" for name, count in parameters(plan).items())
    print(f"{options.out}: {counts} parameters, {time.monotonic() - started:.0f} s")
    if plan.why:
        print(f"template {plan.config.data.template}: {plan.why}")
    compressor = plan.config.model.compressor
    if compressor.elastic:
        print(
            f"visual tokens: {plan.config.model.visual_tokens} of an image, or what --visual-tokens asks for of "
            f"{listed(compressor.elastic)}, for which config.json says that it was trained"
        )


def export(options: Export) -> None:
    """Exports and lists the files."""
    if not 0 < options.shard_gb * 1e9 < math.inf:
        raise UserError(f"--shard-gb is {options.shard_gb}; give a positive size")
    from quecc_jax.convert.run import export_weights
    from quecc_jax.convert.vllm import export_for_vllm

    page = _page(options)
    started = time.monotonic()
    shard_bytes = int(options.shard_gb * 1e9)
    if options.format == "vllm":
        refuse_unread(options, ("only",), "is part of no export for vLLM, which has all; leave it out")
        files = export_for_vllm(
            options.checkpoint,
            options.to,
            dtype=options.dtype,
            shard_bytes=shard_bytes,
            adapter=options.adapter,
        )
    else:
        files = export_weights(
            options.checkpoint,
            options.to,
            layout=options.format,
            only=options.only,
            dtype=options.dtype,
            shard_bytes=shard_bytes,
            adapter=options.adapter,
        )
    size = sum(file.stat().st_size for file in files)
    print(f"{options.to}: {len(files)} files, {size / 1e9:.2f} GB, {time.monotonic() - started:.0f} s")
    if options.push:
        from quecc_jax.convert.hub import push

        write_text(options.to / "README.md", page)
        print(push(options.to, options.push, options.private))


def _page(options: Export) -> str:
    """The page of what is pushed, once it is known that it can be; "" where nothing is."""
    if not options.push:
        refuse_unread(options, ("license", "scores", "private"), "goes with --push; add that or leave it out")
        return ""
    if options.only or options.adapter != "merge" or options.format == "vllm":
        raise UserError("--push sends whole models; leave --only, --adapter and --format vllm out")
    from quecc_jax.commands.model_card import model_card
    from quecc_jax.convert.hub import check_push

    page = model_card(options.checkpoint, options.push, options.license, options.scores)
    check_push(options.push)
    return page
