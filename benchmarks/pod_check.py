"""The parts of launch/pod_check.sh that look: at devices, at a run in progress, at two logs, at predictions.

python -m benchmarks.pod_check devices v5e:4x4        every process sees that many chips, of that kind
python -m benchmarks.pod_check reached RUN STEP PID   waits until the run has logged that step
python -m benchmarks.pod_check same RUN OTHER         both logs have the same losses
python -m benchmarks.pod_check rows FILE              the questions of examples/ as rows, for launch.evaluate
python -m benchmarks.pod_check report OUT [FILE...]   seconds per step beside what compile_pod predicted
"""

import json
import os
import statistics
import sys
import time
from pathlib import Path

import jax

from quecc_jax.aot.topology import parse_topology
from quecc_jax.distributed import joined
from quecc_jax.errors import UserError, run_cli
from quecc_jax.paths import as_path
from quecc_jax.train.logs.records import read_records

EXAMPLES = Path(__file__).parents[1] / "examples"
WARM = 5
"""Steps before the first that is timed."""


def devices(topology: str) -> None:
    """Raises UserError where the devices of all processes are not those of the topology."""
    with joined(preemption=False):
        found = jax.devices()
        print(
            f"process {jax.process_index()} of {jax.process_count()}: {len(found)} x {found[0].device_kind}"
        )
        if topology == "cpu":
            return
        wanted = parse_topology(topology)
        # Of v4 and v5p JAX shows one device a chip.
        chips = wanted.slices
        for size in wanted.shape:
            chips *= size
        if len(found) != chips or found[0].device_kind != wanted.chip.kind:
            raise UserError(
                f"{topology} has {chips} x {wanted.chip.kind}; start this on every host of the slice at once"
            )


def reached(run: str, step: str, pid: str) -> None:
    """Waits until a run has logged a step. Raises UserError where its process ended before."""
    while not any(record["step"] >= int(step) for record in _records(run)):
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            raise UserError(f"{run} ended before step {step}") from None
        time.sleep(0.2)


def same(run: str, other: str) -> None:
    """Raises UserError where two logs differ in a loss or a gradient's norm."""
    logs = [[(r["step"], r["loss"], r["grad_norm"]) for r in read_records(one)] for one in (run, other)]
    if logs[0] != logs[1] or not logs[0]:
        at = next((a[0] for a, b in zip(*logs, strict=False) if a != b), "the end")
        raise UserError(f"{run} and {other} are not the same from step {at} on")
    print(f"{len(logs[0])} steps of {other} are those of {run}")


def rows(file: str) -> None:
    """Writes a LLaVA-format file beside which images are named by their full path."""
    asked = json.loads((EXAMPLES / "questions.json").read_text())
    made = [
        {
            "id": number,
            "image": str(EXAMPLES / one["image"]),
            "conversations": [
                {"from": "human", "value": f"<image>\n{one['question']}"},
                {"from": "gpt", "value": one["answer"]},
            ],
        }
        for number, one in enumerate(asked)
    ]
    Path(file).write_text(json.dumps(made))


def report(out: str, *predictions: str) -> None:
    """Prints the seconds of a step, the median behind the first few, and beside them what was predicted.

    Args:
      out: directory of the runs `stage1` and `stage2`.
      predictions: files of `launch.compile_pod --json` by stage, in this order.
    """
    for number, stage in enumerate(("stage1", "stage2")):
        rates = [
            record["steps_per_s"] for record in read_records(as_path(out) / stage) if record["step"] > WARM
        ]
        if not rates:
            raise UserError(f"{out}/{stage} has no step behind the first {WARM}; train it again")
        measured = 1 / statistics.median(rates)
        line = f"{stage}: {measured:.3f} s a step"
        if number < len(predictions):
            predicted = json.loads(Path(predictions[number]).read_text())
            seconds = predicted["step_seconds"]
            line += (
                f", predicted {seconds:.3f} on {predicted['topology']}: {measured / seconds:.2f} times that; "
                f"MFU {predicted['mfu'] * seconds / measured:.1%}, predicted {predicted['mfu']:.1%}"
            )
        print(line)


def _records(run: str) -> list[dict[str, float]]:
    """The log so far; a line may be under way."""
    try:
        return read_records(run)
    except UserError:
        return []


def main(arguments: list[str]) -> None:
    """Calls the part that is named first."""
    parts = {one.__name__: one for one in (devices, reached, same, rows, report)}
    if not arguments or arguments[0] not in parts:
        raise UserError(f"name one of {', '.join(parts)}")
    parts[arguments[0]](*arguments[1:])


if __name__ == "__main__":
    run_cli(lambda: main(sys.argv[1:]))
