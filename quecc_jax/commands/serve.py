"""Answers over HTTP: `python -m launch.serve --checkpoint RUN`, for clients of OpenAI's API."""

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from quecc_jax.commands.checks import check_least, flag, refuse_unread
from quecc_jax.commands.generation_options import Answering
from quecc_jax.errors import UserError

if TYPE_CHECKING:
    from quecc_jax.generate.engine import Engine
    from quecc_jax.generate.questions import Limits
    from quecc_jax.serve.app import Front


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Answering):
    """Serves a trained run to many clients at once, by the form of OpenAI's chat completions. Settings of answers hold
    where a request says nothing else."""

    checkpoint: Path
    """Directory of a trained run."""
    host: str = "127.0.0.1"
    """Address to listen on; any other than this machine's own opens the server to the network."""
    port: int = 8000
    """Port to listen on; 0 picks a free one."""
    name: Annotated[tuple[str, ...], tyro.conf.arg(metavar="HOST"), tyro.conf.UseAppendAction] = ()
    """Host name or address that requests may call the server by, beside localhost and --host; repeat the option for
    several. With API keys any name will do."""
    model_name: str = ""
    """What clients call the model; by default the name of the run's directory."""
    api_key_file: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """API keys, a line each, of which a request must have one; without, all that reach the server may ask."""
    page: bool = False
    """Serve the chat page too, at /; not with API keys, which it has none of."""

    engine: Literal["own", "vllm"] = "own"
    """What runs the decoder: `own`, on the devices of this process; or a `vllm` server, for which prompts become
    embeddings here (docs/serving_vllm.md)."""
    url: Annotated[str, tyro.conf.arg(metavar="URL")] = ""
    """Address of the vLLM server, or of a load balancer before several, such as http://127.0.0.1:8001."""
    vllm_model: str = ""
    """Name of the model there, such as an adapter's; by default the only one."""
    vllm_key_file: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """API key that vLLM was started with."""

    slots: int = 16
    """Questions that are answered at a time by --engine own."""
    warm_up: bool = True
    """Compile what plain questions about an image take before the server is ready, with --engine own."""
    queue: int = 64
    """Questions that may wait for a slot; more hear 429."""
    longest_answer: int = 1024
    """Largest max_tokens that a request may ask for."""
    requests_per_minute: int = 0
    """Requests of one client (a key, or without keys an address) in a minute; 0 for no limit."""
    connections: int = 512
    """Connections at a time."""
    max_request_mb: float = 20.0
    """Largest body of a request, in megabytes."""
    held_mb: float = 64.0
    """Bodies of all requests at a time, in megabytes; a request takes a few times as much while it is read."""
    max_upload_mb: float = 10.0
    """Largest image file, in megabytes."""
    max_pixels: int = 25_000_000
    """Largest image, in pixels."""
    allow_images_from: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="HOST"), tyro.conf.UseAppendAction
    ] = ()
    """Host whose images requests may name by their address, `HOST` or `HOST:PORT`; repeat the option for several.
    By default images come with the request."""
    allow_private_images: bool = False
    """These hosts may have addresses of private networks, or be this machine."""
    answer_seconds: float = 600.0
    """From a request to the end of its answer, waiting included."""
    grace: float = 10.0
    """Seconds that running answers may go on after SIGTERM; then they end with an error."""


def run(options: Options) -> None:
    """Serves until SIGTERM or Ctrl-C."""
    limits = options.limits()
    check(options)
    keys = api_keys(options.api_key_file)
    # Imported late, so that --help and mistakes in the command line answer at once.
    import jax

    from quecc_jax.distributed import joined
    from quecc_jax.load import load_encoder, load_engine
    from quecc_jax.serve.backend import Away, Backend
    from quecc_jax.serve.chat_page import Page
    from quecc_jax.serve.own_backend import own_backend
    from quecc_jax.serve.run import serve
    from quecc_jax.serve.vllm.backend import vllm_backend

    of_vllm = api_keys(options.vllm_key_file, "--vllm-key-file")

    def load() -> Backend:
        run = options.checkpoint, options.mesh, options.visual_tokens, options.template, options.weights
        if options.engine == "own":
            engine = load_engine(*run)
            if options.warm_up:
                compile_ahead(engine, options.slots, limits)
            return own_backend(engine, options.slots, options.queue, options.longest_answer)
        key = of_vllm[0] if of_vllm else ""
        encoder = load_encoder(*run)
        try:
            return vllm_backend(
                encoder, options.url, model=options.vllm_model, api_key=key, waiting=options.queue
            )
        except Away as error:
            raise UserError(str(error)) from None

    with joined(preemption=False):
        if jax.process_count() > 1:
            raise UserError(
                f"a server answers on the devices of one process, and {jax.process_count()} are here; start one "
                "alone on each host"
            )
        front = front_of(options, limits, keys)
        page = Page(front, "own") if options.page else None
        serve(front, page, load, options.host, options.port, options.grace)


