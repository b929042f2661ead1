"""Every decoder family against transformers' torch model with the same random weights."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from quecc_jax.config import DecoderConfig, ModelConfig
from quecc_jax.convert.formats.decoder_rules import decoder_rules
from quecc_jax.convert.formats.families import decoder_config, family_of
from quecc_jax.convert.rules import Rule, from_tree, to_tree
from quecc_jax.data.batch import Batch
from quecc_jax.models.decoder import Decoder
from tests.convert.published import PUBLISHED, shrunken
from tests.generator import build_generator
from tests.golden_check import TOLERANCE
from tests.parity.compare import errors, gradients, randomise

B, S, NEW = 2, 13, 5
LENGTHS = (8, 13)
"""Real tokens of the rows where rows are padded."""

SMALL: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 50.0,
    "factor": 4.0,
    "low_freq_factor": 0.5,
    "high_freq_factor": 3.0,
    "original_max_position_embeddings": 24,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "short_factor": [1.0, 1.3, 2.0],
    "long_factor": [1.5, 3.0, 0.6],
}
MPT: dict[str, Any] = {"d_model": 24, "n_layers": 3, "vocab_size": 48, "max_seq_len": 64}

AUTO: Any = transformers.AutoConfig
CONFIGS: dict[str, transformers.PreTrainedConfig] = {
    "llama": transformers.LlamaConfig(**SMALL),
    "llama_linear": transformers.LlamaConfig(
        **SMALL, rope_parameters={"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}
    ),
    "llama_3.1": transformers.LlamaConfig(**SMALL, rope_parameters=LLAMA3),
    "mistral": transformers.MistralConfig(**SMALL, sliding_window=4),
    "mistral_nemo": transformers.MistralConfig(**SMALL, head_dim=10, sliding_window=None),
    "qwen2": transformers.Qwen2Config(**SMALL, tie_word_embeddings=True),
    "qwen2_window": transformers.Qwen2Config(
        **SMALL, use_sliding_window=True, sliding_window=3, max_window_layers=1
    ),
    "phi3_short": transformers.Phi3Config(
        **SMALL, rope_parameters=LONG, original_max_position_embeddings=S + NEW
    ),
    "phi3_long": transformers.Phi3Config(
        **SMALL, rope_parameters=LONG, original_max_position_embeddings=min(LENGTHS) - 1
    ),
    "phi3_partial": transformers.Phi3Config(
        **{**SMALL, "num_attention_heads": 3, "num_key_value_heads": 3},
        sliding_window=5,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.75},
    ),
    "mpt": transformers.MptConfig(**MPT, n_heads=4),
    "mpt_six_heads": transformers.MptConfig(**MPT, n_heads=6, attn_config={"alibi_bias_max": 5}),
    "llama_biases": transformers.LlamaConfig(**SMALL, attention_bias=True),
    "qwen3_window": transformers.Qwen3Config(
        **SMALL,
        head_dim=8,
        attention_bias=True,
        use_sliding_window=True,
        sliding_window=3,
        max_window_layers=2,
    ),
    "olmo2_grouped": transformers.Olmo2Config(**SMALL, attention_bias=True),
    "smollm3_every_other": transformers.SmolLM3Config(
        **SMALL, no_rope_layer_interval=2, tie_word_embeddings=False
    ),
    "gemma3_capped": transformers.Gemma3TextConfig(
        **SMALL, head_dim=8, sliding_window=3, final_logit_softcapping=4.0, query_pre_attn_scalar=3
    ),
}


class Pair(NamedTuple):
    """The same decoder twice."""

    theirs: Any
    config: DecoderConfig
    rules: list[Rule]
    params: dict[str, Any]
    run: Any
    """(params, tokens, positions, segments, cotangent) -> (logits, gradients), compiled."""


@pytest.fixture(scope="module", params=[*CONFIGS, *PUBLISHED])
def pair(request) -> Pair:
    name: str = request.param
    given = CONFIGS[name].to_dict() if name in CONFIGS else shrunken(name)
    hf = CONFIGS[name] if name in CONFIGS else AUTO.for_model(**given)
    theirs = transformers.AutoModelForCausalLM.from_config(hf, dtype=torch.float32).eval()
    state = randomise(theirs)
    config = decoder_config(given)
    if config.positions == "alibi":
        # Their model computes slopes for 8 whatever its config says, unlike MPT's own code.
        slopes = functools.partial(build_mpt_alibi_tensor, alibi_bias_max=config.alibi_bias_max)
        theirs.transformer.build_mpt_alibi_tensor = slopes
    rules = decoder_rules(config, family_of(given))
    model = Decoder(config)

    def logits(decoder: Decoder, tokens: Any, positions: Any, segments: Any) -> jax.Array:
        return decoder.logits(decoder(decoder.embed(tokens), positions, segments)[0])

    def total(params: Any, tokens: Any, positions: Any, segments: Any, cotangent: Any) -> Any:
        variables = {"params": params["decoder"]}
        out: Any = model.apply(variables, tokens, positions, segments, method=logits)
        return jnp.sum(out * cotangent), out

    params = to_tree(rules, state)
    return Pair(theirs, config, rules, params, jax.jit(jax.grad(total, has_aux=True)))


@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_logits_and_all_gradients_agree(pair, padding):
    rng = np.random.default_rng(1)
    tokens = rng.integers(3, 48, (B, S))
    mask, positions = np.ones((B, S), np.int32), np.tile(np.arange(S, dtype=np.int32), (B, 1))
    for row, length in enumerate(LENGTHS if padding != "none" else ()):
        own = slice(S - length, S) if padding == "left" else slice(0, length)
        mask[row], positions[row] = 0, 0
        mask[row, own], positions[row, own] = 1, np.arange(length)
    cotangent = rng.normal(size=(B, S, 48)).astype(np.float32) * mask[..., None]

    pair.theirs.zero_grad()
    out = pair.theirs(
        input_ids=torch.from_numpy(tokens), attention_mask=torch.from_numpy(mask), use_cache=False
    )
    (out.logits * torch.from_numpy(cotangent)).sum().backward()
    grads, logits = pair.run(pair.params, tokens, positions, mask, cotangent)

    seen = mask.astype(bool)
    found = errors({"logits": np.asarray(logits)[seen]}, {"logits": out.logits.detach().numpy()[seen]}, False)
    ours = from_tree(pair.rules, jax.device_get(grads))
    found |= errors(ours, gradients(pair.theirs), True)
    assert len(found) > 20 and max(found.values()) < TOLERANCE, found


def test_cached_decoding_picks_what_their_full_passes_pick(pair):
    """Prompts of two lengths in one batch, each token of theirs chosen by a pass over its row alone."""
    rng = np.random.default_rng(2)
    tokens, segments = rng.integers(3, 48, (B, S)).astype(np.int32), np.zeros((B, S), np.int32)
    for row, length in enumerate(LENGTHS):
        tokens[row, length:], segments[row, :length] = 0, 1
    batch = Batch(
        tokens=tokens,
        slots=np.full((B, S), -1, np.int32),
        labels=np.zeros((B, S), np.int32),
        positions=np.tile(np.arange(S, dtype=np.int32), (B, 1)),
        segments=segments,
        queries=np.zeros((B, 0), np.int32),
        query_segments=np.zeros((B, 0), np.int32),
        query_ends=np.zeros((B, 0), np.int32),
    )
    model = ModelConfig(decoder=pair.config, dtype="float32", remat="none")
    answers = np.asarray(build_generator(model, NEW, eos=-1)(pair.params, batch))
    for row, length in enumerate(LENGTHS):
        grown = torch.from_numpy(tokens[row : row + 1, :length]).long()
        for _ in range(NEW):
            with torch.no_grad():
                picked = pair.theirs(input_ids=grown, use_cache=False).logits[:, -1].argmax(-1)
            grown = torch.cat([grown, picked[:, None]], dim=1)
        np.testing.assert_array_equal(answers[row], grown[0, length:].numpy())
