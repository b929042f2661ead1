"""A vLLM server as it is asked: what an answer's settings become, its tokens as they come, its errors as sentences."""

from collections.abc import AsyncGenerator
from typing import Any, NoReturn

import httpx
import msgspec

from quecc_jax.errors import UserError
from quecc_jax.generate.questions import Limits
from quecc_jax.json_text import JsonObject
from quecc_jax.serve.backend import Away, Busy

CONNECT = 10.0
"""Seconds within which a connection has to be there."""
REFUSED = (400, 413, 422)
"""What vLLM answers where a question is at fault."""
SEEDS = 2**63
COOLEST, WARMEST = 0.01, 2.0
"""Temperatures, beside 0, that vLLM takes as they are: it raises lower ones, and refuses higher ones."""


class Fault(msgspec.Struct):
    """What an error says of itself."""

    message: str = ""


class TokenLogprobs(msgspec.Struct):
    """ln p of the likeliest tokens, by `token_id:NUMBER`, for each token."""

    top_logprobs: list[dict[str, float]] = []


class Choice(msgspec.Struct):
    """An answer, or a piece of it."""

    token_ids: list[int] | None = None
    finish_reason: str | None = None
    logprobs: TokenLogprobs | None = None


class Completion(msgspec.Struct):
    """A reply of /v1/completions, or one of its events."""

    choices: list[Choice] = []
    error: Fault | None = None
    message: str = ""
    """Of an error, in older versions."""


class Model(msgspec.Struct):
    """A model that is served."""

    id: str
    max_model_len: int | None = None


class Models(msgspec.Struct):
    """A reply of /v1/models."""

    data: list[Model] = []


class Vllm:
    """A server's address.

    Args:
      url: where it, or a load balancer before several, listens.
      api_key: what it was started with, if anything.
      patience: seconds within which the next token of an answer has to come.
    """

    def __init__(self, url: str, api_key: str = "", patience: float = 300.0):
        base = url.rstrip("/").removesuffix("/v1")
        if not base.startswith(("http://", "https://")):
            raise UserError(f"--url is {url!r}; give one that begins with http:// or https://")
        self.url = base
        self._settings: dict[str, Any] = {
            "base_url": base,
            "headers": {"Authorization": f"Bearer {api_key}"} if api_key else {},
            "timeout": httpx.Timeout(CONNECT, read=patience, write=patience, pool=None),
            # Whom a proxy of the environment may know is another.
            "trust_env": False,
            "follow_redirects": False,
        }
        # vLLM drops connections that are idle for 5 s, and a question must not meet that moment.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=2.0)
        self._client = httpx.AsyncClient(limits=limits, **self._settings)

    async def close(self) -> None:
        """Closes its connections."""
        await self._client.aclose()

    def models(self) -> list[Model]:
        """What is served, as soon as it is asked.

        Raises:
          Away: it cannot be reached, or answers something else.
        """
        return self._now("GET", "/v1/models", Models).data

    def complete(self, body: JsonObject) -> Completion:
        """A whole answer at once.

        Raises:
          Away, UserError: as `tokens`.
        """
        return self._now("POST", "/v1/completions", Completion, body)

    def _now(self, method: str, path: str, form: Any, body: JsonObject | None = None) -> Any:
        try:
            with httpx.Client(**self._settings) as client:
                response = client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise self._lost(error) from None
        if response.status_code != 200:
            self._refuse(response, response.content)
        return self._read(response.content, form)

    async def tokens(self, body: bytes) -> AsyncGenerator[list[int]]:
        """Tokens of an answer as they come; closing it ends the answer.

        Args:
          body: JSON of a request that streams token ids.

        Raises:
          UserError: the server refuses the question.
          Busy: it has too many.
          Away: it cannot be reached, is in trouble, or the answer broke off.
        """
        ended = False
        headers = {"Content-Type": "application/json"}
        try:
            async with self._client.stream(
                "POST", "/v1/completions", content=body, headers=headers
            ) as response:
                if response.status_code != 200:
                    self._refuse(response, await response.aread())
                async for line in response.aiter_lines():
                    event = line.removeprefix("data:").strip()
                    if not line.startswith("data:") or event == "[DONE]":
                        continue
                    chunk = self._read(event.encode(), Completion)
                    if chunk.error is not None:
                        raise Away(f"vLLM at {self.url} gave an answer up ({_sentence(chunk.error.message)})")
                    for choice in chunk.choices:
                        if choice.finish_reason not in (None, "stop", "length"):
                            raise Away(f"vLLM at {self.url} gave an answer up ({choice.finish_reason})")
                        ended = ended or choice.finish_reason is not None
                        if choice.token_ids is None:
                            raise Away(f"vLLM at {self.url} returns no token ids; take version 0.11 or newer")
                        yield choice.token_ids
        except httpx.HTTPError as error:
            raise self._lost(error) from None
        if not ended:
            raise Away(f"vLLM at {self.url} broke off in the middle of an answer; look at its log")

    def _lost(self, error: httpx.HTTPError) -> Away:
        why = _sentence(str(error)) or type(error).__name__
        return Away(f"vLLM at {self.url} cannot be reached ({why}); start it, or give another --url")

    def _read(self, content: bytes, form: Any) -> Any:
        try:
            return msgspec.json.decode(content, type=form)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Away(
                f"{self.url} answers what vLLM would not ({_sentence(str(error))}); is it another server?"
            ) from None

    def _refuse(self, response: httpx.Response, content: bytes) -> NoReturn:
        status = response.status_code
        try:
            told = msgspec.json.decode(content, type=Completion)
            why = _sentence(told.error.message if told.error else told.message)
        except (msgspec.DecodeError, UnicodeDecodeError):
            why = ""
        said = f" ({why})" if why else ""
        if status in REFUSED:
            raise UserError(f"vLLM at {self.url} refuses the question{said}; ask less, or another one")
        if status in (429, 503):
            after = response.headers.get("Retry-After", "")
            raise Busy(float(after) if after.isdecimal() else 1.0)
        raise Away(f"vLLM at {self.url} answers with status {status}{said}; look at its log and its settings")


