"""Which LLM size, how many visual tokens? The law, its fit, its frontier and its report.

Depends on jax, numpy, scipy and matplotlib alone, but for `cost`, which asks `quecc_jax`'s FLOP counter.
"""
