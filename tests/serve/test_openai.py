"""The server through OpenAI's own client: its answers are the engine's."""

import base64
import concurrent.futures
import io
import json
import threading

import openai
import pytest
from PIL import Image

from quecc_jax.generate.engine import Engine
from quecc_jax.generate.questions import Limits, Question
from quecc_jax.generate.sampling import Sampling
from quecc_jax.generate.scheduler import Scheduler
from quecc_jax.serve.own_backend import OwnBackend, own_backend
from quecc_jax.serve.web.guards import Access
from tests.commands.talker import QUESTIONS
from tests.serve.serving import LIMITS, MODEL, call, client, data_uri, front_of, png, post, said, served


def ask(port: int, messages, **settings):
    return client(port).chat.completions.create(model=MODEL, messages=messages, **settings)


def test_an_answer_is_the_engines(engine: Engine, images, port):
    found = ask(port, said(QUESTIONS[0], images[2]))
    run = engine.run([Question(QUESTIONS[0], (images[2],))], LIMITS)
    assert [found.choices[0].message.content] == run.finish()
    usage = run.usage[0]
    assert found.choices[0].finish_reason == "length" and found.choices[0].message.role == "assistant"
    assert found.model == MODEL and found.object == "chat.completion" and found.id.startswith("chatcmpl-")
    assert found.usage.prompt_tokens == usage.prompt_tokens and found.usage.completion_tokens == 6
    assert found.usage.total_tokens == usage.prompt_tokens + 6
    assert found.usage.prompt_tokens_details.visual_tokens == 4
    assert found.told == ""


def test_a_text_alone_is_a_message(engine, port):
    found = ask(port, [{"role": "user", "content": QUESTIONS[1]}])
    assert [found.choices[0].message.content] == engine.answers([Question(QUESTIONS[1])], LIMITS)


def test_a_stream_has_the_same_pieces_and_its_usage(engine, images, port):
    messages = said(QUESTIONS[0], images[2])
    chunks = [*ask(port, messages, stream=True, stream_options={"include_usage": True})]
    whole = ask(port, messages)
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert "".join(filter(None, texts)) == whole.choices[0].message.content and len(texts) > 3
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1
    plain = [*ask(port, messages, stream=True)]
    assert all(chunk.usage is None for chunk in plain) and len(plain) == len(chunks) - 1


def test_several_images_and_a_history_with_images_in_its_turns(engine, images, port):
    both = said(QUESTIONS[0], images[0], images[2])
    (wanted,) = engine.answers([Question(QUESTIONS[0], (images[0], images[2]))], LIMITS)
    assert ask(port, both).choices[0].message.content == wanted

    later = [
        *said(QUESTIONS[0], images[0]),
        {"role": "assistant", "content": "red"},
        *said(QUESTIONS[1], images[2]),
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
        {"role": "user", "content": QUESTIONS[2]},
    ]
    history = (f"<image>\n{QUESTIONS[0]}", "red", f"<image>\n{QUESTIONS[1]}", "yes")
    question = Question(QUESTIONS[2], (images[0], images[2]), history)
    (wanted,) = engine.answers([question], LIMITS)
    assert ask(port, later).choices[0].message.content == wanted
    # Where an image belongs matters: with both in the first turn it is another prompt.
    moved = question._replace(history=(f"<image>\n<image>\n{QUESTIONS[0]}", "red", QUESTIONS[1], "yes"))
    prompts = [engine.prompt(one).encoded.codes.tolist() for one in (question, moved)]
    assert prompts[0] != prompts[1]


def test_an_image_behind_the_text_is_where_a_row_of_training_would_have_it(engine, images, port):
    message = {
        "role": "user",
        "content": [
            {"type": "text", "text": QUESTIONS[0]},
            {"type": "image_url", "image_url": {"url": data_uri(images[2]), "detail": "auto"}},
        ],
    }
    (wanted,) = engine.answers([Question(f"{QUESTIONS[0]}\n<image>", (images[2],))], LIMITS)
    assert ask(port, [message]).choices[0].message.content == wanted


def test_every_kind_of_image_file_and_data_uri(engine, images, port):
    for kind in ("PNG", "WEBP", "BMP", "GIF", "JPEG"):
        out = io.BytesIO()
        Image.open(images[2]).save(out, kind)
        (wanted,) = engine.answers([Question(QUESTIONS[0], (out.getvalue(),))], LIMITS)
        coded = base64.b64encode(out.getvalue()).decode()
        for head in (f"data:image/{kind.lower()};base64,", "data:;base64,", "DATA:image/x;a=b;base64,"):
            found = ask(port, said(QUESTIONS[0], head + coded))
            assert found.choices[0].message.content == wanted


