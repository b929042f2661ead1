"""Adapters against PEFT's on the same torch model: outputs, merged, what one step of training does, and files."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from quecc_jax.config import MeshConfig, OptimizerConfig, RunConfig, TrainConfig
from quecc_jax.convert.run import export_weights, import_weights
from quecc_jax.data.batch import IGNORE, Batch
from quecc_jax.errors import UserError
from quecc_jax.models.decoder import Decoder
from quecc_jax.models.lora import joined, merged
from quecc_jax.sharding import make_mesh
from quecc_jax.train.checkpoint import load_params, named_leaves, save_params
from quecc_jax.train.initial import initial_state
from quecc_jax.train.step import build_trainer
from tests.golden_check import TOLERANCE, error
from tests.parity.compare import randomise
from tests.parity.test_decoders import SMALL, B, S

KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (transformers.LlamaConfig(**SMALL), {"target_modules": "all-linear"}),
    "llama_stabilised": (
        transformers.LlamaConfig(**SMALL, head_dim=8),
        {"target_modules": ["q_proj", "o_proj", "down_proj"], "use_rslora": True},
    ),
    "qwen2": (transformers.Qwen2Config(**SMALL), {"target_modules": ["k_proj", "v_proj", "gate_proj"]}),
}
PICKLED = {"llama_stabilised"}
"""Kinds whose adapters are saved as pickles."""


class Pair(NamedTuple):
    """A torch model under an adapter, and the runs that its directories became."""

    theirs: Any
    folder: Path
    kind: str

    def run(self, merge: bool = False) -> Path:
        out = self.folder / ("merged" if merge else "apart")
        if not out.exists():
            import_weights(
                self.folder / "base",
                out,
                adapter=self.folder / "lora",
                merge_adapter=merge,
                allow_pickle=True,
            )
        return out

    def adapter(self) -> dict[str, np.ndarray]:
        """The adapter's tensors by the names of its files."""
        state = peft.get_peft_model_state_dict(self.theirs)
        return {name: tensor.detach().numpy().copy() for name, tensor in state.items()}


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory) -> Pair:
    config, settings = KINDS[request.param]
    folder = tmp_path_factory.mktemp("lora")
    base = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    randomise(base)
    base.save_pretrained(folder / "base")
    lora = peft.LoraConfig(r=3, lora_alpha=5, lora_dropout=0.0, task_type="CAUSAL_LM", **settings)
    theirs = peft.get_peft_model(base, lora).eval()
    rng = np.random.default_rng(3)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.from_numpy(0.3 * rng.normal(size=parameter.shape)))
    theirs.save_pretrained(folder / "lora")
    if request.param in PICKLED:
        file = folder / "lora" / "adapter_model.safetensors"
        torch.save(peft.get_peft_model_state_dict(theirs), file.with_suffix(".bin"))
        file.unlink()
    return Pair(theirs, folder, request.param)


def tokens() -> np.ndarray:
    return np.random.default_rng(7).integers(3, SMALL["vocab_size"], (B, S)).astype(np.int32)


def their_logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(tokens()).long()).logits.numpy()


def our_logits(config: RunConfig, decoder: Any) -> np.ndarray:
    model = Decoder(config.model.decoder, lora=config.model.lora)
    ids = jnp.asarray(tokens())
    positions = jnp.broadcast_to(jnp.arange(S), ids.shape)

    def logits(model: Decoder) -> jax.Array:
        return model.logits(model(model.embed(ids), positions, jnp.ones_like(ids))[0])

    return np.asarray(model.apply({"params": decoder}, method=logits))


def test_logits_apart_and_merged(pair):
    expected = their_logits(pair.theirs)
    config, params = load_params(pair.run())
    assert config.model.lora.rank == 3
    assert error(our_logits(config, joined(params)["decoder"]), expected) < TOLERANCE
    with pair.theirs.disable_adapter():
        assert error(expected, their_logits(pair.theirs)) > 0.1
    bare, whole = load_params(pair.run(merge=True))
    assert not bare.model.lora.rank
    assert error(our_logits(bare, whole["decoder"]), expected) < TOLERANCE
    assert error(our_logits(bare, merged(params, config.model.lora)["decoder"]), expected) < TOLERANCE


def test_merged_weights_are_those_of_merge_and_unload(pair):
    export_weights(pair.run(), pair.folder / "out")
    found = transformers.AutoModelForCausalLM.from_pretrained(pair.folder / "out").state_dict()
    base = transformers.AutoModelForCausalLM.from_pretrained(pair.folder / "base")
    theirs = peft.PeftModel.from_pretrained(base, pair.folder / "lora").merge_and_unload().state_dict()
    assert found.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert error(found[name].numpy(), tensor.numpy()) < 1e-6, name


