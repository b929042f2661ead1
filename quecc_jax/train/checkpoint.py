"""A run's directory: what is saved in it, and how it is read back.

    config.json      the run's settings
    tokenizer/       copy of the tokenizer's files, so that the directory stands alone
    query_tokenizer/ the same of the questions' own, if there is one
    frozen/          parameters that this run never changes, written once
    checkpoints/N/   after N steps: params (the trained ones), optimizer (slots and counters), and the
                     data's position in its metadata
    damaged/N/       checkpoints that could not be read, set aside

Every directory appears by one rename after its files are complete.
"""

import contextlib
import dataclasses
import logging
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from quecc_jax.config import RunConfig
from quecc_jax.config.io import differences, load_config, save_config
from quecc_jax.data.files import fresh_directory
from quecc_jax.errors import UserError
from quecc_jax.paths import copy_files, is_remote, place, remove
from quecc_jax.train.state import TrainState

Tree = dict[str, Any]

TOKENIZERS = ("tokenizer", "query_tokenizer")
"""Settings of `data` that name a tokenizer, and the run's folders of their copies."""
COUNTERS = ("step", "bad_run", "skipped")
SLOT = "slot/"

WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf"}
"""Files beside a tokenizer that are not part of it."""

HALVES = (np.dtype(jnp.float16), np.dtype(jnp.bfloat16))
"""Types of stored parameters that are read as float32 where the model wants that, exactly."""


class Resumable(Protocol):
    """What the checkpoint needs of a data iterator: its position as a JSON value, alike on all hosts."""

    def get_state(self) -> dict[str, Any]: ...

    def set_state(self, state: dict[str, Any]) -> None: ...


class Checkpoints:
    """The checkpoints of one run; owns orbax's background threads, so use it as a context."""

    def __init__(self, config: RunConfig):
        self.run, self.config = place(config.out), config
        every, keep = config.checkpoint.every, max(1, config.checkpoint.keep)
        policy = ocp.training.save_decision_policies
        preempted = policy.PreemptionCheckpointingPolicy()
        rules = [policy.FixedIntervalPolicy(every), preempted] if every > 0 else [preempted]
        try:
            self.run.mkdir(parents=True, exist_ok=True)
            remove_unfinished(self.run)
            self._orbax = ocp.training.Checkpointer(
                self.run / "checkpoints",
                save_decision_policy=policy.AnySavePolicy(rules),
                preservation_policy=ocp.training.preservation_policies.LatestN(keep),
                context=chunked_by_layer(),
            )
        except OSError as error:
            raise UserError(f"out directory {self.run} cannot be written ({error}); choose another") from None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # After a failure the processes that a save waits for may be gone.
        if kind is None or jax.process_count() == 1:
            self._orbax.close()

    def restore(self, abstract: TrainState, data: Resumable) -> TrainState | None:
        """The newest readable checkpoint under the shardings of `abstract`, or None to start anew.

        A checkpoint that cannot be read is reported on stderr and set aside once an older one is.
        `data` continues from the position saved with the state.

        Raises:
          UserError: there is none and `checkpoint.resume` is `must`; none of them can be read (with
            several processes, which might disagree on it, or in a bucket: the newest cannot); or the
            saved arrays are not those of this run's model and optimizer.
        """
        steps = [c.step for c in self._orbax.checkpoints][::-1]
        if self.config.checkpoint.resume == "never" or not steps:
            if self.config.checkpoint.resume == "must":
                raise UserError(f"{self.run} holds no checkpoint; start with --checkpoint.resume auto")
            return None
        damaged: list[int] = []
        for step in steps:
            try:
                found = self._load(step, abstract)
                break
            except UserError:
                raise
            except Exception as error:  # orbax, tensorstore and json each fail in their own ways
                if jax.process_count() > 1 or is_remote(self.run):
                    raise UserError(
                        f"checkpoint {step} of {self.run} cannot be read: {_first_line(error)}; "
                        "move it away to go back to the one before"
                    ) from None
                damaged.append(step)
                notice(f"WARNING: checkpoint {step} of {self.run} cannot be read: {_first_line(error)}")
        else:
            raise UserError(
                f"none of the checkpoints {steps} of {self.run} can be read; repair or delete the directory, "
                "or start over with --checkpoint.resume never"
            )
        params, opt_state, counters, position = found
        if damaged:
            notice(f"WARNING: going back to checkpoint {step}; {damaged} set aside in {self.run / 'damaged'}")
            self._set_aside(damaged)
        data.set_state(position)
        self._tell_changes()
        return TrainState(
            trainable=params, frozen=self._load_frozen(abstract.frozen), opt_state=opt_state, **counters
        )

    def _tell_changes(self) -> None:
        try:
            old = dataclasses.replace(load_config(self.run / "config.json"), out=self.config.out)
            changes = list(differences(old, self.config))
        except UserError as error:  # the arrays fit, so an old or lost config.json is no obstacle
            changes = [str(error)]
        for change in changes:
            notice(f"resuming with a changed setting: {change}")

    def begin(self, state: TrainState) -> None:
        """Starts the run at `state`: drops what an earlier run left here and writes the frozen parameters."""
        for old in self._orbax.checkpoints:
            self._orbax.delete(old.step)
        if jax.tree.leaves(state.frozen):
            with chunked_by_layer():
                ocp.save(self.run / "frozen", state.frozen, overwrite=True)
        elif jax.process_index() == 0:
            remove(self.run / "frozen")

    def describe(self) -> None:
        """Writes config.json and the tokenizers' files."""
        if jax.process_index() == 0:
            for name in TOKENIZERS:
                copy_tokenizer(getattr(self.config.data, name), self.run / name)
            save_config(self.config, self.run / "config.json")

    def save(self, step: int, state: TrainState, data: Resumable, last: bool = False) -> bool:
        """Saves in the background if a checkpoint is due after `step` steps, or if this is the last, for
        now.

        The arrays are copied before this returns, so the next step may overwrite them.

        Returns:
          Whether a save was begun.
        """
        if not last and not self._orbax.should_save(step):
            return False
        parts = {"params": state.trainable, "optimizer": _optimizer_part(state)}
        position = {"data": data.get_state()}
        begun = self._orbax.save_checkpointables_async(step, parts, force=True, custom_metadata=position)
        return begun is not None

    def wait(self) -> None:
        """Returns once everything begun is saved."""
        self._orbax.wait()

    def _load(self, step: int, abstract: TrainState) -> tuple[Tree, Any, Tree, dict[str, Any]]:
        """(params, optimizer state, counters, data position) of one checkpoint."""
        want = {"params": abstract.trainable, "optimizer": _optimizer_part(abstract)}
        with quiet_libraries():
            saved = self._orbax.checkpointables_metadata(step)
            where = f"checkpoint {step} of {self.run}"
            for part, tree in want.items():
                check_shapes(_readable(saved.metadata, part), tree, f"{where}, {part}")
            found = self._orbax.load_checkpointables(step, want)
            position = _readable(saved.custom_metadata, "data")
        optimizer = found["optimizer"]
        slots = [optimizer[SLOT + name] for name in named_leaves(abstract.opt_state)]
        opt_state = jax.tree.unflatten(jax.tree.structure(abstract.opt_state), slots)
        return found["params"], opt_state, {k: optimizer[k] for k in COUNTERS}, position

    def _load_frozen(self, abstract: Tree) -> Tree:
        if not jax.tree.leaves(abstract):
            return abstract
        path = self.run / "frozen"
        try:
            check_shapes(ocp.metadata(path).metadata, abstract, str(path))
            return ocp.load(path, abstract)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"the frozen parameters in {path} cannot be read ({_first_line(error)}); restore that "
                "directory, or start over with --checkpoint.resume never"
            ) from None

    def _set_aside(self, steps: list[int]) -> None:
        if jax.process_index() == 0:
            (self.run / "damaged").mkdir(exist_ok=True)
            for step in steps:
                remove(self.run / "damaged" / str(step))
                os.replace(self.run / "checkpoints" / str(step), self.run / "damaged" / str(step))
        self._orbax.reload()


