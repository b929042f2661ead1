"""What a server of one device answers: requests per second and waiting times against V, and beside other ways.

Run: python -m benchmarks.serve [--out DIR] [--parts stages throughput slots load]

The model is SmolLM2-135M (`benchmarks.smollm2` says how its weights get there) behind QueCC with V visual tokens of
576 patches (576: no compressor) and a ViT-B/14 tower at 336 pixels of random weights, float32: time does not depend on
values. Questions are of POPE's form and length, images are sections of two photographs of scikit-learn, and answers
have 64 tokens each: nothing ends them before.

stages: seconds of each of the engine's programs by batch and length, of one process without a server; written to
    DIR/stages-vV.json in the form that `scaling plan --efficiency` reads, beside the peaks of this machine, which are
    measured by a product of matrices and one of a matrix with a vector.
throughput: questions per second of 16 clients who ask again as soon as they are answered, over HTTP; with images that
    were seen before, and with new ones. Beside it: the same clients before a server of one slot, which answers one
    question after the other; and, without HTTP, transformers on torch with a batch of 16 that begins when the last has
    ended, the decoder with the same weights and embeddings of as many tokens (nothing compresses or reads
    the question there), and a CLIP tower of the same size for new images.
slots: the same 16 clients, with images that were seen, before servers of 1, 4, 8 and 16 slots (the first V alone).
load: times to the first token and between tokens where questions arrive at random (Poisson) at shares of the throughput
    just measured; half of the images are new.
"""

import asyncio
import base64
import dataclasses
import io
import itertools
import json
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import httpx
import numpy as np
import tyro
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks.generate import STRIDES, TOWER, random_params
from benchmarks.markdown import table
from benchmarks.serve_stages import stages
from benchmarks.smollm2 import WEIGHTS
from quecc_jax.config import RunConfig
from quecc_jax.config.compressors import named
from quecc_jax.data.text.templates import Stops
from quecc_jax.errors import run_cli
from quecc_jax.generate.engine import Engine
from quecc_jax.generate.questions import Limits, Question
from quecc_jax.generate.warm_up import warm_up
from quecc_jax.load import load_vlm
from quecc_jax.paths import write_text
from quecc_jax.records import write_record
from quecc_jax.serve.app import Front, application
from quecc_jax.serve.own_backend import own_backend
from quecc_jax.serve.web.bounds import Bounds
from quecc_jax.serve.web.guards import Access
from quecc_jax.serve.web.server import BoundedServer, listen, run

CLIENTS = 16
NEW = 64
THINGS = (
    "snowboard",
    "backpack",
    "bottle",
    "dining table",
    "traffic light",
    "clock",
    "dog",
    "laptop",
    "suitcase",
)
SLOTS = (1, 4, 8, 16)
SHARES = (0.5, 0.8)
"""Of the throughput, at which questions arrive."""


def engine_of(visual_tokens: int) -> Engine:
    """The model; nothing ends its answers but their length."""
    config, params = load_vlm(WEIGHTS, weights="float32")
    stride = STRIDES[visual_tokens]
    compressor = named("none") if stride == 1 else named("quecc", kernel=stride, stride=stride)
    model = dataclasses.replace(config.model, vision=TOWER, compressor=compressor)
    data = dataclasses.replace(config.data, images_per_row=1, max_length=1024)
    config = RunConfig(model=model, data=data)
    engine = Engine(config, random_params(config) | {"decoder": params["decoder"]})
    engine.ends = Stops((model.decoder.vocab_size - 1,), None)
    return engine


def photographs(seed: int) -> Iterator[bytes]:
    """Sections of two photographs, each another, as JPEG."""
    rng, scenes = np.random.default_rng(seed), load_sample_images().images
    for number in itertools.count():
        scene = scenes[number % len(scenes)]
        side = int(rng.integers(200, 400))
        y, x = (int(rng.integers(0, size - side)) for size in scene.shape[:2])
        out = io.BytesIO()
        Image.fromarray(scene[y : y + side, x : x + side]).save(out, "JPEG")
        yield out.getvalue()


def asking(rng: np.random.Generator) -> str:
    """A question of POPE's form."""
    return f"Is there a {rng.choice(THINGS)} in the image?"


class Took(NamedTuple):
    """Of one answer, in seconds."""

    first: float
    between: list[float]
    whole: float
    tokens: int


async def ask(client: httpx.AsyncClient, image: bytes, text: str) -> Took:
    """Asks, and reads the stream."""
    url = "data:image/jpeg;base64," + base64.b64encode(image).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    body = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": NEW,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began = time.perf_counter()
    times, tokens = list[float](), 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        if reply.status_code != 200:
            raise RuntimeError(f"{reply.status_code}: {(await reply.aread())[:300]!r}")
        async for line in reply.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if event.get("usage"):
                tokens = event["usage"]["completion_tokens"]
            if event["choices"] and event["choices"][0]["delta"].get("content"):
                times.append(time.perf_counter())
    whole = time.perf_counter() - began
    if not times:
        # An answer may be blanks alone.
        return Took(whole, [], whole, tokens)
    return Took(times[0] - began, [b - a for a, b in itertools.pairwise(times)], whole, tokens)


