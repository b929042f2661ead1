"""What a server counts, as Prometheus reads it."""

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from quecc_jax.generate.questions import Usage
from quecc_jax.serve.backend import Backend, State

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
"""Bounds of the buckets of times to the first token and of whole answers."""
BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """The counts of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.backend: Backend | None = None
        """Whose state is asked for, once there is one."""
        self._requests = Counter(
            "quecc_requests", "Requests by path and status.", ["path", "status"], registry=self.registry
        )
        self._first = Histogram(
            "quecc_time_to_first_token_seconds",
            "From a question to the first piece of its answer, waiting included.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self._between = Histogram(
            "quecc_time_between_tokens_seconds",
            "Mean time between two tokens of an answer, once for each answer.",
            buckets=BETWEEN,
            registry=self.registry,
        )
        self._whole = Histogram(
            "quecc_answer_seconds",
            "From a question to the end of its answer.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self._prompt = Counter(
            "quecc_prompt_tokens", "Tokens of prompts, visual ones included.", registry=self.registry
        )
        self._visual = Counter("quecc_visual_tokens", "Visual tokens of prompts.", registry=self.registry)
        self._generated = Counter("quecc_generated_tokens", "Tokens of answers.", registry=self.registry)
        self._answers = Counter(
            "quecc_answers", "Answers by what ended them.", ["ended_by"], registry=self.registry
        )
        self._under_way = Gauge(
            "quecc_requests_under_way", "Requests that are being served.", registry=self.registry
        )
        began = Gauge(
            "quecc_start_time_seconds",
            "When the server started, in seconds since 1970.",
            registry=self.registry,
        )
        began.set(time.time())
        self.registry.register(_OfBackend(self))

    def begun(self) -> None:
        """A request has come."""
        self._under_way.inc()

    def served(self, path: str, status: int) -> None:
        """A request has ended; 499 where the client left before the reply.

        Args:
          path: one of the server's own, or "other", so that clients cannot make it remember names.
        """
        self._under_way.dec()
        self._requests.labels(path, str(status)).inc()

    def answered(self, usage: Usage, first_seconds: float, seconds: float) -> None:
        """An answer is complete."""
        self._first.observe(first_seconds)
        if usage.new_tokens > 1:
            self._between.observe((seconds - first_seconds) / (usage.new_tokens - 1))
        self._whole.observe(seconds)
        self._prompt.inc(usage.prompt_tokens)
        self._visual.inc(usage.visual_tokens)
        self._generated.inc(usage.new_tokens)
        self._answers.labels(usage.ended_by).inc()

    def cancelled(self) -> None:
        """An answer ended before it was complete: its client left, or the server stops."""
        self._answers.labels("cancelled").inc()

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self.registry)


class _OfBackend(Collector):
    """What a backend says of itself, where it does."""

    def __init__(self, metrics: Metrics):
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        state = getattr(self._metrics.backend, "state", None)
        if state is None:
            return
        found: State = state()
        for name, value, about in (
            ("waiting", found.waiting, "Questions that wait for the model."),
            ("running", found.running, "Questions that the model is answering."),
            ("slots", found.slots, "Questions that it can answer at a time."),
        ):
            yield GaugeMetricFamily(f"quecc_{name}", about, value)
        for name, counts in (("hits", found.hits), ("misses", found.misses)):
            about = f"Features of questions and images: {name} of the cache."
            family = CounterMetricFamily(f"quecc_reuse_{name}", about, labels=["of"])
            for what, count in counts.items():
                family.add_metric([what], count)
            yield family
