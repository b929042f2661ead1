"""Exports in llava-hf's format, loaded as their users load them: AutoProcessor and transformers' models.

Expected values are what transformers makes of the exported directory with PyTorch: ids of the prompt, pixels
and the greedy answer (transformers #29836, #41206, LLaVA #1040); obtained is what our run gives. The
tokenizer is the golden model's (Mistral's 32000 pieces), the byte-level one a stand-in of single letters.
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from quecc_jax.config import (
    DataConfig,
    DecoderConfig,
    ModelConfig,
    NoneConfig,
    PixelConfig,
    RunConfig,
    VisionConfig,
)
from quecc_jax.config.io import load_config
from quecc_jax.convert.image_processor import image_settings
from quecc_jax.convert.io.tensors import open_tensors
from quecc_jax.convert.plan import plan_export
from quecc_jax.convert.processor import chat_template
from quecc_jax.convert.run import export_weights, import_weights
from quecc_jax.data.batch import Batch
from quecc_jax.data.images import normalise
from quecc_jax.data.text.conversation import prompt_text
from quecc_jax.data.text.templates import TEMPLATES
from quecc_jax.data.text.tokenizer import load_tokenizer
from quecc_jax.generate.engine import Engine
from quecc_jax.generate.questions import Limits, Question
from quecc_jax.load import load_vlm
from quecc_jax.models.vlm import VLM
from tests.convert.test_run import assert_same_tensors
from tests.laid_out import prompt
from tests.tiny import change_config

GOLDEN = Path(__file__).parents[1] / "golden" / "llava_tiny"
TOWER = VisionConfig(
    image_size=28, patch_size=7, width=16, depth=3, heads=2, mlp_width=32, levels=(-2,), post_norm=True
)
SIGLIP = dataclasses.replace(
    TOWER,
    image_size=30,
    drop_border=True,
    activation="gelu_tanh",
    norm_eps=1e-6,
    cls=False,
    patch_bias=True,
    pre_norm=False,
    pixels=PixelConfig((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), fit="stretch"),
)
DECODER = DecoderConfig(width=32, depth=2, heads=4, kv_heads=4, mlp_width=48, max_positions=4096)
LLAMA_3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
QUESTIONS = ["What is it?", "  Is  <this> a\n\ntest, 12 or 日本?", "an <image_> or an <img>?"]


def letters(directory: Path, more: tuple[str, ...] = (), eos: str = "<|im_end|>") -> Path:
    """A byte-level tokenizer of single letters with ChatML's tokens and others; BOS is never added."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *more])
    directory.mkdir(parents=True)
    backend.save(str(directory / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos}
    (directory / "tokenizer_config.json").write_text(json.dumps(told))
    return directory


def make_run(
    root: Path,
    family: str = "llama",
    template: str = "v1",
    aspect: str = "pad",
    tower: VisionConfig = TOWER,
    legacy: bool = True,
    **decoder: Any,
) -> Path:
    """A run of random weights, imported from the original's format."""
    model = ModelConfig(
        vision=tower,
        compressor=NoneConfig(),
        dtype="float32",
        decoder=dataclasses.replace(DECODER, **decoder),
    )
    config = RunConfig(model=model, data=DataConfig(template=template, image_aspect=aspect))  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    # The original's code has CLIP alone.
    original = (("given", "llava"), ("given/clip", "tower")) if tower.cls else (("given", "llava_hf"),)
    for folder, layout in original:
        export = plan_export(config, layout, family)  # type: ignore[arg-type]
        shapes = {name: shape for r in export.rules for name, shape in zip(r.theirs, r.shapes, strict=True)}
        (root / folder).mkdir(parents=True)
        arrays = {name: _random(rng, name, shape) for name, shape in shapes.items()}
        save_file(arrays, root / folder / "model.safetensors")
        (root / folder / "config.json").write_text(json.dumps(export.hf))
    if not tower.cls:
        settings = image_settings(config, "Llava", None)
        (root / "given" / "preprocessor_config.json").write_text(json.dumps(settings))
    if family == "qwen2":
        shutil.copytree(letters(root / "letters"), root / "given", dirs_exist_ok=True)
    elif template == "llava_llama_3":
        eight = letters(root / "letters", LLAMA_3, LLAMA_3[1])
        shutil.copytree(eight, root / "given", dirs_exist_ok=True)
    else:
        for name in ("tokenizer.model", "tokenizer_config.json"):
            shutil.copy(GOLDEN / name, root / "given" / name)
        told = json.loads((GOLDEN / "tokenizer_config.json").read_text()) | {"legacy": legacy}
        (root / "given" / "tokenizer_config.json").write_text(json.dumps(told))
    vision = root / "given" / "clip"
    import_weights(root / "given", root / "run", vision=vision if tower.cls else None, template=template)
    made = load_config(root / "run" / "config.json")
    data = dataclasses.replace(made.data, template=template, image_aspect=aspect, images_per_row=2)  # type: ignore[arg-type]
    model = dataclasses.replace(made.model, dtype="float32")
    change_config(root / "run", dataclasses.replace(made, data=data, model=model))
    return root / "run"


def in_float32(run: Path) -> None:
    """Lets a run compute in float32, as transformers does here."""
    config = load_config(run / "config.json")
    model = dataclasses.replace(config.model, dtype="float32")
    change_config(run, dataclasses.replace(config, model=model))


def _random(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    noise = rng.standard_normal(shape, np.float32)
    if "norm" in name:
        return (1 + 0.2 * noise).astype(np.float32)
    # Loud output matrices make answers that no rounding decides.
    scale = (3 if "lm_head" in name else 1.2) / shape[-1] ** 0.5 if noise.ndim == 2 else 0.2
    return (scale * noise).astype(np.float32)


def image(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8))


def theirs(directory: Path) -> tuple[Any, Any]:
    pytest.importorskip("torch")
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(directory).eval()
    return model, AutoProcessor.from_pretrained(directory)


def talk(question: str, images: int) -> list[dict[str, Any]]:
    content = [{"type": "image"}] * images + [{"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def ids_of(question: str, images: int, engine: Engine, number: int, history: tuple[str, ...] = ()) -> Any:
    config = engine.config
    made = prompt(question, images, engine.tokenizer, config.data, config.model.visual_tokens, history)
    return np.where(made.slots != -1, number, made.tokens).tolist()


def logits_of(engine: Engine, params: Any, asked: Question, length: int) -> np.ndarray:
    """[S, vocab] of a prompt of so many tokens, in one pass."""
    prompt, vlm = engine.prompt(asked), VLM(engine.config.model)
    assert len(prompt.encoded.codes) == length
    batch = engine.batch([prompt], length)

    def run(model: VLM, batch: Batch) -> Any:
        return model.logits(model(batch))

    made: Any = jax.jit(lambda p: vlm.apply({"params": p}, batch, method=run))(params)
    return np.asarray(made)[0]


CASES: dict[str, dict[str, Any]] = {
    "padded images": {},
    "cropped images": {"aspect": "square"},
    "LLaMA-2's template": {"template": "llama_2"},
    "Mistral": {"family": "mistral", "template": "mistral_instruct", "window": 4096, "kv_heads": 2},
    "Qwen2, room for the token": {
        "family": "qwen2",
        "template": "qwen",
        "qkv_bias": True,
        "vocab_size": 320,
        "norm_eps": 1e-6,
    },
    "Qwen2, no room, tied": {
        "family": "qwen2",
        "template": "qwen",
        "qkv_bias": True,
        "vocab_size": 259,
        "tie_embeddings": True,
    },
    "a tokenizer that is not legacy": {"legacy": False},
    "CLS in front": {"tower": dataclasses.replace(TOWER, keep_cls=True)},
    "rows beyond the tokenizer": {"vocab_size": 32064},
    "SigLIP (LLaVA-Interleave)": {
        "tower": SIGLIP,
        "aspect": "square",
        "family": "qwen2",
        "template": "qwen",
        "qkv_bias": True,
        "vocab_size": 320,
        "tie_embeddings": True,
    },
    "SigLIP, padded": {"tower": SIGLIP},
}


@pytest.mark.parametrize("case", CASES)
def test_transformers_answers_as_the_run_does(case: str, tmp_path: Path, conforms: Any) -> None:
    torch = pytest.importorskip("torch")
    run = make_run(tmp_path, **CASES[case])
    export_weights(run, tmp_path / "hf", layout="llava_hf")
    model, processor = theirs(tmp_path / "hf")
    config, params = load_vlm(run)
    engine, limits = Engine(config, params), Limits(max_new_tokens=8)
    number, words = model.config.image_token_id, len(engine.tokenizer)
    rows = max(config.model.decoder.vocab_size, words + 1)
    got = (number, model.get_input_embeddings().weight.shape[0])
    conforms(case, "id of <image>, rows", (words, rows), got)
    for size in ((60, 40), (30, 70), None):
        for question in QUESTIONS[: 3 if size is None else 1]:
            shown = [] if size is None else [image(*size)]
            text = processor.apply_chat_template(talk(question, len(shown)), add_generation_prompt=True)
            given = processor(images=shown or None, text=text, return_tensors="pt")
            wanted = given["input_ids"][0].tolist()
            what = f"{'text' if size is None else size}: {question!r}"
            conforms(case, f"ids, {what}", wanted, ids_of(question, len(shown), engine, number))
            if shown:
                pixels = normalise(engine.image(shown[0]).pixels[0], config.model.vision.pixels).transpose(
                    2, 0, 1
                )
                error = float(np.abs(pixels - given["pixel_values"][0].numpy()).max())
                conforms(case, f"pixels, {what}", True, error < 1e-5)
            with torch.no_grad():
                out = model.generate(**given, max_new_tokens=8, do_sample=False)
            answer = processor.decode(out[0, len(wanted) :], skip_special_tokens=True).strip()
            asked = Question(question, tuple(engine.image(one) for one in shown))
            conforms(case, f"answer, {what}", answer, engine.answers([asked], limits)[0])
    history = ("What is it?", "A cat.")
    talks = [
        *talk(history[0], 1),
        {"role": "assistant", "content": [{"type": "text", "text": history[1]}]},
        *talk("Why?", 0),
    ]
    text = processor.apply_chat_template(talks, add_generation_prompt=True)
    given = processor(images=[image(60, 40)], text=text, return_tensors="pt")
    conforms(
        case, "ids, second turn", given["input_ids"][0].tolist(), ids_of("Why?", 1, engine, number, history)
    )


NEXT: dict[str, dict[str, Any]] = {
    "Vicuna": {},
    "Mistral": {"family": "mistral", "template": "mistral_instruct", "kv_heads": 2},
    "Llama 3": {"template": "llava_llama_3", "kv_heads": 2, "rope_theta": 5e5, "vocab_size": 264},
}


@pytest.mark.parametrize("case", NEXT)
@pytest.mark.parametrize("size", [(60, 40), (20, 70), (28, 28)])
def test_any_resolution_images(case: str, size: tuple[int, int], tmp_path: Path, conforms: Any) -> None:
    torch = pytest.importorskip("torch")
    tower = dataclasses.replace(TOWER, tiles=((1, 2), (2, 1), (2, 2), (3, 1), (1, 3)))
    run = make_run(tmp_path, tower=tower, **NEXT[case])
    export_weights(run, tmp_path / "hf", layout="llava_hf")
    model, processor = theirs(tmp_path / "hf")
    config, params = load_vlm(run)
    engine = Engine(config, params)
    conforms("LLaVA-NeXT", "class", "LlavaNextForConditionalGeneration", type(model).__name__)
    text = processor.apply_chat_template(talk("What is it?", 1), add_generation_prompt=True)
    given = processor(images=[image(*size)], text=text, return_tensors="pt")
    length = given["input_ids"].shape[1]
    with torch.no_grad():
        out = model.generate(**given, max_new_tokens=8, do_sample=False)
        logits = model(**given).logits[0].numpy()
    answer = processor.decode(out[0, length:], skip_special_tokens=True).strip()
    asked = Question("What is it?", (engine.image(image(*size)),))
    what = f"{case}, {size}"
    conforms("LLaVA-NeXT", f"answer, {what}", answer, engine.answers([asked], Limits(max_new_tokens=8))[0])
    ours = logits_of(engine, params, asked, length)
    error = float(np.abs(ours - logits[:, : ours.shape[1]]).max() / np.abs(logits).max())
    conforms("LLaVA-NeXT", f"logits, {what}", True, error < 1e-4)


def test_an_export_comes_in_again_as_the_same_run(tmp_path: Path, conforms: Any) -> None:
    """The row of <image> is carried: weights and vocabulary go home as they came."""
    run = make_run(tmp_path)
    export_weights(run, tmp_path / "hf", layout="llava_hf")
    import_weights(tmp_path / "hf", tmp_path / "again")
    before, after = (load_config(p / "config.json") for p in (run, tmp_path / "again"))
    grown = dataclasses.replace(before.model.decoder, vocab_size=32001)
    wanted = dataclasses.replace(before.model, decoder=grown, dtype=after.model.dtype)
    conforms("re-import", "model", wanted, after.model)
    conforms("re-import", "image_aspect", "pad", after.data.image_aspect)
    in_float32(tmp_path / "again")
    export_weights(tmp_path / "again", tmp_path / "once_more")
    assert_same_tensors(tmp_path / "hf", tmp_path / "once_more")
    for file in (tmp_path / "hf").iterdir():
        if file.suffix != ".safetensors":
            conforms(
                "re-import",
                f"goes home: {file.name}",
                True,
                file.read_bytes() == (tmp_path / "once_more" / file.name).read_bytes(),
            )
    export_weights(tmp_path / "again", tmp_path / "anew", layout="llava_hf")
    told = json.loads((tmp_path / "anew" / "config.json").read_text())
    conforms(
        "re-import",
        "exported anew: id, rows",
        (32000, 32001),
        (told["image_token_index"], told["text_config"]["vocab_size"]),
    )
    first, second = (Engine(*load_vlm(p)) for p in (run, tmp_path / "again"))
    for shown in ((), (image(60, 40),)):
        answers = [
            engine.answers(
                [Question("What is it?", tuple(map(engine.image, shown)))], Limits(max_new_tokens=8)
            )
            for engine in (first, second)
        ]
        conforms("re-import", f"answer with {len(shown)} images", *answers)


def test_the_published_layout(tmp_path: Path, conforms: Any) -> None:
    """llava-hf/llava-1.5-7b-hf: <image> 32000 and <pad> 32001 of 64 new rows, CLIP's processor."""
    run = make_run(tmp_path)
    export_weights(run, tmp_path / "hf", layout="llava_hf")
    hf = tmp_path / "hf"
    told = json.loads((hf / "config.json").read_text())
    told["text_config"]["vocab_size"] = 32064
    told |= {"pad_token_id": 32001, "vision_feature_layer": [-2], "vocab_size": 32064}
    (hf / "config.json").write_text(json.dumps(told))
    arrays = load_file(hf / "model.safetensors")
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        arrays[name] = np.concatenate([arrays[name][:32000], np.zeros((64, 32), np.float32)])
    save_file(arrays, hf / "model.safetensors")
    images = json.loads((hf / "preprocessor_config.json").read_text())
    del images["do_pad"]
    images["image_processor_type"] = "CLIPImageProcessor"
    (hf / "preprocessor_config.json").write_text(json.dumps(images))
    import_weights(hf, tmp_path / "in")
    config = load_config(tmp_path / "in" / "config.json")
    got = (config.model.decoder.vocab_size, config.model.vision.select_layer, config.data.image_aspect)
    conforms("published layout", "rows, layer, aspect", (32064, -2, "square"), got)
    export_weights(tmp_path / "in", tmp_path / "home")
    assert_same_tensors(hf, tmp_path / "home")


def test_transformers_own_files_come_in(tmp_path: Path, conforms: Any) -> None:
    """What transformers 5 saves: the image processor's settings inside of processor_config.json."""
    run = make_run(tmp_path)
    export_weights(run, tmp_path / "hf", layout="llava_hf")
    model, processor = theirs(tmp_path / "hf")
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    import_weights(tmp_path / "saved", tmp_path / "in")
    aspect = load_config(tmp_path / "in" / "config.json").data.image_aspect
    conforms("saved by transformers", "image_aspect", "pad", aspect)
    in_float32(tmp_path / "in")
    one, other = (Engine(*load_vlm(p)) for p in (run, tmp_path / "in"))
    for question in QUESTIONS:
        answers = [engine.answers([Question(question)], Limits(max_new_tokens=8)) for engine in (one, other)]
        conforms("saved by transformers", f"answer to {question!r}", *answers)


@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_templates_say_what_prompts_say(name: str, conforms: Any) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    tokenizer = load_tokenizer(GOLDEN)
    data = DataConfig(template=name)  # type: ignore[arg-type]
    source = chat_template(name)
    said = ['What\'s "it"?', "A {{ cat }}.", "And\n\nthis?", "日本.", "Why?"]
    for turns, system, images in ((1, None, 1), (3, None, 0), (5, "Be <brief>.", 1), (3, "", 2)):
        if name == "plain" and turns > 1:
            continue
        content: list[Any] = [{"type": "image"}] * images + [{"type": "text", "text": said[0]}]
        messages: list[Any] = [{"role": "user", "content": content}]
        messages += [{"role": ("user", "assistant")[k % 2], "content": said[k]} for k in range(1, turns)]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        named = {"bos_token": "<s>", "eos_token": "</s>"}
        got = render_jinja_template([messages], chat_template=source, **named)[0][0]  # type: ignore[arg-type]
        wanted = prompt_text(said[turns - 1], images, tokenizer, data, said[: turns - 1], system)
        conforms("chat_template", f"{name}, {turns} turns, {images} images", wanted, f"<s>{got}")


def test_what_a_trained_runs_export_says(tmp_path: Path, conforms: Any) -> None:
    """Settings of a run that has no config.json of its own, but starts from one that has."""
    run = make_run(tmp_path, template="v1")
    config = load_config(run / "config.json")
    shutil.rmtree(run / "source")
    change_config(run, config)
    for name, decoder, start in (
        ("its own", config.model.decoder, ""),
        ("its start's", dataclasses.replace(config.model.decoder, max_positions=0), str(tmp_path / "start")),
    ):
        if not (tmp_path / "start").exists():
            shutil.copytree(run, tmp_path / "start")
        data = dataclasses.replace(config.data, max_length=100)
        model = dataclasses.replace(config.model, decoder=decoder)
        changed = dataclasses.replace(config, model=model, data=data)
        change_config(run, dataclasses.replace(changed, init_from=start))
        for layout in ("llava", "llava_hf"):
            out = tmp_path / f"{layout}-{name}"
            export_weights(run, out, layout=layout, dtype="bfloat16")  # type: ignore[arg-type]
            told = json.loads((out / "config.json").read_text())
            text = told.get("text_config", told)
            names = ("max_position_embeddings", "torch_dtype", "bos_token_id", "eos_token_id")
            got = [text[name] for name in names]
            conforms("trained run", f"{layout}: {name}", [4096, "bfloat16", 1, 2], got)
            ends = json.loads((out / "generation_config.json").read_text())
            conforms("trained run", f"{layout}: generation_config.json", [2], ends["eos_token_id"])


def test_the_projector_as_the_original_reads_it(tmp_path: Path, conforms: Any) -> None:
    """LLaVA's `load_pretrained_model` and `initialize_vision_modules`: torch.load of mm_projector.bin."""
    torch = pytest.importorskip("torch")
    run = make_run(tmp_path)
    files = export_weights(run, tmp_path / "bare", only="projector", dtype="bfloat16")
    names = sorted(file.name for file in files if file.name.startswith("mm_projector"))
    conforms("mm_projector", "files", ["mm_projector.bin", "mm_projector.safetensors"], names)
    held = open_tensors(tmp_path / "bare" / "mm_projector.safetensors")
    for only in (True, False):
        state = torch.load(tmp_path / "bare" / "mm_projector.bin", map_location="cpu", weights_only=only)
        same = {
            name: held.read(name).tobytes() == tensor.contiguous().view(torch.uint8).numpy().tobytes()
            and tensor.dtype == torch.bfloat16
            and tuple(tensor.shape) == held.shapes[name]
            for name, tensor in state.items()
        }
        conforms("mm_projector", f"weights_only {only}", dict.fromkeys(held.shapes, True), same)
