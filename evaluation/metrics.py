"""Numbered images, an extractor and a reference -> the numbers that are reported, under the names of names.py.

  fd                  Frechet distance of the features (distances.py); with Inception: FID
  fd_infinity         its extrapolation to infinitely many samples (extrapolation.py)
  sfd                 Frechet distance of spatial features; with Inception: sFID
  kid                 unbiased kernel distance (distances.py)
  inception_score     (inception_score.py) needs Inception
  precision_recall    improved precision and recall (precision_recall.py)
  density_coverage    density and coverage (precision_recall.py)
  w1                  1-Wasserstein distance of each coordinate of points, and their mean; needs points

One pass over the images serves all metrics of an extractor (one_pass.py). Where the labels that the images were asked
for are known and the extractor is the classifier, its opinion of them is added:

  class_accuracy         share of images that the classifier gives the class they were asked for
  class_total_variation  distance of the classes of the images from those of the reference, in [0, 1]
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from evaluation.base import Features
from evaluation.distances import frechet_distance, kernel_distance
from evaluation.extrapolation import SMALLEST, frechet_distance_infinity
from evaluation.features.classifier import class_accuracy, class_coverage
from evaluation.features.inception import HOW_TO_GET_WEIGHTS
from evaluation.inception_score import inception_score
from evaluation.names import direction, metric_name
from evaluation.one_pass import Statistics, one_pass
from evaluation.precision_recall import density_coverage, precision_recall
from evaluation.references import Reference, check_comparable


class Needs(NamedTuple):
    """Taps of the extractor that a metric is computed from: of the images, and of the reference."""

    moments: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    reference_moments: tuple[str, ...] = ()
    reference_rows: tuple[str, ...] = ()


_ROWS = Needs(rows=("features",), reference_rows=("features",))
METRICS = {
    "fd": Needs(moments=("features",), reference_moments=("features",)),
    "fd_infinity": Needs(rows=("features",), reference_moments=("features",)),
    "sfd": Needs(moments=("spatial",), reference_moments=("spatial",)),
    "kid": _ROWS,
    "inception_score": Needs(rows=("logits",)),
    "precision_recall": _ROWS,
    "density_coverage": _ROWS,
    "w1": _ROWS,
}
# Metrics that only one kind of features has.
NEEDS_FEATURES = {"sfd": "inception", "inception_score": "inception", "w1": "points"}
# What a distance in Inception's features is called may be asked for by that name.
INCEPTION_NAMES = {"fid": "fd", "sfid": "sfd", "fid_infinity": "fd_infinity"}


def check_metrics(metrics: Sequence[str], features: Sequence[str], count: int) -> None:
    """Raises ValueError for a metric that is not known, that none of these features has, or that needs more images."""
    for metric in metrics:
        if metric in INCEPTION_NAMES and "inception" not in features:
            given = ", ".join(features) or "none"
            raise ValueError(f"metric '{metric}' needs the features 'inception', got {given}; in other features it is "
                             f"'{INCEPTION_NAMES[metric]}'. {HOW_TO_GET_WEIGHTS}")
        metric = INCEPTION_NAMES.get(metric, metric)
        if metric not in METRICS:
            raise ValueError(f"metric '{metric}' is not known; choose from {', '.join(METRICS)}")
        if not any(metric in available([metric], name) for name in features):
            raise ValueError(f"metric '{metric}' needs the features '{NEEDS_FEATURES[metric]}', got "
                             f"{', '.join(features) or 'none'}")
        if metric == "fd_infinity" and count < 2 * SMALLEST:
            raise ValueError(f"metric 'fd_infinity' needs at least {2 * SMALLEST} images, got {count}: it extrapolates "
                             f"from subsets of {SMALLEST} and more")


def available(metrics: Sequence[str], features_name: str) -> list[str]:
    """Those of the metrics that these features have, as keys of `METRICS`."""
    names = INCEPTION_NAMES if features_name == "inception" else {}
    own = dict.fromkeys(names.get(metric, metric) for metric in metrics if metric in METRICS or metric in names)
    return [metric for metric in own if NEEDS_FEATURES.get(metric, features_name) == features_name]


def make_reference(
    read: Callable[[int, int], np.ndarray], count: int, features: Features, metrics: Sequence[str], *,
    facts: dict[str, Any], **pass_options: Any,
) -> Reference:
    """The statistics of real images that these metrics are measured against.

    Args:
      read, count, features: as `one_pass`, which also takes `pass_options`.
      metrics: keys of `METRICS`.
      facts: what the images are, ready for json: dataset, split, ...
    """
    needs = [METRICS[metric] for metric in metrics]
    taps = {
        "moments_of": {"features", *(tap for need in needs for tap in need.reference_moments)},
        "rows_of": {tap for need in needs for tap in need.reference_rows},
    }
    statistics = one_pass(read, count, features, **taps, **pass_options)
    provenance = {"kind": "ours", "num_images": count, "ddof": 1, **_identity(features, read(0, 1)), **facts}
    return Reference(moments=statistics.moments, rows=statistics.rows, images=None, provenance=provenance)


def _identity(features: Features, image: np.ndarray) -> dict[str, Any]:
    """What must agree between two sets whose features are compared."""
    about = features.provenance
    return {"features": features.name, "weights_sha256": about.get("weights_sha256"), "resize": about.get("resize"),
            "image_shape": list(image.shape[1:])}


def measure(
    read: Callable[[int, int], np.ndarray], count: int, features: Features, metrics: Sequence[str],
    reference: Reference, *, reference_name: str, labels: np.ndarray | None = None,
    reference_labels: np.ndarray | None = None, **pass_options: Any,
) -> tuple[dict[str, float], dict[str, Any]]:
    """The metrics of numbered images.

    Args:
      read, count, features: as `one_pass`, which also takes `pass_options`.
      metrics: keys of `METRICS`.
      reference: statistics of the same features.
      reference_name: for the names of the metrics.
      labels: [count] classes that the images were asked for, None where there were none.
      reference_labels: classes of real images, for class_total_variation.

    Returns:
      (numbers by name, details ready for json).

    Raises:
      ValueError: for a reference that does not fit or lacks what a metric needs, and as `one_pass`.
    """
    unverified = check_reference(reference, features, metrics, read(0, 1))
    check_metrics(metrics, [features.name], count)
    reference = _with_rows_of_images(reference, features, metrics, pass_options)
    classified = features.name == "classifier" and labels is not None
    needs = [METRICS[metric] for metric in metrics]
    taps = {
        "moments_of": {tap for need in needs for tap in need.moments},
        "rows_of": {tap for need in needs for tap in need.rows} | ({"logits"} if classified else set()),
    }
    statistics = one_pass(read, count, features, **taps, **pass_options)
    name = partial(metric_name, count=count, reference=reference_name, features=features.provenance)
    numbers, details = _compare(statistics, reference, metrics, name)
    details |= {"features": features.provenance, "reference": reference.provenance, "unverified": unverified}
    if classified:
        accuracy = class_accuracy(statistics.rows["logits"], labels)
        numbers["class_accuracy"], details["class_accuracy_per_class"] = accuracy["accuracy"], accuracy["per_class"]
        if reference_labels is not None:
            coverage = class_coverage(statistics.rows["logits"], reference_labels)
            numbers["class_total_variation"], details["class_shares"] = coverage["total_variation"], coverage["shares"]
    return numbers, details


def _with_rows_of_images(
    reference: Reference, features: Features, metrics: Sequence[str], pass_options: dict[str, Any]
) -> Reference:
    """ADM's files hold 10,000 images beside the statistics: precision and recall take their features from these."""
    wanted = {tap for metric in metrics for tap in METRICS[metric].reference_rows} - reference.rows.keys()
    if reference.images is None or not wanted:
        return reference
    images, options = reference.images, {name: pass_options[name] for name in ("batch_size", "mesh")}
    rows = one_pass(lambda start, stop: images[start:stop], len(images), features, rows_of=wanted, **options).rows
    return replace(reference, rows=reference.rows | rows)


