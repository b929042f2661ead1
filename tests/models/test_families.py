"""Every family of decoders against NumPy: alone, padded, packed, cached."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from quecc_jax.config import LoraConfig, RopeScaling
from quecc_jax.models.decoder import Cache, Decoder, empty_cache, unstack
from quecc_jax.models.kernel_forms import in_form
from quecc_jax.models.lora import apart, joined, merged
from tests.models.decoders import ONES, PLACES, Family, S, close, family
from tests.models.reference import decode, decode_layers
from tests.tiny import MODEL, random_like

LLAMA = dataclasses.replace(MODEL.decoder, rope_theta=100.0)
STRETCHED = RopeScaling(
    "longrope",
    original_length=S,
    short_factors=(1.0, 1.5, 2.0),
    long_factors=(3.0, 1.25, 0.5),
    attention_factor=1.2,
)

GEMMA = dataclasses.replace(
    LLAMA,
    head_width=12,
    mlp="geglu",
    norm_sites="both",
    zero_centred_norm=True,
    scale_embeddings=True,
    tie_embeddings=True,
)

CONFIGS = {
    "mistral": dataclasses.replace(LLAMA, head_width=12, window=3),
    "qwen2": dataclasses.replace(LLAMA, qkv_bias=True, window=2, full_layers=1),
    "llama31": dataclasses.replace(
        LLAMA,
        rope_scaling=RopeScaling("llama3", factor=4.0, fast_turns=1.5, slow_turns=0.3, original_length=16),
    ),
    "linear": dataclasses.replace(LLAMA, rope_scaling=RopeScaling("linear", factor=3.0)),
    "phi3": dataclasses.replace(LLAMA, rope_fraction=0.75, rope_scaling=STRETCHED),
    "phi3_long": dataclasses.replace(
        LLAMA, rope_fraction=0.75, rope_scaling=dataclasses.replace(STRETCHED, original_length=S - 1)
    ),
    "mpt": dataclasses.replace(
        LLAMA, kv_heads=4, positions="alibi", norm="layer", mlp="gelu", tie_embeddings=True
    ),
    "mpt_six_heads": dataclasses.replace(
        LLAMA,
        width=36,
        heads=6,
        kv_heads=6,
        positions="alibi",
        alibi_bias_max=5,
        norm="layer",
        mlp="gelu",
        window=4,
    ),
    "qwen3": dataclasses.replace(LLAMA, qk_norm="head", head_width=12, qkv_bias=True, out_bias=True),
    "olmo2": dataclasses.replace(LLAMA, qk_norm="all", norm_sites="after"),
    "smollm3": dataclasses.replace(LLAMA, depth=5, unrotated_every=2),
    "gemma2": dataclasses.replace(
        GEMMA, window=2, full_every=2, attention_softcap=1.5, logit_softcap=4.0, query_scalar=3.0
    ),
    "gemma3": dataclasses.replace(
        GEMMA,
        depth=4,
        qk_norm="head",
        window=3,
        full_every=3,
        local_rope_theta=20.0,
        rope_scaling=RopeScaling("linear", factor=3.0),
    ),
    "everything at once": dataclasses.replace(
        GEMMA,
        depth=7,
        qk_norm="all",
        window=3,
        full_layers=1,
        full_every=3,
        unrotated_every=4,
        local_rope_theta=20.0,
        rope_scaling=RopeScaling("linear", factor=3.0),
    ),
}


@pytest.fixture(scope="module", params=CONFIGS)
def made(request) -> Family:
    return family(CONFIGS[request.param])


def test_the_family_equals_its_mathematics(made):
    x = made.rows()
    hidden = made.forward(x, PLACES, ONES)
    for row in range(2):
        close(hidden[row], decode(made.params, made.config, x[row]))


def test_what_sets_a_family_apart_matters():
    """No setting above is without effect, so that the comparisons mean something."""
    plain = family(LLAMA)
    x = plain.rows()
    base = np.asarray(plain.forward(x, PLACES, ONES))
    for name in ("llama31", "linear", "phi3", "phi3_long"):
        other = Family(CONFIGS[name], plain.params, None)
        assert np.abs(decode(other.params, other.config, x[0]) - base[0]).max() > 0.05, name


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(made, side):
    x, lengths = made.rows(), (4, 5)
    segments, positions = np.zeros((2, S), np.int32), np.zeros((2, S), np.int32)
    real = [slice(0, n) if side == "right" else slice(S - n, S) for n in lengths]
    for row, (n, own) in enumerate(zip(lengths, real, strict=True)):
        segments[row, own], positions[row, own] = 1, np.arange(n)
    hidden = np.asarray(made.forward(x, positions, segments))
    assert np.isfinite(hidden).all()
    for row, own in enumerate(real):
        close(hidden[row, own], decode(made.params, made.config, x[row, own], places=S))


def test_packed_conversations_are_as_if_alone(made):
    x = made.rows()
    segments = np.array([[1, 1, 2, 2, 2, 2], [1, 2, 2, 2, 2, 0]], np.int32)
    positions = np.array([[0, 1, 0, 1, 2, 3], [0, 0, 1, 2, 3, 0]], np.int32)
    hidden = np.asarray(made.forward(x, positions, segments))
    for row in range(2):
        for segment in (1, 2):
            own = segments[row] == segment
            close(hidden[row, own], decode(made.params, made.config, x[row, own], places=S))


def test_the_cache_equals_one_pass_whichever_side_is_padded(made):
    """Row 0's prompt of two tokens is padded at its end, so that a hole follows it in the cache; row 1's
    prompt of three at its front."""
    x, model, config = made.rows(), Decoder(made.config, unrolled=True), made.config
    params = unstack(made.params)

    @jax.jit
    def extend(x: Any, positions: Any, segments: Any, cache: Cache) -> Any:
        return model.apply({"params": params}, x, positions, segments, cache)

    places = S + 2
    prompts = np.stack([x[0, [0, 1, 0, 0]], x[1, [0, 0, 1, 2]]])
    positions = np.array([[0, 1, 0, 0], [0, 0, 1, 2]], np.int32)
    segments = np.array([[1, 1, 0, 0], [0, 1, 1, 1]], np.int32)
    first, cache = extend(prompts, positions, segments, empty_cache(config, 2, places))
    rows = [[*first[0, :2]], [*first[1, 1:]]]
    ends = np.array([[2], [3]], np.int32)
    for step in range(3):
        token = np.stack([x[row, ends[row] + step] for row in range(2)])
        hidden, cache = extend(token, ends + step, ONES[:, :1], cache)
        for row in range(2):
            rows[row].append(hidden[row, 0])
    for row in range(2):
        close(rows[row], decode(made.params, config, x[row, : len(rows[row])], places=places))


def test_parameters_are_those_of_the_family():
    trees = {name: family(config).params for name, config in CONFIGS.items()}
    assert set(trees["mpt"]) == {"embedding", "layers", "norm"}
    assert set(trees["mpt"]["norm"]) == {"scale"}
    assert set(trees["mpt"]["layers"]) == {"norm1", "norm2", "q", "k", "v", "out", "up", "down"}
    assert set(trees["mistral"]["layers"]) == {*trees["mpt"]["layers"], "gate"}
    assert trees["mistral"]["layers"]["k"]["kernel"].shape == (2, 32, 2, 12)
    assert trees["mistral"]["layers"]["out"]["kernel"].shape == (2, 4, 12, 32)
    assert set(trees["gemma3"]["layers"]) == {
        *trees["mistral"]["layers"],
        *("q_norm", "k_norm", "post_norm1", "post_norm2"),
    }
    assert set(trees["olmo2"]["layers"]) == {*trees["gemma3"]["layers"]} - {"norm1", "norm2"}
    assert trees["qwen3"]["layers"]["k_norm"]["scale"].shape == (2, 12)
    assert trees["olmo2"]["layers"]["k_norm"]["scale"].shape == (2, 2, 8)
    assert set(trees["qwen3"]["layers"]["out"]) == set(trees["qwen3"]["layers"]["k"]) == {"kernel", "bias"}


@pytest.mark.parametrize("name", ["smollm3", "gemma2", "gemma3", "everything at once"])
def test_scanned_layers_have_the_gradients_of_unrolled_ones(name):
    """A scan chooses window and angles by a number that it is given, an unrolled decoder by constants."""
    made = family(CONFIGS[name])
    inputs = [jax.numpy.array(one) for one in (made.rows(), PLACES, ONES)]

    def total(params: Any, unrolled: bool, remat: str) -> Any:
        model = Decoder(made.config, unrolled=unrolled, remat=remat)
        hidden, _ = model.apply({"params": params}, *inputs)
        return (hidden * np.cos(np.arange(hidden.size)).reshape(hidden.shape)).sum()

    grad = jax.jit(jax.grad(total), static_argnums=(1, 2))
    expected = grad(unstack(made.params), True, "none")
    for remat in ("none", "full"):
        ours = unstack(grad(made.params, False, remat))
        off = jax.tree.map(lambda a, b: np.abs(a - b).max() / (np.abs(b).max() or 1), ours, expected)
        assert max(jax.tree.leaves(off)) < 1e-4


def states(model: Decoder, params: Any, x: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(lambda *given: model.apply({"params": params}, *given)[0])(x, PLACES, ONES))


@pytest.mark.parametrize("name", ["qwen3", "olmo2", "smollm3", "gemma3"])
def test_adapters_apart_are_what_they_are_merged(name):
    config, lora = CONFIGS[name], LoraConfig(rank=3, alpha=6.0, targets=("q", "out", "down"))
    made, model = family(config), Decoder(config, lora=lora)
    x = made.rows()
    boxed = jax.eval_shape(lambda *given: model.init(jax.random.key(0), *given), x, PLACES, ONES)
    params = apart({"decoder": random_like(nn.meta.unbox(boxed)["params"])})
    assert set(params["lora"]["layers"]) == {"q", "out", "down"}
    ours = states(model, joined(params)["decoder"], x)
    close(ours, states(Decoder(config), merged(params, lora)["decoder"], x))
    assert np.abs(ours - states(Decoder(config), params["decoder"], x)).max() > 0.1


@pytest.mark.parametrize("name", ["qwen3", "olmo2", "smollm3", "gemma3"])
def test_matrices_of_eight_bits_are_read_in_every_family(name):
    made = family(CONFIGS[name])
    stored = in_form(made.params, made.config, "int8")
    layers = stored["layers"]
    codes = {key for key in layers if isinstance(layers[key].get("kernel"), dict)}
    assert codes == {"q", "k", "v", "out", "gate", "up", "down"}
    x = made.rows()
    ours, exact = states(Decoder(made.config), stored, x), made.forward(x, PLACES, ONES)
    assert 0 < np.abs(ours - exact).mean() < 0.05 * np.abs(exact).mean()


@pytest.mark.parametrize("name", ["gemma2", "olmo2"])
@pytest.mark.parametrize("tied", [True, False])
def test_at_initialisation_the_stream_and_the_logits_are_of_order_one(name, tied):
    """Whatever stands behind the blocks, they add to the stream as much as was there."""
    config = dataclasses.replace(
        CONFIGS[name],
        width=256,
        depth=8,
        mlp_width=512,
        vocab_size=512,
        tie_embeddings=tied,
        logit_softcap=0.0,
    )
    tokens = jax.random.randint(jax.random.key(1), (2, 24), 0, 512)

    def pass_(model: Decoder, tokens: Any) -> Any:
        x = model.embed(tokens)
        hidden, _ = model(x, tokens * 0 + np.arange(24), tokens * 0 + 1)
        return x, model.logits(hidden)

    (x, logits), variables = Decoder(config).init_with_output(jax.random.key(0), tokens, method=pass_)
    scale = 1.0 if config.scale_embeddings or not tied else 256**-0.5
    assert np.std(x) == pytest.approx(scale, rel=0.1)
    assert 0.5 < np.std(logits) < 2
    stream = decode_layers(nn.meta.unbox(variables["params"])["layers"], config, np.asarray(x[0]))
    assert 1.3 < np.var(stream) / np.var(x[0]) < 3
