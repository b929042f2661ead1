"""Images as the tower takes them."""

from io import BytesIO

from quecc_jax.config import RunConfig
from quecc_jax.data.images import image_size, load_pixels
from quecc_jax.data.tiles import Arrangement, arrange
from quecc_jax.generate.questions import AskedImage, ReadImage
from quecc_jax.generate.reuse import image_key


def read_image(image: AskedImage, config: RunConfig) -> ReadImage:
    """An image, known again by its pixels; one that is read comes back as it is.

    Raises:
      UserError: as `load_pixels`.
    """
    if isinstance(image, ReadImage):
        return image
    file = BytesIO(image) if isinstance(image, bytes) else image
    data, model = config.data, config.model
    pixels = load_pixels(file, model.vision, data.image_aspect, data.image_decoding)
    arranged = arranged_image(image, config) if model.vision.tiles else None
    return ReadImage(pixels.reshape(-1, *pixels.shape[-3:]), image_key(pixels), arranged)


def arranged_image(image: AskedImage, config: RunConfig) -> Arrangement:
    """What stands for an any-resolution image in the text, which its size decides."""
    if isinstance(image, ReadImage):
        assert image.arranged is not None
        return image.arranged
    file = BytesIO(image) if isinstance(image, bytes) else image
    return arrange(*image_size(file, config.data.image_decoding), config.model)
