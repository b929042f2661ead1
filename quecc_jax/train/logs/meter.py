"""Counts steps, tokens and time between two log lines, and notices a run that has gone bad."""

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from quecc_jax.config import RunConfig
from quecc_jax.data.batch import Batch
from quecc_jax.errors import UserError
from quecc_jax.flops import train_flops
from quecc_jax.train.logs.records import Record
from quecc_jax.train.state import TrainState
from quecc_jax.train.step import Metrics

LEAD = 2
"""Steps the host may be ahead of the device, so that queued batches do not fill its memory."""


class Meter:
    """Gathers a run's metrics on the device and fetches them once per log line.

    The clock starts when the first step is done: its compilation is reported apart.

    Args:
      config: the run.
      state: what it starts or continues from.
      began: `time.perf_counter()` when this process took up the run; None is now.
    """

    def __init__(self, config: RunConfig, state: TrainState, began: float | None = None):
        self.config = config
        self.step, self.bad_run, self.skipped = int(state.step), int(state.bad_run), int(state.skipped)
        self.loss, self.label_tokens, self.tokens, self.flops = math.nan, 0, 0, 0.0
        self.compile_seconds = 0.0
        self._waiting: list[Metrics] = []
        self._drawn: list[int] = []
        self._start = self._mark = _Mark(time.perf_counter(), self.step, 0, 0.0)
        self._began = self._start.time if began is None else began
        self._lost = {"start": self._start.time - self._began, "compile": 0.0, "data": 0.0, "saving": 0.0}

    @contextlib.contextmanager
    def aside(self, what: Literal["validation"]) -> Iterator[None]:
        """Counts the time inside as lost, and leaves it out of all rates."""
        jax.block_until_ready(self._waiting)
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        self._lost[what] = self._lost.get(what, 0.0) + seconds
        self._start, self._mark = (m._replace(time=m.time + seconds) for m in (self._start, self._mark))

    @contextlib.contextmanager
    def waiting(self, what: Literal["data", "saving"]) -> Iterator[None]:
        """Counts the time inside as lost; what precedes the first step's end belongs to its compilation."""
        began = time.perf_counter()
        yield
        if self.compile_seconds:
            self._lost[what] += time.perf_counter() - began

    def add(self, batch: Batch, metrics: Metrics) -> None:
        """Takes note of one dispatched step; `batch` is the host's, `metrics` stay on the device."""
        self._waiting.append(metrics)
        if self.config.model.elastic_choices:
            self._drawn.append(visual_tokens(batch, self.config.model.num_output_tokens))
        self.step += 1
        # Other processes' rows are taken to be as long as this one's.
        share = len(batch.segments) / self.config.train.batch_size
        self.tokens += round(np.count_nonzero(batch.segments) / share)
        self.flops += train_flops(
            self.config, batch.tokens.shape[1], batch.query_ends.shape[1], batch.queries.shape[1]
        )
        if not self.compile_seconds:
            jax.block_until_ready(metrics)
            now = time.perf_counter()
            self.compile_seconds = self._lost["compile"] = now - self._start.time
            self._start = self._mark = _Mark(now, self.step, self.tokens, self.flops)
        elif len(self._waiting) > LEAD:
            self._waiting[-1 - LEAD]["loss"].block_until_ready()

    def record(self) -> Record:
        """Closes the interval since the last record.

        Returns:
          step; loss (mean over the interval's label tokens, in nats, skipped steps left out);
          grad_norm and learning_rate of the last step; skipped (steps so far); steps_per_s,
          tokens_per_s (non-padding positions) and flops_per_s (model FLOPs) of the interval;
          seconds since the first step and seconds_left. Where a batch draws its V, also visual_tokens (that
          of the last step) and loss_vV of each V in the interval.

        Raises:
          UserError: more than `train.max_bad_steps` steps in a row that were not finite or had no label.
        """
        steps, self._waiting = jax.device_get(self._waiting), []
        for number, one in enumerate(steps, start=self.step - len(steps) + 1):
            self._check(one, number)
        self.loss, labels = _mean_loss(steps)
        self.label_tokens += round(labels)

        now = _Mark(time.perf_counter(), self.step, self.tokens, self.flops)
        steps_per_s, tokens_per_s, flops_per_s = self._rates(self._mark, now)
        self._mark = now
        by_tokens = _by_tokens(self._drawn, steps)
        self._drawn = []
        return {
            "step": self.step,
            "loss": self.loss,
            "grad_norm": float(steps[-1]["grad_norm"]),
            "learning_rate": float(steps[-1]["learning_rate"]),
            "skipped": self.skipped,
            "steps_per_s": steps_per_s,
            "tokens_per_s": tokens_per_s,
            "flops_per_s": flops_per_s,
            "seconds": now.time - self._start.time,
            "seconds_left": (self.config.train.steps - self.step) / self._rates(self._start, now)[0],
            **by_tokens,
        }

    def summary(self) -> dict[str, Any]:
        """What `train` returns; the rates are means over this process's steps but the first."""
        steps_per_s, tokens_per_s, flops_per_s = self._rates(self._start, self._mark)
        total = max(time.perf_counter() - self._began, 1e-9)
        return {
            "out": self.config.out,
            "step": self.step,
            "loss": self.loss,
            "skipped": self.skipped,
            "label_tokens": self.label_tokens,
            "tokens": self.tokens,
            "seconds": self._mark.time - self._start.time,
            "compile_seconds": self.compile_seconds,
            "steps_per_s": steps_per_s,
            "tokens_per_s": tokens_per_s,
            "flops_per_s": flops_per_s,
            "total_seconds": total,
            "lost_seconds": dict(self._lost),
            "goodput": max(0.0, 1 - sum(self._lost.values()) / total) if self.compile_seconds else 0.0,
        }

    def _rates(self, since: "_Mark", now: "_Mark") -> tuple[float, float, float]:
        """Steps, tokens and FLOPs per second between two marks.

        An interval that holds nothing but the first, compiling step reports that step's rate.
        """
        if now.step == since.step:
            seconds = self.compile_seconds or math.inf
            return 1 / seconds, self.tokens / seconds, self.flops / seconds
        seconds = max(now.time - since.time, 1e-9)
        steps, tokens, flops = (b - a for a, b in zip(since[1:], now[1:], strict=True))
        return steps / seconds, tokens / seconds, flops / seconds

    def _check(self, step: Metrics, number: int) -> None:
        """Counts skipped steps; raises when too many came in a row."""
        if step["finite"]:
            self.bad_run = 0
            return
        self.bad_run += 1
        self.skipped += 1
        if self.bad_run > self.config.train.max_bad_steps:
            if not step["label_tokens"]:
                raise UserError(
                    f"training stopped at step {number}, the last of {self.bad_run} in a row without a loss: its "
                    "batch has no label at all; look at the data there (python -m launch.inspect_data), or raise "
                    "train.max_bad_steps"
                )
            raise UserError(
                f"training stopped at step {number} after {self.bad_run} steps in a row with a non-finite "
                f"loss or gradient (loss {float(step['loss'])}, gradient norm {float(step['grad_norm'])}); "
                "lower optimizer.learning_rate, look at the data there, or raise train.max_bad_steps"
            )


def visual_tokens(batch: Batch, num_output_tokens: int) -> int:
    """V of a batch where that is drawn: the different ones of an image's T tokens that have slots."""
    slots = np.asarray(batch.slots)
    return len(np.unique(slots[slots >= 0] % num_output_tokens))


def _mean_loss(steps: list[Metrics]) -> tuple[float, float]:
    """Mean over label tokens and their number, non-finite steps left out."""
    good = [(float(s["loss"]), float(s["label_tokens"])) for s in steps if s["finite"]]
    labels = sum(count for _, count in good)
    return sum(loss * count for loss, count in good) / labels if labels else math.nan, labels


def _by_tokens(drawn: list[int], steps: list[Metrics]) -> Record:
    """The last step's V, and the mean loss of the steps of each V; empty where none is drawn."""
    if not drawn:
        return {}
    parts = {v: [s for s, one in zip(steps, drawn, strict=True) if one == v] for v in sorted(set(drawn))}
    return {"visual_tokens": drawn[-1]} | {f"loss_v{v}": _mean_loss(part)[0] for v, part in parts.items()}


class _Mark(NamedTuple):
    """A moment: seconds, steps, tokens and FLOPs up to it."""

    time: float
    step: int
    tokens: int
    flops: float
