"""Raw samples to network inputs, against formulas and Pillow calls written out by hand."""

import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resdeploy.data.preprocess import centre_and_scale, load_image, preprocess_batch
from resdeploy.errors import ResdeployError
from resdeploy.schema.recipes import Preprocess

RGB = Preprocess(
    input_shape=(3, 5, 7),
    divisor=255,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


def random_pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save_png(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def test_every_pixel_is_scaled_shifted_and_divided_in_float32():
    raw = random_pixels(2, 3, 5, 7)
    x = preprocess_batch(raw, RGB)
    assert x.dtype == np.float32
    assert x.shape == raw.shape
    for channel in range(3):
        mean, std = np.float32(RGB.mean[channel]), np.float32(RGB.std[channel])
        for pixel, value in zip(raw[:, channel].flat, x[:, channel].flat, strict=True):
            assert value == (np.float32(pixel) / np.float32(255) - mean) / std


def test_nhwc_gives_the_same_bits_as_nchw():
    raw = random_pixels(2, 3, 5, 7)
    other = preprocess_batch(np.ascontiguousarray(raw.transpose(0, 2, 3, 1)), RGB)
    assert other.tobytes() == preprocess_batch(raw, RGB).tobytes()
    assert other.flags.c_contiguous


def test_one_mean_serves_all_channels():
    one = replace(RGB, mean=(0.5,), std=(0.25,))
    three = replace(RGB, mean=(0.5,) * 3, std=(0.25,) * 3)
    raw = random_pixels(1, 3, 5, 7)
    assert preprocess_batch(raw, one).tobytes() == preprocess_batch(raw, three).tobytes()


def test_floating_point_images_are_inputs_already():
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 7))
    np.testing.assert_array_equal(preprocess_batch(x, RGB), x.astype(np.float32))


def test_vectors_are_normalised_by_the_formula():
    spec = Preprocess(input_shape=(4,), divisor=2, mean=(0.0, 1.0, 2.0, 3.0), color="none")
    raw = np.array([[2.0, 2.0, 4.0, 5.0]])
    np.testing.assert_array_equal(preprocess_batch(raw, spec), [[1.0, 0.0, 0.0, -0.5]])
    assert preprocess_batch(raw.astype(np.int16), spec).dtype == np.float32


def test_the_input_array_is_not_changed():
    raw = np.ones((2, 4), dtype=np.float32)
    preprocess_batch(raw, Preprocess(input_shape=(4,), divisor=4, color="none"))
    assert (raw == 1).all()


def test_refuses_a_layout_that_cannot_be_told():
    with pytest.raises(ResdeployError, match="may be CHW or HWC"):
        preprocess_batch(random_pixels(2, 3, 3, 3), replace(RGB, input_shape=(3, 3, 3)))


def test_a_single_pixel_has_only_one_layout():
    spec = Preprocess(input_shape=(1, 1, 1), divisor=255, color="gray")
    assert preprocess_batch(np.full((2, 1, 1, 1), 255, np.uint8), spec).tolist() == [[[[1.0]]]] * 2


@pytest.mark.parametrize(
    "raw",
    [
        random_pixels(2, 3, 7, 5),
        random_pixels(3, 5, 7),
        random_pixels(2, 105),
        np.zeros((2, 5, 7, 3), dtype=np.float32),
        np.zeros((2, 3, 5, 7), dtype=np.int64),
        np.zeros((2, 3, 5, 7), dtype=bool),
        np.array([["a"]]),
    ],
    ids=["turned", "no batch", "flat", "float NHWC", "int64", "bool", "text"],
)
def test_refuses_samples_of_another_shape_or_type(raw):
    with pytest.raises(ResdeployError):
        preprocess_batch(raw, RGB)


