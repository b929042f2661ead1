"""The published configurations: every config file loads, and says what its name says."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from benchmarks import pods
from configs import llava, llava_sweep, qwen3_sweep
from quecc_jax.commands.config_file import load_config_file, load_stages
from quecc_jax.commands.options import parse_run
from quecc_jax.config import LoraConfig, RunConfig
from quecc_jax.config.presets import decoder
from quecc_jax.config.validation import validate
from quecc_jax.data.text.templates import SYSTEM
from quecc_jax.data.text.tokenizer import load_tokenizer
from quecc_jax.errors import UserError
from tests.laid_out import encode

FILES = sorted(p.name for p in Path("configs").glob("*_stage?.py"))


@pytest.mark.parametrize("name", FILES)
def test_stages_follow_one_another(name):
    config = load_config_file(f"configs/{name}")
    validate(config)
    stage = int(name.removesuffix(".py")[-1])
    assert config.train.stage == stage
    if stage == 2:
        before = load_config_file(
            f"configs/{name.replace('_qlora', '').replace('_lora', '').replace('stage2', 'stage1')}"
        )
        assert config.init_from == before.out
        assert dataclasses.replace(config.model, lora=LoraConfig()) == before.model


def test_a_size_behind_a_colon():
    config = load_config_file("configs/qwen_stage2.py:4b")
    assert config.model.decoder == decoder("qwen1.5-4b") and config.init_from == "runs/qwen_4b_stage1"
    with pytest.raises(UserError, match=r"qwen1\.5-5b' is not known"):
        load_config_file("configs/qwen_stage2.py:5b")
    with pytest.raises(UserError, match=r"configs/qwen_stage3\.py does not exist"):
        load_config_file("configs/qwen_stage3.py:4b")


def test_the_recipe_of_three_stages_trains_the_tower_at_a_fifth_of_the_rate():
    one, two, three = stages = load_stages("configs/qwen3_onevision.py:8b")
    for run in stages:
        validate(run)
        assert run.model == load_config_file("configs/qwen3_stage1.py:8b").model
    assert [run.init_from for run in stages] == ["", one.out, two.out]
    assert one.train.trained == ("compressor", "projector")
    for run in (two, three):
        assert run.train.trained == ("vision", "compressor", "projector", "decoder")
        assert (run.optimizer.learning_rate, run.optimizer.vision_learning_rate) == (1e-5, 2e-6)


def test_the_grid_of_todays_models_has_the_studys_v():
    cells = qwen3_sweep.grid().cells
    assert {cell.runs[0].model.visual_tokens for cell in cells} == {1, 4, 16, 36, 64, 144, 576}
    assert len(cells) == 35 and {cell.params_b for cell in cells} == {0.6, 1.7, 4.0, 8.0, 14.0}
    for cell in cells:
        assert cell.runs[1].model.decoder == decoder(cell.llm) and cell.runs[1].init_from == cell.runs[0].out


def test_every_row_of_the_pod_table_is_a_run_of_the_recipe():
    rows = pods.rows()
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        config = parse_run([row.config, *row.settings], "pods")
        assert config.model.visual_tokens == row.visual_tokens and config.data.max_length == 2048
        assert config.train.stage == row.stage
        assert config.train.batch_size == STEP[row.stage] and config.train.steps == UPDATES[row.stage]
        assert config.data.batching != "packed"
    wanted = {
        ("7b", s, v, t)
        for s in (1, 2)
        for v in (1, 4, 16, 36)
        for t in ("v5e-16", "v5e-64", "v5e-256", "v5p-64")
    }
    assert wanted <= set(rows)


COMMON = {
    "vision_tower": "clip-vit-large-patch14-336",
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "bf16": True,
    "num_train_epochs": 1,
    "weight_decay": 0.0,
    "warmup_ratio": 0.03,
    "lr_scheduler_type": "cosine",
    "model_max_length": 2048,
    "gradient_checkpointing": True,
    "mm_vision_token_compression_type": "quecc",
    "adam": (0.9, 0.999, 1e-8),
    "rate of mm_projector": None,
    "lora_enable": False,
    "lora_r": 64,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
}
SCRIPTS: dict[int, dict[str, Any]] = {
    1: {
        **COMMON,
        "version": "v1",
        "data_path": "blip_laion_cc_sbu_558k.json",
        "learning_rate": 1e-3,
        "image_aspect_ratio": "square",
        "group_by_modality_length": False,
        "tune_mm_mlp_adapter": True,
    },
    2: {
        **COMMON,
        "version": "v1",
        "data_path": "llava_v1_5_mix665k.json",
        "learning_rate": 2e-5,
        "image_aspect_ratio": "pad",
        "group_by_modality_length": True,
        "tune_mm_mlp_adapter": False,
    },
}
"""scripts/v1_5/pretrain.sh and finetune.sh of locuslab/llava-token-compression at bdedebd, and the defaults
of its train.py (square, Adam's constants, no rate of the projector's own)."""
LORA = {
    "lora_enable": True,
    "lora_r": 128,
    "lora_alpha": 256,
    "lora_dropout": 0.05,
    "learning_rate": 2e-4,
    "rate of mm_projector": 2e-5,
}
"""scripts/v1_5/finetune_lora.sh of haotian-liu/LLaVA and train.py's default of the dropout, where they differ from
finetune.sh."""
QLORA = {"lora_r": 64, "lora_alpha": 16}
"""Of QLoRA's paper (arXiv 2305.14314); train.py's own defaults, which finetune_qlora.sh names too."""
ROWS = {1: 558_128, 2: 665_298}
UPDATES = {1: 2181, 2: 5198}
"""Of an epoch at LLaVA-1.5's 256 and 128 rows, as transformers counts them."""
STEP = {1: 256, 2: 128}
"""Rows of a step of LLaVA-1.5's."""


