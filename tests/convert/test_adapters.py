"""Which files are of an adapter, and how far around weights they are looked for."""

import pytest

from quecc_jax.convert.io.adapters import is_adapter_file, refuse_adapter_files
from quecc_jax.errors import UserError


@pytest.mark.parametrize(
    "name",
    [
        "adapter_config.json",
        "adapter_model.safetensors",
        "non_lora_trainables.bin",
        "pytorch_lora_weights.safetensors",
        "LoRA.pt",
        "qlora-7b.bin",
        "my-qlora.safetensors",
        "sdxl.lora.safetensors",
    ],
)
def test_files_of_adapters(name):
    assert is_adapter_file(name)


@pytest.mark.parametrize("name", ["exploration.safetensors", "flora-7b.bin", "model.safetensors", "lora.md"])
def test_names_that_only_look_like_it(name):
    assert not is_adapter_file(name)


def test_folders_are_searched_as_deep_as_asked(tmp_path):
    folder = tmp_path / "sub" / "other"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    refuse_adapter_files(tmp_path, levels=0)
    with pytest.raises(UserError, match=r"sub/other/adapter_config\.json"):
        refuse_adapter_files(tmp_path)
