"""The comparison before the first question, with a stand-in that finds the same whatever it is asked."""

import json

import numpy as np
import pytest

from quecc_jax.errors import UserError
from quecc_jax.generate.embeddings import encoder_part, prompt_embeddings
from quecc_jax.generate.engine import Engine
from quecc_jax.serve.backend import Away
from quecc_jax.serve.vllm.backend import vllm_backend
from quecc_jax.serve.vllm.check import PROBE, check
from quecc_jax.serve.vllm.client import Vllm
from tests.commands.talker import tiny_engine
from tests.generate.test_embeddings import greedy
from tests.serve.vllm.test_client import stand_in


def finding(likeliest: dict[str, float]) -> tuple[int, dict[str, str], list[bytes]]:
    reply = {"choices": [{"token_ids": [1], "logprobs": {"top_logprobs": [likeliest]}}]}
    return 200, {}, [json.dumps(reply).encode()]


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Engine:
    return tiny_engine(tmp_path_factory.mktemp("talker"), "avgpool")


def test_an_encoder_without_layers_compares_the_server_with_itself(engine):
    encoder = Engine(engine.config, encoder_part(engine.config.model, engine.params))
    with stand_in(finding({"token_id:5": -0.5, "token_id:6": -2.0})) as (url, received):
        check(encoder, Vllm(url), "decoder")
    first, second = (json.loads(body) for body in received if body != b"whole")
    assert "prompt_embeds" in first and second["prompt"] == encoder.prompt(PROBE).encoded.codes.tolist()
    assert first["model"] == second["model"] == "decoder"


def test_an_encoder_with_layers_compares_the_server_with_its_own_decoder(engine):
    (embeddings,) = prompt_embeddings(engine, [engine.prompt(PROBE)])
    best = engine.tokenizer.encode(greedy(engine)(embeddings).split()[0])[0]
    off: list[float] = []
    for logprob in np.arange(-8.0, 0.01, 0.25):
        with stand_in(finding({f"token_id:{best}": float(logprob)})) as (url, _):
            try:
                check(engine, Vllm(url), "decoder")
            except UserError as error:
                assert "is not the decoder of these embeddings" in str(error)
                off.append(logprob)
    # A window of one around what it should be.
    assert 28 <= len(off) <= 29
    other = finding({f"token_id:{best + 1}": -0.1})
    with stand_in(other) as (url, _), pytest.raises(UserError, match="none of the 5 largest"):
        check(engine, Vllm(url), "decoder")


@pytest.mark.parametrize(
    "body",
    [b'{"choices": []}', b'{"choices": [{"text": "a"}]}', finding({"a": -1.0})[2][0], finding({})[2][0]],
)
def test_a_server_that_says_no_probabilities_is_another(engine, body):
    with stand_in((200, {}, [body])) as (url, _), pytest.raises(Away, match="is it another server"):
        check(engine, Vllm(url), "decoder")


def test_what_is_served_has_a_name(engine):
    models = b'{"data": [{"id": "base", "max_model_len": 64}, {"id": "tuned", "max_model_len": null}]}'
    with stand_in((200, {}, [models])) as (url, _):
        for name, why in (
            ("", "no single model but base, tuned"),
            ("other", "no model 'other' but base, tuned"),
        ):
            with pytest.raises(UserError, match=why):
                vllm_backend(engine, url, model=name)
    with stand_in((200, {}, [b'{"data": []}'])) as (url, _), pytest.raises(UserError, match="but nothing"):
        vllm_backend(engine, url)
