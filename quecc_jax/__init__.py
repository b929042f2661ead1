"""Query-conditioned visual token compression (QueCC) for vision-language models, in JAX and Flax.

Load a run, ask it about an image, and count what an answer costs:

    import quecc_jax

    engine = quecc_jax.load_engine("runs/demo/cells/M-v4-s0/stage2")
    question = quecc_jax.Question("what color is the shape in row 2, column 1?", (engine.image("mosaic.png"),))
    answers = engine.run([question], quecc_jax.Limits(max_new_tokens=16))
    for _, piece in answers:
        print(piece, end="", flush=True)

    config = quecc_jax.load_config("runs/demo/cells/M-v4-s0/stage2/config.json")
    print(quecc_jax.answer_flops(config.model, question=12, prompt=20, answer=4))
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quecc_jax.config import RunConfig
    from quecc_jax.config.io import load_config, save_config
    from quecc_jax.data.pipeline import make_iterator
    from quecc_jax.errors import UserError
    from quecc_jax.flops import answer_flops, train_flops
    from quecc_jax.generate.engine import Engine, Limits, Question
    from quecc_jax.load import load_engine, load_vlm
    from quecc_jax.models.vlm import VLM
    from quecc_jax.train.step import build_trainer

__all__ = [
    "VLM",
    "Engine",
    "Limits",
    "Question",
    "RunConfig",
    "UserError",
    "answer_flops",
    "build_trainer",
    "load_config",
    "load_engine",
    "load_vlm",
    "make_iterator",
    "save_config",
    "train_flops",
]

_HOMES = {
    "RunConfig": "config",
    "load_config": "config.io",
    "save_config": "config.io",
    "UserError": "errors",
    "make_iterator": "data.pipeline",
    "answer_flops": "flops",
    "train_flops": "flops",
    "Engine": "generate.engine",
    "Limits": "generate.engine",
    "Question": "generate.engine",
    "load_engine": "load",
    "load_vlm": "load",
    "VLM": "models.vlm",
    "build_trainer": "train.step",
}


def __getattr__(name: str) -> object:
    """A public name, whose module is imported when it is first asked for: settings alone import no jax."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
