"""The published configurations: every config file loads, and says what its name says."""

from pathlib import Path

import pytest

from benchmarks import pods
from launch.cli import load_config_file, parse_run
from quecc_jax.errors import UserError
from quecc_jax.presets import decoder
from quecc_jax.validation import validate

FILES = sorted(p.name for p in Path("configs").glob("*_stage?.py"))


@pytest.mark.parametrize("name", FILES)
def test_stages_follow_one_another(name):
    config = load_config_file(f"configs/{name}")
    validate(config)
    stage = int(name.removesuffix(".py")[-1])
    assert config.train.stage == stage
    if stage == 2:
        before = load_config_file(f"configs/{name.replace('stage2', 'stage1')}")
        assert config.init_from == before.out and config.model == before.model


def test_a_size_behind_a_colon():
    config = load_config_file("configs/qwen_stage2.py:4b")
    assert config.model.decoder == decoder("qwen1.5-4b") and config.init_from == "runs/qwen_4b_stage1"
    with pytest.raises(UserError, match=r"qwen1\.5-5b' is not known"):
        load_config_file("configs/qwen_stage2.py:5b")
    with pytest.raises(UserError, match=r"configs/qwen_stage3\.py does not exist"):
        load_config_file("configs/qwen_stage3.py:4b")


def test_every_row_of_the_pod_table_is_a_run_of_the_recipe():
    rows = pods.rows()
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        config = parse_run([row.config, *row.settings], "pods")
        assert config.model.visual_tokens == row.visual_tokens and config.data.max_length == 2048
        assert config.train.stage == row.stage
        assert config.train.batch_size == {1: 256, 2: 128}[row.stage]
    wanted = {("7b", s, v, t) for s in (1, 2) for v in (1, 4, 16, 36)
              for t in ("v5e-16", "v5e-64", "v5e-256", "v5p-64")}  # fmt: skip
    assert wanted <= set(rows)
