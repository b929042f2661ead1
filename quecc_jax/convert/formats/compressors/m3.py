"""M3's models (github.com/mu-cai/matryoshka-mm): LLaVA's own tensors, pooled."""

from quecc_jax.config import ModelConfig
from quecc_jax.convert.formats.compressors.project import Project
from quecc_jax.errors import UserError
from quecc_jax.json_text import JsonObject
from quecc_jax.models.compressors.m3_config import M3Config

KEY = "matryoshka_vis_token_scale"


def _settings(hf: JsonObject) -> M3Config | None:
    scales = hf.get(KEY)
    if scales is None:
        return None
    if not isinstance(scales, list) or not scales or not all(type(scale) is int for scale in scales):
        raise UserError(
            f"{KEY} {scales!r} in config.json is not a list of numbers of visual tokens; write there those that the "
            "model was trained with, such as [1, 9, 36, 144, 576]"
        )
    return M3Config(elastic=tuple(sorted({*scales})))


def _keys(model: ModelConfig) -> JsonObject:
    return {KEY: list(model.compressor.elastic or (model.visual_tokens,))}


M3 = Project(
    "mu-cai/matryoshka-mm ec30cd3",
    _settings,
    _keys,
    lambda model: [],
    lambda model, family, prefix: [],
    own=(KEY,),
    tiles=True,
    scales=True,
    model_type="llava_llama",
    architecture="LlavaLlamaForCausalLM",
)
