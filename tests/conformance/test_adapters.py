"""Directories that hold more than a model's weights: adapters, leftovers, other forms of the same weights.

The names are those that PEFT (`PeftModel.save_pretrained`), LLaVA's finetune_lora.sh, transformers'
Trainer, bitsandbytes, GPTQ and AWQ write. Expected is that whatever would change the weights ends the import
with its name (LLaVA #438, #784, #1592), and that whatever does not is named in one line.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from quecc_jax.convert.run import import_weights
from quecc_jax.errors import UserError
from tests.convert.names import load, random_tensors
from tests.convert.test_llava import decoder_for_the_tiny_projector
from tests.convert.test_run import small, write_checkpoint, write_tiny

CONFIG = json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]})
ONE = {"x": np.ones((2, 2), np.float32)}
Q = "base_model.model.model.layers.0.self_attn.q_proj"


def pickle(path: Path, tensors: dict[str, np.ndarray]) -> None:
    torch = pytest.importorskip("torch")
    torch.save({k: torch.tensor(v) for k, v in tensors.items()}, path)


def projector(tiny: Path) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for file in tiny.glob("*.safetensors"):
        arrays |= {k: v for k, v in load_file(file).items() if "mm_projector" in k}
    return arrays


def obtained(capsys: Any, act: Callable[[], Any], *names: str) -> str:
    """What became of an import: "refused" or "said" if the message names all `names`, else the message."""
    try:
        act()
    except UserError as error:
        text = str(error)
        return "refused" if all(name in text for name in names) and "\n" not in text else text
    text = capsys.readouterr().err
    lines = [
        line for line in text.splitlines() if line.startswith("these files beside the weights are not read")
    ]
    if len(lines) == 1 and all(name in lines[0] for name in names):
        return "said"
    return f"imported, saying {text!r}"


def peft(d: Path) -> None:
    save_file({f"{Q}.lora_A.weight": np.ones((4, 8), np.float16)}, d / "adapter_model.safetensors")
    (d / "adapter_config.json").write_text(CONFIG)


def lora_in_a_folder(d: Path) -> None:
    (d / "checkpoint-500").mkdir()
    peft(d / "checkpoint-500")


def lora_two_folders_down(d: Path) -> None:
    (d / "lora" / "checkpoint-500").mkdir(parents=True)
    peft(d / "lora" / "checkpoint-500")
    (d / "lora" / "again").symlink_to(d)


def arrays(d: Path) -> None:
    np.savez(d / "expected.npz", x=np.ones(2))
    (d / "some.pkl").write_bytes(b"x")


def trained(d: Path) -> None:
    for name in (
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "rng_state_0.pth",
        "training_args.bin",
        "random_states_0.pkl",
        "scaler.pt",
    ):
        (d / name).write_bytes(b"a pickle")


FORMS = (
    "tf_model.h5",
    "flax_model.msgpack",
    "model.onnx",
    "model-q8.gguf",
    "consolidated.00.pth",
    "consolidated.safetensors",
    "pytorch_model.bin",
    "pytorch_model-00001-of-00002.bin",
)


def forms(d: Path) -> None:
    for name in FORMS:
        (d / name).write_bytes(b"something")


def file(name: str, tensors: dict[str, np.ndarray] | None = None) -> Callable[[Path], None]:
    def write(d: Path) -> None:
        (d / name).parent.mkdir(exist_ok=True)
        if tensors is None or name.endswith(".safetensors"):
            save_file(tensors or ONE, d / name)
        else:
            pickle(d / name, tensors)

    return write


BESIDE: dict[str, tuple[Callable[[Path], Any], str, tuple[str, ...]]] = {
    "a LoRA of PEFT": (peft, "refused", ("adapter_config.json", "adapter_model.safetensors")),
    "adapter_config.json alone": (
        lambda d: (d / "adapter_config.json").write_text(CONFIG),
        "refused",
        ("adapter_config.json",),
    ),
    "adapter_model.bin alone": (file("adapter_model.bin"), "refused", ("adapter_model.bin",)),
    "adapter_model.safetensors alone": (
        file("adapter_model.safetensors"),
        "refused",
        ("adapter_model.safetensors",),
    ),
    "adapter_model-00001-of-00002.safetensors": (
        file("adapter_model-00001-of-00002.safetensors"),
        "refused",
        ("adapter_model-00001",),
    ),
    "non_lora_trainables.bin alone": (
        file("non_lora_trainables.bin"),
        "refused",
        ("non_lora_trainables.bin",),
    ),
    "LLaMA-Adapter": (file("llama_adapter_len10_layer30_release.pth"), "refused", ("llama_adapter",)),
    "diffusers' pytorch_lora_weights.safetensors": (
        file("pytorch_lora_weights.safetensors"),
        "refused",
        ("pytorch_lora_weights.safetensors",),
    ),
    "a LoRA in checkpoint-500/": (lora_in_a_folder, "refused", ("checkpoint-500/adapter_config.json",)),
    "a LoRA in lora/checkpoint-500/": (
        lora_two_folders_down,
        "refused",
        ("lora/checkpoint-500/adapter_config.json",),
    ),
    "a link to an adapter that is gone": (
        lambda d: (d / "adapter_model.safetensors").symlink_to("../blobs/gone"),
        "refused",
        ("adapter_model.safetensors",),
    ),
    "weights in checkpoint-500/": (file("checkpoint-500/model.safetensors"), "said", ("checkpoint-500",)),
    "Meta's form in original/": (file("original/consolidated.00.pth"), "said", ("original",)),
    "files of training": (trained, "said", ("optimizer.pt", "rng_state_0.pth", "training_args.bin")),
    "other forms of the weights": (forms, "said", FORMS),
    "NumPy's arrays": (arrays, "said", ("expected.npz", "some.pkl")),
    "shards of another set": (
        file("model-00001-of-00003.safetensors"),
        "refused",
        ("model-00001-of-00003.safetensors",),
    ),
    "model.safetensors beside an index of others": (
        file("model.safetensors"),
        "refused",
        ("model.safetensors",),
    ),
    "weights of another name": (file("ema.safetensors"), "refused", ("ema.safetensors",)),
    "value_head.bin": (file("value_head.bin"), "refused", ("value_head.bin",)),
    "mm_projector.bin beside a language model": (
        file("mm_projector.bin"),
        "refused",
        ("mm_projector.bin", "--projector"),
    ),
}


@pytest.mark.parametrize("case", BESIDE)
def test_what_lies_beside_a_language_model(case: str, tmp_path: Path, conforms: Any, capsys: Any) -> None:
    put, expected, names = BESIDE[case]
    write_checkpoint(tmp_path / "given", load("llama")["config"], load("llama")["tensors"], np.float16)
    put(tmp_path / "given")
    act = lambda: import_weights(tmp_path / "given", tmp_path / "run")  # noqa: E731
    conforms("beside a model", case, expected, obtained(capsys, act, *names))
    assert (tmp_path / "run").exists() == (expected == "said")


@pytest.mark.parametrize("option", ["from", "projector", "vision", "text", "one file"])
def test_a_lora_directory_is_refused_whatever_it_is_given_for(
    option: str, tmp_path: Path, conforms: Any, capsys: Any
) -> None:
    """What finetune_lora.sh leaves, and the case of LLaVA #1592: its projector before a bare model."""
    write_tiny(tmp_path / "tiny")
    llm, tiny = decoder_for_the_tiny_projector(), small("llava_tiny")
    shapes = {k: [40 if d == 32000 else d for d in v] for k, v in llm.found.items()}
    write_checkpoint(tmp_path / "llm", llm.hf | {"vocab_size": 40}, shapes, np.float16)
    lora = tmp_path / "lora"
    lora.mkdir()
    (lora / "config.json").write_text(json.dumps(tiny["config"]))
    peft(lora)
    pickle(
        lora / "non_lora_trainables.bin",
        {f"base_model.model.{k}": v for k, v in projector(tmp_path / "tiny").items()},
    )
    tower = tmp_path / "tiny" / "clip_tiny"
    given: dict[str, dict[str, Any]] = {
        "from": {"source": lora},
        "projector": {"source": tmp_path / "llm", "vision": tower, "projector": lora},
        "one file": {
            "source": tmp_path / "llm",
            "vision": tower,
            "projector": lora / "non_lora_trainables.bin",
        },
        "vision": {"source": tmp_path / "llm", "vision": lora},
        "text": {"source": tmp_path / "tiny", "text": lora},
    }
    act = lambda: import_weights(out=tmp_path / "run", allow_pickle=True, **given[option])  # noqa: E731
    conforms("LoRA directory", f"as {option}", "refused", obtained(capsys, act, "adapter_config.json"))


