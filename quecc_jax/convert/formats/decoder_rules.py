"""Decoder families: their Hugging Face tensor names to the one decoder's parameters, and back."""

from quecc_jax.config import DecoderConfig
from quecc_jax.convert.rules import Arrays, Rule, Scope, Shape, Slab, dense, matrix, norm, same, vector
from quecc_jax.errors import UserError

_SHARED = {
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
    "out": "self_attn.o_proj",
    "down": "mlp.down_proj",
}
_LLAMA = _SHARED | {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
}
_AROUND = {"post_norm1": "post_attention_layernorm", "post_norm2": "post_feedforward_layernorm"}
_GEMMA = _LLAMA | _AROUND | {"norm2": "pre_feedforward_layernorm"}
_NAMES = {
    "olmo2": _LLAMA | _AROUND,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "phi3": _SHARED | {"qkv": "self_attn.qkv_proj", "gate_up": "mlp.gate_up_proj"},
    "mpt": {
        "norm1": "norm_1",
        "norm2": "norm_2",
        "qkv": "attn.Wqkv",
        "out": "attn.out_proj",
        "up": "ffn.up_proj",
        "down": "ffn.down_proj",
    },
}
"""Our modules of a layer, or several in one, and their names; LLaMA's for the families that are not here."""


TABLES = ("wte.weight", "embed_tokens.weight")
"""Ends of the names of tables of embeddings, MPT's and all others'."""


def body_prefix(family: str) -> str:
    """What stands before a family's names but for the output matrix; before the original's LLaVA names too."""
    return "transformer." if family == "mpt" else "model."


def embedding_name(family: str) -> str:
    """The end of the name of a family's table of embeddings."""
    return TABLES[0] if family == "mpt" else TABLES[1]


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
        `body_prefix`.
      head_too: whether the file of a tied decoder holds the output matrix.
    """
    mpt = family == "mpt"
    body = prefix + body_prefix(family) if body is None else body
    scope = Scope(("decoder",))
    table = scope.slab("embedding", config.vocab_size, config.width)
    embed, head = body + embedding_name(family), f"{prefix}lm_head.weight"
    rules = norm(body + ("norm_f" if mpt else "norm"), scope, "norm", config.width, bias=False)
    if not config.tie_embeddings:
        rules.append(matrix(head, scope.slab("head", config.width, config.vocab_size)))
    rules.append(_twice(embed, head, table) if config.tie_embeddings and head_too else same(embed, table))
    for i in range(config.depth):
        layer = f"{body}blocks.{i}" if mpt else f"{body}layers.{i}"
        rules += layer_rules(config, family, layer, Scope(("decoder", "layers"), i))
    return rules


def _twice(first: str, second: str, slab: Slab) -> Rule:
    """One matrix of ours that they hold under two names."""

    def one(theirs: Arrays) -> Arrays:
        if not bool((theirs[0] == theirs[1]).all()):
            raise UserError(
                f"{second} differs from {first}, but config.json ties them; "
                "set tie_word_embeddings to false if the model has an output matrix of its own"
            )
        return (theirs[0],)

    return Rule((first, second), (slab.shape,) * 2, (slab,), one, lambda ours: (ours[0], ours[0]))


def layer_rules(config: DecoderConfig, family: str, name: str, scope: Scope) -> list[Rule]:
    """One layer. LLaMA, Mistral and Qwen2 hold every matrix by itself, Phi-3 and MPT queries, keys and values in
    one; Phi-3 has gate and up in another, MPT no gate."""
    names = _NAMES.get(family, _LLAMA)
    width, hidden, key = (config.width,), (config.mlp_width,), (config.kv_heads, config.head_dim)
    outs = {"q": (config.heads, config.head_dim), "k": key, "v": key, "gate": hidden, "up": hidden}

    def one(own: str, ins: Shape, outs: Shape, bias: bool = False) -> list[Rule]:
        return dense(f"{name}.{names[own]}", scope, own, ins, outs, bias)

    def fused(theirs: str, *own: str) -> Rule:
        slabs = (scope.slab(f"{k}/kernel", *width, *outs[k]) for k in own)
        return matrix(f"{name}.{names[theirs]}.weight", *slabs)

    before, behind = config.norm_sites != "after", config.norm_sites != "before"
    sites = [*(("norm1", "norm2") if before else ()), *(("post_norm1", "post_norm2") if behind else ())]
    rules = [rule for k in sites for rule in norm(f"{name}.{names[k]}", scope, k, *width, bias=False)]
    if config.qk_norm != "none":
        for k in ("q", "k"):
            shape = outs[k] if config.qk_norm == "all" else outs[k][1:]
            rules.append(vector(f"{name}.self_attn.{k}_norm.weight", scope.slab(f"{k}_norm/scale", *shape)))
    rules += [fused("qkv", "q", "k", "v")] if "qkv" in names else []
    rules += one("out", outs["q"], width, config.out_bias)
    rules += [fused("gate_up", "gate", "up")] if "gate_up" in names else []
    for k in ("gate", "up"):
        rules += one(k, width, hidden) if k in names else []
    rules += one("down", hidden, width)
    for k in "qkv":
        rules += one(k, width, outs[k], config.qkv_bias) if k in names else []
    return rules
