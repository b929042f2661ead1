"""A run's directory: what lies where, its settings, and its own copies of its tokenizers.

    config.json      the run's settings
    tokenizer/       copy of the tokenizer's files, so that the directory stands alone
    query_tokenizer/ the same of the questions' own, if there is one
    frozen/          parameters that this run never changes, written once
    checkpoints/N/   after N steps: params (the trained ones), optimizer (slots and counters), and the
                     data's position in its metadata
    damaged/N/       checkpoints that could not be read, set aside

Every directory appears by one rename after its files are complete.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

from quecc_jax.config import RunConfig
from quecc_jax.config.io import load_config, save_config
from quecc_jax.errors import UserError
from quecc_jax.paths import as_path, copy_files, is_remote, remove

TOKENIZERS = ("tokenizer", "query_tokenizer")
"""Settings of `data` that name a tokenizer, and the run's folders of their copies."""
WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf"}
"""Files beside a tokenizer that are not part of it."""


def describe_run(config: RunConfig, run: Path) -> None:
    """Writes config.json and the tokenizers' files."""
    for name in TOKENIZERS:
        copy_tokenizer(getattr(config.data, name), run / name)
    save_config(config, run / "config.json")


def copy_tokenizer(source: str, target: Path) -> None:
    """Copies a tokenizer directory's own files (no weights, no folders); nothing if it is `target` itself.

    Raises:
      UserError: the directory is missing or cannot be read.
    """
    if not source or os.path.realpath(source) == os.path.realpath(target):
        return
    aside = target if is_remote(target) else target.with_name(f".tokenizer.{os.getpid()}")
    remove(aside)
    try:
        copy_files(source, aside, without=WEIGHTS)
    except OSError as error:
        remove(aside)
        raise UserError(f"tokenizer {source} cannot be copied into the run ({error})") from None
    if aside != target:
        remove(target)
        os.replace(aside, target)


def load_run_config(run_dir: str | os.PathLike[str]) -> RunConfig:
    """A run's settings, pointing to the run's own copies of its tokenizers.

    Raises:
      UserError: the directory is not that of a run, or its config.json is broken.
    """
    run = as_path(run_dir)
    config = load_config(run / "config.json")
    own: dict[str, Any] = {name: str(run / name) for name in TOKENIZERS if (run / name).is_dir()}
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **own))