def test_how_an_answer_is_chosen(engine, port):
    def answer(**settings):
        return ask(port, [{"role": "user", "content": QUESTIONS[0]}], **settings).choices[0].message.content

    def wanted(limits: Limits) -> str:
        return engine.answers([Question(QUESTIONS[0])], limits)[0]

    for seed in (1, 2):
        drawn = answer(temperature=2.0, seed=seed, top_p=0.9, extra_body={"top_k": 5})
        assert drawn == wanted(Limits(6, sampling=Sampling(2.0, 5, 0.9), seed=seed))
    greedy = wanted(LIMITS)
    assert answer() == answer(temperature=0) == answer(top_p=0.5, seed=3) == greedy
    penalised = answer(extra_body={"repetition_penalty": 0.2})
    assert penalised == wanted(Limits(6, sampling=Sampling(0.0, repetition_penalty=0.2))) != greedy
    assert answer(max_tokens=2) == answer(max_completion_tokens=2) == wanted(Limits(2)) != greedy
    word = greedy.split()[1]
    for stop in (word, [word], ["nothing", word]):
        found = ask(port, [{"role": "user", "content": QUESTIONS[0]}], stop=stop)
        assert found.choices[0].message.content == wanted(Limits(6, (word,))) != greedy
        assert found.choices[0].finish_reason == "stop"


def test_the_query_policy_and_the_visual_tokens(engine, images, port):
    messages = [*said(QUESTIONS[0], images[2]), {"role": "assistant", "content": "red"}, *said(QUESTIONS[1])]
    for query in ("own", "latest"):
        history = (f"<image>\n{QUESTIONS[0]}", "red")
        question = Question(QUESTIONS[1], (images[2],), history, query)
        found = ask(port, messages, extra_body={"query": query, "visual_tokens": 4})
        assert [found.choices[0].message.content] == engine.answers([question], LIMITS)
    with pytest.raises(openai.BadRequestError, match="makes 4 visual tokens of an image, not 5") as caught:
        ask(port, messages, extra_body={"visual_tokens": 5})
    assert caught.value.param == "visual_tokens"


def test_words_that_the_model_does_not_know_are_told(port):
    found = ask(port, [{"role": "user", "content": "is it a zebra?"}])
    assert "does not know 'zebra'" in found.told
    chunks = [*ask(port, [{"role": "user", "content": "is it a zebra?"}], stream=True)]
    assert chunks[-1].told == found.told


def test_models(port):
    (model,) = client(port).models.list().data
    assert model.id == MODEL and model.object == "model"
    with pytest.raises(openai.NotFoundError, match="no model 'other' here; ask 'tiny'") as caught:
        client(port).chat.completions.create(model="other", messages=said("x"))
    assert caught.value.code == "model_not_found"


USER = {"role": "user", "content": "what?"}
PNG = data_uri(png(4, 4))


def image(url: object, **more: object) -> dict:
    part = {"type": "image_url", "image_url": {"url": url, **more}}
    return {"messages": [{"role": "user", "content": [part]}]}


