"""The checkpoints of a run in progress: saved as they fall due, and the newest that can be read restored."""

import contextlib
import dataclasses
import functools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
from orbax.checkpoint import v1 as ocp

from quecc_jax.checksums import check_files, identity
from quecc_jax.config import RunConfig
from quecc_jax.config.io import differences, load_config
from quecc_jax.distributed import notice
from quecc_jax.errors import UserError
from quecc_jax.paths import as_path, is_remote, remove
from quecc_jax.records import Damaged
from quecc_jax.train.checkpoint import FROZEN, Tree, check_files_of, check_frozen, check_shapes, named_leaves
from quecc_jax.train.logs.records import HELD_OUT_LOSS
from quecc_jax.train.orbax_shim import (
    first_line,
    frozen_form,
    quiet_libraries,
    readable,
    remove_unfinished,
    saving,
)
from quecc_jax.train.reading import reading
from quecc_jax.train.run_dir import describe_run
from quecc_jax.train.state import TrainState

COUNTERS = ("step", "bad_run", "skipped")
SLOT = "slot/"


class Resumable(Protocol):
    """What the checkpoint needs of a data iterator: its position as a JSON value, alike on all hosts."""

    def get_state(self) -> dict[str, Any]: ...

    def set_state(self, state: dict[str, Any]) -> None: ...


class Begun(NamedTuple):
    """What a run counted from its data when it began; 0 where it is not known, or was not counted."""

    batch_size: int = 0
    steps: int = 0


def begun_with(config: RunConfig) -> Begun:
    """Rows of a step and steps of the run that a checkpoint in `out` is of, where this config counts the same
    conversations and epochs: on another mesh they might come out otherwise.

    Data is not looked at: a checkpoint refuses to go on with other data.
    """
    train, run = config.train, as_path(config.out)
    saved = any(path.name.isdecimal() for path in (run / "checkpoints").glob("*"))
    if not saved or config.checkpoint.resume == "never":
        return Begun()
    try:
        before = load_config(run / "config.json").train
    except UserError:  # as `_tell_changes`: an old or lost config.json is no obstacle
        return Begun()
    if before.conversations != train.conversations:
        return Begun()
    rows = before.batch_size if train.conversations else 0
    same = before.epochs == train.epochs and before.batch_size == (rows or train.batch_size)
    return Begun(rows, before.steps if train.epochs and same else 0)


