"""The demo: three decoders x four visual token counts, one seed, minutes on two cores.

make demo            python -m launch.demo
make demo QUICK=1    python -m launch.demo --quick
"""

import dataclasses

from quecc_jax.experiments.plan import Plan


def plan() -> Plan:
    """The whole demo."""
    return Plan()


def quick() -> Plan:
    """The same shape of grid with a fraction of the training, to see every part work."""
    return dataclasses.replace(
        plan(),
        visual_tokens=(1, 16),
        pictures=1000,
        test_pictures=40,
        documents=6000,
        tower_steps=150,
        language_steps=100,
        stage1_steps=30,
        stage2_steps=120,
    )
