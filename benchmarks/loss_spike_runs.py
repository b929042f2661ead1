"""The runs of `benchmarks.loss_spikes`: small models that differ in one factor at a time, stepped one by one."""

import dataclasses
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from quecc_jax.config import CheckpointConfig, LoraConfig, MeshConfig, OptimizerConfig, RunConfig, TrainConfig
from quecc_jax.data.batch import Batch
from quecc_jax.data.pipeline import make_iterator
from quecc_jax.data.text.tokenizer import load_tokenizer
from quecc_jax.experiments.cell import run_cell
from quecc_jax.experiments.grid import Grid
from quecc_jax.experiments.testbed.grids import Decoder, Recipe, compressor, image_data, model, size_grid
from quecc_jax.experiments.testbed.settings import DEFAULT, Testbed
from quecc_jax.experiments.testbed.steps import make_data, make_tower
from quecc_jax.models.lora import joined
from quecc_jax.models.vlm import VLM
from quecc_jax.paths import write_text
from quecc_jax.sharding import make_mesh
from quecc_jax.train.checkpoint import load_params, save_params
from quecc_jax.train.initial import initial_state
from quecc_jax.train.state import TrainState
from quecc_jax.train.step import build_trainer, train_step

SMALL_TEXT = 0.02
"""Standard deviation of a 7B model's text embeddings, about."""
DROPOUT = 0.05
"""Share of the adapters' inputs that a step drops, as in LLaVA's recipe."""
PROBE_EVERY = 20
"""Steps between measurements of the visual tokens' scale."""


def fine_testbed() -> Recipe:
    """The study's testbed with 8-pixel patches: 12 x 12 of them."""
    return Recipe(
        testbed=Testbed(
            test_images=300, tower_steps=700, vision=dataclasses.replace(DEFAULT.vision, patch_size=8)
        ),
        decoders=(Decoder("M", 64, 2),),
        visual_tokens=(1, 16, 36, 144),
        batch_size=8,
        language_steps=1600,
    )


Init = Literal["ours", "original"]
INITS: tuple[Init, Init] = ("ours", "original")
SCALES: tuple[tuple[Init, float], ...] = (("ours", 0.0), ("ours", 1.0), ("original", 0.0))
"""(Initial values, ratio of the visual tokens' scale) that meet the small text embeddings."""


class Case(NamedTuple):
    """One training run."""

    visual_tokens: int
    init: Init = "ours"
    ratio: float = 0.0
    """Of the first visual tokens' root mean square to the text embeddings'; 0 leaves what `init` gives."""
    text: Literal["testbed", "small"] = "testbed"
    """The testbed's language model, or the same function with embeddings of SMALL_TEXT, as large models have."""
    rate: float = 1e-3
    clip: float = 1.0
    """Global gradient norm; infinity clips nothing."""
    b2: float = 0.999
    dtype: Literal["float32", "bfloat16"] = "float32"
    stage: Literal[1, 2] = 1
    """2 continues `first_stage`."""
    steps: int = 200
    seed: int = 0
    rank: int = 0
    """Of adapters of the decoder's matrices, which drop DROPOUT; 0 trains the decoder itself."""
    scale: float = 2.0
    """alpha / rank of the adapters."""
    projector_rate: float = 0.0
    """Of compressor and projector; 0 is `rate`."""
    warmup: float = 0.03
    """Share of the steps."""

    @property
    def name(self) -> str:
        """File name; only what differs from the defaults is in it."""
        parts = [f"{k}={v}" for k, v in self._asdict().items() if v != Case._field_defaults.get(k)]
        return "_".join(parts)


def first_stage(case: Case) -> Case:
    """The run that a second stage continues."""
    return Case(case.visual_tokens, case.init, case.ratio, case.text, seed=case.seed)


