"""Manifests of a grid: against the models of JobSet's published schema, against its CRD where that is at hand, and
read back."""

import json
import os
import stat
from pathlib import Path

import jsonschema
import pytest
import yaml

from quecc_jax.commands.cli import execute
from quecc_jax.errors import UserError
from quecc_jax.experiments.clusters.kubernetes import NAME, Kubernetes, check, jobset_name, manifests, text
from tests.experiments.small_grid import small_grid, write_config

CRD = os.environ.get("JOBSET_CRD", "")
"""config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml of github.com/kubernetes-sigs/jobset, where it is."""
FULL = Kubernetes(
    "image:1",
    queue="sweeps",
    namespace="research",
    pods=4,
    resources=("nvidia.com/gpu=8", "memory=64Gi"),
    nodes=("cloud.google.com/gke-accelerator=nvidia-h100-80gb",),
    volume="claim:/data",
    account="writer",
    restarts=7,
)
LEAST = Kubernetes("image:1", volume="claim:/data")
TPU = Kubernetes("image:1", pods=4, resources=("google.com/tpu=4",), volume="claim:/data")


@pytest.fixture
def grid():
    return small_grid("/data/out")


def container(document):
    (job,) = document["spec"]["replicatedJobs"]
    (found,) = job["template"]["spec"]["template"]["spec"]["containers"]
    return found


