"""Whether a run's tower is still the one that was published under its name."""

from pathlib import Path

from quecc_jax.convert.sidecar_files import kept_sources
from quecc_jax.distributed import notice
from quecc_jax.errors import UserError
from quecc_jax.train.run_dir import load_run_config


def tower_was_trained(run: Path) -> bool:
    """Whether this run, or one that it began with, trained the tower, or came with one that its project had trained.

    A run that it began with and that is gone is told: it may have.
    """
    ahead, seen = [str(run)], set[str]()
    while ahead:
        at = ahead.pop()
        if at in seen:
            continue
        seen.add(at)
        try:
            config, kept = load_run_config(at), kept_sources(Path(at))
        except UserError as error:
            notice(f"WARNING: {error}; if it trained the tower, export that with --only vision too")
            continue
        model = kept.get("model")
        if "vision" in config.train.trained or (model and model.hf.get("unfreeze_mm_vision_tower")):
            return True
        ahead += filter(None, (config.init_from, config.tower_from))
    return False