def remove_unfinished(run: Path) -> None:
    """Deletes what a killed process had begun to save."""
    if jax.process_index() == 0 and not is_remote(run):
        # Orbax would do this in a thread that it does not join, and misses the frozen parameters.
        begun = ".orbax-checkpoint-tmp*"
        for pattern in (f"frozen{begun}", f"checkpoints/*{begun}", ".tokenizer.*"):
            for path in run.glob(pattern):
                shutil.rmtree(path)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keeps orbax and asyncio from logging what is about to be reported in one line."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _readable(parts: Any, name: str) -> Any:
    """A part of a checkpoint's metadata; orbax leaves out what it could not read, or says None."""
    if not parts or parts.get(name) is None:
        raise ValueError(f"its part {name!r} is damaged or missing")
    return parts[name]


def _optimizer_part(state: TrainState) -> Tree:
    """Slots and counters by name: optax's empty states leave no trace, so they may come and go."""
    slots = {SLOT + name: leaf for name, leaf in named_leaves(state.opt_state).items()}
    return {**{k: getattr(state, k) for k in COUNTERS}, **slots}


def chunked_by_layer() -> ocp.Context:
    """Settings under which every layer of a stacked leaf lies apart, so that one can be read alone."""
    context = ocp.Context()
    storage = ocp.options.ArrayOptions.Saving.StorageOptions

    def first_axis(path: Any, leaf: Any) -> Any:
        return storage(shard_axes=(0,)) if any(getattr(k, "key", k) == "layers" for k in path) else None

    context.array.saving.scoped_storage_options_creator = first_axis
    return context


def notice(message: str) -> None:
    """One line on stderr, from one process."""
    if jax.process_index() == 0:
        print(message, file=sys.stderr, flush=True)


def _first_line(error: BaseException) -> str:
    """Kind and first line of the error at the bottom of a chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:300]


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves by path, as `a/b/0/c`; named tuples, dicts and lists spell their keys alike."""

    def name(key: Any) -> str:
        return str(next(getattr(key, a) for a in ("key", "name", "idx") if hasattr(key, a)))

    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(map(name, path)): leaf for path, leaf in flat}


