"""Names carry what was measured, and nothing but Inception's features is called FID."""

import pytest

from evaluation.names import STEMS, count_label, direction, metric_name

INCEPTION = {"name": "inception", "official": True, "resize": "clean", "weights_sha256": "ab"}


@pytest.mark.parametrize(
    ("metric", "count", "features", "name"),
    [
        ("fd", 50_000, INCEPTION | {"resize": "tf1"}, "fid50k_train_tf1"),
        ("fd", 50_000, INCEPTION, "fid50k_train_clean"),
        ("fd_infinity", 49_999, INCEPTION, "fidinf49999_train_clean"),
        ("sfd", 10_000, INCEPTION, "sfid10k_train_clean"),
        ("inception_score", 50_000, INCEPTION, "is50k_clean"),
        ("fd", 5000, INCEPTION | {"official": False}, "fd5k_train_otherinception"),
        ("kid", 5000, {"name": "efflite0"}, "kid5k_train_efflite0"),
        ("fd", 1438, {"name": "classifier"}, "fd1438_train_classifier"),
        ("w1", 10_000, {"name": "points"}, "wasserstein10k_train_points"),
        ("precision", 500, {"name": "dinov2"}, "precision500_train_dinov2"),
    ],
)
def test_names(metric, count, features, name):
    assert metric_name(metric, count=count, reference="train", features=features) == name


@pytest.mark.parametrize("metric", STEMS)
def test_no_other_features_are_called_fid(metric):
    others = {"name": "inception_v3", "weights_sha256": "ab", "resize": "tf1"}, INCEPTION | {"official": False}
    for features in ({"name": "efflite0"}, *others):
        assert "fid" not in metric_name(metric, count=5, reference="test", features=features)


@pytest.mark.parametrize("metric", ["fd", "fd_infinity", "sfd"])
def test_fid_needs_the_hash_of_the_weights(metric):
    for sha256 in (None, ""):
        with pytest.raises(ValueError, match="their weights are unknown"):
            metric_name(metric, count=5, reference="test", features=INCEPTION | {"weights_sha256": sha256})


@pytest.mark.parametrize(("count", "label"), [(1, "1"), (999, "999"), (1000, "1k"), (1500, "1500"), (50_000, "50k")])
def test_counts(count, label):
    assert count_label(count) == label


@pytest.mark.parametrize(
    ("name", "better"),
    [("fid50k_train_tf1", -1), ("fid50k_train_tf1_min", -1), ("is50k_tf1_mean", 1), ("recall5k_test_efflite0", 1),
     ("fd360_test_classifier_of_train", None), ("fd360_test_classifier_ratio", -1), ("class_accuracy", 1),
     ("class_accuracy_mean", 1), ("class_total_variation", -1), ("memorisation_ratio", None), ("fdinf5k_x_y", -1),
     ("fisher_error", -1), ("fisher_error_t0.05", -1), ("wasserstein10k_test_points_mean", -1), ("mass_error_min", -1)],
)  # fmt: skip
def test_which_way_is_better(name, better):
    assert direction(name) == better
