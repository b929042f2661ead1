"""What a project's own code computes of a small checkpoint in its layout.

    python tests/golden/published/make.py PROJECT CLONE SCRATCH

PROJECT is a key of PROJECTS, CLONE a clone of its repository at the commit that README.md names, SCRATCH a folder for
an edited copy and the checkpoint. It runs in an environment of torch, transformers 4.43.1, einops and Pillow. Widths
that the code writes out as numbers (1024, 4096) are replaced in the copy, so that a model is small, and packages that
it imports and does not use here are left out; nothing of what it computes is changed.
"""

import importlib
import json
import os
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import drawn
import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
SIDE, IDS = 48, [[1, 5, 9, -200, 13, 0, 22, 41, 0, 17], [1, 8, 3, -200, 90, 77, 0, 2, 33, 64]]
SCALES, NEW = [1, 9, 36, 144, 576], 12
BUILDER = "llava/model/multimodal_projector/builder.py"
LLAVA = "llava.model.language_model.llava_llama", "LlavaConfig", "LlavaLlamaForCausalLM"
MINI = "llavamini.model.language_model.llavamini_llama", "LlavaMiniConfig", "LlavaMiniLlamaForCausalLM"
LLAMA_3 = {
    "num_key_value_heads": 2,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
        "rope_type": "llama3",
    },
}
FLAT = {"mm_patch_merge_type": "flat", "mm_projector_type": "mlp2x_gelu", "image_aspect_ratio": "pad"}
PROJECTS: dict[str, dict[str, Any]] = {
    "tokenpacker": {
        "classes": LLAVA,
        "edits": {
            BUILDER: {
                "1024//128": "8",
                "4096, 1024": "128, 32",
                "(1024, 1024)": "(32, 32)",
                "=1024": "=32",
                "nn.Linear(1024": "nn.Linear(32",
            }
        },
        "keys": {"mm_projector_type": "tokenpacker", "scale_factor": 4, "image_aspect_ratio": "pad"},
        "depth": 24,
        "tokens": (36,),
    },
    "mqt": {
        "classes": LLAVA,
        "edits": {BUILDER: {"kv_dim=1024": "kv_dim=32"}},
        "keys": {
            **FLAT,
            "mm_projector_type": "linear",
            "query_abstractor_type": "matry_query",
            "num_visual_tokens": "second_stage",
        },
        "asks": "num_visual_tokens",
        "tokens": (2, 30),
    },
    "m3": {
        "classes": LLAVA,
        "keys": {**FLAT, "matryoshka_vis_token_scale": SCALES},
        "asks": "matryoshka_vis_token_scale",
        "tokens": (1, 9, 36),
    },
    "m3_tiles": {
        "classes": LLAVA,
        "keys": {
            **FLAT,
            "matryoshka_vis_token_scale": SCALES,
            "mm_patch_merge_type": "spatial_unpad",
            "image_aspect_ratio": "anyres",
            "image_grid_pinpoints": [[48, 96], [96, 48], [96, 96], [144, 48], [48, 144]],
            "tokenizer_model_max_length": 4096,
        },
        "asks": "matryoshka_vis_token_scale",
        "tokens": (1, 9),
    },
    "llava_mini": {
        "classes": MINI,
        "edits": {"llavamini/model/llavamini_arch.py": {"embed_dim=1024": "embed_dim=32"}},
        "keys": {
            **FLAT,
            "image_aspect_ratio": "square",
            "compressor_size": 2,
            "prefusion_layer_num": 2,
            "resolution_ratio": 1,
        },
        "decoder": LLAMA_3,
        "tokens": (4,),
    },
}


def classes(project: dict[str, Any], clone: Path, copy: Path) -> tuple[Any, Any]:
    """The classes of a project's config and model, of a copy with small widths."""
    package = project["classes"][0].split(".")[0]
    shutil.rmtree(copy, ignore_errors=True)
    for name in {package, "llava"}:
        shutil.copytree(clone / name, copy / name)
        # The packages import all of their models' classes.
        for init in ("__init__.py", "model/__init__.py"):
            (copy / name / init).write_text("")
    for file, replaced in project.get("edits", {}).items():
        text = (copy / file).read_text()
        for old, new in replaced.items():
            assert old in text, (file, old)
            text = text.replace(old, new)
        (copy / file).write_text(text)
    vision = types.ModuleType("torchvision")
    vision.transforms = types.ModuleType("torchvision.transforms")  # type: ignore[attr-defined]
    vision.transforms.InterpolationMode = None
    sys.modules |= {"torchvision": vision, "torchvision.transforms": vision.transforms}
    for auto in (transformers.AutoConfig, transformers.AutoModelForCausalLM):
        # transformers has a "llava" of its own since.
        setattr(auto, "register", lambda *_, **__: None)  # noqa: B010
    sys.path.insert(0, str(copy))
    module = importlib.import_module(project["classes"][0])
    return tuple(getattr(module, name) for name in project["classes"][1:])  # type: ignore[return-value]


