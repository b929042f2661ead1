"""A LLaVA file and its images as ArrayRecord shards, which pods read without a file system of millions.

    python -m launch.prepare_data --data mix665k.json --images data --out prepared --resize 336

Started again after a kill, the same command keeps every shard that is whole.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, cast

import numpy as np

from quecc_jax.commands.checks import check_folder, check_least, refuse_unread, share
from quecc_jax.config import MeshConfig
from quecc_jax.errors import UserError
from quecc_jax.progress import bars, byte_bar


@dataclasses.dataclass(frozen=True)
class Options:
    """Writes a LLaVA file and its images as checksummed shards; continues where it was stopped."""

    out: str
    """Directory to write, here or as gs://BUCKET/PATH."""
    data: str = ""
    """The conversations, .json or .jsonl, or a mixture of such files: LLaVA-NeXT's .yaml, or `{a,b}.json`. Or a
    Parquet file or a folder of some, as the Hub publishes data sets, with the images in it."""
    split: str = "train"
    """Of Parquet files that are named by their split."""
    images: tuple[str, ...] = ()
    """Folders of the images; several are searched in this order."""
    resize: int = 0
    """Store images as squares of so many pixels, the tower's (336 for CLIP-L/14-336); 0 stores the files
    as they are."""
    aspect: Literal["pad", "square"] = "pad"
    """How --resize makes them square; data.image_aspect of the runs must be the same."""
    decoding: Literal["upright", "original"] = "upright"
    """How --resize reads images; data.image_decoding of the runs must be the same."""
    encode: Literal["jpeg", "png", "raw"] = "jpeg"
    """What --resize stores: JPEG, PNG (nothing is lost, decoding is slower) or bare pixels."""
    quality: int = 95
    """Of JPEG."""
    bad: Literal["error", "skip"] = "error"
    """Stop at the first row or image that cannot be read, or go on and count them: data.bad_rows of the
    runs then decides about them. `tfds` leaves such rows out."""
    workers: int = 0
    """Processes; 0 takes one per core."""
    format: Literal["array_record", "tfds"] = "array_record"
    """`tfds` writes a data set of tensorflow-datasets, in one process and from the start each time."""
    features: bool = False
    """Store the tower's states of every image beside the images of --out, for data.cached_features."""
    queries: bool = False
    """Store the feature of every row's question in --out, for data.cached_queries."""
    encoder: Literal["run", "decoder", "early_exit", "embeddings", "clip_text"] = "run"
    """The questions' encoder, model.query.encoder of the runs to come; `run` takes that of --checkpoint."""
    layer: int = 0
    """Decoder layers of --encoder early_exit."""
    checkpoint: str = ""
    """The run whose tower --features takes, and whose encoder and tokenizer --queries."""
    batch_size: int = 32
    """Images or questions that go through them at once."""
    mesh: MeshConfig = dataclasses.field(default_factory=lambda: MeshConfig(1, 1, 1))
    """Devices of --queries per mesh axis: `fsdp` and `tensor` share parameters, `data` and `fsdp` the questions. Of
    several processes each is started by the same command, as for `launch.train`, and encodes its share."""
    verify: bool = False
    """Read all of --out against its checksums; writes nothing."""
    shard_images: int = 4096
    """Images of one shard."""
    shard: str = ""
    """I/N writes the I-th of N parts (0 .. N - 1) and no manifest, as one of N processes on as many hosts as there
    are; the same command with --merge in its place then makes the parts the whole."""
    merge: bool = False
    """Write the manifest of parts that are all there."""


def run(options: Options) -> None:
    """Prepares, and prints what came of it."""
    if options.verify:
        verify(options)
        return
    check(options)
    if options.features or options.queries:
        if options.features:
            write_features(options)
        if options.queries:
            from quecc_jax.distributed import joined

            with contextlib.nullcontext() if options.features else joined(preemption=False):
                write_queries(options)
        return
    (as_tfds if options.format == "tfds" else as_array_record)(options)


