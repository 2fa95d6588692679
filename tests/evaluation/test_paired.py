"""Fidelity image by image: values by hand, and structural similarity window by window in plain numpy."""

import inspect

import numpy as np
import pytest

from evaluation import paired
from evaluation.paired import feature_distance, paired_fidelity, psnr, relative_l2, ssim


def pictures(count, shape=(9, 8, 3), seed=0):
    """Smooth ones in about [-0.8, 0.8], with little noise."""
    draw = np.random.default_rng(seed)
    rows, columns = np.linspace(0, 1, shape[0])[:, None, None], np.linspace(0, 1, shape[1])[None, :, None]
    phases = draw.uniform(0, 2 * np.pi, (count, 1, 1, shape[2]))
    return 0.6 * np.sin(4 * rows + 3 * columns + phases) + 0.05 * draw.standard_normal((count, *shape))


# --- Distances of pixels ----------------------------------------------------------------------------------------------


def test_relative_l2_by_hand():
    """(3, 4) off a vector of size 10 is half; pair by pair, relative to the second set and not to the first."""
    y = np.array([[6.0, 8.0], [0.0, 2.0], [1.0, 0.0]])
    x = y + np.array([[3.0, 4.0], [0.0, 0.0], [-2.0, 0.0]])
    np.testing.assert_allclose(relative_l2(x, y), [0.5, 0.0, 2.0], rtol=1e-12)
    np.testing.assert_allclose(relative_l2(y, x), [1 / 3, 0.0, 2.0], rtol=1e-12)


def test_relative_l2_takes_images_as_vectors():
    """All pixels and channels of a pair, in double precision also for half-precision images."""
    y = np.full((2, 4, 4, 3), 0.5)
    x = y.copy()
    x[1, 0, 0, 0] += 2.0  # 2 of a size of sqrt(48) / 2
    np.testing.assert_allclose(relative_l2(x, y), [0, 4 / np.sqrt(48)], rtol=1e-12)
    np.testing.assert_allclose(relative_l2(x.astype(np.float16), y.astype(np.float16)), [0, 4 / np.sqrt(48)],
                               rtol=1e-12)  # fmt: skip


def test_psnr_by_hand():
    """An offset of 0.2 in a range of 2 is a hundredth of its square, 20 dB."""
    y = np.linspace(-0.7, 0.7, 24).reshape(2, 3, 4, 1)
    np.testing.assert_allclose(psnr(y + 0.2, y), 20.0, rtol=1e-12)
    np.testing.assert_allclose(psnr(y - 0.02, y), 40.0, rtol=1e-12)
    assert psnr(y, y) == float("inf")


def test_psnr_is_of_the_error_of_all_pixels():
    """One pair of two equal: half of the squared error, 3 dB more. A mean of decibels would be infinite."""
    y = np.zeros((2, 4, 4, 1))
    x = y.copy()
    x[0] += 0.2
    np.testing.assert_allclose(psnr(x, y), 10 * np.log10(200), rtol=1e-12)


def test_psnr_clips_both_to_their_range():
    """What is out of range is at its end: 3 is 1, and of both sets."""
    zeros = np.zeros((1, 2, 2, 1))
    assert psnr(zeros + 1.5, zeros + 1.0) == psnr(zeros - 1.0, zeros - 7.0) == float("inf")
    for far in (1.0, 3.0, -3.0):
        np.testing.assert_allclose(psnr(zeros + far, zeros), 10 * np.log10(4), rtol=1e-12)
        np.testing.assert_allclose(psnr(zeros, zeros + far), 10 * np.log10(4), rtol=1e-12)


# --- Structural similarity --------------------------------------------------------------------------------------------


def windows_ssim(x, y, *, width=7, ddof=1, reach=2.0):
    """Of two images [h, w, c]: the mean over all windows that lie within them, and over channels, one at a time."""
    c1, c2, values = (0.01 * reach) ** 2, (0.03 * reach) ** 2, []
    for channel in range(x.shape[2]):
        for i in range(x.shape[0] - width + 1):
            for j in range(x.shape[1] - width + 1):
                a, b = (z[i : i + width, j : j + width, channel].ravel() for z in (x, y))
                (of_a, both), (_, of_b) = np.cov(a, b, ddof=ddof)
                luminance = (2 * a.mean() * b.mean() + c1) / (a.mean() ** 2 + b.mean() ** 2 + c1)
                values.append(luminance * (2 * both + c2) / (of_a + of_b + c2))
    return np.mean(values)


def test_ssim_is_that_of_windows_in_numpy():
    """Three colour images, not square. Other windows, ranges and variances (the control) give other values."""
    y = 0.3 * pictures(3)
    x = 0.9 * y + 0.03 * np.random.default_rng(1).standard_normal(y.shape) - 0.01
    expected = np.mean([windows_ssim(a, b) for a, b in zip(x, y)])
    assert 0.2 < expected < 0.95
    np.testing.assert_allclose(ssim(x, y), expected, rtol=1e-9)
    for other in ({"width": 5}, {"ddof": 0}, {"reach": 1.0}):
        assert abs(np.mean([windows_ssim(a, b, **other) for a, b in zip(x, y)]) - expected) > 1e-5


def test_ssim_clips_both_images():
    y, x = 2 * pictures(1), 2.2 * pictures(1) + 0.1
    clipped = windows_ssim(np.clip(x[0], -1, 1), np.clip(y[0], -1, 1))
    np.testing.assert_allclose(ssim(x, y), clipped, rtol=1e-9)
    assert abs(windows_ssim(x[0], y[0]) - clipped) > 1e-3


