"""Visual token compressors, chosen by name.

A compressor is a settings file that imports no jax (`NAME_config.py`: a `CompressorConfig`, with what it needs,
makes and costs), a Flax module (`NAME.py`, whose `build` makes it of the settings) and a line of
`config.compressors.REGISTRY`. The module's call takes the `base.Features` of P images and the questions' features
[P, 1, text_width], and returns [P, V, D], with the memory of a pre-fusion behind the tokens where the settings ask for
one.
"""
