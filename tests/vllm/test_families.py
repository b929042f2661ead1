"""Decoders of every family that is exported for vLLM, and a real one, go on there from our embeddings as here."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quecc_jax.config import RopeScaling
from quecc_jax.convert.formats.family_keys import FAMILIES
from quecc_jax.convert.run import import_weights
from quecc_jax.convert.vllm import NOT_THERE, export_for_vllm
from quecc_jax.generate.embeddings import prompt_embeddings
from quecc_jax.generate.questions import Limits, Question
from quecc_jax.generate.text_stream import answer_text
from quecc_jax.load import load_encoder, load_engine
from tests.parity.test_smollm2 import model_file
from tests.vllm.runs import put_run
from tests.vllm.server import BIN, ENVIRONMENT
from tests.vllm.test_answers import questions

NEW = 20
GEMMA: dict[str, Any] = {
    "mlp": "geglu",
    "norm_sites": "both",
    "zero_centred_norm": True,
    "scale_embeddings": True,
    "tie_embeddings": True,
    "window": 16,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied, its context stretched": (
        "llama",
        {"tie_embeddings": True, "rope_scaling": RopeScaling("linear", factor=4.0)},
    ),
    "llama with biases": ("llama", {"qkv_bias": True, "out_bias": True}),
    "mistral": ("mistral", {"window": 16}),
    "qwen2": ("qwen2", {"qkv_bias": True}),
    "phi3": ("phi3", {"rope_fraction": 0.5}),
    "qwen3": ("qwen3", {"qk_norm": "head", "head_width": 64}),
    "smollm3": ("smollm3", {"unrotated_every": 2}),
    "olmo2": ("olmo2", {"norm_sites": "after", "qk_norm": "all"}),
    "gemma2": (
        "gemma2",
        GEMMA | {"full_every": 2, "query_scalar": 24.0, "attention_softcap": 20.0, "logit_softcap": 8.0},
    ),
    "gemma3": ("gemma3_text", GEMMA | {"full_every": 2, "qk_norm": "head", "local_rope_theta": 100.0}),
}
TEXTS = ("What is the capital of France?", "Write one sentence about the sea.", "2 + 2 =")


@pytest.fixture(scope="module")
def gone_on(tmp_path_factory) -> Path:
    """The folders of all cases, each with vLLM's tokens or its error."""
    top = tmp_path_factory.mktemp("families")
    for name, (_, decoder) in CASES.items():
        put_run(top / name, "avgpool", **decoder)
    import_weights(model_file(), top / "smollm2" / "run")
    folders = sorted(top.iterdir())
    for folder in folders:
        export_for_vllm(folder / "run", folder / "out", dtype="float32")
        (folder / "out" / "decoder").rename(folder / "decoder")
        encoder = load_encoder(folder / "out" / "encoder")
        asked = questions(encoder) if encoder.config.data.images_per_row else list(map(Question, TEXTS))
        (folder / "prompts").mkdir()
        made = prompt_embeddings(encoder, [encoder.prompt(one) for one in asked])
        for number, one in enumerate(made):
            np.save(folder / "prompts" / f"{number}.npy", one)
    script = Path(__file__).with_name("offline.py")
    alone = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    command = [str(BIN / "python"), str(script), str(NEW), *map(str, folders)]
    with (top.parent / "log").open("w") as log:
        subprocess.run(
            command, env={**os.environ, **ENVIRONMENT, **alone}, stdout=log, stderr=log, check=True
        )
    return top


@pytest.mark.parametrize("case", [*CASES, "smollm2"])
def test_the_decoder_goes_on_as_ours(gone_on, case):
    folder = gone_on / case
    assert not (folder / "error.txt").exists(), (folder / "error.txt").read_text()[-2000:]
    family = json.loads((folder / "decoder" / "config.json").read_text())["model_type"]
    assert family == CASES.get(case, ("llama",))[0]
    engine = load_engine(folder / "run", weights="float32")
    asked = questions(engine) if engine.config.data.images_per_row else list(map(Question, TEXTS))
    ids = json.loads((folder / "ids.json").read_text())
    texts = []
    for one in ids:
        end = next((number for number, token in enumerate(one) if token in engine.ends.ids), len(one))
        texts.append(answer_text(engine.tokenizer, one[:end]))
    assert texts == engine.answers(asked, Limits(NEW))
    assert len(asked) == len(ids) and len({text for text in texts if text}) > 1


def test_every_family_is_tried():
    assert {family for family, _ in CASES.values()} == FAMILIES.keys() - NOT_THERE
