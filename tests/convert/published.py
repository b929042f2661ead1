"""config.json files of today's language models, key by key as their repositories on the Hugging Face Hub have them.

Longer lists are given by their rule. `shrunken` keeps every key and makes the sizes small.
"""

from typing import Any

Json = dict[str, Any]

_STORED: Json = {"initializer_range": 0.02, "torch_dtype": "bfloat16", "use_cache": True}
_PLAIN: Json = _STORED | {"attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu"}

FACTORS = [1.0 + i / 48 for i in range(48)]
"""Stand-ins for the 48 numbers of Phi-4-mini's short and long factors."""

PUBLISHED: dict[str, Json] = {
    "Qwen/Qwen2.5-0.5B-Instruct": {
        **{name: value for name, value in _PLAIN.items() if name != "attention_bias"},
        "architectures": ["Qwen2ForCausalLM"],
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "max_window_layers": 21,
        "model_type": "qwen2",
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "transformers_version": "4.43.1",
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "Qwen/Qwen3-4B": {
        **_PLAIN,
        "architectures": ["Qwen3ForCausalLM"],
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "max_position_embeddings": 40960,
        "max_window_layers": 36,
        "model_type": "qwen3",
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "transformers_version": "4.51.0",
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "meta-llama/Llama-3.2-1B-Instruct": {
        **_PLAIN,
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009],
        "head_dim": 64,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "transformers_version": "4.45.0.dev0",
        "vocab_size": 128256,
    },
    "mistralai/Mistral-7B-Instruct-v0.3": {
        **{name: value for name, value in _PLAIN.items() if name != "attention_bias"},
        "architectures": ["MistralForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "transformers_version": "4.42.0.dev0",
        "vocab_size": 32768,
    },
    "HuggingFaceTB/SmolLM3-3B": {
        **_PLAIN,
        "architectures": ["SmolLM3ForCausalLM"],
        "bos_token_id": None,
        "eos_token_id": 128012,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "layer_types": 36 * ["full_attention"],
        "max_position_embeddings": 65536,
        "max_window_layers": 28,
        "mlp_bias": False,
        "model_type": "smollm3",
        "no_rope_layer_interval": 4,
        "no_rope_layers": 9 * [1, 1, 1, 0],
        "num_attention_heads": 16,
        "num_hidden_layers": 36,
        "num_key_value_heads": 4,
        "pad_token_id": 128004,
        "pretraining_tp": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 5000000.0,
        "sliding_window": None,
        "transformers_version": "4.54.0.dev0",
        "use_sliding_window": False,
        "vocab_size": 128256,
    },
    "allenai/OLMo-2-1124-7B": {
        **_PLAIN,
        "architectures": ["Olmo2ForCausalLM"],
        "eos_token_id": 100257,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "max_position_embeddings": 4096,
        "model_type": "olmo2",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "pad_token_id": 100277,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 500000,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.47.0.dev0",
        "vocab_size": 100352,
    },
    "microsoft/Phi-4-mini-instruct": {
        **_PLAIN,
        "architectures": ["Phi3ForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
        "bos_token_id": 199999,
        "embd_pdrop": 0.0,
        "eos_token_id": 199999,
        "full_attn_mod": 1,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "interpolate_factor": 1,
        "lm_head_bias": False,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "phi3",
        "num_attention_heads": 24,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "original_max_position_embeddings": 4096,
        "pad_token_id": 199999,
        "partial_rotary_factor": 0.75,
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {"type": "longrope", "short_factor": FACTORS, "long_factor": FACTORS[::-1]},
        "rope_theta": 10000.0,
        "sliding_window": 262144,
        "tie_word_embeddings": True,
        "transformers_version": "4.45.0",
        "vocab_size": 200064,
    },
    "google/gemma-2-2b-it": {
        **_STORED,
        "architectures": ["Gemma2ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": 50.0,
        "bos_token_id": 2,
        "cache_implementation": "hybrid",
        "eos_token_id": [1, 107],
        "final_logit_softcapping": 30.0,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "max_position_embeddings": 8192,
        "model_type": "gemma2",
        "num_attention_heads": 8,
        "num_hidden_layers": 26,
        "num_key_value_heads": 4,
        "pad_token_id": 0,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "transformers_version": "4.42.4",
        "vocab_size": 256000,
    },
    "google/gemma-3-1b-it": {
        **_STORED,
        "architectures": ["Gemma3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "bos_token_id": 2,
        "cache_implementation": "hybrid",
        "eos_token_id": [1, 106],
        "final_logit_softcapping": None,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "max_position_embeddings": 32768,
        "model_type": "gemma3_text",
        "num_attention_heads": 4,
        "num_hidden_layers": 26,
        "num_key_value_heads": 1,
        "pad_token_id": 0,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "transformers_version": "4.50.0.dev0",
        "vocab_size": 262144,
    },
    # The text_config of google/gemma-3-27b-it, with what it leaves to the class.
    "google/gemma-3-27b-it": {
        "head_dim": 128,
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "model_type": "gemma3_text",
        "num_attention_heads": 32,
        "num_hidden_layers": 62,
        "num_key_value_heads": 16,
        "query_pre_attn_scalar": 168,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
}
"""By repository."""

DEPTH = {"qwen2": 2, "qwen3": 2, "llama": 2, "mistral": 2, "smollm3": 5, "olmo2": 2, "phi3": 3, "gemma2": 3}
"""Layers that show what a family repeats; Gemma 3's are seven."""


def shrunken(name: str, **changes: Any) -> Json:
    """A published config.json with small sizes: widths, depth, vocabulary, and whatever counts positions."""
    hf = PUBLISHED[name]
    depth = DEPTH.get(hf["model_type"], 7)
    heads = 4 if hf.get("num_key_value_heads", 1) > 1 else 2
    many = hf["num_attention_heads"] == hf.get("num_key_value_heads")
    small: Json = {
        "vocab_size": 48,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": heads if many else heads // 2,
        "max_position_embeddings": 64,
        "rope_theta": 100.0,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if "head_dim" in hf:
        small["head_dim"] = 8
    if hf.get("query_pre_attn_scalar"):
        small["query_pre_attn_scalar"] = 5 if hf["query_pre_attn_scalar"] != hf.get("head_dim") else 8
    if hf.get("sliding_window") and "layer_types" not in hf:
        small["sliding_window"] = 4
    if "layer_types" in hf:
        small |= {"layer_types": hf["layer_types"][:depth], "no_rope_layers": hf["no_rope_layers"][:depth]}
    if hf.get("attn_logit_softcapping"):
        small |= {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 8.0}
    if "rope_local_base_freq" in hf:
        small["rope_local_base_freq"] = 20.0
    scaling = hf.get("rope_scaling") or {}
    if scaling.get("rope_type") == "llama3":
        small["rope_scaling"] = scaling | {
            "factor": 4.0,
            "low_freq_factor": 0.5,
            "high_freq_factor": 3.0,
            "original_max_position_embeddings": 24,
        }
    if "short_factor" in scaling:
        # Heads of 8, three quarters of which are rotated.
        small |= {
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "original_max_position_embeddings": 20,
            "rope_scaling": scaling | {"short_factor": [1.0, 1.3, 2.0], "long_factor": [1.5, 3.0, 0.6]},
        }
    return {**hf, **small, **changes}