def check_reference(
    reference: Reference, features: Features, metrics: Sequence[str], image: np.ndarray
) -> list[str]:
    """Whether images like [1, H, W, C] `image` can be measured against a reference; to be asked before they are made.

    Returns:
      What nobody can verify, since a foreign file does not say it (references.py:check_comparable).

    Raises:
      ValueError: if the reference was computed in another way, or lacks what a metric needs.
    """
    unverified = check_comparable(_identity(features, image), reference)
    for metric in metrics:
        need = METRICS[metric]
        for kind, taps in (("moments", need.reference_moments), ("rows", need.reference_rows)):
            from_images = kind == "rows" and reference.images is not None
            missing = [tap for tap in taps if tap not in getattr(reference, kind) and not from_images]
            if missing:
                held = [f"{k} of {tap}" for k in ("moments", "rows") for tap in getattr(reference, k)]
                raise ValueError(f"metric '{metric}' needs the {kind} of the reference's {missing[0]}; "
                                 f"{reference.provenance.get('path', 'it')} holds {', '.join(held) or 'nothing'}")
    return unverified


def _compare(
    sampled: Statistics, reference: Reference, metrics: Sequence[str], name: Callable[[str], str]
) -> tuple[dict[str, float], dict[str, Any]]:
    numbers: dict[str, float] = {}
    details: dict[str, Any] = {}
    rows, real = sampled.rows.get("features"), reference.rows.get("features")
    for metric in metrics:
        if metric in ("fd", "sfd"):
            tap = "features" if metric == "fd" else "spatial"
            numbers[name(metric)] = frechet_distance(sampled.moments[tap], reference.moments[tap])
        elif metric == "fd_infinity":
            limit = frechet_distance_infinity(rows, reference.moments["features"])
            numbers[name(metric)], details[f"{name(metric)}_fit"] = limit.value, limit._asdict()
        elif metric == "kid":
            numbers[name(metric)], details[f"{name(metric)}_std"] = kernel_distance(rows, real)
        elif metric == "inception_score":
            numbers[name(metric)], details[f"{name(metric)}_std"] = inception_score(sampled.rows["logits"])
        elif metric == "precision_recall":
            precision, recall = precision_recall(real, rows)
            numbers |= {name("precision"): precision, name("recall"): recall}
        elif metric == "density_coverage":
            density, coverage = density_coverage(real, rows)
            numbers |= {name("density"): density, name("coverage"): coverage}
        elif metric == "w1":
            numbers[name(metric)] = coordinate_wasserstein(rows, real)
    return numbers, details


def coordinate_wasserstein(points: Float[np.ndarray, "n d"], real: Float[np.ndarray, "m d"]) -> float:
    """The mean over the coordinates of the 1-Wasserstein distance of the two samples' marginals, in the data's units.

    It says nothing of how the coordinates hang together.
    """
    from scipy.stats import wasserstein_distance  # takes more than a second

    return float(np.mean([wasserstein_distance(ours, theirs) for ours, theirs in zip(points.T, real.T)]))


def over_ranges(ranges: Sequence[dict[str, float]]) -> dict[str, float]:
    """The numbers of several ranges of images under one name each: NAME where there is one range, else NAME_mean, and
    NAME_min for distances, whose smallest of three is what EDM's papers report."""
    if len(ranges) == 1:
        return dict(ranges[0])
    summary = {}
    for name in ranges[0]:
        values = [numbers[name] for numbers in ranges]
        summary[f"{name}_mean"] = float(np.mean(values))
        if direction(name) == -1:
            summary[f"{name}_min"] = float(np.min(values))
    return summary