def check(options: Options) -> None:
    """Numbers out of range and options that would do nothing are mistakes."""
    check_least(options, {"resize": 0, "workers": 0, "shard_images": 1, "batch_size": 1})
    if not 1 <= options.quality <= 100:
        raise UserError(f"--quality is {options.quality}; give 1 to 100")
    if options.features or options.queries:
        preparing = (
            "data",
            "split",
            "images",
            "resize",
            "encode",
            "quality",
            "bad",
            "workers",
            "format",
            "shard_images",
            "shard",
            "merge",
        )
        why = "is for preparing data, and --features and --queries read what is prepared; leave it out"
        refuse_unread(options, preparing, why)
        if not options.checkpoint:
            raise UserError("--features and --queries need --checkpoint, a run")
        if not options.features:
            refuse_unread(options, ("aspect", "decoding"), "goes with --resize or --features; leave it out")
    else:
        if not options.data:
            raise UserError("--data must be given; see --help")
        refuse_unread(
            options,
            ("checkpoint", "batch_size"),
            "goes with --features or --queries; add one or leave it out",
        )
        if not options.resize:
            names = ("aspect", "decoding", "encode", "quality")
            refuse_unread(options, names, "goes with --resize; add it or leave this out")
    if (not options.queries or options.features) and options.mesh != MeshConfig(1, 1, 1):
        raise UserError("--mesh goes with --queries, without --features; leave it out")
    if not options.queries:
        refuse_unread(options, ("encoder", "layer"), "goes with --queries; add it or leave this out")
    if options.encoder != "early_exit":
        refuse_unread(options, ("layer",), "goes with --encoder early_exit; add it or leave this out")
    if options.encode != "jpeg":
        refuse_unread(options, ("quality",), "is of --encode jpeg; leave it out")
    if options.format == "tfds":
        names = ("workers", "shard_images", "shard", "merge")
        refuse_unread(options, names, "goes with --format array_record; leave it out")
    if options.merge:
        refuse_unread(
            options, ("shard", "workers"), "is for writing parts, and --merge joins them; leave it out"
        )
    elif options.shard:
        share("--shard", options.shard)
    check_folder("--out", options.out)


def as_array_record(options: Options) -> None:
    """Writes ArrayRecord shards."""
    # Imported late, so that --help and mistakes in the command line answer at once.
    import os

    from quecc_jax.data.preparing.prepare import Order, merge_parts, prepare_order, prepare_part
    from quecc_jax.data.sources.array_record import Recipe

    recipe = Recipe(options.resize, options.aspect, options.encode, options.quality, options.decoding)
    skips, per_shard = options.bad == "skip", options.shard_images
    order = Order(options.data, options.images, options.out, recipe, options.split, skips, per_shard)
    began, workers = time.monotonic(), options.workers or os.cpu_count() or 1
    if options.merge:
        manifest = merge_parts(order)
    else:
        with bar("images") as show:
            if options.shard:
                shards = prepare_part(order, *share("--shard", options.shard), workers, show)
                size = sum(shard.bytes for shard in shards)
                print(
                    f"{options.out}: part {options.shard}, {len(shards):,} shards, {size / 1e9:.2f} GB, "
                    f"{time.monotonic() - began:.0f} s\nonce all parts are there, --merge in place of --shard ends it"
                )
                return
            manifest = prepare_order(order, workers, show)
    lost, size = manifest["unreadable"], manifest["bytes"]
    print(
        f"{options.out}: {manifest['rows']:,} rows, {manifest['pictures']:,} images, "
        f"{size / 1e9:.2f} GB, {time.monotonic() - began:.0f} s"
    )
    if lost["rows"] or lost["pictures"]:
        print(
            f"unreadable, and counted as such by every run: {lost['rows']:,} rows and {lost['pictures']:,} "
            "images, such as"
        )
        print("\n".join(f"  {line}" for line in lost["first"]))


def as_tfds(options: Options) -> None:
    """Writes a data set of tensorflow-datasets."""
    from quecc_jax.data.preparing.inline import inline_rows
    from quecc_jax.data.sources.array_record import Recipe
    from quecc_jax.data.sources.tfds import LlavaRows

    if options.resize and options.encode == "raw":
        raise UserError("--format tfds stores encoded images alone; take --encode jpeg or png")
    recipe = Recipe(options.resize, options.aspect, options.encode, options.quality, options.decoding)
    rows = inline_rows(
        options.data, options.images, recipe, split=options.split, skip_bad=options.bad == "skip"
    )
    builder = LlavaRows(rows=lambda: rows, recipe=recipe, data_dir=options.out)
    builder.download_and_prepare()
    print(
        f"{builder.data_path}: {builder.info.splits['train'].num_examples:,} rows, "
        f"{builder.info.dataset_size / 1e9:.2f} GB"
    )


def write_features(options: Options) -> None:
    """Stores the tower's states of prepared images."""
    from quecc_jax.data.sources import feature_store
    from quecc_jax.data.sources.array_record import open_prepared, prepared_images
    from quecc_jax.experiments.testbed.tower import feature_fn
    from quecc_jax.fingerprint import tower_fingerprint
    from quecc_jax.train.checkpoint import load_params

    prepared = open_prepared(options.out)
    if prepared.recipe.size:
        other = (n for n in ("aspect", "decoding") if getattr(options, n) != getattr(prepared.recipe, n))
        why = f"goes with whole images, and {options.out} holds resized ones; leave it out"
        refuse_unread(options, tuple(other), why)
    config, params = load_params(options.checkpoint, ["vision"])
    vision = config.model.tower
    if vision.tiles:
        raise UserError(
            f"--features stores one square of each image, but {options.checkpoint} cuts images into tiles "
            "(model.vision.tiles), whose number differs; its runs read the images themselves"
        )
    made = prepared.recipe if prepared.recipe.size else options
    data = dataclasses.replace(config.data, image_aspect=made.aspect, image_decoding=made.decoding)
    images, total = prepared_images(prepared, vision, data), len(prepared.images)
    fingerprint = tower_fingerprint(params["vision"], vision, data)
    began = time.monotonic()
    with bar("images") as show:
        stored = feature_store.write_features(
            options.out,
            total,
            images,
            feature_fn(vision, params["vision"]),
            options.batch_size,
            fingerprint,
            lambda done: show(done, total),
        )
    size = sum(shard.bytes for shard in stored.records.shards)
    form = " x ".join(map(str, stored.shape[1:]))
    print(
        f"{options.out}: {total:,} images, {form} float16 each (patches, states, width), "
        f"{size / 1e9:.2f} GB, {time.monotonic() - began:.0f} s"
    )