def _sentence(text: str) -> str:
    """The first line of a message, for a sentence of ours."""
    return text.strip().partition("\n")[0][:300]


def sampling_settings(limits: Limits, ends: tuple[int, ...]) -> JsonObject:
    """How an answer is chosen and where it ends, in vLLM's words.

    All of them are said, since what is left out comes from the model's generation_config.json. Texts that end an
    answer are left out knowingly: they are looked for here, in the text that is given away.

    Args:
      limits: the answer's.
      ends: tokens that end it.

    Raises:
      UserError: a setting that vLLM has not, or reads otherwise.
    """
    sampling = limits.sampling
    greedy = sampling is None or (sampling.temperature == 0 and sampling.repetition_penalty == 1)
    settings: JsonObject = {"temperature": 0.0, "top_k": 0, "top_p": 1.0}
    if sampling is not None and not greedy:
        if sampling.repetition_penalty != 1:
            raise UserError(
                f"repetition_penalty is {sampling.repetition_penalty:g}, and vLLM, which reads the prompt as "
                "embeddings, would spare its words; leave it out, or answer with our own engine"
            )
        if not COOLEST <= sampling.temperature <= WARMEST:
            raise UserError(
                f"temperature is {sampling.temperature:g}, and vLLM takes 0, or {COOLEST:g} to {WARMEST:g}; give one "
                "of these"
            )
        settings = {
            "temperature": float(sampling.temperature),
            "top_k": int(sampling.top_k),
            "top_p": float(sampling.top_p),
        }
    if not -SEEDS <= limits.seed < SEEDS:
        raise UserError(f"seed is {limits.seed}, and vLLM takes whole numbers of 64 bits; give a smaller one")
    return {
        **settings,
        "seed": limits.seed,
        "max_tokens": limits.max_new_tokens,
        "min_tokens": 0,
        "stop_token_ids": list(ends),
        # Those ends alone.
        "ignore_eos": True,
        "n": 1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }
