"""config.json and preprocessor_config.json of published vision towers, as public code that quotes them has them and
transformers' scripts write them. `shrunken` keeps every key and makes the sizes small."""

from typing import Any

Json = dict[str, Any]

_HALF: Json = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "SiglipImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "rescale_factor": 0.00392156862745098,
}
_SO400M: Json = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
}
_DINO: Json = {
    "attention_probs_dropout_prob": 0.0,
    "drop_path_rate": 0.0,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 1024,
    "image_size": 518,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-06,
    "layerscale_value": 1.0,
    "mlp_ratio": 4,
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
}
_BIT: Json = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "BitImageProcessor",
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 256},
}


def _square(side: int) -> Json:
    return {"size": {"height": side, "width": side}}


PUBLISHED: dict[str, tuple[Json, Json]] = {
    "google/siglip-so400m-patch14-384": (
        {
            "architectures": ["SiglipModel"],
            "initializer_factor": 1.0,
            "model_type": "siglip",
            "text_config": {**_SO400M, "model_type": "siglip_text_model"},
            "vision_config": {**_SO400M, "image_size": 384, "patch_size": 14},
        },
        {**_HALF, **_square(384), "resample": 3, "processor_class": "SiglipProcessor"},
    ),
    "google/siglip-base-patch16-224": (
        {
            "architectures": ["SiglipModel"],
            "initializer_factor": 1.0,
            "model_type": "siglip",
            "text_config": {"model_type": "siglip_text_model"},
            "vision_config": {"model_type": "siglip_vision_model"},
        },
        {**_HALF, **_square(224), "resample": 3, "processor_class": "SiglipProcessor"},
    ),
    "google/siglip2-so400m-patch14-384": (
        {
            "architectures": ["SiglipModel"],
            "initializer_factor": 1.0,
            "model_type": "siglip",
            "text_config": {**_SO400M, "model_type": "siglip_text_model", "vocab_size": 256000},
            "vision_config": {**_SO400M, "image_size": 384, "patch_size": 14},
        },
        {
            **_HALF,
            **_square(384),
            "resample": 2,
            "processor_class": "SiglipProcessor",
            "do_convert_rgb": None,
        },
    ),
    "google/siglip2-base-patch16-512": (
        {
            "architectures": ["SiglipModel"],
            "initializer_factor": 1.0,
            "model_type": "siglip",
            "text_config": {"model_type": "siglip_text_model", "vocab_size": 256000},
            "vision_config": {"image_size": 512, "model_type": "siglip_vision_model"},
        },
        {
            **_HALF,
            **_square(512),
            "resample": 2,
            "processor_class": "SiglipProcessor",
            "do_convert_rgb": None,
        },
    ),
    "facebook/dinov2-large": ({**_DINO, "architectures": ["Dinov2Model"], "model_type": "dinov2"}, _BIT),
    "facebook/dinov2-with-registers-large": (
        {
            **_DINO,
            "architectures": ["Dinov2WithRegistersModel"],
            "interpolate_antialias": True,
            "interpolate_offset": 0.0,
            "model_type": "dinov2_with_registers",
            "num_register_tokens": 4,
        },
        _BIT,
    ),
    "facebook/dinov2-giant": (
        {
            **_DINO,
            "architectures": ["Dinov2Model"],
            "hidden_size": 1536,
            "model_type": "dinov2",
            "num_attention_heads": 24,
            "num_hidden_layers": 40,
            "use_swiglu_ffn": True,
        },
        _BIT,
    ),
}
"""(config.json, preprocessor_config.json) by repository."""

PRESETS = {
    "siglip-so400m-14-384": "google/siglip-so400m-patch14-384",
    "siglip-base-16-224": "google/siglip-base-patch16-224",
    "siglip2-so400m-14-384": "google/siglip2-so400m-patch14-384",
    "siglip2-base-16-512": "google/siglip2-base-patch16-512",
    "dinov2-large": "facebook/dinov2-large",
    "dinov2-large-registers": "facebook/dinov2-with-registers-large",
}
"""Our names of some of them."""


def shrunken(name: str) -> tuple[Json, Json]:
    """Both files with small sizes: patches of 5 pixels, of which so400m/14's squares of 23 hold no whole number, and
    DINOv2's positions for 8 x 8 patches, of whose images 6 x 6 are cut out."""
    hf, processor = PUBLISHED[name]
    small: Json = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "patch_size": 5}
    if "vision_config" in hf:
        side = 23 if "patch14" in name else 25
        vision = {**hf["vision_config"], **small, "intermediate_size": 40, "image_size": side}
        text = {**hf["text_config"], "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1}
        text |= {
            "num_attention_heads": 2,
            "vocab_size": 30,
            "max_position_embeddings": 8,
            "projection_size": 24,
        }
        return {**hf, "vision_config": vision, "text_config": text}, {**processor, **_square(side)}
    cut = {"size": {"shortest_edge": 34}, "crop_size": {"height": 30, "width": 30}}
    return {**hf, **small, "image_size": 40}, {**processor, **cut}
