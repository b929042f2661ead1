"""MQT-LLaVA's models (github.com/gordonhu608/MQT-LLaVA)."""

import dataclasses

from quecc_jax.config import ModelConfig
from quecc_jax.convert.formats.compressors.project import GRID, Limit, Project
from quecc_jax.convert.rules import Rule, Scope, attention, norm, same
from quecc_jax.errors import UserError
from quecc_jax.json_text import JsonObject
from quecc_jax.models.compressors.mqt_config import MqtConfig

HEADS, QUERIES = 16, 256
"""Whatever the tower."""
DRAWN = tuple(range(2, QUERIES + 1, 2))
"""V of each batch of its second stage is one of these."""
_STAGES = {"first_stage": MqtConfig(tokens=QUERIES), "second_stage": MqtConfig(elastic=DRAWN)}


def _settings(hf: JsonObject) -> MqtConfig | None:
    if hf.get("query_abstractor_type") is None:
        return None
    if hf["query_abstractor_type"] != "matry_query":
        raise UserError(
            f"query_abstractor_type {hf['query_abstractor_type']!r} in config.json is not implemented; use a "
            "model with 'matry_query'"
        )
    told = hf.get("num_visual_tokens", QUERIES)
    known = _STAGES.get(str(told))
    number = int(told) if str(told).isdecimal() and not isinstance(told, bool) else 0
    if known is None and not 1 <= number <= QUERIES:
        raise UserError(
            f"num_visual_tokens {told!r} in config.json is none of 'first_stage', 'second_stage' and the numbers "
            f"from 1 to {QUERIES}, with which MQT was trained; write there how this model was"
        )
    return dataclasses.replace(
        known or MqtConfig(tokens=number), heads=HEADS, queries=QUERIES, stored_positions=True
    )


def _keys(model: ModelConfig) -> JsonObject:
    compressor = model.compressor
    assert isinstance(compressor, MqtConfig)
    told = "second_stage" if compressor.elastic else str(compressor.num_tokens(model.vision.grid))
    return {"mm_projector_type": "linear", "query_abstractor_type": "matry_query", "num_visual_tokens": told}


def _limits(model: ModelConfig) -> list[Limit]:
    compressor = model.compressor
    assert isinstance(compressor, MqtConfig)
    return [
        ("model.compressor.heads", compressor.heads, (HEADS,)),
        ("model.compressor.queries", compressor.queries, (QUERIES,)),
        ("model.compressor.elastic", compressor.elastic, ((), DRAWN)),
        ("model.compressor.stored_positions", compressor.stored_positions, (True,)),
    ]


def _rules(model: ModelConfig, family: str, prefix: str) -> list[Rule]:
    del family
    compressor = model.compressor
    assert isinstance(compressor, MqtConfig)
    name, sizes = f"{prefix}query_abstractor.", (compressor.queries, model.vision.feature_width)
    stored = same(f"{name}pos_embed", Scope(("compressor",)).slab("positions", *sizes))
    return [*compressor_rules(*sizes, model.decoder.width, compressor.heads, name), stored]


def compressor_rules(queries: int, width: int, output: int, heads: int, name: str = "") -> list[Rule]:
    """Rules of the module and its matrix to the decoder's width, which is the projector; without positions.

    Args:
      queries: how many are learned.
      width: D, the tower's.
      output: M, the decoder's width.
      heads: attention heads.
      name: what stands before the original's names.
    """
    scope = Scope(("compressor",))
    rules = [
        same(f"{name}query", scope.slab("queries", queries, width)),
        *attention(f"{name}attn", scope, "attention", width, heads),
        same(f"{name}proj", Scope(("projector",)).slab("fc1/kernel", width, output)),
    ]
    for k in "qkv":
        rules += norm(f"{name}ln_{k}", scope, f"{k}_norm", width, bias=True)
    return rules


MQT = Project(
    "gordonhu608/MQT-LLaVA 92c35d0",
    _settings,
    _keys,
    _limits,
    _rules,
    own=("query_abstractor_type", "num_visual_tokens"),
    projector="matrix",
    grid=GRID,
    model_type="llava_llama",
    architecture="LlavaLlamaForCausalLM",
    stage_one="query_abstractor.",
)
