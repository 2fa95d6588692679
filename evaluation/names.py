"""Names of metrics that say what was measured: most errors with FID are of what was compared with what.

  fid50k_train_tf1        metric, number of images, reference, and the resize, which stands for Inception's features
  kid5k_test_efflite0     the same with other features, which then are never called FID
  is50k_tf1               the Inception Score knows no reference
  fd50k_train_otherinception   Inception's graph with other weights than the public ones, which is not FID
  wasserstein10k_test_points   of points in the plane
  fisher_error_t0.5       of the score at time 0.5, which no samples are needed for

A count is written in thousands only where it is a whole number of them.
"""

import re
from typing import Any

# Metric -> (stem of its name, its stem with Inception features where that has a name of its own).
STEMS = {
    "fd": ("fd", "fid"),
    "fd_infinity": ("fdinf", "fidinf"),
    "sfd": ("sfd", "sfid"),
    "kid": ("kid", "kid"),
    "inception_score": ("is", "is"),
    "precision": ("precision", "precision"),
    "recall": ("recall", "recall"),
    "density": ("density", "density"),
    "coverage": ("coverage", "coverage"),
    "w1": ("wasserstein", "wasserstein"),  # not w1, which the count would be taken for a part of
}
# Stem of a name -> which way is better: +1 higher, -1 lower.
_DIRECTIONS = {"fd": -1, "fid": -1, "fdinf": -1, "fidinf": -1, "sfd": -1, "sfid": -1, "kid": -1, "is": 1,
               "precision": 1, "recall": 1, "density": 1, "coverage": 1, "wasserstein": -1, "fisher": -1}  # fmt: skip
_NAMED = {"class_accuracy": 1, "class_total_variation": -1, "mass_error": -1}


def count_label(count: int) -> str:
    """50000 -> "50k", 1438 -> "1438"."""
    return f"{count // 1000}k" if count % 1000 == 0 else str(count)


def metric_name(metric: str, *, count: int, reference: str, features: dict[str, Any]) -> str:
    """The name of a metric of `count` images against a reference.

    Args:
      metric: a key of `STEMS`.
      reference: name of the reference: "train", "test", or that of a file.
      features: the extractor's provenance.

    Raises:
      ValueError: a name with "fid" would be given to features that are not those of Inception with known weights.
    """
    inception = features["name"] == "inception"
    official = inception and features["official"]
    stem = STEMS[metric][official]
    if "fid" in stem and not features.get("weights_sha256"):
        raise ValueError(f"'{stem}' is the name of a distance in Inception's features, and their weights are unknown")
    tag = features["resize"] if official else "otherinception" if inception else features["name"]
    parts = [f"{stem}{count_label(count)}", *([] if metric == "inception_score" else [reference]), tag]
    return "_".join(parts)


def direction(name: str) -> int | None:
    """+1 where a higher value of the metric of this name is better, -1 where a lower one is, None where neither is."""
    name = name.removesuffix("_mean").removesuffix("_min")
    stem = re.match(r"[a-z]*", name)[0]
    return None if name.endswith("_of_train") else _NAMED.get(name, _DIRECTIONS.get(stem))
