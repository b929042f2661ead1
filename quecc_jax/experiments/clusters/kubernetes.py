"""A grid as JobSets of Kubernetes, one for each cell, in a queue of Kueue.

https://jobset.sigs.k8s.io and https://kueue.sigs.k8s.io; a JobSet without the queue's label runs without Kueue.
"""

import dataclasses
import hashlib
import re
import subprocess
from collections.abc import Sequence
from typing import Any

import yaml

from quecc_jax.errors import UserError
from quecc_jax.experiments.clusters.command import PREEMPTED, cell_command, pairs
from quecc_jax.experiments.grid import Cell, Grid
from quecc_jax.paths import is_remote

GRACE_S = 120
"""Seconds from SIGTERM to SIGKILL, in which the processes save."""
KEPT_S = 7 * 24 * 3600
"""Seconds for which a JobSet that has ended is kept, with its logs."""
PORT = 8476
NAME = 40
"""Characters of a JobSet's name; names of pods are longer, and have 63."""
Manifest = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Kubernetes:
    """What a cell gets of a Kubernetes cluster with JobSet."""

    image: str = ""
    """Container image that has `quecc` and, in its working directory, the config file; must be given."""
    queue: str = ""
    """Local queue of Kueue; without one the cluster's own scheduler alone decides."""
    namespace: str = "default"
    pods: int = 1
    """Pods of each cell, with one process each."""
    resources: tuple[str, ...] = ()
    """Of each pod, such as nvidia.com/gpu=8 or google.com/tpu=4 memory=64Gi."""
    nodes: tuple[str, ...] = ()
    """Labels of nodes that will do, such as cloud.google.com/gke-tpu-topology=4x4."""
    volume: str = ""
    """CLAIM:/PATH mounts a PersistentVolumeClaim that all pods share; --out lies below it, or in a bucket."""
    account: str = ""
    """Service account of the pods, which may write to the bucket."""
    restarts: int = 10
    """How often a cell that fails is started again. Preemptions do not count."""


def check(settings: Kubernetes, out: str) -> None:
    """Raises UserError for settings that are missing or malformed, or an `out` that pods do not share."""
    if not settings.image:
        raise UserError("--on kubernetes needs --kubernetes.image, the container image of the pods")
    for name, lowest in {"pods": 1, "restarts": 0}.items():
        if (value := getattr(settings, name)) < lowest:
            raise UserError(f"--kubernetes.{name} is {value}; give at least {lowest}")
    pairs("--kubernetes.resources", settings.resources)
    pairs("--kubernetes.nodes", settings.nodes)
    claim, colon, path = settings.volume.partition(":")
    if settings.volume and not (claim and colon and path.startswith("/") and path != "/"):
        raise UserError(f"--kubernetes.volume {settings.volume} is not CLAIM:/PATH, such as sweeps:/data")
    inside = settings.volume and f"{out}/".startswith(f"{path.rstrip('/')}/")
    if not (is_remote(out) or inside):
        raise UserError(
            f"--out {out} is neither in a bucket nor below the path of --kubernetes.volume: pods would write each to "
            "its own disk, which is gone with them"
        )


def manifests(grid: Grid, cells: Sequence[Cell], config: str, settings: Kubernetes) -> list[Manifest]:
    """A JobSet for each cell.

    Args:
      config: as it was named on the command line; the image has it there too.
    """
    return [
        _jobset(
            jobset_name(grid, cell),
            cell.name,
            cell_command(["quecc", "sweep"], config, grid.out, cell.name),
            settings,
        )
        for cell in cells
    ]


def jobset_name(grid: Grid, cell: Cell) -> str:
    """A name that Kubernetes takes, and another one for every cell of every directory."""
    plain = re.sub(r"[^a-z0-9-]+", "-", cell.name.lower()).strip("-")
    digest = hashlib.sha256(f"{grid.out} {cell.name}".encode()).hexdigest()[:6]
    return f"quecc-{plain[: NAME - 13].rstrip('-')}-{digest}"


def _jobset(name: str, cell: str, command: list[str], settings: Kubernetes) -> Manifest:
    queue = {"kueue.x-k8s.io/queue-name": settings.queue} if settings.queue else {}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": name,
            "namespace": settings.namespace,
            "labels": {"app": "quecc", **queue},
            "annotations": {"quecc/cell": cell},
        },
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {
                "maxRestarts": settings.restarts,
                "rules": [
                    {
                        "name": "preempted",
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "ttlSecondsAfterFinished": KEPT_S,
            "replicatedJobs": [
                {"name": "run", "replicas": 1, "template": {"spec": _job(name, command, settings)}}
            ],
        },
    }


def _job(name: str, command: list[str], settings: Kubernetes) -> Manifest:
    return {
        "parallelism": settings.pods,
        "completions": settings.pods,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        # What was told to stop, or whose node was taken away, is no failure.
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": "cell", "operator": "In", "values": [PREEMPTED]},
                },
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": {"spec": _pod(name, command, settings)},
    }


def _pod(name: str, command: list[str], settings: Kubernetes) -> Manifest:
    resources, nodes = (
        pairs("--kubernetes.resources", settings.resources),
        pairs("--kubernetes.nodes", settings.nodes),
    )
    container: Manifest = {
        "name": "cell",
        "image": settings.image,
        "command": command,
        "env": [{"name": "JOBSET_NAME", "value": name}, *_meeting(name, settings.pods, resources)],
    }
    if resources:
        # What Kueue counts are requests; of devices they must be the limits.
        container["resources"] = {"limits": resources, "requests": {**resources}}
    pod: Manifest = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_S,
        "containers": [container],
    }
    if nodes:
        pod["nodeSelector"] = nodes
    if settings.account:
        pod["serviceAccountName"] = settings.account
    if settings.volume:
        claim, _, path = settings.volume.partition(":")
        container["volumeMounts"] = [{"name": "shared", "mountPath": path}]
        pod["volumes"] = [{"name": "shared", "persistentVolumeClaim": {"claimName": claim}}]
    return pod


def _meeting(name: str, pods: int, resources: dict[str, str]) -> list[Manifest]:
    """Where the processes meet, as `quecc_jax.distributed` reads it; of TPUs JAX knows it from GKE."""
    if pods == 1 or "google.com/tpu" in resources:
        return []
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    return [
        {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{name}-run-0-0.{name}:{PORT}"},
        {"name": "JAX_NUM_PROCESSES", "value": str(pods)},
        {"name": "JAX_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": index}}},
    ]


def text(documents: Sequence[Manifest]) -> str:
    """Manifests as kubectl reads them."""
    return yaml.safe_dump_all(documents, sort_keys=False, width=120)


def submit(documents: Sequence[Manifest]) -> list[str]:
    """Creates the JobSets; returns what kubectl says of each.

    Raises:
      UserError: there is no kubectl here, or the cluster refuses one of them, as it does where it has one of that
        name; those before it are there.
    """
    try:
        done = subprocess.run(
            ["kubectl", "create", "-f", "-"],
            input=text(documents),
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise UserError("kubectl is not here; give it what --dry-run prints, where it is") from None
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["without a word"])[-1]
        raise UserError(
            f"kubectl refused: {said}; one that has ended is deleted with kubectl delete jobset NAME, then submit again"
        )
    return done.stdout.strip().splitlines()
