"""The epsilon of every norm: where it stands in the formula, and which number each norm of a model gets."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from quecc_jax.data.batch import batch_spec
from quecc_jax.models.layers import LayerNorm, RMSNorm
from quecc_jax.train.checkpoint import named_leaves
from quecc_jax.train.step import boxed_params
from tests.models.reference import layer_norm, rms_norm
from tests.tiny import RUN
from tests.variants import VARIANTS, variant

TOWER, TEXT, DECODER, COMPRESSOR = 3e-3, 2e-2, 7e-4, 1e-6
"""The first three are settings, which differ here; compressors have the number of the originals' programs."""


@pytest.mark.parametrize("eps", [1e-6, 1e-5])
@pytest.mark.parametrize("kind, formula", [(LayerNorm, layer_norm), (RMSNorm, rms_norm)])
def test_epsilon_is_added_to_the_mean_square_under_the_root(kind, formula, eps):
    """Of inputs that are as small as it, and of zeros."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 8)) * np.sqrt([[eps], [eps / 30], [0.0]])
    params = {"scale": rng.normal(size=8), "bias": rng.normal(size=8)}
    own = params if kind is LayerNorm else {"scale": params["scale"]}
    found = kind(eps).apply({"params": own}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, formula(params, x, eps), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=list(VARIANTS))
def test_every_norm_has_the_epsilon_of_its_part(changes):
    """A norm that is no `LayerNorm` or `RMSNorm` would have a scale, but not be met here."""
    model = variant(**changes)
    model = dataclasses.replace(
        model,
        vision=dataclasses.replace(model.vision, norm_eps=TOWER),
        query=dataclasses.replace(model.query, text=dataclasses.replace(model.query.text, norm_eps=TEXT)),
        decoder=dataclasses.replace(model.decoder, norm_eps=DECODER),
    )
    met: dict[str, float] = {}

    def look(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, (LayerNorm, RMSNorm)) and context.method_name == "__call__":
            met["/".join(context.module.path)] = context.module.eps
        return call(*args, **kwargs)

    run = dataclasses.replace(RUN, model=model)
    with nn.intercept_methods(look):
        params = nn.meta.unbox(boxed_params(run, batch_spec(model, run.data, 1)))
    scales = {path.removesuffix("/scale") for path in named_leaves(params) if path.endswith("/scale")}
    parts = {"vision": TOWER, "text": TEXT, "decoder": DECODER, "compressor": COMPRESSOR}
    # What an instruction reads the image with are decoder layers.
    assert met == {path: DECODER if "/fusion/" in path else parts[path.split("/")[0]] for path in scales}