def test_one_jobset_runs_the_command_of_each_cell(grid):
    documents = list(yaml.safe_load_all(text(manifests(grid, grid.cells, "configs/a.py", FULL))))
    assert len(documents) == len(grid.cells) == len({one["metadata"]["name"] for one in documents})
    for one, cell in zip(documents, grid.cells, strict=True):
        command = container(one)["command"]
        assert command == ["quecc", "sweep", "configs/a.py", "--out", "/data/out", "--only", cell.name]
        assert one["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "sweeps"
        assert one["metadata"]["namespace"] == "research"


def test_pods_meet_at_the_first_and_know_their_number(grid):
    (one,) = manifests(grid, grid.cells[:1], "a.py", FULL)
    name, job = one["metadata"]["name"], one["spec"]["replicatedJobs"][0]
    given = {item["name"]: item.get("value") for item in container(one)["env"]}
    assert given["JAX_COORDINATOR_ADDRESS"] == f"{name}-{job['name']}-0-0.{name}:8476"
    assert given["JAX_NUM_PROCESSES"] == "4" and "JAX_PROCESS_ID" in given
    job = job["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 4 and job["completionMode"] == "Indexed"
    for settings in (LEAST, TPU):
        (one,) = manifests(grid, grid.cells[:1], "a.py", settings)
        assert [item["name"] for item in container(one)["env"]] == ["JOBSET_NAME"]


def test_preemptions_start_again_without_being_counted_and_failures_some_times(grid):
    (one,) = manifests(grid, grid.cells[:1], "a.py", FULL)
    policy = one["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7
    (rule,) = policy["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    job = one["spec"]["replicatedJobs"][0]["template"]["spec"]
    by_status, by_node = job["podFailurePolicy"]["rules"]
    assert by_status["onExitCodes"] == {"containerName": "cell", "operator": "In", "values": [143]}
    assert by_node["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    # Kubernetes takes a policy for failures with this alone.
    assert job["template"]["spec"]["restartPolicy"] == "Never" and job["backoffLimit"] == 0


@pytest.mark.parametrize("settings", [FULL, LEAST, TPU])
def test_manifests_are_of_the_published_form(grid, settings):
    """kubeflow-trainer-api has the models that are generated of JobSet's OpenAPI schema."""
    models = pytest.importorskip("kubeflow_trainer_api.models")
    for one in manifests(grid, grid.cells, "a.py", settings):
        read = models.JobsetV1alpha2JobSet.from_dict(json.loads(json.dumps(one)))
        # A name that the models do not have would be lost.
        assert read.to_dict() == one


@pytest.mark.parametrize("settings", [FULL, LEAST, TPU])
@pytest.mark.skipif(not CRD, reason="JOBSET_CRD names no file")
def test_manifests_fit_the_crd(grid, settings):
    crd = yaml.safe_load(Path(CRD).read_text())
    (schema,) = (v["schema"]["openAPIV3Schema"] for v in crd["spec"]["versions"] if v["name"] == "v1alpha2")
    schema = strict(schema)
    for one in manifests(grid, grid.cells, "a.py", settings):
        jsonschema.Draft202012Validator(schema).validate(one)
        wrong = json.loads(json.dumps(one))
        wrong["spec"]["failurePolicy"]["maxRestart"] = 3
        with pytest.raises(jsonschema.ValidationError, match="maxRestart"):
            jsonschema.Draft202012Validator(schema).validate(wrong)


def strict(schema):
    """The schema with names that it does not have refused, as `kubectl --validate=strict` does."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items()}
    if isinstance(found.get("properties"), dict) and "type" in found:
        found["additionalProperties"] = found.get("additionalProperties", False)
    if found.get("x-kubernetes-int-or-string"):
        found.pop("type", None)
    return found


def test_names_are_kubernetes_own_and_differ(grid):
    long = small_grid("/data/out", seeds=(10**30, 10**30 + 1))
    names = [jobset_name(g, cell) for g in (grid, small_grid("/data/other"), long) for cell in g.cells]
    assert len(set(names)) == len(names)
    assert all(len(name) <= NAME and name.replace("-", "").isalnum() and name.islower() for name in names)


@pytest.mark.parametrize(
    ("settings", "out", "sentence"),
    [
        (Kubernetes(), "gs://b/out", "needs --kubernetes.image"),
        (Kubernetes("i"), "/data/out", "neither in a bucket nor below the path of --kubernetes.volume"),
        (Kubernetes("i", volume="c:/data"), "/datas/out", "neither in a bucket"),
        (Kubernetes("i", volume="data"), "/data/out", "is not CLAIM:/PATH"),
        (Kubernetes("i", pods=0), "gs://b/out", "--kubernetes.pods is 0; give at least 1"),
        (Kubernetes("i", resources=("gpu",)), "gs://b/out", "--kubernetes.resources gpu is not NAME=VALUE"),
    ],
)
def test_settings_that_would_lose_results_are_refused(settings, out, sentence):
    with pytest.raises(UserError, match=sentence):
        check(settings, out)


def test_what_fits_is_not_refused():
    for settings, out in ((FULL, "/data"), (FULL, "/data/a/b"), (Kubernetes("i"), "gs://b/out")):
        check(settings, out)


def kubectl(folder: Path, script: str) -> None:
    """A stand-in that the command finds in place of kubectl."""
    file = folder / "kubectl"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IEXEC)


def test_what_is_left_is_given_to_kubectl(tmp_path, monkeypatch, capsys):
    config = write_config(tmp_path)
    options = ["--on=kubernetes", "--kubernetes.image=i", f"--kubernetes.volume=c:{tmp_path}"]
    execute("sweep", [str(config), *options, "--dry-run"])
    shown = capsys.readouterr().out
    assert "4 cells," in shown and shown.count("kind: JobSet") == 4
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    kubectl(tmp_path, f'echo "$@" > {tmp_path}/arguments; cat > {tmp_path}/given; echo jobset created')
    execute("sweep", [str(config), *options, "--shard=0/2"])
    assert (tmp_path / "arguments").read_text() == "create -f -\n"
    given = list(yaml.safe_load_all((tmp_path / "given").read_text()))
    assert [one["metadata"]["annotations"]["quecc/cell"] for one in given] == ["w32-v1-s0", "w64-v1-s0"]
    assert "jobset created" in capsys.readouterr().out
    kubectl(tmp_path, "echo 'Error: jobsets.jobset.x-k8s.io \"a\" already exists' >&2; exit 1")
    with pytest.raises(UserError, match=r'^kubectl refused: Error: .*"a" already exists; one that has ended'):
        execute("sweep", [str(config), *options])
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(UserError, match="kubectl is not here"):
        execute("sweep", [str(config), *options])
