"""The training loop: build, restore or start, step, log, save."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol

import jax

from quecc_jax.config import DecoderConfig, ModelConfig, RunConfig
from quecc_jax.config.validation import validate
from quecc_jax.data.batch import Batch
from quecc_jax.data.pipeline import make_iterator
from quecc_jax.data.sources.feature_store import read_features
from quecc_jax.distributed import STALL_S, Watchdog, local_rows
from quecc_jax.errors import UserError
from quecc_jax.fingerprint import query_fingerprint, tower_fingerprint
from quecc_jax.paths import place
from quecc_jax.sharding import make_mesh
from quecc_jax.train.checkpoint import Checkpoints, Resumable, load_params, notice
from quecc_jax.train.data_report import DataReport
from quecc_jax.train.lock import run_lock
from quecc_jax.train.meter import Meter
from quecc_jax.train.preemption import Preempted, Preemption
from quecc_jax.train.profile import Profile, parse_window
from quecc_jax.train.progress import Display, Records, Terminal
from quecc_jax.train.state import TrainState
from quecc_jax.train.step import Trainer, build_trainer


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

    Args:
      config: the run.
      progress: called with each log record in place of the bar or lines on stderr, in the first process.
      trainer: a built trainer of this very config, to share one compilation between runs.
      iterator: the batches; closed at the end in any case. None reads `config.data`.
      stall_s: seconds without a finished step after which a process of several ends.

    Returns:
      Summary of this call: out, step, loss (of the last log record; NaN if no step was left to do),
      skipped, truncated and dropped (rows, over all processes), label_tokens, tokens, seconds,
      compile_seconds, steps_per_s, tokens_per_s, flops_per_s, total_seconds, lost_seconds (start,
      compile, data, saving) and goodput (the share not lost).

    Raises:
      UserError: settings that do not fit, unreadable data or checkpoints, another run in `out`, or more
        than `train.max_bad_steps` non-finite steps in a row.
      Preempted: SIGTERM came before the last step; the state is saved.
    """
    began, window = time.perf_counter(), parse_window(config.profile)
    validate(config)
    with contextlib.ExitStack() as stack:
        if iterator is not None:
            stack.callback(iterator.close)
        watchdog = stack.enter_context(Watchdog(stall_s))
        preemption = stack.enter_context(Preemption())
        trainer = trainer or build_trainer(config, make_mesh(config.mesh))
        batches = iterator
        if batches is None:
            rows = local_rows(trainer.mesh, config.train.batch_size) if jax.process_count() > 1 else None
            batches = make_iterator(
                config.data,
                config.model,
                config.train.batch_size,
                config.train.seed,
                rows=rows,
                fingerprint=named_tower(config),
            )
            stack.callback(batches.close)
        stack.enter_context(run_lock(config.out))
        checkpoints = stack.enter_context(Checkpoints(config))

        state = checkpoints.restore(trainer.abstract_state, batches)
        if state is None:
            state = initial_state(config, trainer, tell=notice if progress is None else lambda _: None)
            checkpoints.begin(state)
        checkpoints.describe()
        check_queries(config, state)
        done, steps = int(state.step), config.train.steps

        meter = Meter(config, state, began)
        outputs = [] if jax.process_index() else open_outputs(stack, config, done, progress)
        profile = stack.enter_context(Profile(window, f"{config.out}/profile"))
        report = stack.enter_context(DataReport(place(config.out), done, getattr(batches, "tally", None)))

        step, stop = done, False
        while step < steps and not stop:
            step += 1
            with meter.waiting("data"):
                batch = next_batch(batches, step)
            profile.before(step, state)
            state, metrics = trainer.step(state, trainer.put(batch))
            meter.add(batch, metrics)
            profile.after(step, metrics)
            watchdog.progress(step)
            stop = preemption.reached(step)
            if step % config.train.log_every == 0 or step == steps or stop:
                record = meter.record() | report.record()
                for output in outputs:
                    output(record)
            with meter.waiting("saving"):
                if checkpoints.save(step, state, batches, last=step == steps or stop):
                    report.write()
        with meter.waiting("saving"):
            checkpoints.wait()
        if step < steps:
            raise Preempted(f"{config.out}: saved after step {step} of {steps} and stopped on SIGTERM")
        return meter.summary() | report.record()


def open_outputs(
    stack: contextlib.ExitStack, config: RunConfig, done: int, progress: Display | None
) -> list[Display]:
    """What takes a run's log records: its files, and `progress` or the terminal; `stack` closes them."""
    run = place(config.out)
    records = stack.enter_context(Records(run, done))
    show = progress or stack.enter_context(Terminal(run.name, config.train.steps, done))
    return [records.write, show]