def write_queries(options: Options) -> None:
    """Stores the feature of every question; its encoder must fit into the mesh."""
    import jax

    from quecc_jax.config.validation import validate
    from quecc_jax.data.sources import feature_store
    from quecc_jax.data.sources.array_record import open_prepared
    from quecc_jax.data.sources.questions import Questions
    from quecc_jax.data.sources.source import Layout
    from quecc_jax.data.text.queries import bucket, limit_buckets
    from quecc_jax.data.text.tokenizer import load_tokenizer
    from quecc_jax.fingerprint import query_fingerprint
    from quecc_jax.generate.decode import on_mesh
    from quecc_jax.groups import group_of
    from quecc_jax.load import load_query_encoder
    from quecc_jax.models.vlm import VLM
    from quecc_jax.run_lock import run_lock
    from quecc_jax.sharding import batch_parts, on_host, spread_rows
    from quecc_jax.train.run_dir import load_run_config

    config = load_run_config(options.checkpoint)
    if options.encoder != "run":
        query = dataclasses.replace(config.model.query, encoder=options.encoder, layer=options.layer)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, query=query))
    if config.model.query.reads_decoder:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, query_tokenizer=""))
    elif not config.data.query_tokenizer:
        raise UserError(
            f"{options.checkpoint} has no query_tokenizer, whose tokens clip_text reads; import "
            "the text tower with python -m launch.convert import --text"
        )
    validate(config)
    group = group_of(options.mesh)
    model, params = load_query_encoder(options.checkpoint, config, group.mesh)
    tokenizer = load_tokenizer(config.data.tokenizer, config.data.query_tokenizer)
    layout = Layout(tokenizer, config.data, config.model.visual_tokens)
    questions = Questions(open_prepared(options.out).rows, layout)
    total, parts = len(questions.rows), 1 if group.mesh is None else batch_parts(group.mesh)
    buckets = limit_buckets(config.data.query_limit)

    @jax.jit
    def encode_padded(params: Mapping[str, object], ids: jax.Array, lengths: jax.Array) -> jax.Array:
        segments = (np.arange(ids.shape[1]) < lengths).astype(np.int32)
        encoded = VLM(model).apply({"params": params}, ids, segments, lengths - 1, method=VLM.encode_query)
        return cast(jax.Array, encoded)[:, 0]

    def encode(asked: np.ndarray) -> np.ndarray:
        ids, lengths = asked[:, : bucket(int(asked[:, -1].max()), buckets)], asked[:, -1:]
        given = spread_rows((ids, lengths), group.mesh)
        return on_host(on_mesh(encode_padded, group.mesh)(params, *given))

    fingerprint = f"{query_fingerprint(params, model)}-{questions.fingerprint()}"
    first = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        if jax.process_count() > 1:
            stack.enter_context(run_lock(options.out))
        show = stack.enter_context(bar("questions")) if first else lambda done, total: None
        stored = feature_store.write_features(
            options.out,
            total,
            questions,
            encode,
            -(-options.batch_size // parts) * parts,
            fingerprint,
            lambda done: show(done, total),
            "queries",
            group,
        )
    size = sum(shard.bytes for shard in stored.records.shards)
    if first:
        print(f"{options.out}: {total:,} questions, {stored.shape[1]} float16 each, {size / 1e9:.2f} GB")


def verify(options: Options) -> None:
    """Checks every shard against the manifest."""
    from quecc_jax.data.sources.array_record import read_manifest
    from quecc_jax.data.sources.shards import check

    manifest = read_manifest(options.out)
    shards = [shard for group in manifest["shards"].values() for shard in group]
    with byte_bar("read", sum(shard.bytes for shard in shards)) as advance:
        for shard in shards:
            check(options.out, shard)
            advance(shard.bytes)
    print(f"{options.out}: {len(shards)} shards are whole")


@contextlib.contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar with the time left on stderr: yields what shows how many of how many are done."""
    with bars() as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