def in_the_scripts_words(config: RunConfig) -> dict[str, Any]:
    model, data, optimizer = config.model, config.data, config.optimizer
    vision, train = model.vision, config.train
    epochs = train.epochs or train.steps * train.batch_size / ROWS[train.stage]
    large = (1024, 24, 16, 14, 336)
    # Of train.py where there are no adapters.
    lora = model.lora if model.lora.rank else LoraConfig(64, 16, 0.05)
    tower = (vision.width, vision.depth, vision.heads, vision.patch_size, vision.image_size)
    return {
        "vision_tower": "clip-vit-large-patch14-336" if tower == large else tower,
        "mm_projector_type": model.projector,
        "mm_vision_select_layer": vision.select_layer,
        "bf16": model.dtype == "bfloat16",
        "num_train_epochs": 1 if 1 <= epochs < 1.001 else epochs,
        "weight_decay": optimizer.weight_decay,
        "warmup_ratio": optimizer.warmup_ratio,
        # The only schedule there is.
        "lr_scheduler_type": "cosine",
        "model_max_length": data.max_length,
        "gradient_checkpointing": model.remat == "full",
        "mm_vision_token_compression_type": model.compressor.name,
        "adam": (optimizer.b1, optimizer.b2, optimizer.eps),
        "rate of mm_projector": optimizer.projector_learning_rate,
        "lora_enable": bool(model.lora.rank),
        "lora_r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "version": data.template,
        "data_path": Path(data.sources[0].path).name,
        "learning_rate": optimizer.learning_rate,
        "image_aspect_ratio": data.image_aspect,
        "group_by_modality_length": data.batching == "grouped",
        "tune_mm_mlp_adapter": config.train.stage == 1,
    }


PUBLISHED = [name for name in FILES if name.startswith(("llava_", "qwen_"))]


@pytest.mark.parametrize("name", PUBLISHED)
def test_values_are_those_of_the_scripts(name):
    config = load_config_file(f"configs/{name}")
    expected = dict(SCRIPTS[config.train.stage])
    if name.startswith("qwen"):
        # The scripts are for Vicuna, whose template v1 is.
        expected["version"] = "qwen"
    if "lora" in name:
        expected |= LORA
    if "qlora" in name:
        expected |= QLORA
    assert config.train.frozen_weights == ("nf4" if "qlora" in name else "auto")
    assert in_the_scripts_words(llava.one_each(config)) == expected
    # As it is, rows are packed, which the scripts know nothing of.
    assert in_the_scripts_words(config) == expected | {"group_by_modality_length": False}
    assert config.data.batching == "packed" and config.train.conversations == STEP[config.train.stage]