def compile_ahead(engine: "Engine", slots: int, limits: "Limits") -> None:
    """Compiles what plain questions take, and says how far it is."""
    from quecc_jax.distributed import notice
    from quecc_jax.generate.warm_up import warm_up

    try:
        for count in warm_up(engine, slots, limits):
            notice(f"compiling for {count} question{'s' * (count > 1)} at a time, of up to {slots}")
    except UserError as error:
        # Whoever asks this model something that fits it will wait for the compiler.
        notice(f"nothing is compiled ahead, for a plain question does not fit: {error}")


def front_of(options: Options, limits: "Limits", keys: Sequence[str]) -> "Front":
    """The server as options describe it."""
    from quecc_jax.serve.app import Front
    from quecc_jax.serve.web.bounds import Bounds
    from quecc_jax.serve.web.fetch import Fetcher
    from quecc_jax.serve.web.guards import Access

    bounds = Bounds(
        connections=options.connections,
        request_bytes=int(options.max_request_mb * 1e6),
        held_bytes=int(max(options.held_mb, options.max_request_mb) * 1e6),
        image_bytes=int(options.max_upload_mb * 1e6),
        pixels=options.max_pixels,
        answer_seconds=options.answer_seconds,
        answer_tokens=options.longest_answer,
    )
    access = Access((options.host, *options.name), tuple(keys), "--name", options.requests_per_minute)
    fetcher = Fetcher(bounds, options.allow_images_from, options.allow_private_images)
    name = options.model_name or options.checkpoint.resolve().name
    return Front(name, limits, bounds, access, fetcher)


def api_keys(file: Path | None, name: str = "--api-key-file") -> list[str]:
    """The keys of a file; none without.

    Raises:
      UserError: it cannot be read, or holds none.
    """
    if file is None:
        return []
    try:
        lines = file.expanduser().read_text("utf-8").split("\n")
    except OSError as error:
        raise UserError(f"{name} {file} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{name} {file} is not UTF-8 text; write a key on each line") from None
    keys = [line.strip() for line in lines if line.strip()]
    for number, key in enumerate(keys, start=1):
        # Others do not survive the way through a header.
        if not re.fullmatch(r"[!-~]+", key):
            raise UserError(f"{name} {file}: key {number} has spaces or other than ASCII; make another")
    if not keys:
        raise UserError(f"{name} {file} holds no key; write one on each line")
    return keys


def check(options: Options) -> None:
    """Numbers out of range and options that would do nothing are mistakes."""
    least = {"slots": 1, "queue": 0, "longest_answer": 1, "requests_per_minute": 0, "connections": 1}
    check_least(options, {**least, "max_pixels": 1})
    for name in ("max_request_mb", "held_mb", "max_upload_mb", "answer_seconds"):
        value = getattr(options, name)
        if not 1e-6 <= value < math.inf:
            raise UserError(f"{flag(name)} is {value:g}; give a positive number")
    if not 0 <= options.grace < math.inf:
        raise UserError(f"--grace is {options.grace:g}; give 0 or more")
    if options.max_new_tokens > options.longest_answer:
        raise UserError(
            f"--max-new-tokens is {options.max_new_tokens}, more than --longest-answer {options.longest_answer}; "
            "raise that"
        )
    if options.engine == "own":
        refuse_unread(
            options,
            ("url", "vllm_model", "vllm_key_file"),
            "goes with --engine vllm; add it or leave this out",
        )
    else:
        refuse_unread(options, ("slots",), "is vLLM's own --max-num-seqs with --engine vllm; leave it out")
        refuse_unread(options, ("warm_up",), "goes with --engine own; leave it out")
        if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", options.url):
            raise UserError(
                f"--url {options.url or 'is missing'}; give vLLM's address, such as http://127.0.0.1:8001"
            )
    if options.page and options.api_key_file is not None:
        raise UserError("--page has no API key to send; leave it or --api-key-file out")
    for host in options.allow_images_from:
        if not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[\w.-]+)(:\d{1,5})?", host, re.ASCII):
            raise UserError(f"--allow-images-from {host} is no HOST or HOST:PORT; give one")
    if options.allow_private_images and not options.allow_images_from:
        raise UserError("--allow-private-images goes with --allow-images-from; add that or leave it out")
