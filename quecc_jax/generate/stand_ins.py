"""Stand-ins of a run's parameters as it answers with them, before any is read."""

import dataclasses
from typing import Any, cast, get_args

from jax.sharding import Mesh
from jaxtyping import PyTree

from quecc_jax.config import RunConfig
from quecc_jax.config.weights import FORMS, Weights
from quecc_jax.data.batch import batch_spec
from quecc_jax.errors import UserError
from quecc_jax.models.kernel_forms import in_form
from quecc_jax.train.step import abstract_params


def stand_ins(config: RunConfig, mesh: Mesh, weights: Weights, towers: bool = True) -> dict[str, PyTree]:
    """Shapes and shardings of all parameters that answer, float32 but for matrices of few bits, with adapters apart.

    Args:
      config: with the `model.dtype` of the weights, see `with_dtype`.
      towers: as for `load_vlm`.
    """
    data = dataclasses.replace(config.data, cached_queries=False)
    plain: dict[str, PyTree] = abstract_params(config, mesh, batch_spec(config.model, data, 1, not towers))
    form = next((form for form in FORMS if form == weights), None)
    if form is not None:
        plain["decoder"] = in_form(plain["decoder"], config.model.decoder, form)
    return plain


def with_dtype(config: RunConfig, weights: str) -> RunConfig:
    """The settings with another model.dtype, where the weights are of such a type.

    Raises:
      UserError: there are no such weights.
    """
    if weights not in get_args(Weights):
        raise UserError(f"weights {weights} are none of {', '.join(get_args(Weights))}; name one of them")
    if weights not in ("float32", "bfloat16"):
        return config
    return dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=cast(Any, weights)))