UNMERGED = {
    "PEFT's wrapper": "base_model.model.model.norm.weight",
    "lora_A": "model.layers.0.self_attn.q_proj.lora_A.default.weight",
    "lora_B": "model.layers.0.self_attn.q_proj.lora_B.weight",
    "lora_embedding_A": "model.embed_tokens.lora_embedding_A.default",
    "DoRA": "model.layers.0.self_attn.q_proj.lora_magnitude_vector.default.weight",
    "base_layer": "model.layers.0.self_attn.q_proj.base_layer.weight",
    "modules_to_save": "lm_head.modules_to_save.default.weight",
    "original_module": "lm_head.original_module.weight",
    "IA3": "model.layers.0.self_attn.k_proj.ia3_l.default",
    "LoHa": "model.layers.0.self_attn.k_proj.hada_w1_a.default",
    "prompt tuning": "prompt_encoder.default.embedding.weight",
    "prompt embeddings": "prompt_embeddings",
    "LLaMA-Adapter": "model.layers.0.self_attn.adaption_prompt",
    "a LoRA of a text tower that is not read": "text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight",
}
QUANTISED = {
    "bitsandbytes 4 bit": "model.layers.0.self_attn.q_proj.weight.quant_state.bitsandbytes__nf4",
    "bitsandbytes 8 bit": "model.layers.0.self_attn.q_proj.SCB",
    "GPTQ and AWQ": "model.layers.0.self_attn.q_proj.qweight",
    "FP8": "model.layers.0.self_attn.q_proj.weight_scale_inv",
}