def check_shapes(found: Any, expected: Any, where: str, widen: bool = False) -> None:
    """Compares two trees of anything with shape and dtype, leaf by leaf.

    Args:
      found: what is there.
      expected: what is wanted.
      where: the place of `found`, for messages.
      widen: whether half precision may stand where float32 is wanted.

    Raises:
      UserError: naming the first leaf that is missing, unexpected, or of another shape or dtype.
    """

    def form(leaf: Any) -> str:
        dtype = np.dtype(leaf.dtype)
        return f"shape {tuple(leaf.shape)} {np.dtype(np.float32) if widen and dtype in HALVES else dtype}"

    have, want = ({k: form(v) for k, v in named_leaves(t).items()} for t in (found, expected))
    for name in sorted(want.keys() - have.keys()):
        raise UserError(f"{where}: {name} is missing, expected {want[name]}; is it of another model?")
    for name in sorted(have.keys() - want.keys()):
        raise UserError(f"{where}: {name} of {have[name]} is not part of this run's model or optimizer")
    for name in want:
        if have[name] != want[name]:
            raise UserError(
                f"{where}: {name} has {have[name]}, expected {want[name]}; use the settings it was saved with"
            )


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
    run = place(run_dir)
    config = load_config(run / "config.json")
    own: dict[str, Any] = {name: str(run / name) for name in TOKENIZERS if (run / name).is_dir()}
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **own))


def save_params(config: RunConfig, params: Tree) -> None:
    """Writes a run directory of parameters alone, which `load_params` reads, in the place of `config.out`.

    Args:
      params: by top-level name, e.g. {"vision": ...}.

    Raises:
      UserError: the directory holds a training run, or it cannot be written.
    """
    run = Path(config.out).absolute()
    if any(p.name != "0" for p in (run / "checkpoints").glob("*")):
        raise UserError(f"{run} holds a training run; give another directory for the parameters")
    try:
        with fresh_directory(run) as aside:
            with quiet_libraries(), chunked_by_layer():
                ocp.save_checkpointables(aside / "checkpoints" / "0", {"params": params})
            for name in TOKENIZERS:
                copy_tokenizer(getattr(config.data, name), aside / name)
            save_config(config, aside / "config.json")
    except OSError as error:
        raise UserError(f"out directory {run} cannot be written ({error}); choose another") from None


def load_params(
    run_dir: str | os.PathLike[str], names: Iterable[str] | None = None, abstract: Tree | None = None
) -> tuple[RunConfig, Tree]:
    """Parameters of a run's newest readable checkpoint, without its optimizer.

    Args:
      run_dir: the run's directory.
      names: top-level names to read (compressor, projector, decoder, ...); None reads all that the
        run has and, where given, `abstract` has too.
      abstract: ShapeDtypeStructs with shardings by name; None gives numpy arrays on the host, as stored.
        What is stored in half precision becomes float32 where `abstract` says so.

    Returns:
      The run's config (with its own tokenizer) and the parameters by top-level name.

    Raises:
      UserError: not a run's directory, no readable checkpoint, a name that it lacks, or a leaf of
        another shape than `abstract` says.
    """
    run = place(run_dir)
    config = load_run_config(run)
    folder = run / "checkpoints"
    steps = sorted((int(p.name) for p in folder.glob("*") if p.name.isdigit()), reverse=True)
    wanted = None if names is None else list(names)
    for step in steps:
        try:
            with quiet_libraries():
                return config, _read_params(run, step, wanted, abstract)
        except UserError:
            raise
        except Exception as error:
            notice(f"WARNING: checkpoint {step} of {run} cannot be read: {_first_line(error)}")
    raise UserError(f"{run} holds no readable checkpoint; train it first, or give another run's directory")


def _read_params(run: Path, step: int, names: list[str] | None, abstract: Tree | None) -> Tree:
    path, frozen = run / "checkpoints" / str(step), run / "frozen"
    trained = _readable(ocp.checkpointables_metadata(path).metadata, "params")
    fixed = ocp.metadata(frozen).metadata if frozen.is_dir() else {}
    have = {**fixed, **trained}
    if names is None:
        names = [n for n in have if abstract is None or n in abstract]
    if missing := [n for n in names if n not in have]:
        raise UserError(f"{run} has no parameters {', '.join(missing)}; it has {', '.join(have)}")
    if abstract is None:
        abstract = {n: jax.tree.map(_host_form, have[n]) for n in names}
    for name in names:
        check_shapes({name: have[name]}, {name: abstract[name]}, str(run), widen=True)
    params: Tree = {}
    some = ocp.Context()
    some.pytree.loading.partial_load = True
    with some:
        if part := {n: abstract[n] for n in names if n in trained}:
            params |= ocp.load_checkpointables(path, {"params": part})["params"]
        if part := {n: abstract[n] for n in names if n not in trained}:
            params |= ocp.load(frozen, part)
    return params


def _host_form(leaf: Any) -> np.ndarray:
    """A numpy stand-in of a leaf's shape and dtype that takes no memory."""
    return np.broadcast_to(np.empty((), leaf.dtype), leaf.shape)
