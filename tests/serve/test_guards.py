"""Who may ask how often, and what is counted."""

import re
import time
from typing import Any

import pytest

from quecc_jax.serve.app import application
from quecc_jax.serve.own_backend import own_backend
from quecc_jax.serve.web.guards import REMEMBERED, Access, Gate, Rate
from quecc_jax.serve.web.refusals import Refused
from tests.commands.talker import QUESTIONS
from tests.serve.serving import MODEL, Slow, call, client, eventually, front_of, post, said, served

ASK: dict[str, Any] = {"model": MODEL, "messages": said(QUESTIONS[0])}


def test_a_client_that_asks_too_often_is_told_when_to_ask_again(engine):
    access = Access(("127.0.0.1",), ("one", "two"), per_minute=3)
    with served(front_of(own_backend(engine), access=access)) as port:
        statuses = [post(port, ASK, Authorization="Bearer one")[0] for _ in range(5)]
        assert statuses == [200, 200, 200, 429, 429]
        status, reply, headers = post(port, ASK, Authorization="Bearer one")
        assert status == 429 and reply["error"]["code"] == "rate_limit_exceeded"
        assert 1 <= int(headers["Retry-After"]) <= 21
        # Another key has a rate of its own, and a wrong one takes nothing from it.
        assert [post(port, ASK, Authorization="Bearer three")[0] for _ in range(9)] == [401] * 9
        assert post(port, ASK, Authorization="Bearer two")[0] == 200
        assert [call(port, "GET", path)[0] for path in ("/healthz", "/metrics") * 5] == [200] * 10


def test_rates_fill_up_again(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    rate = Rate(60)
    for _ in range(60):
        rate.count("a")
    with pytest.raises(Refused) as caught:
        rate.count("a")
    assert caught.value.headers["Retry-After"] == "1"
    now[0] += 1.01
    rate.count("a")
    with pytest.raises(Refused):
        rate.count("a")
    now[0] += 1e6
    for _ in range(60):
        rate.count("a")
    with pytest.raises(Refused):
        rate.count("a")
    for number in range(REMEMBERED + 10):
        rate.count(str(number))
    assert len(rate._left) == REMEMBERED


def test_a_network_of_ipv6_is_one_client(engine):
    front = front_of(own_backend(engine), access=Access(("127.0.0.1",), per_minute=1))
    gate = application(front)
    assert isinstance(gate, Gate)
    clients = [
        gate._client({"client": (host, 1)}) for host in ("2001:db8::1", "2001:db8::2", "2001:db8:1::1")
    ]
    assert clients[0] == clients[1] != clients[2]
    assert gate._client({"client": ("192.0.2.1", 1)}) == "192.0.2.1"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "["}, 403),
        ({"Host": "127.0.0.1", "Origin": "http://["}, 403),
        ({"Host": "evil.example:80"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "127.0.0.1"}, 200),
        ({"Host": "LOCALHOST:9"}, 200),
        ({"Host": "[::1]:9"}, 200),
        ({"Host": "own.example:9"}, 200),
        ({"Host": "127.0.0.1", "Origin": "http://evil.example"}, 403),
        ({"Host": "127.0.0.1", "Origin": "null"}, 403),
        ({"Host": "127.0.0.1:5", "Origin": "http://127.0.0.1:6"}, 403),
        ({"Host": "127.0.0.1:5", "Origin": "http://127.0.0.1:5"}, 200),
    ],
)
def test_other_sites_and_other_names_are_refused_without_keys(engine, headers, status):
    front = front_of(own_backend(engine), access=Access(("own.example",), option="--name"))
    with served(front) as port:
        for path in ("/v1/models", "/metrics", "/openapi.json"):
            assert call(port, "GET", path, b"", **headers)[0] == status
        assert call(port, "GET", "/healthz", b"", **headers)[0] == 200
        if headers["Host"] == "evil.example":
            assert b"start it with --name and that name" in call(port, "GET", "/metrics", **headers)[1]


def counts(port: int) -> dict[str, float]:
    """Metrics by name, with their labels."""
    status, text, headers = call(port, "GET", "/metrics")
    assert status == 200 and headers["Content-Type"].startswith("text/plain; version=0.0.4")
    lines = [line.rpartition(" ") for line in text.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def test_metrics_count_what_happened(engine, images, port):
    before = counts(port)
    wish = ASK | {"messages": said(QUESTIONS[0], images[2])}
    usages = [post(port, wish)[1]["usage"] for _ in range(2)]
    post(port, b"{")
    call(port, "GET", "/a/path/of/a/client")
    after = counts(port)
    path = 'path="/v1/chat/completions"'
    for name, wanted in {
        f'quecc_requests_total{{{path},status="200"}}': 2,
        f'quecc_requests_total{{{path},status="400"}}': 1,
        'quecc_requests_total{path="other",status="404"}': 1,
        'quecc_requests_total{path="/metrics",status="200"}': 1,
        "quecc_prompt_tokens_total": sum(usage["prompt_tokens"] for usage in usages),
        "quecc_visual_tokens_total": 8,
        "quecc_generated_tokens_total": 12,
        'quecc_answers_total{ended_by="length"}': 2,
        "quecc_time_to_first_token_seconds_count": 2,
        "quecc_time_between_tokens_seconds_count": 2,
        "quecc_answer_seconds_count": 2,
    }.items():
        assert after.get(name, 0) - before.get(name, 0) == wanted, name
    assert not any("client" in name for name in after)
    hits = 'quecc_reuse_hits_total{of="images"}'
    assert after[hits] - before[hits] >= 1
    assert (after["quecc_waiting"], after["quecc_running"], after["quecc_slots"]) == (0, 0, 8)
    first = after["quecc_time_to_first_token_seconds_sum"]
    assert 0 < first < after["quecc_answer_seconds_sum"]
    assert after["quecc_requests_under_way"] == 1


def test_an_answer_whose_client_left_is_counted_as_that(engine):
    slow = Slow(engine.config)
    with served(front_of(slow)) as port:
        with client(port).chat.completions.create(**ASK, stream=True) as stream:
            next(iter(stream))
        eventually(lambda: counts(port).get('quecc_answers_total{ended_by="cancelled"}') == 1)
        assert "quecc_waiting" not in counts(port)


def test_the_openapi_description_names_what_there_is(port):
    text = call(port, "GET", "/openapi.json")[1].decode()
    for name in ("/v1/chat/completions", "/v1/models", "/healthz", "visual_tokens", "repetition_penalty"):
        assert f'"{name}"' in text
    assert set(re.findall(r'"#/components/schemas/(\w+)"', text)) <= set(
        re.findall(r'"(\w+)":{"title"', text)
    )