@pytest.mark.parametrize("name", PUBLISHED)
def test_steps_and_rows_for_a_pod_are_about_what_packed_data_comes_to(name):
    """An epoch of packed rows that hold the step's conversations: near enough to plan with, on eight chips."""
    config = load_config_file(f"configs/{name}")
    train, rows = config.train, ROWS[config.train.stage]
    seen = train.steps * train.batch_size
    assert train.epochs == 1 and train.batch_size % 8 == 0
    assert rows / train.steps == pytest.approx(train.conversations, rel=1 / 3)
    # Rows are about full: text of 70 and 350 tokens for each image.
    tokens = rows * (config.model.visual_tokens * 0.94 + {1: 70, 2: 323}[train.stage])
    assert 0.85 < tokens / seen / config.data.max_length < 1


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_conversation_in_each_row_is_the_scripts_epoch(name):
    config = llava.one_each(load_config_file(f"configs/{name}"))
    validate(config)
    stage = config.train.stage
    assert config.data.batching == {1: "pad", 2: "grouped"}[stage]
    assert (config.train.steps, config.train.batch_size) == (UPDATES[stage], STEP[stage])
    assert not config.train.epochs and not config.train.conversations


def test_what_differs_from_the_scripts_is_said_where_it_is_set():
    """Values of theirs that ours are not: each has its line at the top of configs/llava.py."""
    said = Path("configs/llava.py").read_text().partition('"""\n\nimport')[0]
    config = load_config_file("configs/llava_7b_stage1.py")
    assert config.model.visual_tokens == 16 and "kernel and stride 4, V = 36" in said
    assert config.optimizer.clip_norm == 1.0 and "optimizer.clip_norm is 1" in said
    assert config.checkpoint.every == 500 and "every 500 steps" in said
    assert config.data.workers == 8 and "8 processes that read instead of 4" in said
    assert config.data.batching == "packed" and "Rows are packed" in said
    assert config.train.grad_accum_steps == 1 and "--gradient_accumulation_steps 4" in said


def test_a_distilled_run_starts_from_the_whole_model_and_keeps_its_decoder():
    config = load_config_file("configs/distil.py")
    validate(config)
    published = load_config_file("configs/llava_7b_lora_stage2.py")
    assert config.init_from == "weights/llava-7b" and config.train.distil.weight == 0.5
    assert config.model.visual_tokens == 36 and config.model.lora == published.model.lora
    assert dataclasses.replace(config.train, distil=published.train.distil) == published.train
    assert config.data.batching == "packed"


def test_no_clipping_is_one_setting_away():
    config = parse_run(["configs/llava_7b_stage1.py", "--optimizer.clip-norm", "1e9"], "train")
    validate(config)
    assert config.optimizer.clip_norm == 1e9


def test_the_sweep_trains_each_model_in_its_own_template_in_both_stages():
    for cell in llava_sweep.grid().cells[:7]:
        for stage, config in enumerate(cell.runs, 1):
            ours = in_the_scripts_words(config)
            assert {k: v for k, v in ours.items() if v != SCRIPTS[stage][k]} == {"version": "qwen"}


ASKED, SAID = "Render a clear and concise summary of the photo.", "a mattress topper on a wooden bed"
CAPTION = {
    "image": "00453/004539375.jpg",
    "conversations": [{"from": "human", "value": f"{ASKED}\n<image>"}, {"from": "gpt", "value": SAID}],
}
"""In the form of blip_laion_cc_sbu_558k.json, whose images stand before or after the text."""


@pytest.mark.parametrize("template", ["v1", "plain"])
def test_a_caption_under_either_template_of_stage_1(template):
    """Under v1 the decoder reads the instruction, under plain it does not; the compressor does under both."""
    config = parse_run(["configs/llava_7b_stage1.py", "--data.template", template], "train")
    tokenizer = load_tokenizer("tests/golden/llava_tiny")
    made = encode(CAPTION, tokenizer, config.data, config.model.visual_tokens)
    text, learned = made.slots < 0, made.labels >= 0
    read = tokenizer.decode(made.tokens[text & ~learned])
    end = {"v1": tokenizer.eos_token_id, "plain": tokenizer.encode("\n", after=tokenizer.encode("a")[-1])[-1]}
    assert " ".join(read.split()) == {"v1": f"{SYSTEM} USER: {ASKED} ASSISTANT:", "plain": ""}[template]
    assert tokenizer.decode(made.tokens[learned]).strip() == SAID
    assert made.tokens[-1] == end[template] and learned[-1]
    assert tokenizer.decode(made.queries) == ASKED
    assert (~text).sum() == 16
