"""The TPU VM script: its commands as printed by a dry run, and its decisions against a pretended gcloud."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "tpu_vm.sh"
CONFIG = "configs/llava_7b_stage1.py"
PLACE = ("--name", "pod", "--zone", "us-central1-a", "--type", "v5litepod-16")

GCLOUD = """#!/usr/bin/env bash
# Answers `describe` from two lists of states, one a line, the last of them for ever; notes all calls.
printf '%s\\n' "$*" | head -n 1 >> "$FAKE/calls"
next() {
  sed -n 1p "$FAKE/$1"
  [[ $(wc -l < "$FAKE/$1") -lt 2 ]] || sed -i 1d "$FAKE/$1"
}
case "$*" in
  *queued-resources\\ describe*) now=$(next requests) && [[ $now != MISSING ]] && echo "$now" ;;
  *tpu-vm\\ describe*) next nodes ;;
  *queued-resources\\ create*) [[ ! -f $FAKE/refused ]] ;;
  *--worker=0*is-active*) exit "$(next active)" ;;
esac
"""


def call(*arguments, check=True, **environment):
    given = {k: v for k, v in os.environ.items() if not k.startswith("TPU_")}
    words = ["bash", str(SCRIPT), *arguments]
    made = subprocess.run(words, cwd=ROOT, env={**given, **environment}, text=True, capture_output=True)
    assert not check or made.returncode == 0, made.stderr
    return made


def printed(*arguments) -> list[list[str]]:
    """The words of every command that a dry run prints; one may span lines."""
    out = call(*PLACE, "--dry-run", *arguments).stdout
    return [shlex.split(line.replace("$'", "'")) for line in out.splitlines()]


def pretend(tmp_path, requests, nodes=("READY",), active=(0,)):
    """A gcloud that finds these states, and the environment that finds it."""
    (tmp_path / "gcloud").write_text(GCLOUD)
    (tmp_path / "gcloud").chmod(0o755)
    for name, states in (("requests", requests), ("nodes", nodes), ("active", active)):
        (tmp_path / name).write_text("".join(f"{state}\n" for state in states))
    return {"FAKE": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}


def calls(tmp_path) -> list[str]:
    """What was asked of gcloud, in short: create, delete, scp, and what ran on which workers."""
    short = []
    for line in (tmp_path / "calls").read_text().splitlines():
        words = line.split()
        if "describe" not in words:
            worker = next((w.removeprefix("--worker=") for w in words if w.startswith("--worker=")), "")
            short.append(f"{words[3]} {worker}".strip())
    return short


def test_shellcheck_finds_nothing():
    checker = shutil.which("shellcheck", path=Path(sys.executable).parent)
    if checker is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([checker, "--severity=style", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_create_names_type_runtime_and_spot():
    plain, *polls = printed("create")
    assert [words[3:5] for words in polls] == [["queued-resources", "describe"], ["tpu-vm", "describe"]]
    assert plain == [
        "gcloud",
        "compute",
        "tpus",
        "queued-resources",
        "create",
        "pod",
        "--node-id",
        "pod",
        "--zone",
        "us-central1-a",
        "--accelerator-type",
        "v5litepod-16",
        "--runtime-version",
        "v2-alpha-tpuv5-lite",
    ]
    spot, *_ = printed("--spot", "--type", "v6e-256", "--project", "mine", "create")
    assert spot[-5:] == ["--accelerator-type", "v6e-256", "--runtime-version", "v2-alpha-tpuv6e", "--spot"]
    assert spot[spot.index("--project") + 1] == "mine"


def test_run_passes_the_settings_on_exactly():
    settings = ["--out", "gs://bucket/a run", "--data.too-long", "drop"]
    (command,) = printed("run", CONFIG, *settings)
    assert command[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh"] and "--worker=all" in command
    remote = command[-1].removeprefix("--command=").replace("\\n", "\n").replace("\\\\", "\\")
    words = shlex.split(remote.replace("\\\n", " "), comments=False)
    assert words[words.index("launch.train") + 1 :] == [CONFIG, *settings]
    assert "KillMode=mixed" in words


def test_compiled_programs_are_kept_where_it_is_said():
    (plain,), (kept,) = printed("run", CONFIG), printed("--compiled", "gs://bucket/compiled", "run", CONFIG)
    option = " --setenv=JAX_COMPILATION_CACHE_DIR=gs://bucket/compiled"
    assert option in kept[-1] and kept[-1].replace(option, "") == plain[-1]


def test_resume_makes_the_tpu_anew():
    verbs = [command[4] if command[0] == "gcloud" else command[0] for command in printed("resume", CONFIG)]
    polls = ["describe", "describe"]
    assert verbs == [*polls, "delete", "create", *polls, "git", "scp", "ssh", "ssh", "ssh"]
    kept = [words[4] if words[0] == "gcloud" else words[0] for words in printed("keep", CONFIG)]
    assert kept == [*verbs, *polls, "ssh", "ssh"]


@pytest.mark.parametrize(
    "command", ["create", "install", "run", "status", "logs", "stop", "resume", "keep", "delete"]
)
def test_a_dry_run_asks_nothing_of_gcloud(command, tmp_path):
    environment = pretend(tmp_path, ["ACTIVE"])
    config = [CONFIG] if command in ("run", "resume", "keep") else []
    out = call(*PLACE, "--dry-run", command, *config, **environment).stdout
    assert "gcloud compute tpus" in out and not (tmp_path / "calls").exists()


def test_create_waits_until_the_tpu_is_there(tmp_path):
    requests = ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    environment = pretend(tmp_path, requests, ["CREATING", "READY"])
    out = call(*PLACE, "--every", "0", "create", **environment).stdout
    assert out.splitlines() == ["pod: WAITING_FOR_RESOURCES", "pod: PROVISIONING", "pod: CREATING"]
    refused = pretend(tmp_path, ["FAILED"])
    failed = call(*PLACE, "create", check=False, **refused)
    assert failed.returncode == 1 and "the request for pod is FAILED" in failed.stderr


@pytest.mark.parametrize(
    "requests, nodes, expected",
    [
        (["ACTIVE"], ["READY"], ["ssh all", "ssh all"]),
        (
            ["ACTIVE"],
            ["PREEMPTED", "READY"],
            ["delete", "create", "scp all", "ssh all", "ssh all", "ssh all"],
        ),
        (
            ["SUSPENDED", "ACTIVE"],
            ["READY"],
            ["delete", "create", "scp all", "ssh all", "ssh all", "ssh all"],
        ),
        (["MISSING", "ACTIVE"], ["READY"], ["create", "scp all", "ssh all", "ssh all", "ssh all"]),
    ],
)
def test_resume_does_what_the_state_needs(tmp_path, requests, nodes, expected):
    environment = pretend(tmp_path, requests, nodes)
    call(*PLACE, "--every", "0", "resume", CONFIG, **environment)
    assert calls(tmp_path) == expected


def test_resume_leaves_a_request_alone_that_is_still_waiting(tmp_path):
    environment = pretend(tmp_path, ["WAITING_FOR_RESOURCES"])
    done = call(*PLACE, "resume", CONFIG, check=False, **environment)
    assert done.returncode == 1 and "still WAITING_FOR_RESOURCES" in done.stderr
    assert calls(tmp_path) == []


def test_keep_goes_on_after_a_preemption_and_ends_with_the_training(tmp_path):
    requests = ["ACTIVE", "ACTIVE", "SUSPENDED", "SUSPENDED", "ACTIVE"]
    environment = pretend(tmp_path, requests, ["READY"], [0, 3])
    out = call(*PLACE, "--every", "0", "keep", CONFIG, **environment).stdout
    assert "pod is SUSPENDED: making it anew" in out
    start, again = ["ssh all", "ssh all"], ["delete", "create", "scp all", "ssh all", "ssh all", "ssh all"]
    assert calls(tmp_path) == [*start, "ssh 0", *again, "ssh 0", "ssh 0"]


@pytest.mark.parametrize("command", ["resume", "keep"])
def test_a_refused_request_ends_the_script(tmp_path, command):
    environment = pretend(tmp_path, ["MISSING"])
    (tmp_path / "refused").touch()
    done = call(*PLACE, "--every", "0", command, CONFIG, check=False, **environment)
    assert done.returncode == 1 and calls(tmp_path) == ["create"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["run", CONFIG, "--dry-run"],
            "--dry-run is an option of this script, not of training; it comes before run",
        ),
        (["keep", CONFIG, "--out", "gs://a/b", "--spot"], "--spot is an option of this script"),
        ([], "name a command"),
        (["create"], "give the TPU a name"),
        (["--name", "a", "create"], "give a zone"),
        (["--name", "a", "--zone", "b", "create"], "say which TPU with --type"),
        (["--name", "a", "--zone", "b", "--type", "v9-8", "create"], "no runtime version is known for v9-8"),
        (["--nam", "a"], "--nam is not an option"),
        (["--name"], "--name needs a value"),
        (["destroy"], "destroy is not a command"),
        (["run"], "run needs a config file"),
        (["run", "configs/none.py"], "run needs a config file"),
        (["status", "now"], "status takes no arguments"),
    ],
)
def test_mistakes_are_sentences(arguments, message):
    done = call(*arguments, check=False)
    assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1


def test_settings_may_come_from_the_environment():
    out = call("--dry-run", "create", TPU_NAME="n", TPU_ZONE="z", TPU_TYPE="v4-8", TPU_PROJECT="p").stdout
    assert "create n --node-id n --zone z --project p --accelerator-type v4-8" in out
