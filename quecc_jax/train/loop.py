"""The training loop: build, restore or start, step, log, save."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax

from quecc_jax.config import RunConfig, validate
from quecc_jax.data.batch import Batch
from quecc_jax.data.pipeline import make_iterator
from quecc_jax.errors import UserError
from quecc_jax.sharding import make_mesh
from quecc_jax.train.checkpoint import Checkpoints, Resumable, load_params, notice
from quecc_jax.train.meter import Meter
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
) -> dict[str, Any]:
    """Trains one run to its last step, continuing from its newest checkpoint as the config says.

    Args:
      config: the run.
      progress: called with each log record in place of the bar or lines on stderr.
      trainer: a built trainer of this very config, to share one compilation between runs.
      iterator: the batches; closed at the end in any case. None reads `config.data`.

    Returns:
      Summary of this call: out, step, loss (of the last log record; NaN if no step was left to do),
      skipped, label_tokens, tokens, seconds, compile_seconds, steps_per_s, tokens_per_s, flops_per_s.

    Raises:
      UserError: settings that do not fit, unreadable data or checkpoints, or more than
        `train.max_bad_steps` non-finite steps in a row.
    """
    validate(config)
    with contextlib.ExitStack() as stack:
        batches = iterator
        if batches is None:
            batches = make_iterator(
                config.data, config.model, config.train.batch_size, config.train.seed,
                process_index=jax.process_index(), process_count=jax.process_count(),
            )  # fmt: skip
        stack.callback(batches.close)
        trainer = trainer or build_trainer(config, make_mesh(config.mesh))
        checkpoints = stack.enter_context(Checkpoints(config))

        state = checkpoints.restore(trainer.abstract_state, batches)
        if state is None:
            state = initial_state(config, trainer, tell=notice if progress is None else lambda _: None)
            checkpoints.begin(state)
        checkpoints.describe()
        done, steps = int(state.step), config.train.steps

        meter = Meter(config, state)
        show = progress or stack.enter_context(Terminal(Path(config.out).name, steps, done))
        records = stack.enter_context(Records(Path(config.out), done))

        for step in range(done + 1, steps + 1):
            batch = next_batch(batches, step)
            state, metrics = trainer.step(state, trainer.put(batch))
            meter.add(batch, metrics)
            if step % config.train.log_every == 0 or step == steps:
                record = meter.record()
                records.write(record)
                show(record)
            checkpoints.save(step, state, batches, last=step == steps)
        return meter.summary()


def initial_state(config: RunConfig, trainer: Trainer, tell: Callable[[str], None] = notice) -> TrainState:
    """A fresh state from the run's seed, with the parameters of `init_from` where both runs have them,
    and the tower of `tower_from` if that one has none.

    Raises:
      UserError: `init_from` is not a run, shares no parameters with this one, or has other shapes.
    """
    abstract = {**trainer.abstract_state.trainable, **trainer.abstract_state.frozen}
    params: dict[str, Any] = {}
    if config.init_from:
        _, params = load_params(config.init_from, abstract=abstract)
        if not params:
            known = ", ".join(sorted(abstract))
            raise UserError(f"init_from {config.init_from} has none of this run's parameters ({known})")
    if config.tower_from and "vision" in abstract and "vision" not in params:
        params |= load_params(config.tower_from, ["vision"], {"vision": abstract["vision"]})[1]
    if params and (fresh := sorted(abstract.keys() - params.keys())):
        tell(f"not in {config.init_from or config.tower_from} and started at random: {', '.join(fresh)}")
    if not abstract.keys() - params.keys():
        return trainer.start(params)
    state = trainer.init(jax.random.key(config.train.seed))
    return state._replace(
        trainable={k: params.get(k, v) for k, v in state.trainable.items()},
        frozen={k: params.get(k, v) for k, v in state.frozen.items()},
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
