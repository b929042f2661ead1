"""Published shapes: their parameter counts are those that the models' names claim."""

import jax
import pytest

from quecc_jax.config import presets
from quecc_jax.errors import UserError
from quecc_jax.models.decoder import Decoder

# Model cards, and safetensors' counts on the Hub; totals include embedding and output matrix, a tied one once. Those of
# Gemma 3's text decoders from 4b on are their files' 4,300,079,472, 12,187,325,040 and 27,432,406,640 without the
# tower's 416,866,032 and a projector of 1,152 (width + 1).
TOTALS = {
    "vicuna-7b": 6_738_415_616,
    "vicuna-13b": 13_015_864_320,
    "qwen1.5-0.5b": 463_987_712,
    "qwen1.5-1.8b": 1_836_828_672,
    "qwen1.5-4b": 3_950_369_280,
    "qwen1.5-7b": 7_721_324_544,
    "qwen1.5-14b": 14_167_290_880,
    "smollm2-135m": 134_515_008,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "llama3.1-8b": 8_030_261_248,
    "gemma3-1b": 999_885_952,
    "gemma3-4b": 3_880_263_168,
    "gemma3-12b": 11_766_034_176,
    "gemma3-27b": 27_009_346_304,
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
