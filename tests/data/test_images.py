"""The pixel pipeline against the original's arrays, transformers' CLIP processor and file formats."""

import dataclasses
import io
import struct
import warnings
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from transformers.models.clip import CLIPImageProcessorPil

from quecc_jax.config import PixelConfig, VisionConfig
from quecc_jax.config.model import CLIP_MEAN, CLIP_STD
from quecc_jax.data.images import fit, image_size, load_pixels, normalise, open_image
from quecc_jax.data.png import without_notes
from quecc_jax.data.sources.easy_vqa import image_paths
from quecc_jax.errors import BadRow, UserError
from tests.data.notes import NOTED, PROFILE, TEXT, TURN, chunk, png, turned

VISION = VisionConfig(image_size=56, patch_size=14)
GOLDEN = Path(__file__).parents[1] / "golden" / "pictures"


def scene(width, height, seed=0):
    """A smooth image of the given size with every channel different, made from a real one."""
    real = Image.open(image_paths("train")[seed]).convert("RGB")
    return real.resize((width, height), Image.Resampling.BICUBIC)


def clip(image, size):
    processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    return np.asarray(processor(image)["pixel_values"][0]).transpose(1, 2, 0)


def stored(image, format="PNG", **options):
    """The image as a file in memory."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file


def seen(image, format="PNG", **options):
    """What `open_image` makes of the image after it was stored; a warning fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return np.asarray(open_image(stored(image, format, **options)))