MISTAKES = [
    ({"messages": []}, 400, "messages", "length >= 1"),
    ({"messages": "x"}, 400, "messages", "expected `array`"),
    ({"messages": [{"role": "system", "content": "x"}, USER]}, 400, "messages[0].role", "user or assistant"),
    ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0].role", "user or assistant"),
    ({"messages": [{"content": "x"}]}, 400, "messages[0]", "missing required field `role`"),
    ({"messages": [USER, USER]}, 400, "messages[1].role", "must alternate"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "messages[0].role", "must alternate"),
    ({"messages": [USER, {"role": "assistant", "content": "x"}]}, 400, "messages", "must be the user's"),
    ({"messages": [{"role": "user", "content": ""}]}, 400, None, "the question is empty"),
    ({"messages": [{"role": "user", "content": []}]}, 400, "messages[0].content", "length >= 1"),
    ({"messages": [{**USER, "name": "x"}]}, 400, "messages[0].name", "does not do"),
    ({"messages": [{"role": "user", "content": "a <image> b"}]}, 400, "messages[0].content", "stands for"),
    (
        {"messages": [{"role": "user", "content": "what? " * 60}]},
        400,
        "messages",
        "data.max_length is 96; shorten the",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
        400,
        "messages[0].content[0].type",
        "invalid value 'input_audio'",
    ),
    (image(PNG, detail="low"), 400, "messages[0].content[0].image_url.detail", "does not do"),
    (image("ftp://x/y.png"), 400, "messages[0].content[0].image_url.url", "neither a data URI nor"),
    (image("file:///etc/passwd"), 400, "messages[0].content[0].image_url.url", "neither a data URI nor"),
    (image("/etc/passwd"), 400, "messages[0].content[0].image_url.url", "neither a data URI nor"),
    (image("http://x.example/y.png"), 400, "messages[0].content[0].image_url.url", "no images from there"),
    (image("data:image/png,abc"), 400, "messages[0].content[0].image_url.url", "no data URI in base64"),
    (image("data:image/png;base64,a b"), 400, "messages[0].content[0].image_url.url", "no base64"),
    (image("data:image/png;base64,"), 415, "messages[0].content[0].image_url.url", "no image of the kinds"),
    (image("data:text/plain;base64,aGk="), 415, "messages[0].content[0].image_url.url", "JPEG, PNG"),
    (image(data_uri(png(2000, 600))), 413, "messages[0].content[0].image_url.url", "more than 1,000,000"),
    (image(data_uri(bytes(200_003))), 413, "messages[0].content[0].image_url.url", "more than 200,000 bytes"),
    (image(data_uri(png(40, 40)[:-30])), 400, "messages[0].content[0].image_url.url", "cannot be read"),
    (image(data_uri(png(900, 2))), 400, "messages[0].content[0].image_url.url", "one side more than"),
    ({"messages": said("x", PNG, PNG, PNG)}, 400, "messages", "3 images are given"),
    ({"model": 3}, 400, "model", "expected `str`"),
    ({"n": 2}, 400, "n", "leave it out"),
    ({"n": True}, 400, "n", "leave it out"),
    ({"logprobs": True}, 400, "logprobs", "leave it out"),
    ({"top_logprobs": 2}, 400, "top_logprobs", "leave it out"),
    ({"frequency_penalty": 0.5}, 400, "frequency_penalty", "leave it out"),
    ({"presence_penalty": -1}, 400, "presence_penalty", "leave it out"),
    ({"logit_bias": {"1": 5}}, 400, "logit_bias", "leave it out"),
    ({"tools": [{}]}, 400, "tools", "leave it out"),
    ({"functions": [{}]}, 400, "functions", "leave it out"),
    ({"tool_choice": "required"}, 400, "tool_choice", "leave it out"),
    ({"response_format": {"type": "json_object"}}, 400, "response_format.type", "leave it out"),
    ({"modalities": ["audio"]}, 400, "modalities[0]", "leave it out"),
    ({"store": True}, 400, "store", "leave it out"),
    ({"reasoning_effort": "high"}, 400, "reasoning_effort", "does not do"),
    ({"prediction": {"type": "content", "content": "x"}}, 400, "prediction", "does not do"),
    ({"audio": {"voice": "x", "format": "wav"}}, 400, "audio", "does not do"),
    ({"stream_options": {"include_usage": True}}, 400, "stream_options", "goes with stream"),
    ({"temperature": -1}, 400, "temperature", "0.0"),
    ({"temperature": 3}, 400, "temperature", "2.0"),
    ({"temperature": "hot"}, 400, "temperature", "expected `float"),
    ({"top_p": 0}, 400, "top_p", "0.0"),
    ({"top_k": -1}, 400, "top_k", "0"),
    ({"repetition_penalty": 0}, 400, "repetition_penalty", "0"),
    ({"seed": -1}, 400, "seed", "0"),
    ({"seed": 2**31}, 400, "seed", "2147483647"),
    ({"max_tokens": 0}, 400, "max_tokens", "1"),
    ({"max_tokens": 5000}, 400, "max_tokens", "more than the 1024"),
    ({"max_completion_tokens": 10**30}, 400, "max_completion_tokens", "2147483647"),
    ({"stop": ""}, 400, "stop", "length >= 1"),
    ({"stop": ["a"] * 5}, 400, "stop", "length <= 4"),
    ({"query": "last"}, 400, "query", "invalid enum value 'last'"),
    ({"crc32": "00000000"}, 400, "crc32", "no field"),
]


@pytest.fixture(scope="module")
def same(engine):
    with served(front_of(own_backend(engine))) as found:
        yield found