def named_tower(config: RunConfig) -> str | None:
    """Fingerprint of the tower that a run on cached features names; None where it names none.

    Raises:
      UserError: `tower_from` has no tower.
    """
    if not config.data.cached_features:
        return None
    params = _named(config, "vision")
    if not params:
        return None
    return tower_fingerprint(params["vision"], config.model.tower, config.data)


def _named(config: RunConfig, name: Literal["vision", "text"]) -> dict[str, Any]:
    """{name: parameters} of a tower, from `tower_from`, or else from `init_from` if that has one; or empty.

    Raises:
      UserError: `tower_from` is given and neither has one.
    """
    absent: UserError | None = None
    for run in filter(None, (config.tower_from, config.init_from)):
        try:
            return load_params(run, [name])[1]
        except UserError as error:
            absent = absent or error
    if absent is not None and config.tower_from:
        raise absent
    return {}


def check_queries(config: RunConfig, state: TrainState) -> None:
    """Raises UserError if stored query features are of another encoder than the run's, which is frozen.

    A text tower takes no part in such a run; it is the one that `tower_from` or `init_from` names, any if
    they name none.
    """
    if not config.data.cached_queries:
        return
    own = not config.model.query.reads_decoder
    params = _named(config, "text") if own else state.frozen
    ours = query_fingerprint(params, config.model) if params else f"{config.model.query.encoder}:"
    for source in config.data.sources:
        theirs = read_features(source.path, name="queries").fingerprint.rpartition("-")[0]
        if not (theirs == ours or (not params and theirs.startswith(ours))):
            raise UserError(
                f"the queries of {source.path} are of another encoder ({theirs}, not {ours}); "
                "write them anew, or set data.cached_queries = False"
            )


def initial_state(config: RunConfig, trainer: Trainer, tell: Callable[[str], None] = notice) -> TrainState:
    """A fresh state from the run's seed, with the parameters of `init_from` where both runs have them,
    and the towers of `tower_from` that it has not.

    Raises:
      UserError: `init_from` is not a run, shares no parameters with this one, or has other shapes.
    """
    abstract = {**trainer.abstract_state.trainable, **trainer.abstract_state.frozen}
    params: dict[str, Any] = {}
    if config.init_from:
        source, params = load_params(config.init_from, abstract=abstract)
        if not params:
            known = ", ".join(sorted(abstract))
            raise UserError(f"init_from {config.init_from} has none of this run's parameters ({known})")
        _check_alike("init_from", config.init_from, source.model, config.model, params)
    towers: dict[str, Any] = {k: abstract[k] for k in ("vision", "text") if k in abstract and k not in params}
    if config.tower_from and towers:
        source, found = load_params(config.tower_from, None, towers)
        _check_alike("tower_from", config.tower_from, source.model, config.model, found)
        params |= found
        if absent := sorted(towers.keys() - params.keys()):
            raise UserError(
                f"tower_from {config.tower_from} has no parameters {', '.join(absent)}; name a "
                "run that has them"
            )
    if params and (fresh := sorted(abstract.keys() - params.keys())):
        tell(f"not in {config.init_from or config.tower_from} and started at random: {', '.join(fresh)}")
    if not abstract.keys() - params.keys():
        return trainer.start(params)
    state = trainer.init(jax.random.key(config.train.seed))
    return state._replace(
        trainable={k: params.get(k, v) for k, v in state.trainable.items()},
        frozen={k: params.get(k, v) for k, v in state.frozen.items()},
    )


def _check_alike(
    setting: str, run: str, theirs: ModelConfig, ours: ModelConfig, names: Iterable[str]
) -> None:
    """Raises UserError where two models compute otherwise with parameters of the same shapes."""
    tower = ("heads", "norm_eps", "activation")
    # Exports alone read the positions, and a head's width shows in shapes.
    decoder = {f.name for f in dataclasses.fields(DecoderConfig)} - {"max_positions", "head_width"}
    pairs: dict[str, tuple[Any, Any, Iterable[str]]] = {
        "decoder": (theirs.decoder, ours.decoder, decoder),
        "vision": (theirs.vision, ours.vision, tower),
        "text": (theirs.query.text, ours.query.text, tower),
    }
    for name in sorted(pairs.keys() & set(names)):
        there, here, fields = pairs[name]
        for field in sorted(fields):
            found, wanted = getattr(there, field), getattr(here, field)
            if found != wanted:
                where = f"model.{'query.text' if name == 'text' else name}.{field}"
                raise UserError(
                    f"{setting} {run} has {where} {found}, and this run {wanted}; give both the "
                    "same, or change it in the other's config.json if you mean the difference"
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