@pytest.mark.parametrize("index, name", [(0, "a.png"), (1, "b.png")])
def test_pad_gives_the_pixels_of_the_original_code(index, name):
    wanted = np.load(GOLDEN / "pixel_values.npy")[index].transpose(1, 2, 0)
    ours = normalise(
        load_pixels(GOLDEN / name, VisionConfig(image_size=48, patch_size=4), "pad"), PixelConfig()
    )
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(20, 150) | st.integers(200, 600), height=st.integers(20, 600), seed=st.integers(0, 9)
)
def test_square_is_the_clip_processor(width, height, seed):
    image = scene(width, height, seed)
    ours = load_pixels(image, VISION, "square")
    assert ours.shape == (56, 56, 3) and ours.dtype == np.uint8
    np.testing.assert_allclose(normalise(ours, PixelConfig()), clip(image, 56), rtol=0, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(sides=st.tuples(st.integers(4, 700), st.integers(4, 700)), seed=st.integers(0, 9))
# One row higher than wide: no column is added on the left, one on the right.
@example(sides=(479, 480), seed=0)
@example(sides=(480, 479), seed=0)
def test_pad_is_the_clip_processor_after_padding(sides, seed):
    width, height = sides
    image = scene(width, height, seed)
    side = max(width, height)
    padded = np.empty((side, side, 3), np.uint8)
    padded[:] = [122, 116, 104]  # floor(255 * CLIP mean)
    top, left = (side - height) // 2, (side - width) // 2
    padded[top : top + height, left : left + width] = np.asarray(image)
    wanted = clip(Image.fromarray(padded), 56)
    np.testing.assert_allclose(
        normalise(load_pixels(image, VISION, "pad"), PixelConfig()), wanted, rtol=0, atol=1e-6
    )


def test_right_size_is_left_alone():
    image = scene(56, 56)
    assert np.array_equal(np.asarray(fit(image, 56, "pad", PixelConfig())), np.asarray(image))


def test_normalise_is_the_published_formula_for_every_value_on_host_and_device():
    pixels = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)
    expected = (pixels / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    how = PixelConfig()
    for made in (normalise(pixels, how), jax.jit(lambda x: normalise(x, how))(pixels)):
        assert made.dtype == np.float32
        np.testing.assert_allclose(made, expected, rtol=0, atol=1e-6)


def test_size_follows_the_config():
    assert load_pixels(scene(64, 48), dataclasses.replace(VISION, image_size=28)).shape == (28, 28, 3)


# Which side of the upright image the stored row 0 and column 0 are (EXIF 2.3, tag 274).
EXIF_SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", EXIF_SIDES)
def test_every_exif_orientation_is_turned_upright(orientation, format):
    upright = np.asarray(scene(48, 32))
    row, column = EXIF_SIDES[orientation]
    turned = upright if row in ("top", "bottom") else upright.swapaxes(0, 1)
    turned = turned[::-1] if row in ("bottom", "right") else turned
    turned = turned[:, ::-1] if column in ("bottom", "right") else turned
    exif = Image.Exif()
    exif[274] = orientation
    ours = seen(Image.fromarray(turned), format, exif=exif, lossless=True, quality=95)
    assert ours.shape == upright.shape
    assert np.abs(ours.astype(int) - upright).mean() < (3 if format == "JPEG" else 0.01)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_original_takes_pixels_as_stored(orientation, format):
    exif = Image.Exif()
    exif[274] = orientation
    file = stored(scene(48, 32), format, exif=exif, quality=95)
    ours = open_image(file, "original")
    assert ours.size == image_size(file, "original") == (48, 32)
    assert np.array_equal(np.asarray(ours), np.asarray(Image.open(file).convert("RGB")))
    upright = open_image(file)
    assert upright.size == image_size(file) == ((32, 48) if orientation > 4 else (48, 32))
    wanted = load_pixels(ours, VISION, "pad")
    again = open_image(stored(upright, "PNG"))
    assert np.array_equal(np.asarray(again), np.asarray(upright)), "what was turned is not turned again"
    assert np.array_equal(np.asarray(open_image(upright)), np.asarray(upright))
    assert np.array_equal(load_pixels(file, VISION, "pad", "original"), wanted)
    assert np.array_equal(load_pixels(file, VISION, "pad"), wanted) == (orientation == 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_of_a_tiff_is_that_of_its_image(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    file = stored(scene(48, 32), "TIFF", exif=exif)
    for decoding in ("upright", "original"):  # Pillow turns TIFF files itself.
        assert image_size(file, decoding) == open_image(file, decoding).size


@pytest.mark.parametrize(
    "format, mode, dtype", [("PNG", "I;16", "<u2"), ("TIFF", "I;16B", ">u2"), ("TIFF", "I", "<i4")]
)
def test_the_original_clips_16_bits(format, mode, dtype):
    grey = np.array([[0, 7, 255, 256, 40000, 65535]])
    file = stored(Image.frombytes(mode, (6, 1), grey.astype(dtype).tobytes()), format)
    assert np.asarray(open_image(file, "original"))[0, :, 0].tolist() == [0, 7, 255, 255, 255, 255]
    assert np.asarray(open_image(file))[0, :, 0].tolist() == [0, 0, 1, 1, 156, 255]


@pytest.mark.parametrize("name", NOTED)
def test_a_large_note_does_not_make_an_image_unreadable(name, tmp_path):
    (tmp_path / "noted.bin").write_bytes(NOTED[name]())
    for file in (tmp_path / "noted.bin", str(tmp_path / "noted.bin")):
        assert open_image(file).size == image_size(file) == ((40, 60) if "turned" in name else (60, 40))
    assert Image.MAX_IMAGE_PIXELS == 89_478_485 and PngImagePlugin.MAX_TEXT_CHUNK == 1 << 20


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_image_with_a_large_note_that_is_cut_off_is_refused(share, tmp_path):
    whole = NOTED["png profile"]()
    (tmp_path / "cut.png").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(BadRow, match=r"image .*cut\.png (cannot be read|is not an image)"):
        open_image(tmp_path / "cut.png")


def test_a_bomb_with_a_large_note_is_refused_by_its_header(tmp_path):
    claims(tmp_path / "bomb.png", 50_000, 50_000)
    data = (tmp_path / "bomb.png").read_bytes()
    (tmp_path / "bomb.png").write_bytes(data[:33] + TEXT + data[33:])
    with pytest.raises(BadRow, match=r"more than 89,000,000 pixels"):
        open_image(tmp_path / "bomb.png")


def test_notes_go_and_all_else_stays():
    bare = png()
    assert without_notes(png(TEXT, PROFILE)) == bare and without_notes(bare) == bare
    assert without_notes(b"no PNG") == b"no PNG"
    kept = png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + TURN), exif=turned())
    assert without_notes(kept) == kept
    for end in range(8, len(kept)):
        assert len(without_notes(kept[:end])) <= end  # Cut anywhere, it raises nothing.


@pytest.mark.parametrize("note", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM", b"Exif\0\0"])
def test_a_damaged_note_leaves_the_image_as_stored(note):
    image = scene(48, 32)
    file = stored(image, exif=note)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.array_equal(np.asarray(open_image(file)), np.asarray(image))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped_and_the_colours_beneath_stay(mode):
    image = scene(60, 40).convert("L").convert("RGB")
    clear = image.convert(mode)
    clear.putalpha(Image.linear_gradient("L").resize(image.size))
    assert np.array_equal(seen(clear, "TIFF"), np.asarray(image))


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(256))])
def test_palettes_show_their_colours(transparency):
    palette = scene(60, 40).quantize(256)
    options = {} if transparency is None else {"transparency": transparency}
    assert np.array_equal(seen(palette, **options), np.asarray(palette.convert("RGB")))


