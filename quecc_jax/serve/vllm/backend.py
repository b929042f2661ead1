"""vLLM behind our front: prompts become embeddings here, and it runs the decoder from them on."""

import asyncio
import functools
import time
from collections.abc import AsyncGenerator, Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import msgspec
import numpy as np

from quecc_jax.errors import UserError
from quecc_jax.generate.embeddings import prompt_embeddings
from quecc_jax.generate.engine import Engine
from quecc_jax.generate.engines import Engines
from quecc_jax.generate.questions import Limits, Prompt, Question, Usage
from quecc_jax.generate.reply import Reply
from quecc_jax.serve.backend import Asked, Away
from quecc_jax.serve.vllm.check import check, wire
from quecc_jax.serve.vllm.client import Model, Vllm, sampling_settings
from quecc_jax.serve.vllm.line import EmbeddingLine

T = TypeVar("T")
READERS = 2
"""Threads that read images and lay out prompts."""


def vllm_backend(
    encoder: Engine,
    url: str,
    *,
    model: str = "",
    api_key: str = "",
    batch: int = 8,
    waiting: int = 256,
    patience: float = 300.0,
) -> "VllmBackend":
    """A vLLM server, started with --enable-prompt-embeds on the decoder of an export, as a backend.

    Args:
      encoder: of the same export, or of the run, see `load.load_encoder`.
      url: of the server, or of a load balancer before several alike.
      model: its name there, such as an adapter's; "" takes the only one.
      api_key: what vLLM was started with, if anything.
      batch: prompts whose embeddings are made together, at most.
      waiting: questions that may wait for that.
      patience: seconds within which the next token of an answer has to come.

    Raises:
      UserError: it serves another model, or takes no embeddings.
      Away: it cannot be reached.
    """
    vllm = Vllm(url, api_key, patience)
    served = _served(vllm, model)
    scaling, longest = encoder.config.model.decoder.rope_scaling, served.max_model_len
    if scaling.kind == "longrope" and (longest or 0) > scaling.original_length:
        # It picks the frequencies by this number, whatever a prompt's length.
        raise UserError(
            f"vLLM at {vllm.url} has room for {longest} tokens, at which it turns all positions by the frequencies of "
            f"long texts; start it with --max-model-len {scaling.original_length}"
        )
    check(encoder, vllm, served.id)
    return VllmBackend(encoder, vllm, served, batch, waiting)


def _served(vllm: Vllm, name: str) -> Model:
    models = {one.id: one for one in vllm.models()}
    # An adapter's entry leaves out the room that it shares with its base.
    room = next((one.max_model_len for one in models.values() if one.max_model_len), None)
    if name in models:
        return Model(name, room)
    known = ", ".join(models) or "nothing"
    if name or len(models) != 1:
        asked = f"no model {name!r}" if name else "no single model"
        raise UserError(f"vLLM at {vllm.url} serves {asked} but {known}; name one of these")
    return Model(next(iter(models)), room)


class VllmBackend:
    """See `vllm_backend`, which makes it."""

    def __init__(self, encoder: Engine, vllm: Vllm, served: Model, batch: int, waiting: int):
        self.config = encoder.config
        self._vllm, self._served = vllm, served
        self._engines = Engines(encoder)
        self._reading = ThreadPoolExecutor(READERS, "reader")
        self._line = EmbeddingLine(self._embeddings, batch, waiting)

    async def answer(self, asked: Asked) -> AsyncGenerator[str | Usage]:
        """As `Backend.answer`."""
        began, limits = time.perf_counter(), asked.limits
        engine = self._engines.at(asked.visual_tokens)
        settings = sampling_settings(limits, engine.ends.ids)
        prompt = await self._in(
            self._reading, functools.partial(_laid_out, engine, asked.question, self._served, limits)
        )
        embeddings = await self._line.embeddings(self._kind(engine, limits), prompt)
        body = await self._in(self._reading, functools.partial(self._body, embeddings, settings))
        reply = Reply(prompt, engine.tokenizer, engine.ends, limits, began=began)
        pieces = self._vllm.tokens(body)
        try:
            async for ids in pieces:
                if piece := reply.push(ids):
                    yield piece
                if reply.ended_by:
                    break
            else:
                raise Away(f"vLLM at {self._vllm.url} ended an answer before its time; look at its log")
        finally:
            # What vLLM would go on with is ended there, too.
            await pieces.aclose()
        yield reply.usage()

    async def attention(self, asked: Asked) -> np.ndarray | None:
        """As `Backend.attention`."""
        engine = self._engines.at(asked.visual_tokens)
        return await self._in(self._line.thread, functools.partial(engine.attention, asked.question))

    async def close(self) -> None:
        """Closes the connections to vLLM."""
        await self._vllm.close()

    async def _in(self, thread: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(thread, work)

    def _kind(self, engine: Engine, limits: Limits) -> tuple[int, int]:
        """What prompts of one batch have in common: V, and the room for an answer where embeddings depend on it."""
        model = engine.config.model
        longrope = model.decoder.rope_scaling.kind == "longrope"
        return model.visual_tokens, limits.max_new_tokens if longrope else 1

    def _embeddings(self, kind: Hashable, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        assert isinstance(kind, tuple)
        visual_tokens, new = kind
        # Few sizes, since each is a program.
        rows = 1 << (len(prompts) - 1).bit_length()
        return prompt_embeddings(self._engines.at(visual_tokens), prompts, new, rows)

    def _body(self, embeddings: np.ndarray, settings: dict[str, object]) -> bytes:
        return msgspec.json.encode(
            {
                **settings,
                "model": self._served.id,
                "prompt_embeds": wire(embeddings, self.config.model.dtype),
                "stream": True,
                "return_token_ids": True,
            }
        )


def _laid_out(engine: Engine, question: Question, served: Model, limits: Limits) -> Prompt:
    """The prompt of a question whose images are read, so that one of them spoils no batch."""
    prompt = engine.prompt(question._replace(images=tuple(map(engine.image, question.images))))
    length, room = len(prompt.encoded.codes), served.max_model_len
    if room is not None and length + limits.max_new_tokens > room:
        raise UserError(
            f"a prompt of {length} tokens and an answer of up to {limits.max_new_tokens} do not fit into the {room} "
            "tokens that vLLM has room for (--max-model-len); ask for a shorter answer"
        )
    return prompt