def cases(seeds: int) -> list[Case]:
    """All runs without adapters; each line changes one factor of one before it. Seeds after the first repeat
    what decides: V, initial values, scale and rate of stage 1, and the high rate of stage 2."""
    large, infinite = (36, 144), float("inf")
    found = [Case(v, init, rate=rate) for rate in (1e-3, 1e-2) for init in INITS for v in large]
    found += [
        Case(v, init, ratio, "small", rate) for rate in (1e-3, 1e-2) for init, ratio in SCALES for v in large
    ]
    repeated = len(found)
    found += [Case(v, init, rate=rate) for rate in (1e-3, 1e-2) for init in INITS for v in (1, 16)]
    found += [Case(v, init, rate=1e-2, clip=infinite) for init in INITS for v in large]
    found += [Case(144, rate=1e-2, b2=0.99), Case(144, rate=1e-2, dtype="bfloat16")]
    found += [Case(v, init, rate=rate, stage=2) for rate in (4e-4, 4e-3) for init in INITS for v in large]
    deciding = found[:repeated] + [case for case in found if case.stage == 2 and case.rate > 1e-3]
    return found + [case._replace(seed=seed) for seed in range(1, seeds) for case in deciding]


def adapter_cases(seeds: int) -> list[Case]:
    """Second stages with adapters beside those that train the whole decoder.

    The rates stand to that of full training as LLaVA's do: the adapters' is ten times it, the projector's is
    it; so does the rank to the decoder's width (128 to 4096). While B is near zero an Adam step then moves a
    matrix's outputs 10 alpha / (sqrt(3) width) = 0.36 times as far as in full training, here as there.
    All others differ from those in one thing.
    """
    everywhere: list[dict[str, Any]] = [
        {},
        {"clip": float("inf")},
        {"projector_rate": 0.0},
        {"rate": 4e-2, "projector_rate": 4e-3},
    ]
    whole = [Case(v, rate=4e-4, stage=2, seed=s) for v, s in itertools.product((36, 144), range(seeds))]
    lora = [case._replace(rank=2, rate=4e-3, projector_rate=4e-4) for case in whole]
    found = whole + [case._replace(**change) for change in everywhere for case in lora]
    large = [case for case in lora if case.visual_tokens == 144]
    return found + [c._replace(scale=1.0) for c in large] + [c._replace(warmup=0.0) for c in large]


def adapters(case: Case) -> LoraConfig:
    """The case's; rank 0 has none."""
    return LoraConfig(case.rank, case.scale * case.rank, DROPOUT) if case.rank else LoraConfig()


def optimizer(case: Case) -> OptimizerConfig:
    """What is compiled with the step; `settings` takes the place of some of it."""
    # The schedule's own peak must be a constant; the projector's is a factor on the updates.
    return OptimizerConfig(case.rate if case.stage == 2 else 1.0, 1.0, case.warmup)


def settings(case: Case) -> dict[str, float]:
    """Fields of OptimizerConfig that cases with one compiled step may differ in."""
    projector = case.projector_rate or case.rate
    return {"projector_learning_rate": projector, "clip_norm": min(case.clip, 1e30), "b2": case.b2}


def prepare(out: str, recipe: Recipe) -> None:
    """Data, tower, language model, and its twin with small text embeddings, unless they are there."""

    def report(done: float, total: float, note: str) -> None:
        print(f"\r{done / total:4.0%} {note:60}", end="", flush=True)

    grid: Grid = size_grid(dataclasses.replace(recipe, batch_size=16), out, "loss spikes")
    data, tower = grid.steps[:2]
    parts: dict[str, Callable[[], Any]] = {
        "data": lambda: make_data(grid, data, report),
        "tower": lambda: make_tower(grid, tower, report),
        "language": lambda: run_cell(grid, grid.cells[0], report),
        "small": lambda: small_text(out, recipe),
    }
    for name, make in parts.items():
        done = Path(out, f"{name}.json")
        if not done.exists():
            result = make()
            done.write_text(json.dumps(result))
            print(f"\n{name} made")


