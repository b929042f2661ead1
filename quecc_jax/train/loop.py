"""The training loop: build, restore or start, step, log, save."""

import contextlib
import time
from typing import Any, Protocol

import jax

from quecc_jax.config import DataConfig, RunConfig
from quecc_jax.config.validation import validate
from quecc_jax.data.batch import IGNORE, Batch
from quecc_jax.data.pipeline import make_iterator
from quecc_jax.data.plans.counts import counted
from quecc_jax.data.text.tokenizer import load_tokenizer
from quecc_jax.distributed import STALL_S, Watchdog, local_rows, notice
from quecc_jax.errors import UserError, disk_faults
from quecc_jax.paths import as_path, remove
from quecc_jax.run_lock import run_lock
from quecc_jax.sharding import batch_parts, make_mesh
from quecc_jax.train.initial import check_queries, initial_state, named_tower
from quecc_jax.train.logs.data_report import DataReport
from quecc_jax.train.logs.events import TENSORBOARD, EventFile
from quecc_jax.train.logs.meter import Meter
from quecc_jax.train.logs.records import HELD_OUT_LOSS, Display, Records, Scalars
from quecc_jax.train.logs.terminal import Terminal
from quecc_jax.train.logs.wandb_run import WandbRun
from quecc_jax.train.orbax_shim import faults_told_once
from quecc_jax.train.preemption import Preempted, Preemption
from quecc_jax.train.profile import Profile, parse_window
from quecc_jax.train.resume import Checkpoints, Resumable, begun_with
from quecc_jax.train.step import Trainer, build_trainer
from quecc_jax.train.validation import Validation


class BatchIterator(Resumable, Protocol):
    """Endless host batches with a position that can be saved and restored."""

    def __next__(self) -> Batch: ...

    def close(self) -> None: ...


