"""How fast photos become batches, next to bare Pillow and to LLaVA's loader on PyTorch.

    python -m benchmarks.data            # about two minutes; torch only for the comparison
    python -m benchmarks.data --rows     # memory of 665,298 rows instead; writes 0.9 GB to a temporary place

Method: 256 JPEG photos of COCO's usual sizes (quality 90), crops of the two photos that ship with
scikit-learn, each scaled, mirrored and given sensor noise of its own. Every contender runs alone in its own
process, pinned to one core with all its threads, in rounds that take turns; a round counts batches of 32
for SECONDS after a first one. Reported is the median round.

    floor      Pillow alone: decode, convert to RGB, resize the longer side to 336 (bicubic)
    ours       grain pipeline from a LLaVA file and a folder: conversations to tokens, images padded to
               336 x 336 as CLIP's processor does, batches of uint8
    prepared   the same from `launch.prepare_data --resize 336` shards
    llava      torch DataLoader without workers: expand2square, CLIPImageProcessor, stacked float32; no text
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import tyro
from PIL import Image

PHOTOS, BATCH, SIDE = 256, 32, 336
SIZES = ((640, 480), (480, 640), (640, 427), (427, 640), (500, 375), (640, 640))
"""Width and height; most of COCO's images have one of these."""
ROUNDS, SECONDS = 3, 5.0
Contender = Literal["floor", "ours", "prepared", "llava"]
CONTENDERS: tuple[Contender, ...] = get_args(Contender)