def test_ssim_of_equal_moved_and_inverted_images():
    y = 0.5 + 0.4 * pictures(2, (16, 16, 1))
    np.testing.assert_allclose(ssim(y, y), 1.0, rtol=1e-12)
    by_one, by_four = (ssim(np.roll(y, pixels, axis=2), y) for pixels in (1, 4))
    assert by_four < by_one < 0.99
    assert ssim(1 - y, y) < 0


def test_ssim_takes_float32():
    """The mean over pairs of what each has, in double precision."""
    y = pictures(2).astype(np.float32)
    x = np.roll(y, 1, axis=1)
    each = [windows_ssim(a.astype(float), b.astype(float)) for a, b in zip(x, y)]
    np.testing.assert_allclose(ssim(x, y), np.mean(each), rtol=1e-9)
    assert abs(each[0] - each[1]) > 1e-3


# --- Distances of features --------------------------------------------------------------------------------------------


def test_feature_distance_by_hand():
    """1 off; the y's are 3, 1 and 2 from the next of them, in the circle."""
    y = np.array([[0.0], [1.0], [3.0]])
    np.testing.assert_allclose(feature_distance(y + 1, y), np.sqrt(1 / ((9 + 1 + 4) / 3)), rtol=1e-12)
    # In two dimensions: squares of (3, 4) in one pair of two, and of (6, 8) between the y's.
    x, y = np.array([[3.0, 4.0], [6.0, 8.0]]), np.array([[0.0, 0.0], [6.0, 8.0]])
    np.testing.assert_allclose(feature_distance(x, y), np.sqrt(12.5 / 100), rtol=1e-12)


def test_feature_distance_from_none_to_that_of_strangers():
    """0 for equal features, 1 for those of other images, and in between what a mixture of both has."""
    draw = np.random.default_rng(3)
    x, y = draw.standard_normal((2, 4000, 16)) * np.linspace(0.2, 3, 16) + 5.0
    assert feature_distance(y, y) == 0.0
    np.testing.assert_allclose(feature_distance(x, y), 1.0, atol=0.03)
    np.testing.assert_allclose(feature_distance(draw.permutation(y), y), 1.0, atol=0.03)
    # x' = y + r (x - y) is r of the way.
    np.testing.assert_allclose(feature_distance(y + 0.25 * (x - y), y), 0.25, atol=0.01)
    assert feature_distance(x + 10, y) > 2  # farther than a stranger


def test_feature_distance_has_no_unit():
    """The same for features in another unit and with another origin; not if only one set is scaled."""
    x, y = np.random.default_rng(4).standard_normal((2, 50, 6))
    for scale in (1e-3, 7.0):
        np.testing.assert_allclose(feature_distance(scale * x + 2, scale * y + 2), feature_distance(x, y), rtol=1e-9)
    assert abs(feature_distance(2 * x, y) - feature_distance(x, y)) > 0.1


# --- All of it, and what is refused -----------------------------------------------------------------------------------


def test_paired_fidelity_has_the_middle_and_the_tail():
    """Of 21 pairs that are off by 0, 1, 4, ... 400 thousandths of themselves; their order does not matter."""
    y = pictures(21)
    x = y * (1 + 0.001 * np.random.default_rng(5).permutation(21)[:, None, None, None] ** 2)
    found = paired_fidelity(x, y)
    assert list(found) == ["relative_l2", "relative_l2_mean", "relative_l2_p95", "psnr", "ssim"]
    np.testing.assert_allclose(list(found.values())[:3], [0.1, 2.87 / 21, 0.361], rtol=1e-9)
    assert found["psnr"] == psnr(x, y) and found["ssim"] == ssim(x, y)
    assert all(type(value) is float for value in found.values())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_pixel_that_is_not_finite_is_the_worst(value):
    """Whatever the others are; without it, the same images are good."""
    y = pictures(4)
    x = y + 1e-3
    good = paired_fidelity(x, y)
    assert good["relative_l2"] < 0.01 and good["psnr"] > 60 and good["ssim"] > 0.99
    x[2, 3, 4, 1] = value
    worst = paired_fidelity(x, y)
    assert list(worst) == list(good)
    assert all(value == np.inf for name, value in worst.items() if name.startswith("relative_l2"))
    assert worst["psnr"] == -np.inf and worst["ssim"] == -1.0


@pytest.mark.parametrize("name, x, y", [
    ("relative_l2", (2, 5), (3, 5)), ("relative_l2", (2, 5), (2, 6)), ("relative_l2", (2, 1, 5), (2, 5)),
    ("psnr", (2, 4, 4, 1), (2, 4, 4, 3)), ("ssim", (2, 8, 8, 1), (2, 8, 9, 1)), ("ssim", (1, 8, 8, 1), (2, 8, 8, 1)),
    ("feature_distance", (4, 3), (4, 2)), ("psnr", (0, 4, 4, 1), (0, 4, 4, 1)),
])  # fmt: skip
def test_sets_that_are_no_pairs_are_refused(name, x, y):
    """Also those that numpy would broadcast, and none at all; by the function itself and not by its annotations."""
    with pytest.raises(ValueError, match=r"pairs need two sets of one shape, got \(.*\) and \(.*\)"):
        inspect.unwrap(getattr(paired, name))(np.ones(x), np.ones(y))


def test_too_small_for_a_window_or_too_few_for_a_distance():
    for shape in ((6, 9, 1), (9, 6, 3)):
        with pytest.raises(ValueError, match=r"structural similarity needs images of at least 7 pixels a side, got"):
            ssim(np.zeros((1, *shape)), np.zeros((1, *shape)))
    assert ssim(np.zeros((1, 7, 7, 1)), np.zeros((1, 7, 7, 1))) == 1.0
    with pytest.raises(ValueError, match="a distance of features needs at least two pairs, got 1"):
        feature_distance(np.ones((1, 3)), np.zeros((1, 3)))
