"""A run's directory: what lies where, its settings, and its own copies of its tokenizers.

    config.json      the run's settings
    checksums.json   of config.json, the tokenizers' files and what an import kept of its source
    tokenizer/       copy of the tokenizer's files, so that the directory stands alone
    query_tokenizer/ the same of the questions' own, if there is one
    frozen/          parameters that this run never changes, written once
    checkpoints/N/   after N steps: params (the trained ones), optimizer (slots and counters), and the
                     data's position in its metadata
    damaged/N/       checkpoints that could not be read, set aside

Every directory appears by one rename after its files are complete; frozen/ and each checkpoint have a checksums.json
of their own, see `quecc_jax.checksums`.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

from quecc_jax.checksums import FILE, check_files, list_files
from quecc_jax.config import RunConfig
from quecc_jax.config.io import load_config, save_config
from quecc_jax.errors import UserError
from quecc_jax.paths import as_path, copy_files, files_below, is_remote, remove, sync_tree

CHECKPOINTS = "checkpoints"
TOKENIZERS = ("tokenizer", "query_tokenizer")
"""Settings of `data` that name a tokenizer, and the run's folders of their copies."""
WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf"}
"""Files beside a tokenizer that are not part of it."""
TEXTS = 64 << 20
"""Bytes up to which a run's files other than its arrays are compared as a whole."""
ADVICE = "restore it, or, if the change is yours, delete {run}/checksums.json"


def describe_run(config: RunConfig, run: Path) -> None:
    """Writes config.json, the tokenizers' files, and the list of both.

    Raises:
      UserError: a tokenizer cannot be copied, or, where it is the run's own copy, is damaged.
    """
    sources = [(getattr(config.data, name), run / name) for name in TOKENIZERS]
    if any(_same(source, target) for source, target in sources):
        check_files(run, ADVICE.format(run=run))
    # Without a list nothing is wrong between the first file and the last.
    (run / FILE).unlink(missing_ok=True)
    for source, target in sources:
        copy_tokenizer(source, target)
    save_config(config, run / "config.json")
    list_run(run)


def list_run(run: Path) -> None:
    """Lists a run's files that are neither checkpoints nor logs."""
    run = as_path(run)
    folders = (run / name for name in (*TOKENIZERS, "source"))
    found = [path for folder in folders for path in files_below(folder)]
    list_files(run, [run / "config.json", *found], whole=TEXTS)


def _same(source: str, target: Path) -> bool:
    return bool(source) and os.path.realpath(source) == os.path.realpath(target)


def copy_tokenizer(source: str, target: Path) -> None:
    """Copies a tokenizer directory's own files (no weights, no folders); nothing if it is `target` itself.

    Raises:
      UserError: the directory is missing or cannot be read.
    """
    if not source or _same(source, target):
        return
    aside = target if is_remote(target) else target.with_name(f".tokenizer.{os.getpid()}")
    remove(aside)
    try:
        copy_files(source, aside, without=WEIGHTS)
    except OSError as error:
        remove(aside)
        raise UserError(f"tokenizer {source} cannot be copied into the run ({error})") from None
    if aside != target:
        sync_tree(aside)
        remove(target)
        os.replace(aside, target)


def run_and_step(path: str | os.PathLike[str]) -> tuple[Path, int | None]:
    """A run's directory, and the step where a path names one of its checkpoints, RUN/checkpoints/STEP."""
    run = as_path(path)
    if run.name.isdecimal() and run.parent.name == CHECKPOINTS:
        return run.parent.parent, int(run.name)
    return run, None


def load_run_config(run_dir: str | os.PathLike[str]) -> RunConfig:
    """A run's settings, pointing to the run's own copies of its tokenizers.

    Args:
      run_dir: the run's directory, or that of one of its checkpoints.

    Raises:
      UserError: the directory is not that of a run, or one of its files is damaged.
    """
    run, _ = run_and_step(run_dir)
    config = load_config(run / "config.json")
    check_files(run, ADVICE.format(run=run), closed=TOKENIZERS)
    own: dict[str, Any] = {name: str(run / name) for name in TOKENIZERS if (run / name).is_dir()}
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **own))
