"""Adapters as PEFT keeps them: their settings in adapter_config.json, and the names of their tensors."""

import re
from collections.abc import Iterable

from quecc_jax.config import LoraConfig
from quecc_jax.config.ranges import MEMORY, POSITIVE
from quecc_jax.convert.rules import Rule, Slab, matrix, some
from quecc_jax.errors import UserError
from quecc_jax.json_text import JsonObject
from quecc_jax.models.lora import NAME, PAIR

PREFIX = "base_model.model."
"""Before the names of the model that PEFT wraps."""

_HARMLESS = {
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
    "inference_mode", "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "use_rslora",
    "modules_to_save", "layers_to_transform", "layers_pattern", "megatron_core", "qalora_group_size",
    "runtime_config", "ensure_weight_tying", "eva_config", "loftq_config",
}  # fmt: skip
"""Settings that are read, or that change nothing of what the tensors beside them mean."""
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the base as it is."""


def lora_config(settings: JsonObject, where: str) -> LoraConfig:
    """The adapters that an adapter_config.json describes; which matrices have one, the tensors tell.

    Args:
      settings: the file's content.
      where: the file, for messages.

    Raises:
      UserError: another method than LoRA, or a variant of it that is not implemented, by name.
    """

    def refuse(name: str, why: str = "which is not implemented for adapters") -> UserError:
        return UserError(f"{where} has {name} {settings.get(name)!r}, {why}; use a plain LoRA")

    if settings.get("peft_type") != "LORA":
        raise refuse("peft_type", "and only LORA is read")
    if settings.get("init_lora_weights", True) not in _STARTS:
        raise refuse("init_lora_weights", "whose training changed the base as well")
    if settings.get("bias") not in (None, "none"):
        raise refuse("bias")
    for name, value in settings.items():
        if value and name not in (*_HARMLESS, "init_lora_weights", "bias"):
            raise refuse(name)
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    dropout, stabilised = settings.get("lora_dropout", 0.0), settings.get("use_rslora", False)
    if type(rank) is not int or rank < 1:
        raise refuse("r", "which is no rank")
    if isinstance(alpha, bool) or alpha not in POSITIVE:
        raise refuse("lora_alpha", "which is no positive number")
    if isinstance(dropout, bool) or dropout not in MEMORY:
        raise refuse("lora_dropout", "which is no share below 1")
    if not isinstance(stabilised, bool):
        raise refuse("use_rslora", "which is neither true nor false")
    return LoraConfig(rank, float(alpha), float(dropout), rank_stabilised=stabilised)


def copied_modules(settings: JsonObject) -> tuple[str, ...]:
    """Ends of the names of modules that PEFT trains a copy of, which nothing ties to other modules."""
    names = settings.get("modules_to_save") or ()
    return () if settings.get("ensure_weight_tying") else (names,) if isinstance(names, str) else tuple(names)


def peft_settings(lora: LoraConfig, names: Iterable[str]) -> JsonObject:
    """The adapter_config.json of adapters of some matrices, whose weights have these names."""
    modules = {name.removesuffix(".weight").rpartition(".")[2] for name in names}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted(modules),
        "use_rslora": lora.rank_stabilised,
        "use_dora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
    }


def plain_name(name: str) -> str:
    """The name that a tensor of the wrapped model has without the wrapper."""
    bare = name.removeprefix(PREFIX)
    # LLaVA's non_lora_trainables of a model that was wrapped twice.
    return bare.removeprefix("model.") if bare.startswith("model.model.") else bare


def split_names(names: Iterable[str], where: str) -> tuple[dict[str, tuple[str, str]], dict[str, str]]:
    """What an adapter's tensors are.

    Returns:
      The names of A and B by the name of the weight that they change, and, by the name of the weight that it
      stands in for, of every other tensor.

    Raises:
      UserError: an A without its B or the other way round; a tensor of a method that is not implemented; or two
        that stand in for the same.
    """
    halves: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    for name in names:
        bare = plain_name(name)
        if found := re.fullmatch(r"(.+)\.lora_([AB])(\.default)?\.weight", bare):
            halves.setdefault(f"{found[1]}.weight", {})[found[2]] = name
        elif re.search(r"(^|[._])(lora|dora|ia3|hada|lokr|oft|boft|vera|adapter|prompt)([._]|$)", bare):
            raise UserError(
                f"{where} holds {name}, which is no part of a plain LoRA and is not read; use one"
            )
        else:
            weight = re.sub(r"\.(modules_to_save(\.default)?|base_layer)(?=\.)", "", bare)
            if weight in whole:
                raise UserError(f"{where} has both {whole[weight]} and {name} for {weight}; keep one of them")
            whole[weight] = name
    if alone := [weight for weight, both in halves.items() if len(both) < 2]:
        raise UserError(
            f"{where} has only one of lora_A and lora_B of {some(alone, 3)}; download the adapter again"
        )
    return {weight: (both["A"], both["B"]) for weight, both in halves.items()}, whole


def pair_rules(rule: Rule, pair: tuple[str, str], rank: int) -> list[Rule] | None:
    """Rules of the adapter of a weight.

    Args:
      rule: of the weight.
      pair: names of A [rank, in] and B [out, rank].
      rank: of the adapter.

    Returns:
      None where the weight is not one matrix of one of the decoder's layers.
    """
    weight = rule.ours[0]
    if len(rule.ours) > 1 or weight.path[:2] != ("decoder", "layers") or weight.path[-1] != "kernel":
        return None
    inputs = 2 if weight.path[2] == "out" else 1
    first, second = (
        Slab((NAME, *weight.path[1:-1], own), weight.layer, shape)
        for own, shape in zip(
            PAIR, ((*weight.shape[:inputs], rank), (rank, *weight.shape[inputs:])), strict=True
        )
    )
    return [matrix(pair[0], first, inputs=inputs), matrix(pair[1], second)]
