"""`validate` names the setting that does not fit."""

import dataclasses

import pytest

from quecc_jax.config import LoraConfig, RunConfig
from quecc_jax.config.validation import validate
from quecc_jax.errors import UserError
from tests.compressors import fitting
from tests.tiny import RUN


def changed(path: str, value) -> RunConfig:
    """RUN with one setting, named like model.vision.width, replaced."""

    def replace(tree, names):
        new = replace(getattr(tree, names[0]), names[1:]) if names[1:] else value
        return dataclasses.replace(tree, **{names[0]: new})

    return replace(RUN, path.split("."))


def test_the_defaults_fit():
    validate(RUN)
    validate(RunConfig())


@pytest.mark.parametrize("targets", [("*",), ("q", "v"), ("?", "down")])
def test_adapters_of_some_matrices(targets):
    validate(changed("model.lora", LoraConfig(rank=16, targets=targets)))


@pytest.mark.parametrize("kind", ["linear", "mlp1x_gelu", "mlp3x_gelu"])
def test_known_projectors(kind):
    validate(changed("model.projector", kind))


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("model.projector", "mlp2x", "model.projector: unknown projector 'mlp2x'"),
        ("model.projector", "mlp0x_gelu", "unknown projector"),
        ("model.projector", "identity", "vision.width 16 and decoder.width 32"),
        ("model.vision.patch_size", 5, "vision.image_size 16"),
        ("model.vision.heads", 3, "vision.width 16"),
        ("model.vision.scales", (2, 1), r"vision.scales \(2, 1\) are not ascending"),
        ("model.vision.scales", (), "vision.scales"),
        ("model.vision.levels", (1, 4), "outside the 4 hidden states"),
        ("model.vision.select_layer", -5, "outside the 4 hidden states"),
        ("model.decoder.heads", 3, "decoder.width 32"),
        ("model.decoder.kv_heads", 3, "kv_heads 3"),
        ("model.compressor.kernel", 9, "model.compressor"),
        ("train.grad_accum_steps", 3, "does not split into 3 microbatches"),
        ("data.max_length", 8, "leaves no room"),
        ("model.lora.rank", -1, "model.lora.rank is -1 but must be at least 0"),
        ("model.lora.dropout", 1.0, "model.lora.dropout is 1 but must be at least 0 and below 1"),
        (
            "model.lora",
            LoraConfig(rank=17),
            "model.lora.rank 17 is above the smaller side of the decoder's matrix k, which has 32 x 16 numbers",
        ),
        (
            "model.lora",
            LoraConfig(rank=4, targets=("q", "kv*")),
            r"model.lora.targets 'kv\*' matches none of the decoder's matrices q, k, v, out, gate, up, down",
        ),
        ("model.lora", LoraConfig(rank=4, targets=()), r"model.lora.targets \(\) matches none"),
        ("model.scan_unroll", 3, "scan_unroll 3 does not divide decoder.depth 2"),
        ("model.scan_unroll", 0, "scan_unroll is 0 but must be at least 1"),
        ("optimizer.clip_norm", float("inf"), "clip_norm is inf but must be finite and above 0"),
        ("optimizer.clip_norm", 0.0, "clip_norm is 0 but must be above 0"),
        ("data.query_length", -1, "data.query_length is -1 but must be at least 0"),
        ("optimizer.learning_rate", -1e-3, "learning_rate is -0.001 but must be above 0"),
        (
            "model.vision.image_size",
            2**31,
            r"image_size is 2.14748e\+09 but must be at least 1 and at most 65536",
        ),
        ("optimizer.b1", 1.0, "b1 is 1 but must be at least 0 and below 1"),
        ("optimizer.warmup_ratio", 1.5, "warmup_ratio is 1.5 but must be at least 0 and at most 1"),
        ("train.batch_size", 0, "batch_size is 0"),
        ("train.log_every", 0, "log_every is 0"),
        ("train.loss_chunk", 0, "loss_chunk is 0"),
        ("train.grad_accum_steps", 0, "grad_accum_steps is 0"),
        ("data.workers", -1, "workers is -1"),
        ("checkpoint.every", -1, "every is -1"),
        ("model.vision.scales", (0, 1), "vision.scales is 0"),
    ],
)
def test_what_does_not_fit_is_named(path, value, says):
    with pytest.raises(UserError, match=says):
        validate(changed(path, value))


@pytest.mark.parametrize(
    "decoder, kernel", [({"positions": "alibi"}, "splash"), ({"attention_softcap": 50.0}, "cudnn")]
)
def test_kernels_are_not_asked_for_what_they_do_not_take(decoder, kernel):
    model = dataclasses.replace(RUN.model, decoder=dataclasses.replace(RUN.model.decoder, **decoder))
    validate(dataclasses.replace(RUN, model=model))
    name = next(iter(decoder))
    with pytest.raises(UserError, match=rf"model\.attention_kernel {kernel} does not take decoder\.{name}"):
        validate(dataclasses.replace(RUN, model=dataclasses.replace(model, attention_kernel=kernel)))


@pytest.mark.parametrize(
    "decoder, says",
    [
        ({"full_every": 2}, "decoder.full_every 2 is of a window, but decoder.window is 0"),
        ({"local_rope_theta": 9.0}, "decoder.local_rope_theta 9 is of a window, but decoder.window is 0"),
        ({"full_every": 3, "window": 4}, "decoder.full_every 3 is above depth 2"),
        ({"unrotated_every": 3}, "decoder.unrotated_every 3 is above depth 2"),
        ({"unrotated_every": 2, "positions": "alibi"}, "need decoder.positions rotary, not alibi"),
        ({"norm_sites": "both", "norm": "layer"}, "norm_sites both need decoder.norm rms, not layer"),
        ({"zero_centred_norm": True, "norm": "layer"}, "zero_centred_norm True"),
    ],
)
def test_settings_of_a_decoder_that_do_nothing_together_are_named(decoder, says):
    config = dataclasses.replace(RUN.model.decoder, **decoder)
    with pytest.raises(UserError, match=says):
        validate(dataclasses.replace(RUN, model=dataclasses.replace(RUN.model, decoder=config)))


@pytest.mark.parametrize("name", ["none", "avgpool"])
def test_a_stage_that_trains_nothing_is_refused(name):
    model = dataclasses.replace(
        RUN.model,
        projector="identity",
        compressor=fitting(name, kernel=2, stride=2),
        decoder=dataclasses.replace(RUN.model.decoder, width=16),
    )
    bare = dataclasses.replace(RUN, model=model, data=dataclasses.replace(RUN.data, max_length=64))
    validate(bare)
    with pytest.raises(UserError, match=r"train\.stage 1 has nothing to train"):
        validate(dataclasses.replace(bare, train=dataclasses.replace(bare.train, stage=1)))