def build(project: dict[str, Any], clone: Path, scratch: Path) -> Any:
    """A small model with the weights of `drawn`, saved by its own code in the current folder."""
    config_class, model_class = classes(project, clone, scratch / "code")
    tower = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=project.get("depth", 4),
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=2,
    )
    transformers.CLIPVisionModel(tower).save_pretrained("clip")
    transformers.CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    ).save_pretrained("clip")
    config = config_class(
        vocab_size=96,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        **project.get("decoder", {}),
    )
    common = {
        "mm_vision_tower": "clip",
        "mm_hidden_size": 32,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "use_mm_proj": True,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "tokenizer_padding_side": "right",
        "tokenizer_model_max_length": 2048,
    }
    for key, value in {**common, **project["keys"]}.items():
        setattr(config, key, value)
    model = model_class(config).eval()
    model.get_vision_tower().load_model()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            # Positions are what the project's code makes of them.
            if tensor.is_floating_point() and not name.endswith("pos_embed"):
                tensor.copy_(torch.from_numpy(drawn.weights(name, *tensor.shape)))
    model.save_pretrained(".", safe_serialization=True)
    return model.float()


def images_of(name: str, model: Any) -> tuple[Any, dict[str, Any]]:
    """What the model is given of images, and what else."""
    processor = model.get_vision_tower().image_processor
    if name == "m3_tiles":
        from llava.mm_utils import process_anyres_image
        from PIL import Image

        image = Image.fromarray(drawn.pixels(1, 100)[0, :60])
        pinpoints = model.config.image_grid_pinpoints
        return [process_anyres_image(image, processor, pinpoints)], {"image_sizes": [image.size]}
    scaled = drawn.pixels(2, SIDE).astype(np.float32) / 255
    pixels = (scaled - np.float32(processor.image_mean)) / np.float32(processor.image_std)
    given = torch.from_numpy(pixels.astype(np.float32).transpose(0, 3, 1, 2))
    return (given[:, None] if name == "llava_mini" else given), {}


def greedy(model: Any, ids: torch.Tensor, images: torch.Tensor, asked: dict[str, int]) -> np.ndarray:
    """int64 [B, NEW]: the first tokens of each row's answer by the project's own `generate`."""
    prepare = model.prepare_inputs_for_generation

    def without_place(
        input_ids: Any,
        past_key_values: Any = None,
        attention_mask: Any = None,
        inputs_embeds: Any = None,
        **more: Any,
    ) -> Any:
        given = {"past_key_values": past_key_values, "attention_mask": attention_mask}
        made = prepare(input_ids, inputs_embeds=inputs_embeds, **given, **more)
        # transformers of 2024 names it; the projects' forward of 2023 does not take it.
        return {k: v for k, v in made.items() if k != "cache_position"}

    model.prepare_inputs_for_generation = without_place
    limits = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": None, "pad_token_id": 0}
    rows = [model.generate(ids[[r]], images=images[[r]], **limits, **asked) for r in range(len(ids))]
    model.prepare_inputs_for_generation = prepare
    return torch.cat(rows).numpy()


def main(name: str, clone: Path, scratch: Path) -> None:
    project, made = PROJECTS[name], scratch / "made"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    os.chdir(made)
    model = build(project, clone, scratch)
    images, more = images_of(name, model)
    ids = torch.tensor(IDS[:1] if name == "m3_tiles" else IDS)
    stored = {k: v for k, v in model.state_dict().items() if k.endswith("pos_embed")}
    arrays = {f"stored/{k}": v.numpy() for k, v in stored.items()} | {"ids": ids.numpy()}
    for tokens in project["tokens"]:
        asked = {project["asks"]: tokens} if "asks" in project else {}
        with torch.no_grad():
            if name == "tokenpacker":
                embeds = model.prepare_inputs_labels_for_multimodal(ids, *[None] * 3, images, *[None] * 3)[3]
                logits = model(input_ids=ids, images=images).logits
            else:
                embeds = model.prepare_inputs_labels_for_multimodal(
                    ids, *[None] * 4, images, **more, **asked
                )[4]
                logits = model(inputs_embeds=embeds).logits
        arrays |= {f"{tokens}/inputs_embeds": embeds.numpy(), f"{tokens}/logits": logits.numpy()}
        if isinstance(images, torch.Tensor) and name != "tokenpacker":
            arrays[f"{tokens}/greedy"] = greedy(model, ids, images, asked)
    np.savez_compressed(HERE / f"{name}.npz", **arrays)
    shapes = {k: list(v.shape) for k, v in model.state_dict().items()}
    written = {"config.json": json.loads(Path("config.json").read_text()), "shapes": shapes}
    tower = {"clip/config.json": json.loads(Path("clip/config.json").read_text())}
    (HERE / f"{name}.json").write_text(json.dumps({**written, **tower}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).resolve(), Path(sys.argv[3]).resolve())
