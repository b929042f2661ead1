"""Answers of a live vLLM before which our encoder stands: those of our own engine, to the letter."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncGenerator, Coroutine, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from quecc_jax.config import LoraConfig
from quecc_jax.convert.vllm import export_for_vllm
from quecc_jax.errors import UserError
from quecc_jax.generate.engine import Engine
from quecc_jax.generate.questions import Limits, Question, Usage
from quecc_jax.generate.sampling import Sampling
from quecc_jax.load import load_encoder, load_engine
from quecc_jax.serve.backend import Asked
from quecc_jax.serve.vllm.backend import VllmBackend, vllm_backend
from tests.serve.processes import ended, port_of, started
from tests.serve.serving import call, client, said
from tests.vllm.runs import QUESTIONS, put_run
from tests.vllm.server import Server

COMPRESSORS = ("avgpool", "quecc", "quecc_plus", "llava_mini", "mqt")
LORA = LoraConfig(rank=2, alpha=8.0, targets=("q", "up"))
NEW = 24


class Live(NamedTuple):
    """A server, and runs whose decoder it has."""

    server: Server
    base: str
    """The decoder's name there; that with adapters is `tuned`."""
    folder: Path


@pytest.fixture(scope="module")
def live(tmp_path_factory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("live")
    for name in COMPRESSORS:
        export_for_vllm(put_run(folder / name, name), folder / name / "out")
    run = put_run(folder / "tuned", lora=LORA)
    export_for_vllm(run, folder / "tuned" / "out", adapter="peft")
    decoder, adapter = folder / "quecc" / "out" / "decoder", folder / "tuned" / "out" / "adapter"
    options = ("--enable-lora", "--max-lora-rank", 8, "--lora-modules", f"tuned={adapter}")
    with Server(decoder, folder / "log", *options) as server:
        yield Live(server, str(decoder), folder)


def pair(live: Live, name: str, model: str = "") -> tuple[Engine, VllmBackend]:
    """Our own engine, and vLLM behind the exported encoder."""
    encoder = load_encoder(live.folder / name / "out" / "encoder")
    return load_engine(live.folder / name / "run"), vllm_backend(
        encoder, live.server.url, model=model or live.base
    )


def questions(engine: Engine) -> list[Question]:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    red, noise = engine.image(Image.new("RGB", (30, 20), "red")), engine.image(Image.fromarray(pixels))
    return [
        Question(QUESTIONS[0], (red,)),
        Question(QUESTIONS[1], (red, noise)),
        Question(QUESTIONS[2]),
        Question(QUESTIONS[2], (noise,), (QUESTIONS[0], "red")),
        Question(QUESTIONS[1], (noise,)),
    ]


async def taken(answer: AsyncGenerator[str | Usage]) -> tuple[list[str], Usage]:
    """All pieces, and what the answer took."""
    *pieces, usage = [part async for part in answer]
    assert isinstance(usage, Usage) and all(isinstance(piece, str) for piece in pieces)
    return [str(piece) for piece in pieces], usage


def asked_at_once(backend: VllmBackend, asked: list[Asked]) -> list[tuple[list[str], Usage]]:
    async def ask() -> list[tuple[list[str], Usage]]:
        try:
            return await asyncio.gather(*(taken(backend.answer(one)) for one in asked))
        finally:
            await backend.close()

    return asyncio.run(ask())


def same_usage(ours: Usage, theirs: Usage) -> bool:
    ours, theirs = (one._replace(seconds=0.0, first_token_seconds=0.0) for one in (ours, theirs))
    return ours == theirs


@pytest.mark.parametrize("name, model", [*((name, "") for name in COMPRESSORS), ("tuned", "tuned")])
def test_answers_pieces_and_usage_are_our_engine_s(live, name, model):
    engine, backend = pair(live, name, model)
    asked = questions(engine)
    answers = asked_at_once(backend, [Asked(question, Limits(NEW)) for question in asked])
    run = engine.run(asked, Limits(NEW))
    assert ["".join(pieces) for pieces, _ in answers] == run.finish()
    assert all(same_usage(*both) for both in zip(run.usage, (usage for _, usage in answers), strict=True))
    assert any(usage.visual_tokens for _, usage in answers)
    assert max(len(pieces) for pieces, _ in answers) > 3


def test_a_model_of_several_v_answers_with_the_one_that_is_asked_for(live):
    _, backend = pair(live, "mqt")
    (question, *_), run = questions(backend._engines.at()), live.folder / "mqt" / "run"
    asked = [Asked(question, Limits(NEW), v) for v in (1, 2, 4)]
    for one, (pieces, usage) in zip(asked, asked_at_once(backend, asked), strict=True):
        engine = load_engine(run, visual_tokens=one.visual_tokens)
        assert ["".join(pieces)] == engine.answers([question], Limits(NEW))
        assert usage.visual_tokens == one.visual_tokens


def test_stop_texts_end_answers_as_our_engine_s_do(live):
    engine, backend = pair(live, "quecc")
    asked = questions(engine)
    whole = engine.answers(asked, Limits(NEW))
    stops = [answer[4:7] for answer in whole] + [whole[0].split()[1], "never"]
    limits = [Limits(NEW, stop=(stop, "ten t")) for stop in stops]
    both = [(asked[number % len(asked)], limit) for number, limit in enumerate(limits)]
    answers = asked_at_once(backend, [Asked(question, limit) for question, limit in both])
    for (question, limit), (pieces, usage) in zip(both, answers, strict=True):
        run = engine.run([question], limit)
        assert ["".join(pieces)] == run.finish()
        (ours,) = run.usage
        # Our engine looks for such texts every few tokens.
        assert usage.new_tokens <= ours.new_tokens
        assert same_usage(ours._replace(new_tokens=usage.new_tokens), usage)
    assert {usage.ended_by for _, usage in answers} >= {"stop", "length"}


def test_a_seed_gives_the_same_answer_again(live):
    engine, backend = pair(live, "avgpool")
    question = questions(engine)[0]
    hot = [Limits(NEW, sampling=Sampling(1.5, top_k=20, top_p=0.95), seed=seed) for seed in (1, 2, 1)]
    first, other, again = ("".join(p) for p, _ in asked_at_once(backend, [Asked(question, x) for x in hot]))
    assert first == again != other


def test_an_answer_that_is_left_ends_in_vllm_too(live):
    engine, backend = pair(live, "quecc")
    # One that goes round in circles.
    run = engine.run(questions(engine), Limits(100))
    run.finish()
    question = next(q for q, u in zip(questions(engine), run.usage, strict=True) if u.ended_by == "length")
    made, running = "vllm:generation_tokens_total", "vllm:num_requests_running"
    before = live.server.metric(made)

    async def leave() -> None:
        answers = [backend.answer(Asked(question, Limits(4000, stop=("never",)))) for _ in range(3)]
        for answer in answers:
            assert isinstance(await anext(answer), str)
        for answer in answers:
            await answer.aclose()
        await backend.close()

    asyncio.run(leave())
    deadline = time.monotonic() + 30
    while live.server.metric(running) and time.monotonic() < deadline:
        time.sleep(0.05)
    # Three whole answers have 12,000.
    assert live.server.metric(running) == 0
    assert 0 < live.server.metric(made) - before < 3000


def refusal(work: Coroutine[Any, Any, Any]) -> str:
    with pytest.raises(UserError) as told:
        asyncio.run(work)
    assert "\n" not in str(told.value)
    return str(told.value)


def test_what_vllm_cannot_do_is_said_before_the_first_piece(live):
    _, backend = pair(live, "quecc")

    seen = Image.new("RGB", (24, 24), "red")

    def ask(limits: Limits, v: int = 0) -> Coroutine[Any, Any, Any]:
        return taken(backend.answer(Asked(Question(QUESTIONS[2]), limits, v)))

    assert "repetition_penalty is 1.2" in refusal(ask(Limits(4, sampling=Sampling(repetition_penalty=1.2))))
    assert "temperature is 0.001" in refusal(ask(Limits(4, sampling=Sampling(0.001))))
    assert "do not fit into the 4096 tokens" in refusal(ask(Limits(4090)))
    assert "4 visual tokens" in refusal(ask(Limits(4), v=3))
    assert "3 images are given" in refusal(
        taken(backend.answer(Asked(Question("a", (seen,) * 3), Limits(4))))
    )
    assert "no.png" in refusal(taken(backend.answer(Asked(Question("a", ("no.png",)), Limits(4)))))


def test_what_vllm_itself_refuses_is_one_sentence(live):
    _, backend = pair(live, "quecc")

    async def ask(body: bytes) -> None:
        async with contextlib.aclosing(backend._vllm.tokens(body)) as tokens:
            await anext(tokens)

    assert "refuses the question (" in refusal(ask(b'{"prompt_embeds": "abcd", "stream": true}'))


@pytest.mark.parametrize(
    "name, seed, model, why",
    [
        ("quecc", 7, "base", "is not the decoder of these embeddings"),
        ("avgpool", 7, "base", "is not the decoder of these embeddings"),
        ("tuned", 6, "base", "is not the decoder of these embeddings"),
        ("quecc", 6, "other", "serves no model 'other' but .*tuned"),
        ("quecc", 6, "", "serves no single model but"),
    ],
)
def test_another_model_is_refused_at_the_start(live, tmp_path, name, seed, model, why):
    """Of another table, seen even by an encoder without layers; without its adapters, by one that has them."""
    compressor = "quecc" if name == "tuned" else name
    run = put_run(tmp_path, compressor, lora=LORA if name == "tuned" else LoraConfig(), seed=seed)
    with pytest.raises(UserError, match=why):
        vllm_backend(load_encoder(run), live.server.url, model=live.base if model == "base" else model)


def test_the_command_stands_before_it(live, tmp_path):
    """As a client sees it: the same answers, whole and in a stream, and an end without loose ends."""
    picture = tmp_path / "a.png"
    Image.fromarray(np.arange(24 * 24 * 3, dtype=np.uint8).reshape(24, 24, 3)).save(picture)
    wanted = load_engine(live.folder / "quecc" / "run").answers(
        [Question(QUESTIONS[0], (picture,))], Limits(NEW)
    )
    options = (
        "--engine",
        "vllm",
        "--url",
        live.server.url,
        "--vllm-model",
        live.base,
        "--model-name",
        "small",
    )
    run = ("--checkpoint", str(live.folder / "quecc" / "out" / "encoder"), "--port", "0")
    with started("-m", "launch.serve", *run, *options, "--max-new-tokens", str(NEW)) as process:
        port = port_of(process)
        ask = client(port).chat.completions.create
        whole = ask(model="small", messages=said(QUESTIONS[0], picture))
        stream = ask(model="small", messages=said(QUESTIONS[0], picture), stream=True)
        pieces = [event.choices[0].delta.content or "" for event in stream if event.choices]
        assert [whole.choices[0].message.content] == wanted == ["".join(pieces)]
        usage: Any = whole.usage
        assert usage.prompt_tokens_details.visual_tokens == 4
        metrics = call(port, "GET", "/metrics")[1].decode()
        assert 'quecc_requests_total{path="/v1/chat/completions",status="200"} 2' in metrics
        assert ended(process, signal.SIGTERM) == (0, "")