@pytest.mark.parametrize(
    ("change", "status", "param", "message"),
    MISTAKES,
    ids=[f"{param}-{number}" for number, (_, _, param, _) in enumerate(MISTAKES)],
)
def test_a_mistake_is_one_sentence_that_names_its_field(same, change, status, param, message):
    found, reply, _ = post(same, {"model": MODEL, "messages": [USER]} | change)
    error = reply["error"]
    assert (found, error["param"]) == (status, param), reply
    assert message in error["message"] and "\n" not in error["message"], reply
    assert error["type"] == "invalid_request_error" and len(error["message"]) < 400
    # As a stream it is the same: nothing was sent before it was found.
    if "stream_options" not in change:
        assert post(same, {"model": MODEL, "messages": [USER], "stream": True} | change)[0] == status


def test_a_prompt_that_is_too_long_has_openais_code(same):
    message = {"role": "user", "content": "what? " * 60}
    with pytest.raises(openai.BadRequestError) as caught:
        ask(same, [message])
    assert caught.value.code == "context_length_exceeded" and caught.value.param == "messages"


def test_what_says_what_is_so_anyway_is_no_mistake(same):
    request = {
        **{"model": MODEL, "messages": [USER, {"role": "assistant", "content": "x", "refusal": None}, USER]},
        **{"n": 1, "logprobs": False, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}},
        **{"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "store": False},
        **{"user": "me", "metadata": {"a": "b"}, "temperature": None, "stop": None, "stream": None},
    }
    assert post(same, request)[0] == 200


def test_a_field_of_openai_that_is_null_asks_for_nothing(same):
    """Some clients write out all fields that there are."""
    undone = (
        "audio",
        "prediction",
        "prompt_cache_retention",
        "reasoning_effort",
        "verbosity",
        "web_search_options",
    )
    said = [{**USER, "name": None}, {"role": "assistant", "content": "x", "name": None}, USER]
    assert post(same, {"model": MODEL, "messages": said} | dict.fromkeys(undone))[0] == 200


MALFORMED = [
    b"{",
    b"[]",
    b"null",
    b"3",
    b"\xff\xfe",
    b"\x1f\x8b123",
    b"[" * 9999,
    b'{"a":' * 9999 + b"1" + b"}" * 9999,
    b'{"model": "tiny", "model": "x", "messages": []}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * 5000 + b"}",
    b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "seed": 1' + b"0" * 400 + b"}",
    b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "metadata": {"a": "\\udfff"}}',
    b'{"model": "tiny", "messages": [' + b"[],{}," * 30_000 + b"{}]}",
]


@pytest.mark.parametrize("body", MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_bodies(same, body):
    status, reply, _ = post(same, body)
    assert status == 400 and set(reply["error"]) == {"message", "type", "param", "code"}, reply
    assert len(reply["error"]["message"]) < 400


def test_other_methods_paths_and_types(same):
    assert post(same, {"model": MODEL, "messages": [USER]}, Content_Type="text/plain")[0] == 415
    for method, path, status in [
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/completions", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/", 404),
        ("GET", "/%00%ff", 404),
    ]:
        found, reply, headers = call(same, method, path)
        assert found == status and "message" in json.loads(reply)["error"], (method, path)
        assert headers["Content-Type"] == "application/json"


def test_a_full_queue_is_told_with_a_time(engine):
    scheduler, going = Scheduler(engine, slots=1, queue=0), threading.Event()
    scheduler.call(lambda: print(going.wait(60)))
    with served(front_of(OwnBackend(scheduler))) as port:
        wish = {"model": MODEL, "messages": [USER]}
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            asking = concurrent.futures.as_completed([pool.submit(post, port, wish) for _ in range(4)])
            for _ in range(3):
                status, reply, headers = next(asking).result()
                assert status == 429 and int(headers["Retry-After"]) >= 1
                assert reply["error"]["code"] == "queue_full" and reply["error"]["type"] == "rate_limit_error"
            going.set()
            assert next(asking).result()[0] == 200
        assert post(port, wish)[0] == 200


def test_keys(engine):
    front = front_of(own_backend(engine), access=Access(("127.0.0.1",), ("first", "second")))
    with served(front) as port:
        for key in ("first", "second"):
            assert client(port, key).models.list().data
        for key in ("third", "SECOND", "second2", "secon"):
            with pytest.raises(openai.AuthenticationError, match="no API key of this server") as caught:
                client(port, key).models.list()
            assert caught.value.code == "invalid_api_key"
        for given in ("", "second", "Basic second", "Bearer", "Bearer first second"):
            status, _, found = call(port, "GET", "/v1/models", Authorization=given)
            assert (status, found["WWW-Authenticate"]) == (401, "Bearer")
        assert post(port, b"x" * 1000, Authorization="Bearer \xe9")[0] == 401
        # A balancer and a scraper have none.
        assert [call(port, "GET", path)[0] for path in ("/healthz", "/metrics", "/openapi.json")] == [200] * 3