@pytest.mark.parametrize("case", [*UNMERGED, *QUANTISED])
def test_tensors_that_change_others_or_are_no_weights_yet(
    case: str, tmp_path: Path, conforms: Any, capsys: Any
) -> None:
    name = (UNMERGED | QUANTISED)[case]
    found = load("clip" if name.startswith("text_model") else "llama")
    write_checkpoint(tmp_path / "given", found["config"], found["tensors"] | {name: [4]}, np.float16)
    act = lambda: import_weights(tmp_path / "given", tmp_path / "run")  # noqa: E731
    kind = "unmerged adapter" if case in UNMERGED else "quantised weights"
    conforms("tensor names", case, "refused", obtained(capsys, act, name, kind))


@pytest.mark.parametrize("case", ["llama", "llava", "llava of transformers"])
def test_quantisation_that_only_the_config_tells(
    case: str, tmp_path: Path, conforms: Any, capsys: Any
) -> None:
    found = load("llava" if case.startswith("llava") else "llama")
    told = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    hf = dict(found["config"])
    if case == "llava of transformers":
        hf["text_config"] = hf["text_config"] | told
    else:
        hf |= told
    write_checkpoint(tmp_path / "given", hf, found["tensors"], np.float16)
    act = lambda: import_weights(tmp_path / "given", tmp_path / "run")  # noqa: E731
    conforms("quantization_config", case, "refused", obtained(capsys, act, "bitsandbytes"))


def test_projectors_beside_models_that_have_one(tmp_path: Path, conforms: Any, capsys: Any) -> None:
    """liuhaotian/llava-v1.5-7b holds mm_projector.bin beside its shards, whose own projector the original
    reads (`load_pretrained_model` without a model_base)."""
    write_tiny(tmp_path / "given")
    pickle(tmp_path / "given" / "mm_projector.bin", ONE)
    act = lambda: import_weights(tmp_path / "given", tmp_path / "run")  # noqa: E731
    conforms("mm_projector.bin", "beside a whole model", "said", obtained(capsys, act, "mm_projector.bin"))


