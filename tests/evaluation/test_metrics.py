"""The numbers of one set of samples, on data for which they are known; what does not fit is refused."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from scipy.linalg import sqrtm

from evaluation.features.points import Points
from evaluation.metrics import METRICS, available, check_metrics, make_reference, measure, over_ranges

COUNT = 150
METRICS_OF_ALL = [metric for metric in METRICS if metric not in ("sfd", "inception_score", "w1", "fd_infinity")]


class Pixels:
    """A `Features` of a few fixed projections, under any name."""

    dimension = 5

    def __init__(self, name="pixels", **provenance):
        facts = {"name": name, "official": True, "weights_sha256": "0" * 64, "resize": None}
        self.name, self.provenance = name, facts | provenance
        self.params = np.random.default_rng(9).normal(size=(36, 7)).astype(np.float32)

    def taps(self, params, images):
        rows = (images.reshape(len(images), -1) / np.float32(255) - np.float32(0.5)) @ params
        return {"features": rows[:, :5], "spatial": rows[:, 2:], "logits": 3 * rows[:, :3]}


PIXELS = Pixels()
INCEPTION = Pixels("inception", resize="tf1")


def images(seed, count=COUNT):
    return np.random.default_rng(seed).integers(0, 256, (count, 6, 6, 1), np.uint8)


@pytest.fixture(scope="module")
def options():
    return {"batch_size": 64, "mesh": jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))}


def reader(data):
    return lambda start, stop: data[start:stop]


def reference(data, options, features=PIXELS, metrics=METRICS_OF_ALL):
    return make_reference(reader(data), len(data), features, metrics, facts={"dataset": "noise"}, **options)


def numbers(data, against, options, features=PIXELS, metrics=METRICS_OF_ALL, **more):
    return measure(reader(data), len(data), features, metrics, against, reference_name="test", **options, **more)


def by_hand(data):
    return np.asarray(PIXELS.taps(PIXELS.params, data.astype(np.float32))["features"], np.float64)


def test_all_metrics_of_a_set_against_itself(options):
    metrics, details = numbers(images(0), reference(images(0), options), options)
    expected = {"fd150_test_pixels": 0.0, "precision150_test_pixels": 1.0, "recall150_test_pixels": 1.0,
                "coverage150_test_pixels": 1.0}  # fmt: skip
    assert metrics.keys() == expected.keys() | {"kid150_test_pixels", "density150_test_pixels"}
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert metrics["kid150_test_pixels"] < 0  # the unbiased estimate of equal sets
    assert details["features"] == PIXELS.provenance and details["reference"]["dataset"] == "noise"
    assert details["unverified"] == []


def test_the_frechet_distance_is_that_of_these_sets(options):
    """Against scipy's general matrix square root of numpy's moments."""
    new, real = images(4, 60), images(1)
    metrics, _ = numbers(new, reference(real, options), options, metrics=["fd"])
    x, y = by_hand(new), by_hand(real)
    s, t = np.cov(x.T), np.cov(y.T)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s + t - 2 * sqrtm(s @ t).real)
    assert metrics == {"fd60_test_pixels": pytest.approx(expected, rel=1e-5)}


def test_worse_images_get_worse_numbers(options):
    against = reference(images(1), options)
    good, _ = numbers(images(2), against, options)
    grey, _ = numbers(np.full((COUNT, 6, 6, 1), 128, np.uint8), against, options)
    for name, value in good.items():
        if name.startswith(("fd", "kid")):
            assert grey[name] > 5 * abs(value)
    assert grey["recall150_test_pixels"] == 0 < good["recall150_test_pixels"]


def test_only_inception_has_fid_sfid_and_an_inception_score(options):
    every = [metric for metric in METRICS if metric not in ("w1", "fd_infinity")]
    metrics, details = numbers(images(2, 1000), reference(images(1), options, INCEPTION, every), options, INCEPTION,
                               every)  # fmt: skip
    assert metrics.keys() == {"fid1k_test_tf1", "sfid1k_test_tf1", "kid1k_test_tf1", "is1k_tf1", "precision1k_test_tf1",
                              "recall1k_test_tf1", "density1k_test_tf1", "coverage1k_test_tf1"}  # fmt: skip
    assert 1 <= metrics["is1k_tf1"] <= 3 and details["is1k_tf1_std"] >= 0
    other, _ = numbers(images(2, 1000), reference(images(1), options), options)
    assert not any("fid" in name for name in other)
    assert other["fd1k_test_pixels"] == pytest.approx(metrics["fid1k_test_tf1"])
    assert available(every, "inception") == every and "sfd" not in available(every, "pixels")
    with pytest.raises(ValueError, match="'inception_score' needs the features 'inception', got pixels"):
        numbers(images(2), reference(images(1), options), options, metrics=["inception_score"])
    nameless = Pixels("inception", resize="tf1", weights_sha256=None)
    with pytest.raises(ValueError, match="'fid' is the name of a distance in Inception's features"):
        numbers(images(2), reference(images(1), options, nameless), options, nameless, ["fd"])


def test_the_extrapolation_is_below_the_distance(options):
    """The bias of a finite number is positive: against the true distribution the limit is nearer to 0."""
    metrics, details = numbers(images(2, 10_000), reference(images(1, 10_000), options), options,
                               metrics=["fd", "fd_infinity"])  # fmt: skip
    assert metrics["fdinf10k_test_pixels"] < metrics["fd10k_test_pixels"]
    assert len(details["fdinf10k_test_pixels_fit"]["counts"]) == 15


def test_what_cannot_be_compared_is_refused(options):
    against = reference(images(1), options, INCEPTION, ["fd"])
    other = {
        "weights_sha256 is 111": Pixels("inception", resize="tf1", weights_sha256="111"),
        "resize is clean": Pixels("inception", resize="clean"),
        "features is pixels": Pixels(resize="tf1"),
    }
    for message, features in other.items():
        with pytest.raises(ValueError, match=f"samples and reference cannot be compared: {message}"):
            numbers(images(2), against, options, features, ["fd"])
    large = np.zeros((5, 12, 3, 1), np.uint8)
    with pytest.raises(ValueError, match=r"image_shape is \[12, 3, 1\] of the samples, but \[6, 6, 1\]"):
        numbers(large, against, options, INCEPTION, ["fd"])
    with pytest.raises(ValueError, match=r"'kid' needs the rows of the reference's features; .* holds moments of feat"):
        numbers(images(2), against, options, INCEPTION, ["kid"])
    unknown = replace(against, provenance=against.provenance | {"weights_sha256": None, "kind": "statistics"})
    _, details = numbers(images(2), unknown, options, INCEPTION, ["fd"])
    assert details["unverified"] == ["weights_sha256"]


def test_images_in_a_reference_serve_for_precision_and_recall(options):
    """ADM's files: the features of the images that they hold are taken when they are needed."""
    real = images(1)
    whole = reference(real, options)
    adm = replace(whole, rows={}, images=real)
    for metric in ("precision_recall", "kid"):
        expected, _ = numbers(images(2), whole, options, metrics=[metric])
        assert numbers(images(2), adm, options, metrics=[metric])[0] == pytest.approx(expected)