@pytest.mark.parametrize(
    "change",
    [
        {"mean": (0.5, 0.5)},
        {"std": ()},
        {"std": (0.2, 0.0, 0.2)},
        {"std": (0.2, float("nan"), 0.2)},
        {"divisor": 0.0},
        {"divisor": float("inf")},
        {"input_shape": (3, 5)},
        {"input_shape": (3, 0, 7)},
    ],
)
def test_refuses_a_specification_that_contradicts_itself(change):
    with pytest.raises(ResdeployError, match=r"where: +preprocess"):
        preprocess_batch(random_pixels(2, 3, 5, 7), replace(RGB, **change))


# --- image files ---------------------------------------------------------------------------------


def test_an_image_of_the_right_size_keeps_every_pixel(tmp_path):
    pixels = random_pixels(5, 7, 3)
    sample = load_image(save_png(tmp_path / "a.png", pixels), RGB)
    assert sample.dtype == np.uint8
    np.testing.assert_array_equal(sample, pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("size", "resized", "corner"),
    [((40, 30), (21, 16), (7, 6)), ((30, 41), (16, 21), (4, 8)), ((16, 16), (16, 16), (4, 6))],
)
def test_resizing_and_cropping_are_those_of_torchvision(
    tmp_path, size, resized, corner, interpolation
):
    """Sizes and corners worked out from torchvision's Resize(16) and CenterCrop((5, 7))."""
    image = Image.fromarray(random_pixels(size[1], size[0], 3))
    image.save(tmp_path / "a.png")
    resample = getattr(Image.Resampling, interpolation.upper())
    left, top = corner
    expected = np.asarray(image.resize(resized, resample))[top : top + 5, left : left + 7]
    spec = replace(RGB, resize=16, interpolation=interpolation)
    sample = load_image(tmp_path / "a.png", spec)
    np.testing.assert_array_equal(sample, expected.transpose(2, 0, 1))


def test_without_resize_the_image_is_scaled_straight_and_antialiased(tmp_path):
    columns = np.tile(np.array([0, 255], dtype=np.uint8), (50, 35))
    save_png(tmp_path / "stripes.png", np.repeat(columns[:, :, None], 3, axis=2))
    sample = load_image(tmp_path / "stripes.png", RGB)
    assert sample.shape == (3, 5, 7)
    # Sampling single pixels would give 0 or 255.
    assert abs(sample.astype(int) - 127).max() < 30


def test_gray_is_made_of_colour_and_colour_of_gray(tmp_path):
    pixels = random_pixels(5, 7, 3)
    colour = save_png(tmp_path / "colour.png", pixels)
    gray = Preprocess(input_shape=(1, 5, 7), color="gray")
    expected = np.asarray(Image.fromarray(pixels).convert("L"))
    np.testing.assert_array_equal(load_image(colour, gray), expected[np.newaxis])
    one = save_png(tmp_path / "gray.png", pixels[:, :, 0])
    np.testing.assert_array_equal(load_image(one, RGB), np.stack([pixels[:, :, 0]] * 3))


