"""The numbers of one set of samples, on data for which they are known."""

import numpy as np
import pytest

from data.base import array_source
from evaluation.generate import Generated
from evaluation.metrics import all_images, evaluate_samples

COUNT = 150


class Pixels:
    """A `Features` of a few fixed projections."""

    name, dimension, provenance = "pixels", 5, {"name": "pixels", "sha256": "0"}

    def features(self, images):
        matrix = np.random.default_rng(9).normal(size=(images[0].size, self.dimension))
        return images.reshape(len(images), -1) @ matrix / 255 - 0.5 * matrix.sum(axis=0)


def source(split, seed, count=COUNT, classes=3):
    images = np.random.default_rng(seed).integers(0, 256, (count, 6, 6, 1), np.uint8)
    labels = np.arange(count) % classes
    return array_source(images, labels if classes else None, [str(k) for k in range(classes)], name="noise",
                        version="1", split=split, split_rule="draws", split_seed=0)  # fmt: skip


def samples(images, labels=None):
    return Generated(images, labels, np.full(len(images), 2), 1.0)


@pytest.fixture(scope="module")
def splits():
    return source("train", 0, count=300), source("test", 1)


def test_copies_of_the_training_images(splits):
    train, test = splits
    metrics, details = evaluate_samples(samples(train.images), train, test, Pixels())
    assert metrics["memorisation_ratio"] == 0.0
    assert metrics["fd_ratio"] == pytest.approx(1.0)  # all of them: the very same set, in another order
    assert details["features"] == Pixels.provenance


def test_new_draws_are_as_far_from_the_training_images_as_the_test_images(splits):
    train, test = splits
    metrics, _ = evaluate_samples(samples(source("new", 2).images), train, test, Pixels())
    assert metrics["memorisation_ratio"] == pytest.approx(1.0, abs=0.05)
    assert 0.3 < metrics["fd_ratio"] < 3
    grey, _ = evaluate_samples(samples(np.full((COUNT, 6, 6, 1), 128, np.uint8)), train, test, Pixels())
    assert grey["fd_ratio"] > 10 and grey["kid_pixels_150_test"] > 5 * abs(metrics["kid_pixels_150_test"])


@pytest.mark.parametrize(("count", "n"), [(40, 40), (300, 300), (400, 300)])
def test_the_names_carry_features_count_and_split(splits, count, n):
    """The count is that of the images compared: no more than there are training images for the reference."""
    train, test = splits
    metrics, _ = evaluate_samples(samples(source("new", 3, count=count).images), train, test, Pixels())
    assert metrics.keys() == {f"fd_pixels_{n}_test", f"fd_pixels_{n}_test_of_train", "fd_ratio", f"kid_pixels_{n}_test",
                              "memorisation_ratio"}  # fmt: skip
    assert all(type(value) is float for value in metrics.values())
    ratio = metrics[f"fd_pixels_{n}_test"] / metrics[f"fd_pixels_{n}_test_of_train"]
    assert metrics["fd_ratio"] == pytest.approx(ratio)
    assert not any("fid" in name for name in metrics)


def test_the_frechet_distance_is_that_of_these_sets(splits):
    """Against scipy's general matrix square root."""
    from scipy.linalg import sqrtm

    train, test = splits
    new = source("new", 4, count=60).images
    metrics, _ = evaluate_samples(samples(new), train, test, Pixels())
    x, y = Pixels().features(new), Pixels().features(test.images)
    s, t = np.cov(x.T), np.cov(y.T)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s + t - 2 * sqrtm(s @ t).real)
    assert metrics["fd_pixels_60_test"] == pytest.approx(expected, rel=1e-6)


def test_points_are_compared_as_they_are():
    draw = np.random.default_rng(0)

    def points(split, count):
        values = draw.normal(size=(count, 2)).astype(np.float32)
        return array_source(values, None, (), name="points", version="1", split=split, split_rule="draws",
                            split_seed=0)  # fmt: skip

    train, test = points("train", 200), points("test", 100)
    metrics, details = evaluate_samples(samples(train.images[:50]), train, test, None)
    assert metrics["memorisation_ratio"] == 0.0 and "fd_points_50_test" in metrics and "features" not in details
    far, _ = evaluate_samples(samples(train.images[:50] + 3), train, test, None)
    assert far["fd_points_50_test"] > 15 and far["memorisation_ratio"] > 5


def test_all_images_in_order(splits):
    assert np.array_equal(all_images(splits[1]), splits[1].images)