def test_a_projector_in_the_folder_of_its_language_model(tmp_path: Path, conforms: Any, capsys: Any) -> None:
    """A folder of stage 1 that holds the language model too serves both options."""
    write_tiny(tmp_path / "tiny")
    llm = decoder_for_the_tiny_projector()
    shapes = {k: tuple(40 if d == 32000 else d for d in v) for k, v in llm.found.items()}
    stage = tmp_path / "stage"
    stage.mkdir()
    hf = small("llava_tiny")["config"]
    (stage / "config.json").write_text(json.dumps(hf | {"model_type": "llama"}))
    pickle(stage / "pytorch_model.bin", random_tensors(shapes, np.float16))
    pickle(stage / "mm_projector.bin", projector(tmp_path / "tiny"))
    given: dict[str, Any] = {"vision": tmp_path / "tiny" / "clip_tiny", "allow_pickle": True}
    act = lambda: import_weights(stage, tmp_path / "a", **given)  # noqa: E731
    conforms("mm_projector.bin", "beside pytorch_model.bin", "refused", obtained(capsys, act, "--projector"))
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "config.json").write_text(json.dumps(llm.hf | {"vocab_size": 40}))
    pickle(tmp_path / "llm" / "pytorch_model.bin", random_tensors(shapes, np.float16))
    act = lambda: import_weights(  # noqa: E731
        tmp_path / "llm", tmp_path / "b", projector=stage, **given
    )
    conforms("mm_projector.bin", "as --projector", "said", obtained(capsys, act, "pytorch_model.bin"))


def lost(d: Path) -> None:
    (d / "model-1.safetensors").unlink()


def both(d: Path) -> None:
    """Two forms, of which the chosen one is not whole."""
    lost(d)
    pickle(d / "pytorch_model.bin", ONE)


def only(*names: str) -> Callable[[Path], None]:
    def write(d: Path) -> None:
        for path in [*d.glob("model*")]:
            path.unlink()
        for name in names:
            (d / name).parent.mkdir(exist_ok=True)
            (d / name).write_bytes(b"x")

    return write


INCOMPLETE: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "a shard that the index names": (lost, ("model-1.safetensors", "download")),
    "the same, with pytorch_model.bin there": (both, ("model-1.safetensors", "download")),
    "only TensorFlow's": (only("tf_model.h5"), ("tf_model.h5",)),
    "only a GGUF file": (only("m.gguf"), ("give the GGUF file itself", "m.gguf")),
    "only checkpoints": (
        only("checkpoint-1/model.safetensors", "checkpoint-2/model.safetensors"),
        ("checkpoint-1, checkpoint-2",),
    ),
    "only files of training": (only("optimizer.pt", "training_args.bin"), ("optimizer.pt",)),
}


@pytest.mark.parametrize("case", INCOMPLETE)
def test_directories_without_whole_weights(case: str, tmp_path: Path, conforms: Any, capsys: Any) -> None:
    change, names = INCOMPLETE[case]
    write_checkpoint(tmp_path / "given", load("llama")["config"], load("llama")["tensors"], np.float16)
    change(tmp_path / "given")
    act = lambda: import_weights(tmp_path / "given", tmp_path / "run")  # noqa: E731
    conforms("incomplete", case, "refused", obtained(capsys, act, *names))


def test_differences_to_other_weights(tmp_path: Path, conforms: Any, capsys: Any) -> None:
    """lmsys/vicuna-7b-delta-v1.1 and liuhaotian/LLaVA-7b-delta-v0 are named so; nothing inside tells."""
    given = tmp_path / "LLaVA-7b-delta-v0"
    write_checkpoint(given, load("llama")["config"], load("llama")["tensors"], np.float16)
    act = lambda: import_weights(given, tmp_path / "run")  # noqa: E731
    conforms("delta weights", "by the directory's name", "refused", obtained(capsys, act, "delta"))
