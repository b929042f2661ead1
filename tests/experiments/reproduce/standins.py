"""STAND-INS of all that `launch.reproduce` fetches, in the real files' layout: tiny random weights, made-up images.

python -m tests.experiments.reproduce.standins MIRROR
python -m launch.reproduce --rehearsal --root DIR --mirror MIRROR --run --download

Questions of the benchmarks are real (tests/evaluate/standins.py); the tokenizer is a real SentencePiece model of
Vicuna's size. MIRROR/ocr-vqa holds what a person puts into DIR/data/ocr_vqa/images.
"""

import dataclasses
import json
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from configs import table1
from quecc_jax.convert.run import export_weights
from quecc_jax.train.checkpoint import save_params
from tests import tiny
from tests.conformance.tokenizers.make import GOLDEN, TOLD
from tests.data.photos import photo
from tests.evaluate.standins import STANDINS

IMAGES = {
    "coco": "train2017/000000000009.jpg",
    "gqa": "images/7.jpg",
    "ocr_vqa": "images/0007.jpg",
    "textvqa": "train_images/ab.jpg",
    "vg": "VG_100K/1.jpg",
}


def make(mirror: Path) -> None:
    """Writes the mirror: a folder for each step, with the files that it fetches."""
    with tempfile.TemporaryDirectory() as made:
        work = Path(made)
        _weights(mirror, work)
        _data(mirror, work / "data")
        _benchmarks(mirror, work / "eval", work / "data")


def _weights(mirror: Path, work: Path) -> None:
    run = table1.config("stage1-v16-small")
    tokenizer = work / "tokenizer"
    tokenizer.mkdir()
    shutil.copy(GOLDEN, tokenizer / "tokenizer.model")
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(TOLD))
    marks = {name: TOLD[name] for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    (tokenizer / "special_tokens_map.json").write_text(json.dumps(marks))
    run = dataclasses.replace(
        run, out=str(work / "run"), data=dataclasses.replace(run.data, tokenizer=str(tokenizer))
    )
    save_params(run, tiny.random_params(run))
    vicuna, clip = mirror / "vicuna", mirror / "clip"
    export_weights(work / "run", vicuna, only="decoder")
    export_weights(work / "run", clip, only="vision")
    arrays = load_file(vicuna / "model.safetensors")
    (vicuna / "model.safetensors").unlink()
    files = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for number, file in enumerate(files):
        save_file({name: arrays[name] for name in list(arrays)[number::2]}, vicuna / file)
    places = {name: files[number % 2] for number, name in enumerate(arrays)}
    (vicuna / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def _data(mirror: Path, data: Path) -> None:
    """Captions and instructions, and archives of the former's images."""
    captions = []
    for number in range(16):
        name = f"00000/{number:09}.jpg"
        _save(data / "captions" / name, number)
        captions.append(_row(number, "Describe the image concisely.", f"a photo of {number} boats", name))
    _json(mirror / "captions/blip_laion_cc_sbu_558k.json", captions)
    _zip(mirror / "captions/llava_pretrain_images.zip", data / "captions")
    rows = []
    for number in range(16):
        folder, name = list(IMAGES.items())[number % 5]
        rows.append(_row(number, "What color is the boat?", f"It is color {number}.", f"{folder}/{name}"))
    rows.append(_row(16, "What is in it?", "A boat.", "vg/VG_100K_2/2.jpg"))
    text = _row(17, "Say hello.", "Hello!", "")
    rows.append({key: value for key, value in text.items() if key != "image"})
    _json(mirror / "instructions/llava_v1_5_mix665k.json", rows)
    for number, (folder, name) in enumerate((*IMAGES.items(), ("vg", "VG_100K_2/2.jpg"))):
        _save(data / folder / name, number)
    shutil.copytree(data / "ocr_vqa/images", mirror / "ocr-vqa")
    _zip(mirror / "coco/train2017.zip", data / "coco")
    _zip(mirror / "visual-genome/vg_images.zip", data / "vg", ["VG_100K/1.jpg"])
    _zip(mirror / "visual-genome/vg_images2.zip", data / "vg", ["VG_100K_2/2.jpg"])


def _benchmarks(mirror: Path, folder: Path, data: Path) -> None:
    """The eight benchmarks' files, taken apart into the archives that they come in."""
    for task in ("gqa", "mmbench", "mme", "pope", "scienceqa", "textvqa", "vizwiz", "vqav2"):
        STANDINS[task](folder)
    for name in ("gqa/data/images", "textvqa/train_images"):
        inside = data / name.replace("/data", "")
        shutil.copytree(folder / name, inside, dirs_exist_ok=True)
    _zip(mirror / "gqa/gqa_images.zip", data / "gqa")
    _zip(mirror / "textvqa/textvqa_images.zip", data / "textvqa")
    more = folder / "gqa/data/train_all_questions.json"
    more.write_text("[]")
    _zip(mirror / "gqa/gqa_questions.zip", more.parent, [more.name, "testdev_balanced_questions.json"])
    _copy(folder / "textvqa/TextVQA_0.5.1_val.json", mirror / "textvqa")
    questions = [
        path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.name.startswith("llava_")
    ]
    _zip(mirror / "questions/eval.zip", folder, questions)
    for path in (folder / "pope/coco").iterdir():
        _copy(path, mirror / "pope")
    _zip(mirror / "pope/val2014.zip", folder / "pope", below="val2014")
    _zip(mirror / "vqav2/test2015.zip", folder / "vqav2", below="test2015")
    _zip(mirror / "vizwiz/vizwiz_test.zip", folder / "vizwiz", below="test")
    _zip(mirror / "scienceqa/scienceqa_test.zip", folder / "scienceqa/images", below="test")
    for name in ("problems.json", "pid_splits.json"):
        _copy(folder / "scienceqa" / name, mirror / "scienceqa")
    release = folder / "MME/MME_Benchmark_release_version"
    nested = folder / "nested/MME_Benchmark_release_version/MME_Benchmark"
    shutil.copytree(release, nested)
    (nested.parent / "eval_tool").mkdir()
    (nested.parent / "eval_tool/readme.txt").write_text("of another folder")
    _zip(mirror / "mme/mme.zip", folder / "nested")
    _copy(folder / "mmbench/mmbench_dev_20230712.tsv", mirror / "mmbench")


def _row(number: int, asked: str, answer: str, image: str) -> dict[str, object]:
    begin = "<image>\n" if image else ""
    turns = [{"from": "human", "value": begin + asked}, {"from": "gpt", "value": answer}]
    return {"id": str(number), "image": image, "conversations": turns}


def _save(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    photo(seed, 60, 40 + int(np.random.default_rng(seed).integers(9))).save(path)


def _json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _copy(path: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, folder)


def _zip(archive: Path, folder: Path, names: Iterable[str | Path] = (), below: str = "") -> None:
    """An archive of some files of a folder, or of all below one of its folders."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    chosen = names or [
        path.relative_to(folder) for path in sorted((folder / below).rglob("*")) if path.is_file()
    ]
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in chosen:
            packed.write(folder / name, str(name))


if __name__ == "__main__":
    make(Path(sys.argv[1]))
