"""Published shapes: their parameter counts are those that the models' names claim."""

import jax
import pytest

from quecc_jax.config import presets
from quecc_jax.errors import UserError
from quecc_jax.models.decoder import Decoder

# Model cards of Vicuna (LLaMA), Qwen-1.5 and SmolLM2; totals include embedding and output matrix.
TOTALS = {
    "vicuna-7b": 6_738_415_616,
    "vicuna-13b": 13_015_864_320,
    "qwen1.5-0.5b": 463_987_712,
    "qwen1.5-1.8b": 1_836_828_672,
    "qwen1.5-4b": 3_950_369_280,
    "qwen1.5-7b": 7_721_324_544,
    "qwen1.5-14b": 14_167_290_880,
    "smollm2-135m": 134_515_008,
}


@pytest.mark.parametrize("name", presets.DECODERS)
def test_a_preset_has_the_published_number_of_parameters(name):
    model = Decoder(presets.decoder(name))

    def everything(model, tokens):
        return model(model.embed(tokens), tokens, tokens), model.output_matrix()

    def init():
        return model.init(jax.random.key(0), jax.numpy.zeros((1, 2), jax.numpy.int32), method=everything)

    leaves = jax.tree.leaves(jax.eval_shape(init))
    assert sum(leaf.size for leaf in leaves) == TOTALS[name]


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"qwen1\.5-4b"):
        presets.decoder("qwen-1.5-4b")
