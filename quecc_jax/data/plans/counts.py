"""How many steps a run has, and how many rows a step, where its config counts epochs and conversations.

Both follow from how many rows the sources have and, of packed rows, from how many conversations these hold: from
plans alone, before any image is read.
"""

import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction

from quecc_jax.config import RunConfig
from quecc_jax.data.elastic import Elastic
from quecc_jax.data.pipeline import plan_batches
from quecc_jax.data.plans.packing import Grouped, Packed, Padded
from quecc_jax.data.sources.open import open_sources
from quecc_jax.errors import UserError

MOST = Fraction(4, 3)
"""Times the packed rows asked for that a step may have. The nearest multiple is within a third of them, unless one
multiple alone is more."""


def counted(
    config: RunConfig, parts: int, tell: Callable[[str], None], batch_size: int = 0, steps: int = 0
) -> RunConfig:
    """The run with `train.batch_size` and `train.steps` counted from its data, where it names conversations or
    epochs; as it is where it names neither.

    Args:
      config: the run.
      parts: devices that the rows of a microbatch divide over, `sharding.batch_parts`.
      tell: called with a sentence about each of the two.
      batch_size: packed rows of a step that hold the conversations, where that is known already.
      steps: of the epochs, where that is known already.

    Raises:
      UserError: a source cannot be read, or `parts` and microbatches need far more packed rows than hold the
        conversations asked for.
    """
    train = config.train
    packed = config.data.batching == "packed"
    rows = train.batch_size
    if train.conversations:
        rows = batch_size if packed else train.conversations
    if (train.epochs and not steps) or not rows:
        sources = open_sources(config.data, config.model)
        # Where rows are to be counted, those of a pool will do until then.
        planned, _ = plan_batches(
            sources, config.data, config.model, rows or config.data.rows_per_pool, train.seed
        )
        plans = planned.plans if isinstance(planned, Elastic) else planned
        assert isinstance(plans, Padded | Grouped | Packed)
        if not rows:
            assert isinstance(plans, Packed)
            rows = rows_of_step(plans, train.conversations, parts, train.grad_accum_steps)
            each = plans.conversations / plans.epoch()
            tell(
                f"train.conversations {train.conversations}: {rows} packed rows a step, {rows * each:.1f} "
                f"conversations on average, {each:.2f} in each"
            )
            plans = dataclasses.replace(plans, batch_size=rows)
        # As it is written: the nearest binary number may lie above a tenth.
        steps = steps or plans.steps(Fraction(repr(train.epochs)))
    if train.epochs:
        kind = "packed rows" if packed else "rows"
        tell(f"train.epochs {train.epochs:g}: {steps:,} steps of {rows} {kind}")
    steps = steps if train.epochs else train.steps
    return dataclasses.replace(config, train=dataclasses.replace(train, batch_size=rows, steps=steps))


def rows_of_step(plans: Packed, conversations: int, parts: int, microbatches: int) -> int:
    """Packed rows that hold so many conversations on average: the nearest multiple of `parts` x `microbatches`
    x the rows of a pool.

    Raises:
      UserError: that is far more.
    """
    wanted = Fraction(conversations * plans.epoch(), plans.conversations)
    multiple = parts * microbatches * plans.pooled
    rows = max(1, round(wanted / multiple)) * multiple
    if rows > MOST * wanted:
        pools = f" times data.pooled_rows {plans.pooled}" if plans.pooled > 1 else ""
        raise UserError(
            f"train.conversations {conversations} are about {float(wanted):.1f} packed rows, but {parts} devices of "
            f"mesh axes data and fsdp times train.grad_accum_steps {microbatches}{pools} take multiples of {multiple}; "
            f"lower these (mesh.tensor takes devices from them), pack shorter rows (data.max_length), or ask for at "
            f"least {math.ceil(multiple * conversations / (wanted * MOST))} conversations"
        )
    return rows