def small_text(out: str, recipe: Recipe) -> None:
    """The language model with a residual stream scaled down, so that its embeddings have SMALL_TEXT.

    Blocks and the last norm normalise what they read: with the norms' epsilon scaled too, and the output
    matrix kept, it is the same function.
    """
    _, params = load_params(f"{out}/language/M", ["decoder"])
    config = run_model(out, recipe, Case(1, text="small"))
    decoder = shrink(params["decoder"])
    save_params(RunConfig(out=f"{out}/language/M-small", model=config), {"decoder": decoder})


def shrink(decoder: dict[str, Any]) -> dict[str, Any]:
    """See `small_text`."""
    table = decoder["embedding"]
    factor = SMALL_TEXT / rms(table)
    layers = dict(decoder["layers"])
    for writer in ("out", "down"):
        layers[writer] = jax.tree.map(lambda w: w * factor, layers[writer])
    return {**decoder, "embedding": table * factor, "layers": layers, "head": np.asarray(table).T}


def rms(x: Any) -> float:
    """Root mean square of all numbers."""
    return float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64)))))


def run_model(out: str, recipe: Recipe, case: Case) -> Any:
    """The case's model."""
    words = len(load_tokenizer(f"{out}/data/tokenizer"))
    built = model(recipe, recipe.decoders[0], compressor(recipe, case.visual_tokens), words)
    decoder = built.decoder
    if case.text == "small":
        # The testbed's table is read here, so that the epsilon shrinks as the stream does.
        table = load_params(f"{out}/language/M", ["decoder"])[1]["decoder"]["embedding"]
        eps = decoder.norm_eps * (SMALL_TEXT / rms(table)) ** 2
        decoder = dataclasses.replace(decoder, tie_embeddings=False, norm_eps=eps)
    return dataclasses.replace(built, decoder=decoder, dtype=case.dtype, lora=adapters(case))


def run_config(out: str, recipe: Recipe, case: Case) -> RunConfig:
    """The case's run; it is stepped here, not by `train`."""
    source = f"{out}/language/M" + ("-small" if case.text == "small" else "")
    if case.stage == 2:
        source = f"{out}/trained/{first_stage(case).name}"
    return RunConfig(
        out=f"{out}/trained/{case.name}",
        model=run_model(out, recipe, case),
        data=image_data(out, "train", case.visual_tokens),
        optimizer=optimizer(case),
        train=TrainConfig(stage=case.stage, steps=case.steps, batch_size=recipe.batch_size, seed=case.seed),
        checkpoint=CheckpointConfig(every=0),
        mesh=MeshConfig(1, 1, 1),
        init_from=source,
    )


