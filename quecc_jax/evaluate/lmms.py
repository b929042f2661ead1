"""A run as a model of lmms-eval: `lmms-eval --model quecc_jax --model_args checkpoint=RUN --tasks ...`.

lmms-eval (github.com/EvolvingLMMs-Lab/lmms-eval) finds it by the entry point `lmms_eval.models` of this
package, once that is installed beside it; see requirements/lmms.txt.
"""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

from lmms_eval.api.model import lmms

from quecc_jax.config import MeshConfig
from quecc_jax.config.weights import Weights
from quecc_jax.distributed import join
from quecc_jax.errors import UserError
from quecc_jax.evaluate.answers import answer_questions, question_engine
from quecc_jax.evaluate.likelihood import log_likelihoods
from quecc_jax.generate.questions import Question
from quecc_jax.groups import check_same, from_groups, group_of
from quecc_jax.load import load_vlm, with_decoding

LONGEST = 128
"""Tokens of an answer where a task names no limit."""


def manifest() -> object:
    """What the entry point registers."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("quecc_jax", simple_class_path=f"{__name__}.QueccJax")


class Request(Protocol):
    """A request of lmms-eval, whose type differs between its releases."""

    args: tuple[Any, ...]


class QueccJax(lmms):
    """Greedy answers of a run and likelihoods of given answers, in batches.

    Args:
      checkpoint: directory of the run.
      batch_size: questions answered at a time.
      visual_tokens: V of a model that serves several; 0 is its largest.
      template: conversation template to ask with; "" is the run's own.
      weights: as for `launch.evaluate`.
      image_decoding: `upright` or `original`, instead of the run's data.image_decoding.
      mesh_data, mesh_fsdp, mesh_tensor: devices per mesh axis, as --mesh of `launch.evaluate`. Of several processes
        each runs the same tasks, and answers its share of the requests.

    Raises:
      UserError: no such run, template or weights, an option that is not one, or a mesh that does not fit.
    """

    def __init__(
        self,
        checkpoint: str,
        batch_size: int | str = 1,
        device: str | None = None,
        visual_tokens: int | str = 0,
        template: str = "",
        weights: Weights = "run",
        image_decoding: str = "",
        mesh_data: int | str = 1,
        mesh_fsdp: int | str = 1,
        mesh_tensor: int | str = 1,
        **unknown: object,
    ) -> None:
        super().__init__()
        # lmms-eval passes these to every model; jax has chosen the device.
        unknown.pop("max_batch_size", None)
        if unknown:
            raise UserError(f"{', '.join(unknown)} is not an option of quecc_jax; leave it out")
        self.batch_size = int(batch_size)
        join(preemption=False)
        self.group = group_of(MeshConfig(int(mesh_data), int(mesh_fsdp), int(mesh_tensor)))
        config, params = load_vlm(checkpoint, self.group.mesh, int(visual_tokens), template, weights)
        config = with_decoding(config, image_decoding or "run")
        self.engine = question_engine(config, params, mesh=self.group.mesh)

    def generate_until(self, requests: Sequence[Request]) -> list[str]:
        """The answer to every request, in their order, cut before the first of its `until` texts.

        Raises:
          UserError: a task asks for sampling or beams, or a question does not fit.
        """
        check_same("requests", lambda: [request.args[:2] for request in requests])
        answers = [""] * len(requests)
        groups: dict[int, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            groups[_greedy_limit(request.args[1])].append(number)
        for limit, numbers in groups.items():
            own: list[str] = []

            def keep(_: int, answer: str, own: list[str] = own) -> None:
                own.append(answer)

            answer_questions(
                self.engine,
                (self._question(requests[number]) for number in self.group.share(numbers)),
                max_new_tokens=limit,
                batch_size=self.batch_size,
                keep=keep,
            )
            for number, answer in zip(numbers, itertools.chain(*from_groups(own, self.group)), strict=True):
                answers[number] = _cut(answer, requests[number].args[1].get("until"))
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, answer)
        return answers

    def _question(self, request: Request) -> Question:
        context, _, doc_to_visual, doc, task, split = request.args
        shown = doc_to_visual(self.task_dict[task][split][doc]) if doc_to_visual is not None else []
        return Question(context, tuple(shown or ()), name=f"{task}/{doc}")

    def loglikelihood(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """(log-probability, whether greedy decoding says it) of every request's answer, its end left out."""
        check_same("requests", lambda: [request.args[0] for request in requests])
        pairs = ((self._question(one), self._target(one)) for one in self.group.share(requests))
        own = log_likelihoods(self.engine, pairs, batch_size=self.batch_size)
        found = [(value, greedy) for value, greedy in itertools.chain(*from_groups(own, self.group))]
        for request, value in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, value)
        return found

    def _target(self, request: Request) -> str:
        _, target, _, doc, task, split = request.args
        return str(target(self.task_dict[task][split][doc]) if callable(target) else target).strip()

    def generate_until_multi_round(self, requests: Sequence[Request]) -> list[str]:
        """Not offered.

        Raises:
          UserError: always.
        """
        raise UserError(
            "quecc_jax answers single questions here; choose a task whose output_type is generate_until"
        )


def _greedy_limit(options: dict[str, Any]) -> int:
    """Longest answer in tokens."""
    if options.get("do_sample") and options.get("temperature"):
        raise UserError("quecc_jax decodes greedily here; set temperature=0 with --gen_kwargs")
    if (options.get("num_beams") or 1) > 1:
        raise UserError("quecc_jax has no beam search; set num_beams=1 with --gen_kwargs")
    return int(options.get("max_new_tokens") or LONGEST)


def _cut(answer: str, until: str | Sequence[str] | None) -> str:
    for stop in (until,) if isinstance(until, str) else until or ():
        answer = answer.split(stop)[0] if stop else answer
    return answer.strip()
