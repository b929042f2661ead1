"""Scalars of a run for Weights & Biases."""

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from quecc_jax.config import RunConfig
from quecc_jax.config.io import to_dict
from quecc_jax.distributed import notice
from quecc_jax.errors import UserError
from quecc_jax.paths import as_path, is_remote, write_text

ID = "wandb.json"
"""The file of a run's directory that says which run of W&B it is."""


class WandbRun:
    """The run of W&B that belongs to a run; one that goes on continues it, plotted over the run's own steps.

    Nothing that fails once it has begun ends training: it is said once, and the next scalars are tried again.

    Args:
      config: of the run; `train.wandb` names the project.
      restored: the step that the run continues from; 0 begins another run of W&B.

    Raises:
      UserError: the package is missing, or W&B refuses to begin.
    """

    def __init__(self, config: RunConfig, restored: int):
        try:
            import wandb
        except ImportError:
            raise UserError(
                "train.wandb: the package wandb is not installed; pip install -r requirements/wandb.txt brings it"
            ) from None
        run, (project, *team) = as_path(config.out), config.train.wandb.split("/")[::-1]
        known = _known(run / ID) if restored else None
        self._told = False
        try:
            self._run: Any = wandb.init(
                project=project,
                entity=team[0] if team else None,
                id=known,
                name=run.name,
                resume="allow" if known else None,
                dir=None if is_remote(run) else run,
                config=to_dict(config),
            )
            # Its own count goes on where it was stopped, which may be behind the restored step.
            self._run.define_metric("*", step_metric="step")
        except Exception as error:  # W&B's errors have nothing in common
            raise UserError(
                f"train.wandb: W&B does not begin ({error}); set WANDB_MODE=offline, or leave it out"
            ) from None
        write_text(run / ID, json.dumps({"id": self._run.id}) + "\n")

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Logs the scalars of one step."""
        try:
            self._run.log({"step": step, **scalars})
        except Exception as error:
            if not self._told:
                notice(f"WARNING: W&B: {error}; from step {step} on it lacks what fails")
            self._told = True

    def close(self) -> None:
        """Ends it."""
        with contextlib.suppress(Exception):
            self._run.finish()


def _known(path: Any) -> str | None:
    """The id that a run was given; None where that is lost."""
    try:
        found = json.loads(path.read_text())["id"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None