class Checkpoints:
    """The checkpoints of one run; owns orbax's background threads, so use it as a context."""

    def __init__(self, config: RunConfig):
        self.run, self.config = as_path(config.out), config
        self._begun: Any = None
        every, keep = config.checkpoint.every, max(1, config.checkpoint.keep)
        policy = ocp.training.save_decision_policies
        preempted = policy.PreemptionCheckpointingPolicy()
        kept = ocp.training.preservation_policies
        preserved: list[Any] = [kept.LatestN(keep)]
        if config.checkpoint.keep_best:
            preserved.append(kept.BestN(get_metric_fn=_goodness, n=1, keep_checkpoints_without_metrics=False))
        rules = [policy.FixedIntervalPolicy(every), preempted] if every > 0 else [preempted]
        try:
            self.run.mkdir(parents=True, exist_ok=True)
            remove_unfinished(self.run)
            self._refuse_or_set_aside(lambda path: "" if path.is_dir() else f"{path} is no directory")
            begin = functools.partial(
                ocp.training.Checkpointer,
                self.run / "checkpoints",
                save_decision_policy=policy.AnySavePolicy(rules),
                preservation_policy=kept.AnyPreservationPolicy(preserved),
                context=saving(),
            )
            try:
                self._orbax = begin()
            except (ValueError, TypeError, AttributeError, KeyError):
                # Orbax reads the description of every checkpoint, and fails at the first that is another's.
                self._refuse_or_set_aside(_damage)
                self._orbax = begin()
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
            several processes, which might disagree on it, or in a bucket: the newest cannot); the frozen
            parameters are damaged or another run's; or the saved arrays are not those of this run's model and
            optimizer.
        """
        steps = [c.step for c in self._orbax.checkpoints][::-1]
        if self.config.checkpoint.resume == "never" or not steps:
            if self.config.checkpoint.resume == "must":
                raise UserError(f"{self.run} holds no checkpoint; start with --checkpoint.resume auto")
            log = self.run / "metrics.jsonl"
            if self.config.checkpoint.resume != "never" and log.exists():
                notice(
                    f"WARNING: {self.run} has a log but no checkpoint: the run begins anew, and {log.name} with it"
                )
            return None
        damaged: list[int] = []
        for step in steps:
            try:
                found = self._load(step, abstract)
                break
            except Exception as error:  # orbax, tensorstore and json each fail in their own ways
                if isinstance(error, UserError) and not isinstance(error, Damaged):
                    raise
                if jax.process_count() > 1 or is_remote(self.run):
                    raise UserError(
                        f"checkpoint {step} of {self.run} cannot be read: {first_line(error)}; "
                        "move it away to go back to the one before"
                    ) from None
                damaged.append(step)
                notice(f"WARNING: checkpoint {step} of {self.run} cannot be read: {first_line(error)}")
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
            with saving():
                ocp.save(self.run / FROZEN, state.frozen, overwrite=True)
        elif jax.process_index() == 0:
            remove(self.run / FROZEN)

    def describe(self) -> None:
        """Writes config.json and the tokenizers' files."""
        if jax.process_index() == 0:
            describe_run(self.config, self.run)

    def save(
        self,
        step: int,
        state: TrainState,
        data: Resumable,
        last: bool = False,
        held_out_loss: float | None = None,
    ) -> bool:
        """Saves in the background if a checkpoint is due after `step` steps, or if this is the last, for
        now.

        The arrays are copied before this returns, so the next step may overwrite them.

        Args:
          held_out_loss: of this very state, where it was measured; `checkpoint.keep_best` goes by it.

        Returns:
          Whether a save was begun.
        """
        if not last and not self._orbax.should_save(step):
            return False
        parts = {"params": state.trainable, "optimizer": _optimizer_part(state)}
        apart = {"data": data.get_state(), FROZEN: identity(self.run / FROZEN)}
        metrics = None if held_out_loss is None else {HELD_OUT_LOSS: held_out_loss}
        self._begun = self._orbax.save_checkpointables_async(
            step, parts, force=True, metrics=metrics, custom_metadata=apart
        )
        return self._begun is not None

    def check(self) -> None:
        """Raises what has gone wrong with the last save by now, if anything has."""
        if self._begun is not None:
            with contextlib.suppress(TimeoutError):
                self._begun.result(timeout=0)

    def wait(self) -> None:
        """Returns once everything begun is saved."""
        self._orbax.wait()

    def _load(self, step: int, abstract: TrainState) -> tuple[Tree, Any, Tree, dict[str, Any]]:
        """(params, optimizer state, counters, data position) of one checkpoint."""
        want = {"params": abstract.trainable, "optimizer": _optimizer_part(abstract)}
        where = f"checkpoint {step} of {self.run}"
        check_files_of(self.run, step)
        with quiet_libraries():
            saved = self._orbax.checkpointables_metadata(step)
            stored = {part: readable(saved.metadata, part) for part in want}
            for part, tree in want.items():
                check_shapes(stored[part], tree, f"{where}, {part}")
            with reading(stored, want):
                found = ocp.load_checkpointables(self.run / "checkpoints" / str(step), want)
            position = readable(saved.custom_metadata, "data")
        check_frozen(self.run, step, saved.custom_metadata)
        optimizer = found["optimizer"]
        slots = [optimizer[SLOT + name] for name in named_leaves(abstract.opt_state)]
        opt_state = jax.tree.unflatten(jax.tree.structure(abstract.opt_state), slots)
        return found["params"], opt_state, {k: optimizer[k] for k in COUNTERS}, position

    def _load_frozen(self, abstract: Tree) -> Tree:
        if not jax.tree.leaves(abstract):
            return abstract
        path = self.run / FROZEN
        try:
            stored = frozen_form(path)
            check_shapes(stored, abstract, str(path))
            with quiet_libraries(), reading(stored, abstract):
                return ocp.load(path, abstract)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"the frozen parameters in {path} cannot be read ({first_line(error)}); restore that "
                "directory, or start over with --checkpoint.resume never"
            ) from None

    def _set_aside(self, steps: list[int]) -> None:
        if jax.process_index() == 0:
            self._move_aside(steps)
        self._orbax.reload()

    def _move_aside(self, steps: list[int]) -> None:
        aside = self.run / "damaged"
        try:
            aside.mkdir(exist_ok=True)
        except FileExistsError:
            raise UserError(f"{aside}, where damaged checkpoints go, is no directory; move it away") from None
        for step in steps:
            # What lies there may be a link to nowhere.
            (aside / str(step)).unlink() if (aside / str(step)).is_symlink() else remove(aside / str(step))
            os.replace(self.run / "checkpoints" / str(step), aside / str(step))

    def _refuse_or_set_aside(self, fault: Callable[[Path], str]) -> None:
        """Sets aside what has a checkpoint's name and a fault before orbax meets it, which is said.

        Raises:
          UserError: there is one, and several processes might disagree on it.
        """
        folder = self.run / "checkpoints"
        if is_remote(folder) or not folder.is_dir():
            return
        for path in sorted(path for path in folder.iterdir() if path.name.isdecimal()):
            if not (why := fault(path)):
                continue
            if jax.process_count() > 1:
                raise UserError(f"checkpoint {path.name} of {self.run} cannot be read: {why}; move it away")
            where = f"set aside in {self.run / 'damaged'}"
            notice(f"WARNING: checkpoint {path.name} of {self.run} cannot be read: {why}; {where}")
            self._move_aside([int(path.name)])


def _damage(path: Path) -> str:
    """What is wrong with a checkpoint's files; empty if they are those that were saved."""
    try:
        check_files(path, "restore it", path.name)
    except Damaged as error:
        return str(error)
    return ""


def _goodness(metrics: Any) -> float:
    """What the best checkpoint has most of."""
    loss = metrics[HELD_OUT_LOSS]
    return -loss if math.isfinite(loss) else -math.inf


def _optimizer_part(state: TrainState) -> Tree:
    """Slots and counters by name: optax's empty states leave no trace, so they may come and go."""
    slots = {SLOT + name: leaf for name, leaf in named_leaves(state.opt_state).items()}
    return {**{k: getattr(state, k) for k in COUNTERS}, **slots}