def test_black_and_white():
    checks = np.indices((20, 30)).sum(axis=0) % 2 == 1
    assert np.array_equal(seen(Image.fromarray(checks)), np.repeat(checks[..., None] * np.uint8(255), 3, 2))


@pytest.mark.parametrize(
    "dtype, format, mode",
    [("<u2", "PNG", "I;16"), (">u2", "TIFF", "I;16B"), ("<u2", "TIFF", "I;16"), ("<i4", "TIFF", "I")],
)
def test_16_bits_are_scaled_not_clipped(dtype, format, mode):
    grey = np.linspace(0, 65535, 6 * 50).round().reshape(6, 50)
    array = grey.astype(dtype)
    file = stored(Image.frombytes(mode, (50, 6), array.tobytes()), format)
    assert Image.open(file).mode == mode
    ours = np.asarray(open_image(file))
    assert np.abs(ours - grey[..., None] / 257).max() <= 0.5


@pytest.mark.parametrize(
    "low, high, black, white",
    [
        (0.0, 1.0, 0.0, 1.0),
        (0.0, 0.5, 0.0, 1.0),
        (0.0, 200.0, 0.0, 255.0),
        (0.0, 60000.0, 0.0, 65535.0),
        (-7.0, 5.0, -7.0, 5.0),
        (0.0, 1e6, 0.0, 1e6),
        (-3.0, -3.0, -3.0, 0.0),
    ],
)
def test_floats_are_scaled_from_the_range_that_holds_them(low, high, black, white):
    values = np.linspace(low, high, 200, dtype=np.float32).reshape(10, 20)
    wanted = 255 * (values - black) / (white - black)
    assert np.abs(seen(Image.fromarray(values), "TIFF") - wanted[..., None]).max() <= 0.51


def test_floats_that_are_no_numbers_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "nan.tiff")
    with pytest.raises(UserError, match=r"nan\.tiff.*not finite"):
        open_image(tmp_path / "nan.tiff")


def test_cmyk_is_inverted_once():
    ink = np.zeros((16, 16, 4), np.uint8)
    ink[:] = [200, 100, 0, 55]
    wanted = [255 * (1 - c / 255) * (1 - 55 / 255) for c in (200, 100, 0)]
    for format in ("TIFF", "JPEG"):
        assert np.abs(seen(Image.fromarray(ink, "CMYK"), format) - np.array(wanted)).max() <= 3