def original_values(params: dict[str, Any], key: jax.Array) -> dict[str, Any]:
    """Compressor and projector with what PyTorch draws for the original's modules.

    Linear and Conv2d: kernel and bias uniform within 1 / sqrt(fan-in) (Kaiming with a = sqrt 5);
    MultiheadAttention: joint input matrix [3 D, D] Xavier-uniform, its and the output's bias zero.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    fans = {}
    for path, leaf in leaves:
        *module, name = [k.key for k in path]
        inputs = {"q_downsample": leaf.shape[:2], "out": leaf.shape[:2]}.get(module[-1], leaf.shape[:1])
        if name == "kernel":
            fans[tuple(module)] = float(np.prod(inputs))
    drawn = []
    for (path, leaf), part in zip(leaves, jax.random.split(key, len(leaves)), strict=True):
        *module, name = [k.key for k in path]
        if tuple(module) in fans and (name == "kernel" or module[-1] != "out"):
            bound = fans[tuple(module)] ** -0.5
        elif name in ("q_kernel", "k_kernel", "v_kernel"):
            bound = (6 / (4 * leaf.shape[0])) ** 0.5
        elif name == "scale" or module[-1].endswith("norm"):
            drawn.append(leaf)
            continue
        else:
            bound = 0.0
        drawn.append(jax.random.uniform(part, leaf.shape, leaf.dtype, -bound, bound))
    return jax.tree.unflatten(tree, drawn)


class Stepper:
    """The compiled functions of all cases that differ in values alone."""

    def __init__(self, config: RunConfig):
        self.config = config
        self.trainer = build_trainer(config, make_mesh(config.mesh, jax.devices()[:1]))
        model = VLM(config.model)

        def step(state: TrainState, batch: Batch, settings: dict[str, Any]) -> Any:
            set_: Any = dataclasses.replace(config.optimizer, **settings)
            return train_step(model, dataclasses.replace(config, optimizer=set_), state, batch)

        def visual(state: TrainState, batch: Batch) -> jax.Array:
            params = joined({**state.trainable, **state.frozen})
            tokens: Any = model.apply({"params": params}, batch, method=VLM.visual_tokens)
            return jnp.sqrt(jnp.mean(jnp.square(tokens.astype(jnp.float32))))

        self.step = jax.jit(step, donate_argnums=0)
        self.visual = jax.jit(visual)


def first_state(stepper: Stepper, config: RunConfig, case: Case, probe: Batch) -> TrainState:
    """The library's own initial state, with the case's initial values put in its place."""
    state = initial_state(config, stepper.trainer, tell=lambda _: None)
    if case.stage == 2:
        return state
    trainable = state.trainable
    if case.init == "original":
        trainable = original_values(trainable, jax.random.key(case.seed))
    if case.ratio:
        text = rms(state.frozen["decoder"]["embedding"])
        factor = case.ratio * text / float(stepper.visual(state._replace(trainable=trainable), probe))
        last = jax.tree.map(lambda w: w * factor, trainable["projector"]["fc2"])
        trainable = {**trainable, "projector": {**trainable["projector"], "fc2": last}}
    return state._replace(trainable=trainable)


def run_case(stepper: Stepper, config: RunConfig, case: Case) -> dict[str, Any]:
    """Every step's loss and gradient norm, and the visual tokens' root mean square every PROBE_EVERY."""
    began = time.process_time()
    batches = make_iterator(config.data, config.model, config.train.batch_size, case.seed)
    probe = stepper.trainer.put(next(batches))
    state = first_state(stepper, config, case, probe)
    text = rms({**state.trainable, **state.frozen}["decoder"]["embedding"])
    kept, scales = [], []
    for number in range(case.steps):
        if number % PROBE_EVERY == 0:
            scales.append(stepper.visual(state, probe))
        state, metrics = stepper.step(state, stepper.trainer.put(next(batches)), settings(case))
        kept.append((metrics["loss"], metrics["grad_norm"]))
    scales.append(stepper.visual(state, probe))
    batches.close()
    if case == first_stage(case):
        save_params(config, jax.device_get({**state.trainable, **state.frozen}))
    loss, norm = np.asarray(jax.device_get(kept)).T
    return {
        "case": case._asdict(),
        "text": text,
        "scale": [float(x) for x in scales],
        "loss": [round(float(x), 5) for x in loss],
        "grad_norm": [round(float(x), 5) for x in norm],
        "seconds": time.process_time() - began,
    }


def run_all(
    out: str, recipe: Recipe, wanted: list[Case], summary: Callable[[dict[str, Any]], str]
) -> list[dict[str, Any]]:
    """Results of all cases, from `out` where they lie there; says a summary of each new one."""
    folder, steppers, results = Path(out, "cases"), dict[RunConfig, Stepper](), []
    folder.mkdir(exist_ok=True)
    for number, case in enumerate(wanted, start=1):
        file = folder / f"{case.name}.json"
        if not file.exists():
            config = run_config(out, recipe, case)
            train = dataclasses.replace(config.train, seed=0)
            key = dataclasses.replace(config, out="", init_from="", train=train)
            if key not in steppers:
                steppers[key] = Stepper(key)
            result = run_case(steppers[key], config, case)
            write_text(file, json.dumps(result))
            line = f"{number}/{len(wanted)} {case.name}: {summary(result)}, {result['seconds']:.0f} s"
            print(line, flush=True)
        results.append(json.loads(file.read_text()))
    return results
