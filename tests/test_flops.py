"""FLOP counts against the ones XLA finds in the program.

XLA counts a loop's body once, so the models here have one layer; it is asked before optimisation,
which needs no compilation and lets the sizes be large enough for matrix products to dominate.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from quecc_jax import flops
from quecc_jax.aot import hlo
from quecc_jax.config import (
    CompressorConfig,
    DataConfig,
    DecoderConfig,
    DistilConfig,
    LoraConfig,
    MeshConfig,
    ModelConfig,
    NoneConfig,
    QueccConfig,
    QueryConfig,
    RunConfig,
    TrainConfig,
    VisionConfig,
)
from quecc_jax.config.compressors import exchanged, names
from quecc_jax.config.query import ClipTextConfig
from quecc_jax.config.shapes import state_shape, teacher_length
from quecc_jax.data.batch import Batch, batch_spec
from quecc_jax.models.compressors.base import Features
from quecc_jax.models.compressors.build import make_compressor
from quecc_jax.models.decoder import Decoder, empty_cache, unstack
from quecc_jax.models.lora import joined
from quecc_jax.models.vlm import VLM
from quecc_jax.sharding import make_mesh
from quecc_jax.train.step import abstract_params, build_trainer, train_step
from tests.compressors import ELASTIC, fitting

MODEL = ModelConfig(
    vision=VisionConfig(
        image_size=224,
        patch_size=14,
        width=512,
        depth=1,
        heads=4,
        mlp_width=1024,
        levels=(0, 1, 1),
        select_layer=-1,
    ),
    compressor=QueccConfig(kernel=4, stride=4, heads=4),
    decoder=DecoderConfig(vocab_size=256, width=768, depth=1, heads=6, kv_heads=2, mlp_width=1024),
    dtype="float32",
    remat="none",
)
CONFIG = RunConfig(
    model=MODEL, data=DataConfig(max_length=256, query_length=64), train=TrainConfig(batch_size=2)
)
NO_LORA = LoraConfig()


def xla_flops(function: Any, *arguments: Any) -> float:
    counts: Any = jax.jit(function).lower(*arguments).cost_analysis()
    return counts.get("flops", 0.0)


def xla_query_flops(model: ModelConfig, params: Any) -> float:
    """Of encoding a question of 64 tokens."""
    return xla_flops(
        lambda p, *a: VLM(model).apply({"params": p}, *a, method=VLM.encode_query),
        params,
        ints(1, 64),
        ints(1, 64),
        ints(1, 1),
    )


@pytest.fixture(scope="module")
def cost():
    """FLOPs of a method of the model, by its name and the shapes of its arguments."""
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    params = abstract_params(CONFIG, mesh, batch_spec(MODEL, CONFIG.data, 1))

    def count(method: Any, *arguments: Any, unrolled: bool = False) -> float:
        def call(params: Any, *arguments: Any) -> Any:
            given = params | {"decoder": unstack(params["decoder"])} if unrolled else params
            return VLM(MODEL, unrolled).apply({"params": given}, *arguments, method=method)

        return xla_flops(call, params, *arguments)

    return count


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def ints(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def test_tower(cost):
    assert flops.tower_flops(MODEL.vision) == pytest.approx(
        cost(VLM.encode_image, floats(1, 1, 224, 224, 3)), rel=0.05
    )


@pytest.mark.parametrize("stride", [16, 4, 1])
@pytest.mark.parametrize("name", names())
def test_compressor_alone(name, stride):
    assert_counted(fitting(name, kernel=stride, stride=stride, heads=4, fusion_layers=0))


# The lone convolution is so little work that resizing its kernel, once for all images, outweighs it.
@pytest.mark.parametrize("name", [name for name in ELASTIC if name != "conv"])
def test_compressor_at_every_v(name):
    assert_counted(fitting(name, elastic=(1, 4, 16, 64), heads=4))


def assert_counted(compressor: CompressorConfig) -> None:
    """FLOPs are those that XLA counts, weights those of the parameters."""
    model = dataclasses.replace(MODEL, compressor=compressor)
    width = 768 if compressor.projected else 512
    single, multi = floats(1, 256, width), floats(1, 256, 3 * 512)
    read = (floats(1, 256), floats(1, 256, 512)) if compressor.reads_attention else ()
    inputs: Any = Features(single, multi, *read), floats(1, 1, 768)  # type: ignore[arg-type]
    module = make_compressor(model)
    variables = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), *inputs))
    cost = flops.compressor_cost(model)
    assert cost.flops == pytest.approx(xla_flops(module.apply, variables, *inputs), rel=0.05)
    weights = [
        math.prod(x.shape)
        for path, x in jax.tree.leaves_with_path(variables.get("params", {}))
        if path[-1].key not in ("scale", "bias") and not path[-1].key.endswith("_bias")
    ]
    assert cost.params == sum(weights) and 0 <= cost.first <= cost.flops


@pytest.mark.parametrize("name", names())
def test_compressor_and_projector(name):
    model = dataclasses.replace(MODEL, compressor=fitting(name, kernel=4, stride=4, heads=4))
    states = floats(1, 1, *state_shape(model.tower))
    parameters = jax.eval_shape(
        lambda *a: VLM(model).init(jax.random.key(0), *a, method=VLM.compress), states, floats(1, 1, 768)
    )
    ours = flops.compressor_cost(model).flops + flops.projector_flops(model)
    # The memory's projection is counted with the pre-fusion that reads it.
    ours += 2.0 * model.memory_tokens * flops.projector_params(model)
    theirs = xla_flops(
        lambda p, *a: VLM(model).apply(p, *a, method=VLM.compress), parameters, states, floats(1, 1, 768)
    )
    assert ours == pytest.approx(theirs, rel=0.05)


def test_without_a_compressor_only_the_projector_counts():
    model = dataclasses.replace(MODEL, compressor=NoneConfig())
    assert flops.compressor_cost(model).flops == flops.query_flops(model, 64) == 0.0
    assert flops.projector_flops(model) == 2.0 * 256 * (512 * 768 + 768 * 768)


def test_query(cost):
    assert flops.query_flops(MODEL, 64) == pytest.approx(
        cost(VLM.encode_query, ints(1, 64), ints(1, 64), ints(1, 1)), rel=0.05
    )
    zero = dataclasses.replace(MODEL, compressor=exchanged(MODEL.compressor, query="zero"))
    assert flops.query_flops(zero, 64) == 0.0


@pytest.mark.parametrize("encoder, layer", [("early_exit", 1), ("embeddings", 0), ("clip_text", 0)])
def test_other_query_encoders(encoder, layer):
    deep = dataclasses.replace(MODEL.decoder, depth=2)
    text = ClipTextConfig(vocab_size=256, width=512, depth=1, heads=4, mlp_width=1024, projection=384)
    model = dataclasses.replace(MODEL, decoder=deep, query=QueryConfig(encoder, layer, text))
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    config = dataclasses.replace(CONFIG, model=model)
    params = abstract_params(config, mesh, batch_spec(model, config.data, 1))
    theirs = xla_query_flops(model, params)
    if encoder == "embeddings":
        # Beside the additions, XLA counts a few more for each number to mask padding and to look rows up.
        assert flops.query_flops(model, 64) == 64 * 768 <= theirs <= 6 * 64 * 768
    else:
        assert flops.query_flops(model, 64) == pytest.approx(theirs, rel=0.05)
    if encoder == "early_exit":
        whole = dataclasses.replace(model, query=QueryConfig())
        assert flops.query_flops(model, 64) == flops.query_flops(whole, 64) / 2


def test_decoder_prefill_and_decode(cost):
    def prefill(model: VLM, tokens: jax.Array) -> jax.Array:
        ones = jnp.ones_like(tokens)
        return model.logits(model.decoder(model.decoder.embed(tokens), ones, ones)[0][:, -1])

    def step(model: VLM, tokens: jax.Array, cache: Any) -> jax.Array:
        ones = jnp.ones_like(tokens)
        return model.logits(model.extend(tokens, ones, ones, cache)[0])

    decoder = MODEL.decoder
    assert flops.decoder_flops(decoder, 256, 256, 1) == pytest.approx(cost(prefill, ints(1, 256)), rel=0.05)
    cache = jax.eval_shape(lambda: empty_cache(decoder, 1, 512))
    one = cost(step, ints(1, 1), cache, unrolled=True)
    assert flops.decoder_flops(decoder, 1, 512, 1) == pytest.approx(one, rel=0.05)


def test_adapters_that_stand_apart():
    model = dataclasses.replace(MODEL, lora=LoraConfig(rank=256, targets=("q", "k", "down")))
    config = dataclasses.replace(CONFIG, model=model)
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    params = abstract_params(config, mesh, batch_spec(model, config.data, 1))
    theirs = xla_query_flops(model, joined(params))
    assert flops.query_flops(model, 64) == pytest.approx(theirs, rel=0.02)
    weights = sum(leaf.size for leaf in jax.tree.leaves(params["lora"]))
    assert flops.adapter_params(model) == weights
    more = 2.0 * weights
    bare, parts = (flops.answer_flops(one, question=10, prompt=20, answer=4) for one in (MODEL, model))
    assert parts["prefill"] - bare["prefill"] == 36 * more and parts["decode"] - bare["decode"] == 3 * more


def test_a_gelu_decoder_with_wide_heads():
    decoder = dataclasses.replace(MODEL.decoder, mlp="gelu", norm="layer", positions="alibi", head_width=256)
    model = Decoder(decoder)

    def prefill(model: Decoder, tokens: jax.Array) -> jax.Array:
        return model.logits(model(model.embed(tokens), tokens, tokens)[0][:, -1])

    tokens = ints(1, 256)
    parameters = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8), int), method=prefill))
    theirs = xla_flops(lambda p, t: model.apply(p, t, method=prefill), parameters, tokens)
    assert flops.decoder_flops(decoder, 256, 256, 1) == pytest.approx(theirs, rel=0.05)


def test_layers_add_up():
    depths = (1, 2, 3)
    decoders = [dataclasses.replace(MODEL.decoder, depth=n) for n in depths]
    towers = [dataclasses.replace(MODEL.vision, depth=n, levels=(n,)) for n in depths]
    for one, two, three in (
        [flops.decoder_flops(decoder, 10, 20, 3) for decoder in decoders],
        [flops.tower_flops(tower) for tower in towers],
    ):
        assert three - two == two - one > 0
    assert flops.tower_flops(
        dataclasses.replace(towers[2], levels=(2,), select_layer=1)
    ) == flops.tower_flops(towers[1])


def test_an_answer_is_the_sum_of_its_parts():
    parts = flops.answer_flops(MODEL, question=10, prompt=20, answer=4)
    decoder = MODEL.decoder
    assert parts["prefill"] == flops.decoder_flops(decoder, 36, 36, 1)
    # Three further tokens, each of which attends to one place more.
    steps = sum(flops.decoder_flops(decoder, 1, 36 + step, 1) for step in (1, 2, 3))
    assert parts["decode"] == steps
    assert parts["tower"] == flops.tower_flops(MODEL.vision)
    assert flops.answer_flops(MODEL, 10, 20, 4, include_tower=False) == {**parts, "tower": 0.0}
    # An image of four tiles, whose map lost some of its tokens and gained newlines.
    tiled = flops.answer_flops(MODEL, 10, 20, 4, squares=5, visual=70)
    assert tiled["tower"] == 5 * parts["tower"] and tiled["compressor"] == 5 * parts["compressor"]
    assert tiled["prefill"] == flops.decoder_flops(decoder, 90, 90, 1) and tiled["query"] == parts["query"]


def step_flops(config: RunConfig) -> float:
    """Of a whole optimizer step, as XLA counts them."""
    trainer = build_trainer(config, make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]))
    bare = Batch(**{**trainer.abstract_batch._asdict(), "ids": None})
    return xla_flops(lambda s, b: train_step(VLM(config.model), config, s, b), trainer.abstract_state, bare)


@pytest.mark.parametrize("cached", [True, False])
def test_a_teacher_adds_a_pass_over_all_patches_and_no_second_one_of_the_tower(cached):
    data = dataclasses.replace(CONFIG.data, cached_features=cached, images_per_row=2)
    train = dataclasses.replace(CONFIG.train, stage=1)
    plain = dataclasses.replace(CONFIG, data=data, train=train)
    config = dataclasses.replace(plain, train=dataclasses.replace(train, distil=DistilConfig(0.5)))
    # 2 x (256 - 16) more places.
    whole = flops.decoder_flops(MODEL.decoder, 736, 736, 256) + 2 * 256 * 2.0 * flops.projector_params(MODEL)
    assert teacher_length(MODEL, data, 256, 2) == 768
    padded = flops.decoder_flops(MODEL.decoder, 768, 768, 256) - flops.decoder_flops(
        MODEL.decoder, 736, 736, 256
    )
    ours = flops.train_flops(config) - flops.train_flops(plain)
    assert ours == pytest.approx(2 * (whole + padded))
    assert ours == pytest.approx(step_flops(config) - step_flops(plain), rel=0.05)


@pytest.mark.parametrize(
    "stage, images, cached, compressor, lora",
    [
        (0, 0, True, "quecc", NO_LORA),
        (0, 1, True, "quecc", NO_LORA),
        (1, 2, True, "quecc", NO_LORA),
        (2, 1, True, "quecc", NO_LORA),
        (2, 1, False, "quecc", NO_LORA),
        (1, 1, True, "none", NO_LORA),
        (0, 1, True, "llava_mini", NO_LORA),
        (1, 1, True, "llava_mini", NO_LORA),
        (2, 2, True, "llava_mini", NO_LORA),
        (1, 1, True, "quecc_plus", NO_LORA),
        (2, 1, True, "quecc_plus", NO_LORA),
        (1, 1, True, "prumerge", NO_LORA),
        (2, 1, True, "quecc", LoraConfig(rank=128)),
        (1, 1, True, "none", LoraConfig(rank=256, targets=("q", "up"))),
        (0, 1, True, "quecc", LoraConfig(rank=256)),
    ],
)
def test_a_training_step(stage, images, cached, compressor, lora):
    model = dataclasses.replace(
        MODEL, compressor=fitting(compressor, kernel=4, stride=4, heads=4, fusion_layers=1), lora=lora
    )
    config = dataclasses.replace(
        CONFIG,
        model=model,
        data=dataclasses.replace(CONFIG.data, cached_features=cached, images_per_row=images),
        train=dataclasses.replace(CONFIG.train, stage=stage),
    )
    theirs = step_flops(config)
    # The backward pass computes logits anew; that is work of the machine, not of the model.
    theirs -= 2 * flops.decoder_flops(MODEL.decoder, 0, 0, 256)
    assert flops.train_flops(config) == pytest.approx(theirs, rel=0.05)


SEEN = ("vision", "compressor", "projector")


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize(
    "parts", [(*SEEN, "decoder"), SEEN, ("compressor",), ("projector",), ("compressor", "decoder")]
)
def test_a_step_that_trains_some_parts_runs_what_is_counted(parts, remat):
    """Products of the compiled program, loops in full."""
    vision = dataclasses.replace(MODEL.vision, depth=2, levels=(1, 2), select_layer=-1)
    decoder = dataclasses.replace(MODEL.decoder, depth=2)
    model = dataclasses.replace(MODEL, vision=vision, decoder=decoder, remat=remat)
    train = TrainConfig(stage=3, parts=parts, batch_size=2, loss_chunk=256)
    config = dataclasses.replace(CONFIG, model=model, train=train)
    trainer = build_trainer(config, make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]))
    executed: float = hlo.flops(hlo.parse(trainer.lower().compile().as_text() or ""))
    # The backward pass computes logits anew; that is work of the machine, not of the model.
    executed -= 2 * flops.decoder_flops(model.decoder, 0, 0, 256)
    if remat == "full":
        again = 2 * flops.decoder_flops(model.decoder, 256, 256, 0)
        again += 2 * flops.tower_flops(vision) if "vision" in parts else 0.0
        # The last product of a layer is not made again.
        assert 0.7 * again < executed - flops.train_flops(config) < again
    else:
        assert flops.train_flops(config) == pytest.approx(executed, rel=0.02)


FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {"qkv_bias": True, "tie_embeddings": True},
    "qwen3": {"qk_norm": "head", "head_width": 192},
    "smollm3": {"unrotated_every": 2},
    "olmo2": {"qk_norm": "all", "norm_sites": "after", "kv_heads": 6},
    "phi4-mini": {"rope_fraction": 0.75, "window": 64},
    "gemma3": {
        "mlp": "geglu",
        "norm_sites": "both",
        "zero_centred_norm": True,
        "qk_norm": "head",
        "head_width": 256,
        "window": 64,
        "full_every": 2,
        "local_rope_theta": 1e4,
        "rope_theta": 1e6,
        "attention_softcap": 50.0,
        "logit_softcap": 30.0,
        "scale_embeddings": True,
        "tie_embeddings": True,
    },
}
"""What sets families apart from LLaMA, at sizes in which products matter as they do in published ones."""


def run_of(family: dict[str, Any], **train: Any) -> RunConfig:
    decoder = dataclasses.replace(MODEL.decoder, depth=2, mlp_width=2048, **family)
    model = dataclasses.replace(MODEL, decoder=decoder)
    data = dataclasses.replace(CONFIG.data, cached_features=True)
    return dataclasses.replace(
        CONFIG, model=model, data=data, train=TrainConfig(batch_size=2, loss_chunk=256, **train)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_of_each_family_runs_what_is_counted(family):
    """Products of the compiled program, loops in full."""
    config = run_of(FAMILIES[family], stage=2)
    trainer = build_trainer(config, make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]))
    executed: float = hlo.flops(hlo.parse(trainer.lower().compile().as_text() or ""))
    # The backward pass computes logits anew; that is work of the machine, not of the model.
    executed -= 2 * flops.decoder_flops(config.model.decoder, 0, 0, 256)
    assert flops.train_flops(config) == pytest.approx(executed, rel=0.02)


@pytest.mark.parametrize(
    "lora, form",
    [
        (LoraConfig(rank=64), "auto"),
        (LoraConfig(rank=64, dropout=0.1), "nf4"),
        (LoraConfig(rank=128, targets=("q", "up")), "int8"),
    ],
)
def test_a_step_around_a_frozen_decoder_runs_what_is_counted(lora, form):
    """Products of the compiled program, loops in full: a matrix that is made whole again is none of them."""
    model = dataclasses.replace(
        MODEL, lora=lora, decoder=dataclasses.replace(MODEL.decoder, depth=2, mlp_width=2048)
    )
    data = dataclasses.replace(CONFIG.data, cached_features=True)
    train = TrainConfig(stage=2, batch_size=2, frozen_weights=form, loss_chunk=256)
    config = dataclasses.replace(CONFIG, model=model, data=data, train=train)
    trainer = build_trainer(config, make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]))
    executed: float = hlo.flops(hlo.parse(trainer.lower().compile().as_text() or ""))
    # The backward pass computes logits anew; that is work of the machine, not of the model.
    executed -= 2 * flops.decoder_flops(model.decoder, 0, 0, 256)
    assert flops.train_flops(config) == pytest.approx(executed, rel=0.02)
