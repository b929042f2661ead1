"""What a grid is expected to take: every number against one counted by hand."""

import dataclasses

import pytest

from configs import llava
from quecc_jax.aot.chips import CHIPS, find_chip, price_of
from quecc_jax.aot.memory import train_memory
from quecc_jax.commands.config_file import load_config_file
from quecc_jax.commands.sweep_cost import Assumed, cell_cost, dry_run
from quecc_jax.config import CheckpointConfig, MeshConfig
from quecc_jax.errors import UserError
from quecc_jax.evaluate.tasks import TASKS
from quecc_jax.experiments.grid import Benchmarks, Cell, Grid
from quecc_jax.experiments.llava_grid import training_flops
from quecc_jax.experiments.store import result_file
from scaling.cost import Lengths, find_machine, seconds_of, work_of_query
from tests.experiments.small_grid import small_grid, write_data

HALF = Assumed("v5e-8", 0.5)


def costs(grid, assumed=HALF):
    machine = find_machine("v5e", 8, 0.5)
    return [cell_cost(grid, cell, assumed, machine) for cell in grid.cells]


def test_a_dry_run_sums_hours_chip_hours_and_dollars(tmp_path):
    write_data(tmp_path / "data")
    grid = small_grid(tmp_path / "out")
    text = dry_run(grid, grid.cells, HALF)
    flops, hours = sum(map(training_flops, grid.cells)), sum(one.total for one in costs(grid)) / 3600
    assert f"4 cells, {flops:.3e} FLOPs of training" in text
    assert f"{hours:,.1f} hours on 8 x TPU v5 lite for the 4 that are not done" in text
    assert f"{8 * hours:,.0f} chip hours" in text and f"${8 * hours * 1.2:,.0f} at $1.2 per chip" in text
    assert text.count("w64") == 2
    assert f"${8 * hours * 100:,.0f} at $100 per chip and hour (as given)" in dry_run(
        grid, grid.cells, dataclasses.replace(HALF, price=100.0)
    )
    assert "dollars: no price of the chip 'v4' is known; give --price" in dry_run(
        grid, grid.cells, Assumed("v4-8")
    )
    # What is done costs nothing more.
    result_file(grid, grid.cells[0].name).parent.mkdir(parents=True)
    result_file(grid, grid.cells[0].name).touch()
    assert "for the 3 that are not done" in dry_run(grid, grid.cells, HALF)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"topology": "v5e"}, "--topology"),
        ({"topology": "v9-8"}, "v9"),
        ({"mfu": 1.5}, "--mfu"),
        ({"answer_tokens": 0}, "--answer-tokens is 0"),
        ({"compile_minutes": -1.0}, "--compile-minutes is -1"),
        ({"save_rate": 0.0}, "--save-rate is 0"),
        ({"price": float("nan")}, "--price is nan"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path, changes, sentence):
    grid = small_grid(tmp_path / "out")
    with pytest.raises(UserError, match=sentence):
        dry_run(grid, grid.cells, dataclasses.replace(HALF, **changes))


def test_each_part_of_a_cell_s_time(tmp_path):
    """Two runs; 24 questions in one batch; at most three tokens an answer."""
    write_data(tmp_path / "data")
    grid = small_grid(tmp_path / "out")
    cell, machine = grid.cells[0], find_machine("v5e", 8, 0.5)
    cost = cell_cost(grid, cell, dataclasses.replace(HALF, compile_minutes=3.0, save_rate=2.0), machine)
    assert cost.train == pytest.approx(training_flops(cell) / (8 * 0.5 * find_chip("v5e").flops))
    work = work_of_query(cell.runs[-1].model, Lengths(6, 3, 6))
    assert cost.tests == pytest.approx(sum(float(seconds_of(part, machine, 24)) for part in work.values()))
    # A step of each run, for one length of questions, and the two programs that answer.
    assert cost.compiling == 4 * 3 * 60
    saved = 0.0
    for run in cell.runs:
        memory = train_memory(dataclasses.replace(run, mesh=MeshConfig(1, 1, 1)), 1)
        # Frozen and trained parameters once, with Adam's two slots for the trained.
        saved += memory.parameters + memory.slots
    assert cost.saving == pytest.approx(saved / 2e9)
    assert cost.total == cost.train + (cost.tests or 0) + cost.compiling + cost.saving


