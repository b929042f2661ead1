"""Peak memory and time of importing and exporting a LLaVA-1.5-7B with QueCC.

Run: python -m benchmarks.convert_memory

Method: writes a checkpoint in the original's format, float16 in 5 GB shards, whose tables and first
layers are random numbers and whose other tensors are holes of the files (zeros). Imports and exports it
by the command line, each in a process of its own; the peak is that process's largest resident set as
the kernel counted it. Then compares the random tensors and the form of all with the original's. Needs
about 17 GB of disk, which is freed at the end.
"""

import dataclasses
import json
import math
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from quecc_jax.config import DecoderConfig, ModelConfig, QueccConfig, RunConfig, VisionConfig
from quecc_jax.convert.io.tensors import open_tensors
from quecc_jax.convert.plan import plan_export

SHARD = 5_000_000_000
GIB = 1 << 30


def shapes_7b(layers: int) -> tuple[dict[str, object], dict[str, tuple[int, ...]]]:
    """config.json, and shapes by name, of Vicuna-7B behind CLIP-L/14-336 and QueCC with 16 tokens."""
    model = ModelConfig(
        vision=VisionConfig(post_norm=True),
        compressor=QueccConfig(kernel=6, stride=6),
        decoder=dataclasses.replace(DecoderConfig(), depth=layers),
    )
    plan = plan_export(RunConfig(model=model), "llava", "llama")
    pairs = (pair for rule in plan.rules for pair in zip(rule.theirs, rule.shapes, strict=True))
    return plan.hf, dict(pairs)


def is_random(name: str) -> bool:
    """Whether a tensor is filled: incompressible data takes the longest way through the writers."""
    return "layers" not in name or ".layers.0." in name or ".layers.1." in name


def write_sparse(directory: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Shards of float16 with an index; tensors that are not random take no room on the disk."""
    rng = np.random.default_rng(0)
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in shapes.items():
        if 2 * sum(map(math.prod, (*groups[-1].values(), shape))) > SHARD:
            groups.append({})
        groups[-1][name] = shape
    weight_map = {}
    for number, group in enumerate(groups, start=1):
        file, end = f"model-{number:05}-of-{len(groups):05}.safetensors", 0
        header: dict[str, dict[str, Any]] = {}
        for name, shape in group.items():
            offsets = [end, end + 2 * math.prod(shape)]
            header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": offsets}
            end, weight_map[name] = offsets[1], file
        text = json.dumps(header).encode()
        with (directory / file).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for name, shape in group.items():
                if is_random(name):
                    out.seek(8 + len(text) + header[name]["data_offsets"][0])
                    rng.normal(0, 0.02, math.prod(shape)).astype(np.float16).tofile(out)
            out.truncate(8 + len(text) + end)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def measured(*command: object) -> tuple[float, int]:
    """Seconds and peak resident bytes of a Python module run as a process of its own."""
    started = time.monotonic()
    arguments = [sys.executable, "-m", *map(str, command)]
    process = os.posix_spawn(sys.executable, arguments, os.environ)
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)} failed")
    unit = 1 if sys.platform == "darwin" else 1024
    return time.monotonic() - started, usage.ru_maxrss * unit


def compare(one: Path, other: Path) -> None:
    """Stops if the forms, or the random tensors' bits, of two checkpoints differ."""
    first, second = open_tensors(one), open_tensors(other)
    if first.shapes != second.shapes or first.dtypes != second.dtypes:
        raise SystemExit("the export's names, shapes or types differ from the original's")
    for name in filter(is_random, first.shapes):
        if not np.array_equal(first.read(name).view(np.uint16), second.read(name).view(np.uint16)):
            raise SystemExit(f"{name} differs after export")


def main(scratch: str | None = None, layers: int = 32) -> None:
    """Peak memory and time of importing and exporting a 7B model.

    Args:
      scratch: directory for the files, on the disk to be measured.
      layers: decoder layers; 32 is the 7B.
    """
    folder = Path(tempfile.mkdtemp(prefix="convert_memory.", dir=scratch))
    try:
        hf, shapes = shapes_7b(layers)
        sizes = [2 * math.prod(shape) for shape in shapes.values()]
        if shutil.disk_usage(folder).free < sum(sizes) * 1.2 + 2 * GIB:
            raise SystemExit(f"{folder} has too little room; give another directory with --scratch")
        given, run, out = folder / "given", folder / "run", folder / "out"
        given.mkdir()
        (given / "config.json").write_text(json.dumps(hf))
        write_sparse(given, shapes)
        limit = 2 * max(sizes) + 2 * GIB
        print(
            f"{len(sizes)} tensors, {sum(sizes) / 1e9:.1f} GB, largest {max(sizes) / 1e6:.0f} MB; "
            f"limit {limit / GIB:.2f} GiB = 2 x largest + 2 GiB",
            flush=True,
        )
        convert = "launch.convert"
        for verb, arguments in {
            "import": ("--from", given, "--out", run),
            "export": ("--checkpoint", run, "--to", out),
        }.items():
            seconds, peak = measured(convert, verb, *arguments)
            print(
                f"{verb}: peak {peak / GIB:.2f} GiB, {peak / limit:.2f} of the limit, {seconds:.0f} s, "
                f"{sum(sizes) / seconds / 1e6:.0f} MB/s",
                flush=True,
            )
        compare(given, out)
        print("the export's names, shapes, types and random tensors are the original's")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    tyro.cli(main)
