"""From prompts to answers: sampling, cached decoding, streaming text, and reuse of what repeats."""

from quecc_jax.generate.decode import Generator, build_generator
from quecc_jax.generate.sampling import Sampling

__all__ = ["Generator", "Sampling", "build_generator"]