def make_photos(folder: Path) -> None:
    """Writes the photos, a LLaVA file of one conversation each, a tokenizer, and prepared shards."""
    from sklearn.datasets import load_sample_images

    from quecc_jax.data.preparing.prepare import prepare
    from quecc_jax.data.sources.array_record import Recipe
    from quecc_jax.data.text.word_tokenizer import train_word_tokenizer

    rng = np.random.default_rng(0)
    originals = [Image.fromarray(array) for array in load_sample_images().images]
    words = [f"word{k}" for k in range(500)]
    rows = []
    for number in range(PHOTOS):
        width, height = SIZES[number % len(SIZES)]
        photo = originals[number % 2]
        scale = max(width / photo.width, height / photo.height) * rng.uniform(1.0, 1.6)
        photo = photo.resize((round(photo.width * scale) + 1, round(photo.height * scale) + 1))
        left, top = (int(rng.integers(n + 1)) for n in (photo.width - width, photo.height - height))
        crop = np.asarray(photo.crop((left, top, left + width, top + height)))[:, :: rng.choice([-1, 1])]
        noisy = crop * rng.uniform(0.7, 1.2) + rng.normal(0, 3, crop.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg", quality=90)
        rows.append(
            {
                "id": str(number),
                "image": f"{number}.jpg",
                "conversations": [
                    {"from": "human", "value": "<image>\n" + " ".join(rng.choice(words, 12))},
                    {"from": "gpt", "value": " ".join(rng.choice(words, 40))},
                ],
            }
        )
    (folder / "rows.json").write_text(json.dumps(rows))
    train_word_tokenizer([" ".join(words)], folder / "tokenizer")
    prepare(folder / "rows.json", (str(folder),), folder / "prepared", Recipe(SIDE), workers=2)


def paths(folder: Path) -> Iterator[Path]:
    """The photos without end, shuffled once."""
    order = np.random.default_rng(1).permutation(PHOTOS)
    while True:
        yield from (folder / f"{number}.jpg" for number in order)


def floor(folder: Path) -> Iterator[int]:
    """Pillow alone; yields the number of samples of each batch."""
    source = paths(folder)
    while True:
        for _ in range(BATCH):
            with Image.open(next(source)) as opened:
                image = opened.convert("RGB")
            scale = SIDE / max(image.size)
            sides = round(image.width * scale), round(image.height * scale)
            image.resize(sides, Image.Resampling.BICUBIC)
        yield BATCH


def settings(folder: Path, kind: str, workers: int) -> Any:
    """The pipeline's config."""
    from quecc_jax.config import DataConfig, SourceConfig

    source = SourceConfig("llava_json", str(folder / "rows.json"), str(folder))
    if kind == "prepared":
        source = SourceConfig("array_record", str(folder / "prepared"))
    return DataConfig((source,), str(folder / "tokenizer"), max_length=256, workers=workers)


def pipeline(folder: Path, kind: str, workers: int = 0) -> Iterator[int]:
    """This project's batches; yields the number of samples of each."""
    from quecc_jax.config import ModelConfig, QueccConfig
    from quecc_jax.data.pipeline import make_iterator

    model = ModelConfig(compressor=QueccConfig(kernel=24, stride=24))
    with make_iterator(settings(folder, kind, workers), model, BATCH, 0) as iterator:
        for batch in iterator:
            assert batch.pixels.shape == (BATCH, 1, SIDE, SIDE, 3)
            yield BATCH


def llava(folder: Path) -> Iterator[int]:
    """LLaVA's loader: pad to a square with the mean colour, then the processor, then collate."""
    import torch
    from transformers.models.clip import CLIPImageProcessorPil

    torch.set_num_threads(1)
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    colour = tuple(int(part * 255) for part in processor.image_mean)

    class Photos(torch.utils.data.Dataset):  # type: ignore[misc,name-defined]
        def __len__(self) -> int:
            return PHOTOS

        def __getitem__(self, number: int) -> Any:
            image = Image.open(folder / f"{number}.jpg").convert("RGB")
            square = Image.new("RGB", (max(image.size),) * 2, colour)
            square.paste(image, ((square.width - image.width) // 2, (square.height - image.height) // 2))
            return processor.preprocess(square, return_tensors="pt")["pixel_values"][0]

    loader = torch.utils.data.DataLoader(Photos(), BATCH, shuffle=True, drop_last=True)
    while True:
        for batch in loader:
            assert batch.shape == (BATCH, 3, SIDE, SIDE)
            yield BATCH


def start(name: str, folder: Path) -> Iterator[int]:
    """A contender's batches."""
    if name == "floor":
        return floor(folder)
    return llava(folder) if name == "llava" else pipeline(folder, name)


def measure(name: str, folder: Path) -> None:
    """A contender's process: on each line of stdin runs a round and prints its samples per second."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    batches = start(name, folder)
    next(batches)
    print("ready", flush=True)
    for _ in sys.stdin:
        print(rate(batches, SECONDS), flush=True)
    batches.close()  # type: ignore[attr-defined]


def rate(batches: Iterator[int], seconds: float) -> float:
    """Samples per second."""
    next(batches)
    began, samples = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < seconds:
        samples += next(batches)
    return samples / spent


def compare(folder: Path, names: list[str]) -> dict[str, float]:
    """The median rate of every contender, one running at a time."""
    command = [sys.executable, "-m", "benchmarks.data", "--folder", str(folder), "--measured"]
    processes = {
        name: subprocess.Popen(
            [*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        for name in names
    }
    rounds: dict[str, list[float]] = {name: [] for name in names}
    for process in processes.values():
        process.stdout.readline()  # type: ignore[union-attr]
    for _ in range(ROUNDS):
        for name, process in processes.items():
            process.stdin.write("\n")  # type: ignore[union-attr]
            rounds[name].append(float(process.stdout.readline()))  # type: ignore[union-attr]
    for process in processes.values():
        process.stdin.close()  # type: ignore[union-attr]
        process.wait()
    return {name: statistics.median(values) for name, values in rounds.items()}


def memory(process: int | str = "self") -> float:
    """MiB of a process and its children: private pages, and a share of the shared ones (PSS)."""
    total = 0.0
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) / 1024
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in (task / "children").read_text().split():
                total += memory(child)
    except OSError:
        pass
    return total


def epochs(folder: Path, count: int) -> list[float]:
    """Memory after each epoch of the pipeline with two workers, in MiB; `prepared` shards."""
    batches = pipeline(folder, "prepared", 2)
    found = []
    for _ in range(count):
        for _ in range(PHOTOS // BATCH):
            next(batches)
        found.append(memory())
    batches.close()  # type: ignore[attr-defined]
    return found


def throughput(folder: Path) -> None:
    """Prints the comparison, scaling and memory."""
    make_photos(folder)
    names: list[str] = list(CONTENDERS)
    try:
        import torch  # noqa: F401
    except ImportError:
        names.remove("llava")
        print("no torch here, so LLaVA's loader is left out: pip install -r requirements/parity.txt")
    rates = compare(folder, names)
    size = sum((folder / f"{number}.jpg").stat().st_size for number in range(PHOTOS)) / PHOTOS
    print(f"{PHOTOS} photos of {size / 1e3:.0f} kB, one core, {os.uname().machine}")
    print(f"{'':10} samples/s/core  of the floor  of llava")
    for name, value in rates.items():
        against = f"{value / rates['llava']:8.2f}x" if "llava" in rates else ""
        print(f"{name:10} {value:14.0f}  {value / rates['floor']:12.2f}  {against}")
    alone = 0.0
    for workers in (1, 2):
        batches = pipeline(folder, "ours", workers)
        for _ in range(4):
            next(batches)
        speed = rate(batches, 2 * SECONDS)
        batches.close()  # type: ignore[attr-defined]
        alone = alone or speed
        print(
            f"{workers} worker processes on {len(os.sched_getaffinity(0))} cores: {speed:.0f} samples/s, "
            f"{speed / alone:.2f}x one"
        )
    found = epochs(folder, 24)
    print(
        f"memory over 24 epochs of {PHOTOS} prepared photos with 2 workers, this process and its workers: "
        f"{found[3]:.0f} MiB after 4, {found[11]:.0f} after 12, {found[-1]:.0f} after 24"
    )


def row_memory(folder: Path) -> None:
    """Prints what 665,298 conversations cost as a RowFile, and as Python objects."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnop"), rng.integers(2, 10))) for _ in range(5000)]
    texts = [" ".join(rng.choice(words, rng.integers(4, 60))) for _ in range(5000)]
    path = folder / "mix.json"
    with path.open("w") as file:
        for number in range(665_298):
            said = ((number * 7 + turn) % 5000 for turn in range(2 * (1 + number % 5)))
            turns = [{"from": ("human", "gpt")[turn % 2], "value": texts[k]} for turn, k in enumerate(said)]
            row = {"id": str(number), "image": f"coco/{number:012}.jpg", "conversations": turns}
            file.write((",\n" if number else "[\n") + json.dumps(row, indent=1))
        file.write("\n]\n")
    print(f"{path.stat().st_size / 1e9:.2f} GB, 665,298 rows of 2 to 10 turns")
    for name, code in (
        ("RowFile", "from quecc_jax.data.sources.json_rows import RowFile; rows = RowFile(path)"),
        ("json.load", "import json; rows = json.load(open(path))"),
    ):
        script = (
            f"import sys, time; path = sys.argv[1]; import quecc_jax.data.sources.json_rows; "
            f"from benchmarks.data import private; before = private(); began = time.perf_counter(); {code}; "
            f"print(time.perf_counter() - began, private() - before, len(rows))"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
        )
        seconds, used, _ = map(float, done.stdout.split())
        print(f"{name:10} {seconds:5.1f} s to open, {used:6.0f} MiB of memory of its own")


def private() -> float:
    """MiB that this process shares with no file: what each further process would cost again."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024


def main(
    rows: bool = False,
    measured: Annotated[Contender | None, tyro.conf.Suppress] = None,
    folder: Annotated[Path, tyro.conf.Suppress] = Path(),
) -> None:
    """Throughput and memory of the data pipeline.

    Args:
      rows: measure the memory of rows instead.
      measured: the contender that this process is, started by another.
      folder: its photos.
    """
    if measured:
        measure(measured, folder)
        return
    with tempfile.TemporaryDirectory() as scratch:
        (row_memory if rows else throughput)(Path(scratch))


if __name__ == "__main__":
    tyro.cli(main)
