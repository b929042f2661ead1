"""Schemathesis reads the server's description and tries what it says, and what it does not."""

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from quecc_jax.serve.web.guards import Access
from tests.commands.talker import QUESTIONS
from tests.serve.serving import MODEL, Slow, front_of, served

KEY = {"Authorization": "Bearer a key"}


@pytest.fixture(scope="module")
def described(engine) -> Iterator[schemathesis.BaseSchema]:
    """The description of a server that has keys, whose answers are short."""
    front = front_of(Slow(engine.config, pause=0, words=2), access=Access(keys=("a key",)))
    with served(front) as port:
        load_all_checks()
        yield schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")


@pytest.mark.parametrize(
    ("operation", "mode"),
    [
        ("POST /v1/chat/completions", GenerationMode.POSITIVE),
        ("POST /v1/chat/completions", GenerationMode.NEGATIVE),
        ("GET /v1/models", GenerationMode.POSITIVE),
        ("GET /v1/models", GenerationMode.NEGATIVE),
        # It takes nothing that could be wrong.
        ("GET /healthz", GenerationMode.POSITIVE),
    ],
)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_what_the_description_says_is_so(described, operation, mode, data):
    method, path = operation.split()
    case = data.draw(described[path][method].as_strategy(generation_mode=mode))
    # More requests come as far as a model then; most would end at its name.
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        case.body["model"] = MODEL
    # What fits the form may still be refused: an address that is no image's, turns that do not alternate.
    left_out = [CHECKS.get_one("positive_data_acceptance")]
    case.call_and_validate(headers=KEY, excluded_checks=left_out)


def test_a_question_of_the_description_is_answered(described):
    case = described["/v1/chat/completions"]["POST"].Case(
        body={"model": MODEL, "messages": [{"role": "user", "content": QUESTIONS[0]}]},
        media_type="application/json",
    )
    assert case.call_and_validate(headers=KEY).status_code == 200