def test_peft_reads_what_we_write(pair):
    export_weights(pair.run(), pair.folder / "peft", adapter="peft")
    base = transformers.AutoModelForCausalLM.from_pretrained(pair.folder / "base")
    again = peft.PeftModel.from_pretrained(base, pair.folder / "peft").eval()
    np.testing.assert_array_equal(their_logits(again), their_logits(pair.theirs))
    settings: Any = again.peft_config["default"]
    assert (settings.r, settings.lora_alpha) == (3, 5)


def test_a_step_of_training(pair, tmp_path):
    """AdamW's update, with an epsilon that lets small gradients stay small, and the losses before and after it."""
    rate, eps = 1e-2, 0.1
    imported, params = load_params(pair.run())
    config = dataclasses.replace(
        imported,
        model=dataclasses.replace(imported.model, dtype="float32"),
        data=dataclasses.replace(imported.data, max_length=S, images_per_row=0),
        optimizer=OptimizerConfig(learning_rate=rate, warmup_ratio=0.0, eps=eps, clip_norm=1e9),
        train=TrainConfig(stage=0, steps=10**9, batch_size=B, loss_chunk=S),
        init_from=str(tmp_path / "start"),
    )
    save_params(dataclasses.replace(config, out=config.init_from, init_from=""), params)
    trainer = build_trainer(config, make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]))
    ids = tokens()
    labels = np.where(np.arange(S) < 3, IGNORE, ids).astype(np.int32)
    bare = trainer.abstract_batch
    batch = Batch(
        **{
            **{k: None if v is None else np.zeros(v.shape, v.dtype) for k, v in bare._asdict().items()},
            "tokens": ids,
            "labels": labels,
            "slots": np.full_like(ids, -1),
            "positions": np.broadcast_to(np.arange(S, dtype=np.int32), ids.shape).copy(),
            "segments": np.ones_like(ids),
        }
    )
    before = pair.adapter()
    trained = [p for p in pair.theirs.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in trained]
    optimizer = torch.optim.AdamW(trained, lr=rate, eps=eps, weight_decay=0.0)

    def their_step() -> float:
        optimizer.zero_grad()
        wanted = torch.from_numpy(np.where(labels == IGNORE, -100, labels)).long()
        loss = pair.theirs(input_ids=torch.from_numpy(ids).long(), labels=wanted).loss
        loss.backward()
        optimizer.step()
        return loss.item()

    losses, after = [their_step()], pair.adapter()
    losses.append(their_step())
    with torch.no_grad():
        for parameter, old in zip(trained, start, strict=True):
            parameter.copy_(old)
    state, metrics = trainer.step(initial_state(config, trainer), trainer.put(batch))
    np.testing.assert_allclose(metrics["loss"], losses[0], rtol=1e-5)
    assert len(named_leaves(state.trainable)) == len(trained) / config.model.decoder.depth
    end = tmp_path / "end"
    save_params(
        dataclasses.replace(config, out=str(end), init_from=""),
        jax.device_get({**state.frozen, **state.trainable}),
    )
    _, metrics = trainer.step(state, trainer.put(batch))
    np.testing.assert_allclose(metrics["loss"], losses[1], rtol=1e-5)
    export_weights(end, tmp_path / "adapter", adapter="peft")
    ours = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert ours.keys() == after.keys()
    largest = max(np.abs(after[name] - before[name]).max() for name in after)
    for name in after:
        moved, expected = ours[name] - before[name], after[name] - before[name]
        assert np.abs(moved - expected).max() < TOLERANCE * largest, name


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"use_dora": True}, "use_dora True"),
        ({"bias": "all"}, "bias 'all'"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"layers_to_transform": [0]}, "in 1 of 3 layers"),
    ],
    ids=str,
)
def test_variants_that_are_refused(settings, says, tmp_path):
    base = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**SMALL))
    base.save_pretrained(tmp_path / "base")
    lora = peft.LoraConfig(r=3, target_modules=["q_proj"], task_type="CAUSAL_LM", **settings)
    peft.get_peft_model(base, lora).save_pretrained(tmp_path / "lora")
    with pytest.raises(UserError, match=says):
        import_weights(tmp_path / "base", tmp_path / "run", adapter=tmp_path / "lora")