def train(
    config: RunConfig,
    *,
    progress: Display | None = None,
    trainer: Trainer | None = None,
    iterator: BatchIterator | None = None,
    stall_s: float = STALL_S,
) -> dict[str, Any]:
    """Trains one run to its last step, continuing from its newest checkpoint as the config says.

    Where `config.train` names epochs or conversations, steps and rows of a step are counted from the data first
    (`data.plans.counts`) and kept with the settings in `out`; a run that goes on has those that it began with.

    Args:
      config: the run.
      progress: called with each log record in place of the bar or lines on stderr, in the first process.
      trainer: a built trainer of this very config, as counted, to share one compilation between runs.
      iterator: the batches; closed at the end in any case. None reads `config.data`.
      stall_s: seconds without a finished step after which a process of several ends.

    Returns:
      Summary of this call: out, step, loss (of the last log record; NaN if no step was left to do),
      skipped, truncated and dropped (rows, over all processes), label_tokens, tokens, seconds,
      compile_seconds, steps_per_s, tokens_per_s, flops_per_s, total_seconds, lost_seconds (start,
      compile, data, saving) and goodput (the share not lost).

    Raises:
      UserError: settings that do not fit, unreadable data or checkpoints, another run in `out`, a full disk or
        what else keeps `out` from being written, or more than `train.max_bad_steps` non-finite steps in a row.
      Preempted: SIGTERM came before the last step; the state is saved, if this call has done a step.
    """
    began, window = time.perf_counter(), parse_window(config.profile)
    validate(config)
    with contextlib.ExitStack() as stack:
        if iterator is not None:
            stack.callback(iterator.close)
        watchdog = stack.enter_context(Watchdog(stall_s))
        preemption = stack.enter_context(Preemption(config.out))
        tell = notice if progress is None else lambda _: None
        mesh = trainer.mesh if trainer else make_mesh(config.mesh)
        given, config = config, counted(config, batch_parts(mesh), tell, *begun_with(config))
        if config != given:
            if trainer is not None or iterator is not None:
                raise UserError(
                    f"{given.out}: a trainer or an iterator is given for train.steps {given.train.steps} and "
                    f"train.batch_size {given.train.batch_size}, but train.epochs and train.conversations come to "
                    f"{config.train.steps} and {config.train.batch_size}; make it of `counted(config, ...)`"
                )
            validate(config)
        trainer = trainer or build_trainer(config, mesh)
        rows = local_rows(trainer.mesh, config.train.batch_size) if jax.process_count() > 1 else None
        batches = iterator
        if batches is None:
            batches = make_iterator(
                config.data,
                config.model,
                config.train.batch_size,
                config.train.seed,
                rows=rows,
                fingerprint=named_tower(config),
            )
            stack.callback(batches.close)
        validation = stack.enter_context(Validation(config, trainer, rows, named_tower(config)))
        lock = stack.enter_context(run_lock(config.out))
        stack.enter_context(disk_faults(config.out, lock))
        stack.enter_context(faults_told_once(lock))
        checkpoints = stack.enter_context(Checkpoints(config))

        state = checkpoints.restore(trainer.abstract_state, batches)
        if state is None:
            state = initial_state(config, trainer, tell)
            checkpoints.begin(state)
        checkpoints.describe()
        check_queries(config, state)
        done, steps = int(state.step), config.train.steps
        if done and progress is None:
            notice(f"{config.out}: continues behind step {done} of {steps}")

        meter = Meter(config, state, began)
        outputs = [] if jax.process_index() else open_outputs(stack, config, done, progress)
        profile = stack.enter_context(Profile(window, f"{config.out}/profile"))
        report = stack.enter_context(DataReport(as_path(config.out), done, getattr(batches, "tally", None)))

        step, stop = done, False
        while step < steps and not stop:
            step += 1
            with meter.waiting("data"):
                batch = next_batch(batches, step)
                if step == 1 and iterator is None and (said := unknown_words(config.data, batch)):
                    notice(said)
            profile.before(step, state)
            state, metrics = trainer.step(state, trainer.put(batch))
            meter.add(batch, metrics)
            profile.after(step, metrics)
            watchdog.progress(step)
            stop = preemption.reached(step)
            measured: dict[str, float] = {}
            if validation.due(step) and (not stop or step == steps):
                with meter.aside("validation"):
                    measured = {HELD_OUT_LOSS: validation(state)}
                watchdog.progress(step)
            if step % config.train.log_every == 0 or step == steps or stop or measured:
                record = meter.record() | measured | report.record()
                for output in outputs:
                    output(record)
            checkpoints.check()
            with meter.waiting("saving"), preemption.saving():
                last = step == steps or stop
                if checkpoints.save(step, state, batches, last, measured.get(HELD_OUT_LOSS)):
                    report.write()
        with meter.waiting("saving"), preemption.saving():
            checkpoints.wait()
        if step < steps:
            raise Preempted(f"{config.out}: saved after step {step} of {steps} and stopped on SIGTERM")
        return meter.summary() | report.record()


def open_outputs(
    stack: contextlib.ExitStack, config: RunConfig, done: int, progress: Display | None
) -> list[Display]:
    """What takes a run's log records: its files, and `progress` or the terminal; `stack` closes them."""
    run = as_path(config.out)
    if not done:
        remove(run / TENSORBOARD)
    plots: list[Scalars] = [EventFile(run / TENSORBOARD, done)]
    if config.train.wandb:
        plots.append(WandbRun(config, done))
    records = stack.enter_context(Records(run, done, config.train.log_every, plots))
    show = progress or stack.enter_context(Terminal(run.name, config.train.steps, done))
    return [records.write, show]


def unknown_words(data: DataConfig, batch: Batch) -> str:
    """What to say of words to learn that the tokenizer has not; "" where it has all, or cannot tell."""
    tokenizer = load_tokenizer(data.tokenizer)
    learned = batch.labels[batch.labels != IGNORE]
    count = 0 if tokenizer.unknown_id is None else int((learned == tokenizer.unknown_id).sum())
    return (
        f"WARNING: {count} of the {len(learned)} tokens to learn in the first batch are words that "
        f"data.tokenizer {data.tokenizer} does not know, and which are all one to the model; give a tokenizer that "
        "knows them, and weights that go with it"
        if count
        else ""
    )


def next_batch(iterator: BatchIterator, step: int) -> Batch:
    """The iterator's next batch.

    Raises:
      UserError: the data ended.
    """
    try:
        return next(iterator)
    except StopIteration:
        raise UserError(f"the data ended before step {step}; shorten train.steps or give more data") from None