def test_the_exif_orientation_is_applied(tmp_path):
    pixels = random_pixels(7, 5, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated 90 degrees clockwise
    sample = load_image(save_png(tmp_path / "a.png", pixels, exif=exif), RGB)
    np.testing.assert_array_equal(sample, np.rot90(pixels, -1).transpose(2, 0, 1))


def test_a_palette_with_transparency_gives_its_colours_without_a_warning(tmp_path):
    image = Image.fromarray(random_pixels(5, 7, 3)).quantize(8)
    image.save(tmp_path / "a.png", transparency=bytes(range(8)))
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png", RGB), expected)


def test_refuses_sixteen_bits_per_channel(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((5, 7), 40_000, dtype=np.uint16)).save(path)
    with pytest.raises(ResdeployError, match="more than 8 bits") as caught:
        load_image(path, RGB)
    assert caught.value.where == str(path)
    assert caught.value.fix


def broken_files(tmp_path: Path):
    whole = save_png(tmp_path / "whole.png", random_pixels(64, 64, 3)).read_bytes()
    Image.fromarray(random_pixels(64, 64, 3)).save(tmp_path / "whole.jpg")
    header = struct.pack(">IIBBBBB", 5, 7, 8, 2, 0, 0, 0)
    return {
        "empty.png": b"",
        "text.png": b"this is no image",
        "cut.png": whole[: len(whole) // 2],
        "cut.jpg": (tmp_path / "whole.jpg").read_bytes()[:900],
        "checksum.png": whole[:16] + b"\xff" + whole[17:],
        "nodata.png": b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + b"IHDR"
        + header
        + struct.pack(">I", zlib.crc32(b"IHDR" + header)),
    }


def test_a_broken_image_is_an_error_that_names_the_file(tmp_path):
    for name, content in broken_files(tmp_path).items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ResdeployError, match="cannot be read") as caught:
            load_image(path, RGB)
        assert caught.value.where == str(path), name


def test_damage_anywhere_in_a_file_never_escapes_as_another_exception(tmp_path):
    whole = bytearray(save_png(tmp_path / "a.png", random_pixels(9, 9, 3)).read_bytes())
    rng = np.random.default_rng(0)
    num_refused = 0
    for position in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[position] ^= int(rng.integers(1, 256))
        (tmp_path / "a.png").write_bytes(damaged)
        try:
            load_image(tmp_path / "a.png", RGB)
        except ResdeployError:
            num_refused += 1
    assert num_refused > 0


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ResdeployError, match=r"gone\.png"):
        load_image(tmp_path / "gone.png", RGB)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (Preprocess(input_shape=(40,), color="none"), "takes vectors"),
        (replace(RGB, color="none"), "takes vectors|not image files"),
        (replace(RGB, color="gray"), "has 1 channels"),
        (replace(RGB, resize=6), "too small"),
    ],
)
def test_refuses_specifications_that_are_not_of_images(tmp_path, spec, message):
    with pytest.raises(ResdeployError, match=message):
        load_image(save_png(tmp_path / "a.png", random_pixels(5, 7, 3)), spec)


# --- embedded ------------------------------------------------------------------------------------


def test_an_embedded_model_is_fed_the_pixels_rows_first():
    spec = Preprocess(input_shape=(3, 4, 5), divisor=255.0, embedded=True)
    raw = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5), dtype=np.uint8)
    for layout in (raw, raw.transpose(0, 2, 3, 1)):
        inputs = preprocess_batch(layout, spec)
        assert inputs.dtype == np.uint8
        assert inputs.flags.c_contiguous
        assert (inputs == raw.transpose(0, 2, 3, 1)).all()


def test_an_embedded_model_takes_no_network_inputs():
    spec = Preprocess(input_shape=(3, 4, 5), embedded=True)
    with pytest.raises(ResdeployError, match="must be uint8") as caught:
        preprocess_batch(np.zeros((2, 3, 4, 5), np.float32), spec)
    assert "network inputs" not in caught.value.fix


def test_centre_and_scale_are_the_preprocessing_exactly():
    """In extended precision, from the decimals as they were written."""
    from fractions import Fraction

    spec = Preprocess(
        input_shape=(3, 4, 5), divisor=255.0, mean=(0.485, 0.456, 0.406), std=(0.229,)
    )
    centre_C, scale_C = centre_and_scale(spec)
    assert centre_C.shape == scale_C.shape == (3,)
    for mean, centre, scale in zip(spec.mean, centre_C, scale_C, strict=True):
        exact = 255 * Fraction(mean), 1 / (255 * Fraction(0.229))
        for found, wanted in zip((centre, scale), exact, strict=True):
            assert float(found) == pytest.approx(float(wanted), rel=1e-16)
    with pytest.raises(ResdeployError, match="std"):
        centre_and_scale(Preprocess(input_shape=(3, 4, 5), std=(0.0,)))
