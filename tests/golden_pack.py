"""Keeps the arrays of a golden model small enough for the repository, and writes them back.

    python -m tests.golden_pack DIRECTORY tests/golden/llava_tiny/arrays.xz

packs model.safetensors and expected.npz of a directory that `tests.golden_check` reads. Left out are
embeddings of tokens that no compared sequence holds (zeros on unpacking) and whole logits, whose
log-sum-exp stays. Bytes of equal significance stand together, which compresses floats a little.
"""

import io
import json
import lzma
import shutil
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from quecc_jax.data.text.tokenizer import load_tokenizer

EMBEDDING = "model.embed_tokens.weight"
TOWER = "model.vision_tower.vision_tower."
"""The model's own copy of the tower, which holds the same numbers as the tower's directory."""
LOGITS = "logits_every_8th_position"
TEXTS = ("config.json", "clip_tiny/config.json", "clip_tiny/preprocessor_config.json")


def pack(folder: Path, file: Path) -> None:
    """Writes the arrays of a golden directory into one file, and its config files beside it."""
    tensors = load_file(folder / "model.safetensors")
    with np.load(folder / "expected.npz") as stored:
        expected = {k: v for k, v in stored.items() if k != LOGITS}
    texts = json.loads((folder / "expected.json").read_text())
    used = set(expected["input_ids"].ravel().tolist())
    tokenizer = load_tokenizer(folder)
    used |= {i for text in texts["query_text"] for i in (tokenizer.bos_token_id, *tokenizer.encode(text))}
    for one in texts["generate"].values():
        used |= {*one["prompt_ids"], *one["greedy_ids"]}
    rows = np.zeros(len(tensors[EMBEDDING]), bool)
    rows[[i for i in used if i >= 0]] = True
    tensors[EMBEDDING] = np.where(rows[:, None], tensors[EMBEDDING], 0).astype(tensors[EMBEDDING].dtype)
    arrays = {f"model/{k}": v for k, v in tensors.items()} | {f"expected/{k}": v for k, v in expected.items()}
    forms = {k: [str(v.dtype), list(v.shape)] for k, v in arrays.items()}
    planes = {k: np.frombuffer(v.tobytes(), np.uint8).reshape(-1, v.itemsize).T for k, v in arrays.items()}
    buffer = io.BytesIO()
    np.savez(buffer, forms=json.dumps(forms), **planes)  # type: ignore[arg-type]
    file.write_bytes(lzma.compress(buffer.getvalue(), preset=9))
    for name in TEXTS:
        (file.parent / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(folder / name, file.parent / name)


def unpack(file: Path, folder: Path) -> None:
    """Makes `folder` a directory that `tests.golden_model.check` reads, from a packed one."""
    shutil.copytree(file.parent, folder, ignore=shutil.ignore_patterns(file.name))
    with np.load(io.BytesIO(lzma.decompress(file.read_bytes()))) as stored:
        forms = json.loads(str(stored["forms"]))
        arrays = {
            k: np.frombuffer(np.ascontiguousarray(stored[k].T).tobytes(), dtype).reshape(shape)
            for k, (dtype, shape) in forms.items()
        }
    groups: dict[str, dict[str, np.ndarray]] = {"model": {}, "expected": {}}
    for key, array in arrays.items():
        group, name = key.split("/", 1)
        groups[group][name] = array
    save_file(groups["model"], folder / "model.safetensors")
    tower = {
        k.removeprefix(TOWER): v.astype(np.float32) for k, v in groups["model"].items() if k.startswith(TOWER)
    }
    save_file(tower, folder / "clip_tiny" / "model.safetensors")
    np.savez(folder / "expected.npz", **groups["expected"])  # type: ignore[arg-type]


if __name__ == "__main__":
    pack(Path(sys.argv[1]), Path(sys.argv[2]))