def test_every_checkpoint_is_counted(tmp_path):
    once = small_grid(tmp_path / "out")
    runs = [
        tuple(dataclasses.replace(run, checkpoint=CheckpointConfig(every=2)) for run in cell.runs)
        for cell in once.cells
    ]
    cells = tuple(dataclasses.replace(cell, runs=r) for cell, r in zip(once.cells, runs, strict=True))
    often = dataclasses.replace(once, cells=cells)
    for cell, one, other in zip(once.cells, costs(once), costs(often), strict=True):
        # Three and four steps: two saves of each run in place of one.
        memories = [train_memory(dataclasses.replace(r, mesh=MeshConfig(1, 1, 1)), 1) for r in cell.runs]
        more = sum(memory.gradients + memory.slots for memory in memories)
        assert other.saving - one.saving == pytest.approx(more / 1e9)


def test_tests_whose_questions_are_not_here_are_named_and_left_out(tmp_path):
    grid = small_grid(tmp_path / "out")
    assert costs(grid)[0].tests is None
    text = dry_run(grid, grid.cells, HALF)
    assert f"? how many questions {tmp_path}/data/rows.json holds is not known here" in text


def test_benchmarks_count_their_published_questions(tmp_path):
    asked = [Benchmarks(names, "nowhere", batch_size=64) for names in ("pope", "pope,gqa", "mmbench")]
    pope, both, unknown = (
        costs(small_grid(tmp_path / "out", tests=(), benchmarks=one))[0].tests for one in asked
    )
    assert pope is not None and both is not None and unknown is None
    assert both / pope == pytest.approx((8910 + 12578) / 8910)
    grid = small_grid(tmp_path / "out", tests=(), benchmarks=asked[2])
    assert "how many questions mmbench holds" in dry_run(grid, grid.cells, HALF)


def test_benchmarks_say_how_many_questions_they_have():
    counts = {name: task.questions for name, task in TASKS.items()}
    assert [name for name, count in counts.items() if count is None] == ["mmbench", "mmbench_cn"]
    assert counts["pope"] == 8910 and counts["mathvista"] == 1000 and counts["scienceqa"] == 4241


def test_prices_have_a_source_or_are_asked_for():
    for chip in CHIPS:
        assert (chip.usd_per_hour is None) == (chip.price_source == "")
        if chip.usd_per_hour is not None:
            assert (
                price_of(chip.name, None)
                == price_of(chip.kind, None)
                == (chip.usd_per_hour, chip.price_source)
            )
            assert "2026-" in chip.price_source and "." in chip.price_source
        assert price_of(chip.name, 2.5) == (2.5, "as given")
    for name in ("l4", "989,3350,80"):
        with pytest.raises(UserError, match="give --price"):
            price_of(name, None)


def test_a_dry_run_knows_adapters_and_frozen_weights():
    """7B on one chip: neither the whole decoder nor adapters fit, adapters around 4 bits do."""
    whole = llava.stage2("vicuna-7b", "", "")
    ways = {
        "whole": whole,
        "adapters of rank 128": llava.with_adapters(whole, ""),
        "adapters of rank 64 in nf4": load_config_file("configs/llava_7b_qlora_stage2.py"),
    }
    lines = {}
    for way, stage2 in ways.items():
        one = dataclasses.replace(stage2, train=dataclasses.replace(stage2.train, grad_accum_steps=128))
        cell = Cell("one", (one,), (), None, "vicuna-7b", 7.0, "quecc")
        text = dry_run(Grid("sweep", "nowhere", (cell,)), (cell,), Assumed("v5e-1", 0.5))
        (lines[way],) = [line for line in text.splitlines() if line.startswith("one ")]
        assert lines[way].endswith(way if "nf4" in way else f"{way} does not fit")
        assert "a chip has 15.75 GiB" in text and f"{training_flops(cell):.3e}" in lines[way]
    # Gradients of the decoder's weights are a third of what all of it takes.
    flops = {way: float(line.split()[3]) for way, line in lines.items()}
    assert 0.6 < flops["adapters of rank 128"] / flops["whole"] < 0.9


def test_a_dry_run_says_where_rows_are_alike_at_every_v(tmp_path):
    grown, alike = small_grid(tmp_path / "out"), small_grid(tmp_path / "out", text_tokens=0)
    once = small_grid(tmp_path / "out", text_tokens=0, visual_tokens=(4,))
    said = "note: rows have"
    texts = [dry_run(grid, grid.cells, HALF) for grid in (grown, alike, once)]
    assert [said in text for text in texts] == [False, True, False]
    length = alike.cells[0].runs[0].data.max_length
    assert f"{said} {length:,} positions at every V" in texts[1] and "text_tokens" in texts[1]
