"""One cell in several processes, as a scheduler starts it, against the same cell in one."""

import json

import numpy as np
import pytest

from quecc_jax.experiments.attempts import read_attempts
from quecc_jax.experiments.runner import run_one
from quecc_jax.experiments.store import result_file
from tests.experiments.small_grid import small_grid, write_config
from tests.experiments.test_llava_grid import cache_as_before  # noqa: F401 (a fixture that all tests use)
from tests.processes import Processes


@pytest.mark.slow
def test_two_processes_train_and_test_a_cell_as_one_does(tmp_path):
    file = write_config(tmp_path)
    alone, shared = small_grid(tmp_path / "alone"), small_grid(tmp_path / "out")
    name = alone.cells[1].name
    run_one(alone, name)
    with Processes(["launch.sweep", file, "--only", name], 2, tmp_path / "said") as processes:
        assert processes.statuses(400) == [0, 0], processes.said()
    one, two = (json.loads(result_file(grid, name).read_text())["result"] for grid in (alone, shared))
    for stage, curve in one["losses"].items():
        assert np.allclose(curve, two["losses"][stage], rtol=2e-5)
    for row in (*one["rows"], *two["rows"]):
        del row["train_seconds"], row["loss"]
    assert one["rows"] == two["rows"]
    assert [attempt["processes"] for attempt in read_attempts(shared, name)] == [2]
    assert [path.name for path in (tmp_path / "out/jobs").iterdir()] == [f"{name}.json"]
