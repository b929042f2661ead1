"""Visual token compressors, chosen by name.

A compressor is a settings file that imports no jax (`NAME_config.py`: a `CompressorConfig`, with what it needs,
makes and costs), a Flax module (`NAME.py`, whose `build` makes it of the settings) and a line of
`config.compressors.REGISTRY`. The module's call takes the `base.Features` of P images and the questions' features
[P, 1, text_width], and returns [P, V, D], with the memory of a pre-fusion behind the tokens where the settings ask for
one. Where a part of that is of the images alone, a module that reads the question may have it as `prepare` of the
features, the same at every V, and the rest as `finish` of what this gives and the questions' features: an image that
is asked about again is then prepared once.
"""
