"""Decoder families: their Hugging Face tensor names to the one decoder's parameters, and back."""

from typing import Any

from quecc_jax.config import DecoderConfig
from quecc_jax.convert.rules import Rule, Scope, Shape, Slab, dense, matrix, norm, same
from quecc_jax.errors import UserError


def decoder_rules(
    config: DecoderConfig, family: str, prefix: str = "", body: str | None = None, head_too: bool = False
) -> list[Rule]:
    """Rules of a decoder; our leaves are under `decoder`.

    A tied decoder has no output matrix on our side. Files that hold a copy of the table as
    `lm_head.weight` all the same are read with `head_too`; the copy must equal the table.

    Args:
      config: the decoder.
      family: its model_type, which decides the names and what is fused.
      prefix: what stands before all names, e.g. "language_model.".
      body: what stands before the names without the output matrix; None is the prefix followed by
        "model." ("transformer." for MPT).
      head_too: whether the file of a tied decoder holds the output matrix.
    """
    mpt = family == "mpt"
    body = prefix + ("transformer." if mpt else "model.") if body is None else body
    scope = Scope(("decoder",))
    table = scope.slab("embedding", config.vocab_size, config.width)
    embed, head = body + ("wte.weight" if mpt else "embed_tokens.weight"), f"{prefix}lm_head.weight"
    rules = norm(body + ("norm_f" if mpt else "norm"), scope, "norm", config.width, bias=False)
    if not config.tie_embeddings:
        rules.append(matrix(head, scope.slab("head", config.width, config.vocab_size)))
    rules.append(_twice(embed, head, table) if config.tie_embeddings and head_too else same(embed, table))
    make = {"mpt": _mpt_layer, "phi3": _phi3_layer}.get(family, _llama_layer)
    for i in range(config.depth):
        layer = f"{body}blocks.{i}" if mpt else f"{body}layers.{i}"
        rules += make(config, layer, Scope(("decoder", "layers"), i))
    return rules


def _twice(first: str, second: str, slab: Slab) -> Rule:
    """One matrix of ours that they hold under two names."""

    def one(theirs: tuple[Any, ...]) -> tuple[Any, ...]:
        if not bool((theirs[0] == theirs[1]).all()):
            raise UserError(
                f"{second} differs from {first}, but config.json ties them; "
                "set tie_word_embeddings to false if the model has an output matrix of its own"
            )
        return (theirs[0],)

    return Rule((first, second), (slab.shape,) * 2, (slab,), one, lambda ours: (ours[0], ours[0]))


def _projections(config: DecoderConfig) -> tuple[Shape, Shape, Shape]:
    """(width,), and the output axes of the query and of keys and values."""
    return (config.width,), (config.heads, config.head_dim), (config.kv_heads, config.head_dim)


def _llama_layer(config: DecoderConfig, name: str, scope: Scope) -> list[Rule]:
    """LLaMA, Mistral and Qwen2: every matrix by itself."""
    width, query, key = _projections(config)
    attention, mlp, hidden = f"{name}.self_attn", f"{name}.mlp", (config.mlp_width,)
    rules = [
        *norm(f"{name}.input_layernorm", scope, "norm1", config.width, bias=False),
        *norm(f"{name}.post_attention_layernorm", scope, "norm2", config.width, bias=False),
        *dense(f"{attention}.o_proj", scope, "out", query, width, bias=False),
        *dense(f"{mlp}.gate_proj", scope, "gate", width, hidden, bias=False),
        *dense(f"{mlp}.up_proj", scope, "up", width, hidden, bias=False),
        *dense(f"{mlp}.down_proj", scope, "down", hidden, width, bias=False),
    ]
    for k, outs in (("q", query), ("k", key), ("v", key)):
        rules += dense(f"{attention}.{k}_proj", scope, k, width, outs, bias=config.qkv_bias)
    return rules


def _fused_qkv(config: DecoderConfig, name: str, scope: Scope) -> Rule:
    """Queries, keys and values in one matrix."""
    width, query, key = _projections(config)
    pairs = zip("qkv", (query, key, key), strict=True)
    return matrix(name, *(scope.slab(f"{k}/kernel", *width, *outs) for k, outs in pairs))


def _phi3_layer(config: DecoderConfig, name: str, scope: Scope) -> list[Rule]:
    """Phi-3: queries, keys and values in one matrix, gate and up in another."""
    width, query, _ = _projections(config)
    hidden = (config.mlp_width,)
    return [
        *norm(f"{name}.input_layernorm", scope, "norm1", config.width, bias=False),
        *norm(f"{name}.post_attention_layernorm", scope, "norm2", config.width, bias=False),
        _fused_qkv(config, f"{name}.self_attn.qkv_proj.weight", scope),
        *dense(f"{name}.self_attn.o_proj", scope, "out", query, width, bias=False),
        matrix(
            f"{name}.mlp.gate_up_proj.weight",
            scope.slab("gate/kernel", *width, *hidden),
            scope.slab("up/kernel", *width, *hidden),
        ),
        *dense(f"{name}.mlp.down_proj", scope, "down", hidden, width, bias=False),
    ]


def _mpt_layer(config: DecoderConfig, name: str, scope: Scope) -> list[Rule]:
    """MPT: queries, keys and values in one matrix; an MLP of two."""
    width, query, _ = _projections(config)
    hidden = (config.mlp_width,)
    return [
        *norm(f"{name}.norm_1", scope, "norm1", config.width, bias=False),
        *norm(f"{name}.norm_2", scope, "norm2", config.width, bias=False),
        _fused_qkv(config, f"{name}.attn.Wqkv.weight", scope),
        *dense(f"{name}.attn.out_proj", scope, "out", query, width, bias=False),
        *dense(f"{name}.ffn.up_proj", scope, "up", width, hidden, bias=False),
        *dense(f"{name}.ffn.down_proj", scope, "down", hidden, width, bias=False),
    ]