def test_ycck_jpeg():
    light = np.array([180, 90, 40])
    red, green, blue = 255 - light  # YCCK is luma and chroma of the inks, and inverted black
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    channels = np.rint([luma, 128 + (blue - luma) * 0.564, 128 + (red - luma) * 0.713, 255])
    # Pillow writes CMYK inverted and cannot write YCCK: undo the one and claim the other.
    undone = np.tile(255 - channels.astype(np.uint8), (16, 16, 1))
    data = bytearray(stored(Image.fromarray(undone, "CMYK"), "JPEG").getvalue())
    transform = data.index(b"Adobe") + 11
    assert data[transform] == 0  # plain CMYK
    data[transform] = 2
    assert np.abs(np.asarray(open_image(io.BytesIO(data))) - light).max() <= 4


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(format):
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    ours = seen(frames[0], format, save_all=True, append_images=frames[1:])
    assert ours.shape == (10, 20, 3) and (np.abs(ours - np.array([255.0, 0, 0])) < 4).all()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000", "AVIF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_truncated_files_are_refused_by_name(format, share, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    whole = stored(Image.fromarray(noise), format).getvalue()
    (tmp_path / "cut.bin").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"cut\.bin"):
        open_image(tmp_path / "cut.bin")


def test_what_is_no_image_is_refused_by_name(tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "program.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    (tmp_path / "nothing.jpg").touch()
    (tmp_path / "empty.ppm").write_bytes(b"P6 0 5 255\n")
    (tmp_path / "folder.png").mkdir()
    for name in ("text.png", "program.eps", "nothing.jpg", "empty.ppm", "folder.png", "none.png"):
        with pytest.raises(UserError, match=name) as caught:
            load_pixels(tmp_path / name, VISION)
        assert str(caught.value).count(name) == 1 and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="empty"):
        load_pixels(Image.new("RGB", (0, 5)), VISION)


def claims(path, width, height):
    """A small PNG whose header claims a size, with no pixels to it."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("action", ["error", "ignore"])
@pytest.mark.parametrize("side", [9_435, 10_000, 50_000])
def test_decompression_bombs_are_refused_by_their_header(side, action, tmp_path):
    claims(tmp_path / "bomb.png", side, side)
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        with pytest.raises(UserError, match=r"bomb\.png .*more than 89,000,000 pixels"):
            open_image(tmp_path / "bomb.png")


@pytest.mark.parametrize("sides", [(1, 201), (60_000, 20)])
def test_absurd_strips_are_refused(sides, tmp_path):
    claims(tmp_path / "strip.png", *sides)
    with pytest.raises(UserError, match=r"strip\.png .*200 times"):
        open_image(tmp_path / "strip.png")


@pytest.mark.parametrize("aspect", ["pad", "square"])
@pytest.mark.parametrize("sides", [(1, 200), (3000, 15), (1, 1), (2, 3)])
def test_thin_and_tiny_images_are_images(sides, aspect):
    ours = load_pixels(Image.new("RGB", sides, (250, 0, 0)), VISION, aspect)
    assert ours.shape == (56, 56, 3)
    if aspect == "square":
        assert (ours == np.array([250, 0, 0])).all()


@settings(max_examples=60, deadline=None)
@given(data=st.data(), format=st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP"]))
def test_damage_gives_an_image_or_one_sentence(data, format):
    content = bytearray(stored(scene(24, 16), format).getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert load_pixels(io.BytesIO(content), VISION).shape == (56, 56, 3)
        except UserError as error:
            assert str(error).startswith("image ") and "\n" not in str(error)


def test_an_open_image_is_left_as_it_is():
    image = scene(20, 10).quantize(8)
    image.info["transparency"] = bytes(8)
    before = image.copy()
    open_image(image)
    assert image.mode == "P" and image.info == before.info and image.tobytes() == before.tobytes()
