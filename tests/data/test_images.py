"""Bytes to floats and back, and image files."""

import numpy as np
import pytest
from PIL import Image

from data.images import from_uint8, read_image, resize, to_uint8

LEVELS = np.arange(256, dtype=np.uint8)


def test_all_levels_survive_the_round_trip():
    floats = from_uint8(LEVELS)
    assert floats.dtype == np.float32 and floats[0] == -1 and floats[255] == 1
    np.testing.assert_array_equal(to_uint8(floats), LEVELS)


def test_to_uint8_rounds_to_the_nearest_level():
    exact = LEVELS.astype(np.float64) / 127.5 - 1
    third = 0.33 / 127.5
    np.testing.assert_array_equal(to_uint8((exact + third).astype(np.float32)), LEVELS)
    np.testing.assert_array_equal(to_uint8((exact - third).astype(np.float32)), LEVELS)
    truncated = np.clip((exact - third) * 127.5 + 127.5, 0, 255).astype(np.uint8)  # the common wrong formula
    assert (truncated != LEVELS).sum() > 200


def test_to_uint8_clips_and_refuses_nan():
    assert to_uint8(np.array([-7.0, 7.0, np.inf, -np.inf], np.float32)).tolist() == [0, 255, 255, 0]
    with pytest.raises(ValueError, match="NaN"):
        to_uint8(np.array([np.nan], np.float32))


def test_resize_is_a_block_mean_of_the_centre_square():
    image = np.random.default_rng(0).integers(0, 256, (12, 8, 3)).astype(np.uint8)
    expected = image[2:10].reshape(4, 2, 4, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(resize(image, 4), expected, atol=1.01)  # Pillow rounds after each of two passes
    np.testing.assert_array_equal(resize(image, 8), image[2:10])


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_lossless_files_are_read_exactly(tmp_path, suffix):
    image = np.random.default_rng(1).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / f"a.{suffix}", lossless=True)
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}"), image)


def test_gray_stays_one_channel_and_transparency_becomes_white(tmp_path):
    Image.fromarray(LEVELS.reshape(16, 16)).save(tmp_path / "gray.png")
    np.testing.assert_array_equal(read_image(tmp_path / "gray.png"), LEVELS.reshape(16, 16, 1))
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (200, 100, 0, 255)
    Image.fromarray(rgba).save(tmp_path / "clear.png")
    composed = read_image(tmp_path / "clear.png")
    assert composed[0, 0].tolist() == [200, 100, 0] and composed[1, 1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, b"GIF89a" + b"\0" * 30])
def test_unreadable_files_are_named(tmp_path, content):
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read .*bad\.png as an image"):
        read_image(tmp_path / "bad.png")


def test_truncated_files_are_named(tmp_path):
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:6000])
    with pytest.raises(ValueError, match=r"cannot read .*cut\.png as an image"):
        read_image(tmp_path / "cut.png")