def closed(port: int, count: int, new_images: bool, seed: int) -> tuple[float, list[Took]]:
    """Seconds that 16 clients need for `count` questions, and what each took."""

    async def all_of_them() -> tuple[float, list[Took]]:
        rng, images = np.random.default_rng(seed), photographs(seed if new_images else 0)
        shown = [next(images) for _ in range(count if new_images else 8)]
        todo = iter([(shown[i % len(shown)], asking(rng)) for i in range(count)])
        took = list[Took]()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=600) as client:

            async def one() -> None:
                for image, text in todo:
                    took.append(await ask(client, image, text))

            began = time.perf_counter()
            await asyncio.gather(*(one() for _ in range(CLIENTS)))
            return time.perf_counter() - began, took

    return asyncio.run(all_of_them())


def arriving(port: int, count: int, rate: float, seed: int) -> list[Took]:
    """What questions took that came at random, `rate` in a second, however many are under way."""

    async def all_of_them() -> list[Took]:
        rng, fresh, seen = np.random.default_rng(seed), photographs(seed), photographs(0)
        old = [next(seen) for _ in range(8)]
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=600, limits=limits
        ) as client:
            tasks = []
            for number in range(count):
                image = next(fresh) if number % 2 else old[number // 2 % len(old)]
                tasks.append(asyncio.create_task(ask(client, image, asking(rng))))
                await asyncio.sleep(rng.exponential(1 / rate))
            return list(await asyncio.gather(*tasks))

    return asyncio.run(all_of_them())


def elsewhere(job: Callable[..., Any], *arguments: Any) -> Any:
    """A client's work, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(job, arguments)


@contextmanager
def served(engine: Engine, slots: int = CLIENTS) -> Iterator[int]:
    """The port of a server of that engine in a thread of this process, when its programs are compiled."""
    for _ in warm_up(engine, slots, Limits(NEW)):
        pass
    bounds = Bounds()
    front = Front("smollm2", Limits(NEW), bounds, Access(("127.0.0.1",)))
    front.ready(own_backend(engine, slots=slots, waiting=1000))
    listener = listen("127.0.0.1", 0)
    server = BoundedServer(application(front, ()), bounds, lambda: None, lambda: front.answers.stop(0))
    thread = threading.Thread(target=run, args=(server, listener))
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def one_by_one(engine: Engine, new_images: bool) -> float:
    """Questions per second of a server of one slot."""
    with served(engine, slots=1) as port:
        elsewhere(closed, port, CLIENTS, new_images, 1)
        seconds, _ = elsewhere(closed, port, CLIENTS // 2, new_images, 8)
    return CLIENTS // 2 / seconds


def by_torch(engine: Engine, prompt: int, new_images: bool, batches: int) -> float:
    """Questions per second of transformers on torch in static batches of 16."""
    import torch
    import transformers

    from benchmarks.generate import hf_model

    decoder = hf_model()
    vision = transformers.CLIPVisionConfig(
        hidden_size=TOWER.width,
        num_hidden_layers=TOWER.depth,
        num_attention_heads=TOWER.heads,
        intermediate_size=TOWER.mlp_width,
        image_size=TOWER.image_size,
        patch_size=TOWER.patch_size,
    )
    tower = transformers.CLIPVisionModel(vision).eval()
    pixels = torch.zeros(CLIENTS, 3, TOWER.image_size, TOWER.image_size)
    rng = np.random.default_rng(0)
    width = engine.config.model.decoder.width
    embeds = torch.from_numpy(rng.standard_normal((CLIENTS, prompt, width), np.float32))
    mask = torch.ones(CLIENTS, prompt, dtype=torch.long)

    def batch() -> None:
        if new_images:
            tower(pixels)
        decoder.generate(
            inputs_embeds=embeds, attention_mask=mask, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False
        )

    with torch.inference_mode():
        batch()
        began = time.perf_counter()
        for _ in range(batches):
            batch()
    return batches * CLIENTS / (time.perf_counter() - began)


Row = list[Any]


def throughput(engine: Engine, port: int, count: int, others: bool) -> Iterator[dict[str, Any]]:
    """Of images that were seen, and of new ones, beside the other ways."""
    v = engine.config.model.visual_tokens
    sample = engine.prompt(Question("Is there a snowboard in the image?", (next(photographs(0)),)))
    prompt = len(sample.encoded.codes)
    for new_images in (False, True):
        # Once, so that images and questions that are the same each time were seen.
        elsewhere(closed, port, CLIENTS, new_images, 1)
        seconds, took = elsewhere(closed, port, count, new_images, 2)
        assert all(one.tokens == NEW for one in took)
        yield {
            "visual_tokens": v,
            "prompt": prompt,
            "images": "new" if new_images else "seen",
            "per_second": count / seconds,
            "one_by_one": one_by_one(engine, new_images) if others else None,
            "torch": by_torch(engine, prompt, new_images, 2) if others else None,
            "first": [one.first for one in took],
            "between": [gap for one in took for gap in one.between],
        }


def by_slots(engine: Engine, count: int) -> Iterator[dict[str, Any]]:
    """Of images that were seen, by how many answers may be under way."""
    for slots in SLOTS:
        with served(engine, slots) as port:
            elsewhere(closed, port, CLIENTS, False, 1)
            seconds, took = elsewhere(closed, port, count, False, 2)
        yield {
            "visual_tokens": engine.config.model.visual_tokens,
            "slots": slots,
            "per_second": count / seconds,
            "first": [one.first for one in took],
            "between": [gap for one in took for gap in one.between],
        }


def load(v: int, port: int, count: int, most: float) -> Iterator[dict[str, Any]]:
    """At shares of what it can do at most, in questions per second."""
    for number, share in enumerate(SHARES):
        took = elsewhere(arriving, port, count, share * most, 3 + number)
        yield {
            "visual_tokens": v,
            "share": share,
            "rate": share * most,
            "first": [one.first for one in took],
            "between": [gap for one in took for gap in one.between],
        }


def rate_row(one: dict[str, Any]) -> Row:
    """Of the table of throughput."""
    ours, others = one["per_second"], (one["one_by_one"], one["torch"])
    told = ["" if it is None else f"{it:.2f} ({ours / it:.1f}x)" for it in others]
    return [
        one["visual_tokens"],
        one["prompt"],
        one["images"],
        f"{ours:.2f}",
        *told,
        milliseconds(one["first"]),
        milliseconds(one["between"]),
    ]


def slots_row(one: dict[str, Any]) -> Row:
    """Of the table of slots."""
    times = milliseconds(one["first"]), milliseconds(one["between"])
    return [one["visual_tokens"], one["slots"], f"{one['per_second']:.2f}", *times]


def load_row(one: dict[str, Any]) -> Row:
    """Of the table of load."""
    times = milliseconds(one["first"]), milliseconds(one["between"])
    return [one["visual_tokens"], f"{one['rate']:.2f}", f"{one['share']:.0%}", *times]


def milliseconds(values: Sequence[float]) -> str:
    """p50 and p99."""
    return " / ".join(f"{1e3 * float(np.percentile(values, q)):.0f}" for q in (50, 99)) if values else "-"


def main(
    out: Path = Path("runs/serve"),
    visual_tokens: tuple[int, ...] = (1, 4, 16, 64, 576),
    parts: tuple[Literal["stages", "throughput", "slots", "load"], ...] = (
        "stages",
        "throughput",
        "slots",
        "load",
    ),
    count: int = 96,
) -> None:
    """Measures, prints tables and writes them to OUT/tables.md, the numbers to OUT/serve.json.

    Args:
      out: directory for both.
      visual_tokens: V, of 1, 4, 16, 36, 64, 144 and 576; beside the first one the other ways are measured too.
      parts: what is measured; load needs throughput.
      count: questions of each measurement.
    """
    rates, slots, loads = list[dict[str, Any]](), list[dict[str, Any]](), list[dict[str, Any]]()
    for v in visual_tokens:
        engine = engine_of(v)
        if "stages" in parts:
            write_record(out / f"stages-v{v}.json", stages(engine))
        if "slots" in parts and v == visual_tokens[0]:
            for one in by_slots(engine, count):
                slots.append(one)
                print(*slots_row(one), sep="  ", flush=True)
        if "throughput" not in parts:
            continue
        with served(engine) as port:
            for one in throughput(engine, port, count, v == visual_tokens[0]):
                rates.append(one)
                print(*rate_row(one), sep="  ", flush=True)
            if "load" in parts:
                both = 2 / sum(1 / one["per_second"] for one in rates[-2:])
                for one in load(v, port, count, both):
                    loads.append(one)
                    print(*load_row(one), sep="  ", flush=True)
    times = ["first token, ms p50 / p99", "between pieces, ms p50 / p99"]
    beside = ["one by one", "torch, batches of 16", *times]
    tables = [
        (["V", "prompt", "images", "questions/s", *beside], [rate_row(one) for one in rates]),
        (["V", "slots", "questions/s", *times], [slots_row(one) for one in slots]),
        (["V", "arrivals/s", "of the most", *times], [load_row(one) for one in loads]),
    ]
    told = "\n\n".join(table(head, rows) for head, rows in tables if rows)
    if told:
        print(told)
        write_text(out / "tables.md", told + "\n")
        write_text(
            out / "serve.json", json.dumps({"throughput": rates, "slots": slots, "load": loads}) + "\n"
        )


if __name__ == "__main__":
    run_cli(lambda: tyro.cli(main))