@pytest.mark.parametrize("name", ["fid", "sfid", "fid_infinity"])
def test_a_metric_called_fid_is_refused_with_where_to_get_it(name):
    with pytest.raises(ValueError, match=f"metric '{name}' needs the features 'inception', got efflite0") as caught:
        check_metrics([name], ["efflite0"], 50)
    assert "pt_inception-2015-12-05-6726825d.pth" in str(caught.value)


def test_inceptions_own_names_may_be_asked_for():
    check_metrics(["fid", "sfid", "kid"], ["inception", "efflite0"], 50)
    assert available(["fid", "sfid", "fd", "kid", "fid_infinity"], "inception") == ["fd", "sfd", "kid", "fd_infinity"]
    assert available(["fid", "sfid", "kid"], "efflite0") == ["kid"]


def test_unknown_metrics_are_refused():
    with pytest.raises(ValueError, match="metric 'fvd' is not known; choose from fd, fd_infinity, sfd, kid"):
        check_metrics(["fd", "fvd"], ["efflite0"], 50)
    with pytest.raises(ValueError, match="'fd_infinity' needs at least 10000 images, got 9999"):
        check_metrics(["fd_infinity"], ["efflite0"], 9999)


def test_points_are_compared_as_they_are(options):
    draw = np.random.default_rng(0)
    real, near = (draw.normal(size=(400, 2)).astype(np.float32) for _ in range(2))
    against = make_reference(reader(real), 400, Points(), ["fd", "kid"], facts={}, **options)
    close, _ = numbers(near, against, options, Points(), ["fd", "kid"])
    far, _ = numbers(near + 3, against, options, Points(), ["fd", "kid"])
    assert close["fd400_test_points"] < 0.05 and far["fd400_test_points"] == pytest.approx(18, abs=1.5)


def test_the_wasserstein_distance_is_of_points(options):
    """Of as many points: the mean distance of the sorted ones, in each coordinate; a shift is its own distance."""
    draw = np.random.default_rng(0)
    real, new = (draw.normal(size=(400, 2)).astype(np.float32) for _ in range(2))
    against = make_reference(reader(real), 400, Points(), ["w1"], facts={}, **options)
    measured, _ = numbers(new, against, options, Points(), ["w1"])
    by_hand = np.abs(np.sort(new, axis=0) - np.sort(real, axis=0)).mean()
    assert measured == {"wasserstein400_test_points": pytest.approx(by_hand, rel=1e-5)}
    shifted, _ = numbers(real + np.float32([3, -1]), against, options, Points(), ["w1"])
    assert shifted["wasserstein400_test_points"] == pytest.approx(2, rel=1e-5)
    assert available(["w1", "fd"], "points") == ["w1", "fd"] and available(["w1", "fd"], "efflite0") == ["fd"]
    for features in ("efflite0", "inception"):
        with pytest.raises(ValueError, match=f"metric 'w1' needs the features 'points', got {features}"):
            check_metrics(["w1"], [features], 50)


def test_the_classifier_says_what_it_thinks_of_the_labels(options):
    """Logits that name the class: accuracy is the share of agreement, and the shares are those of the classes."""
    classifier = Pixels("classifier")
    data, against = images(2), reference(images(1), options, Pixels("classifier"), ["fd"])
    opinion = by_hand(data)[:, :3].argmax(1)
    labels = np.where(np.arange(COUNT) < 30, (opinion + 1) % 3, opinion).astype(np.int32)
    metrics, details = numbers(data, against, options, classifier, ["fd"], labels=labels,
                               reference_labels=opinion.astype(np.int32))  # fmt: skip
    assert metrics["class_accuracy"] == pytest.approx(0.8) and metrics["class_total_variation"] == 0
    assert sum(details["class_shares"]) == pytest.approx(1)
    unlabelled, _ = numbers(data, against, options, classifier, ["fd"])
    assert "class_accuracy" not in unlabelled


def test_ranges_are_summed_up():
    ranges = [{"fid50k_train_tf1": value, "class_accuracy": value / 10} for value in (2.0, 1.5, 4.0)]
    assert over_ranges(ranges) == {"fid50k_train_tf1_mean": 2.5, "fid50k_train_tf1_min": 1.5,
                                   "class_accuracy_mean": 0.25}  # fmt: skip
    assert over_ranges(ranges[:1]) == ranges[0]
