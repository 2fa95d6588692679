"""One set of generated images -> the numbers that are reported of it, under names that say what they are.

  fd_<features>_<N>_<split>       Frechet distance of N samples from a split; its bias depends on N
  fd_<features>_<N>_<split>_of_train   the same for N training images: what a perfect model would get
  fd_ratio                        the first over the second
  kid_<features>_<N>_<split>      unbiased kernel distance
  class_accuracy                  share of samples that the classifier gives the class they were asked for
  class_total_variation           distance of the classes of the samples from those of the test split, in [0, 1]
  memorisation_ratio              median distance of samples to their nearest training image, over that of test images

None of these is FID: that name belongs to the 2015 Inception network.
"""

from typing import Any

import numpy as np

from data.base import Source, gather
from data.images import from_uint8
from evaluation.base import Features
from evaluation.distances import frechet_distance_of_features, kernel_distance
from evaluation.features.classifier import Classifier, class_accuracy, class_coverage
from evaluation.generate import Generated
from evaluation.neighbours import memorisation_ratio


def all_images(source: Source) -> np.ndarray:
    """Every example of a split, stacked: [N, H, W, C] uint8 or [N, 2] float32."""
    return gather(source, np.arange(len(source)))["image"]


def evaluate_samples(
    generated: Generated, train: Source, test: Source, features: Features | None
) -> tuple[dict[str, float], dict[str, Any]]:
    """The metrics of one set of samples.

    Args:
      generated: samples, [N, H, W, C] uint8 or [N, 2] points.
      train, test: splits of the data set.
      features: a feature extractor; None for points, which are compared as they are.

    Returns:
      (metrics by name, details ready for json).
    """
    train_images, test_images = all_images(train), all_images(test)
    name = "points" if features is None else features.name
    extract = (lambda images: images.astype(np.float64)) if features is None else features.features
    n = min(len(generated.images), len(train_images))
    reference = extract(test_images)
    sampled = extract(generated.images[:n])
    fd = frechet_distance_of_features(sampled, reference)
    # A seeded choice, since a data set may be sorted by class.
    chosen = np.random.default_rng(0).permutation(len(train_images))[:n]
    fd_train = frechet_distance_of_features(extract(train_images[chosen]), reference)
    kid, kid_std = kernel_distance(sampled, reference)
    metrics = {
        f"fd_{name}_{n}_test": fd,
        f"fd_{name}_{n}_test_of_train": fd_train,
        "fd_ratio": fd / fd_train,
        f"kid_{name}_{n}_test": kid,
        "memorisation_ratio": memorisation_ratio(
            *(_unit_range(images) for images in (generated.images, train_images, test_images))
        ),
    }
    details: dict[str, Any] = {"kid_std": kid_std}
    if features is not None:
        details["features"] = features.provenance
    if isinstance(features, Classifier) and generated.labels is not None:
        logits = features.logits(generated.images)
        accuracy = class_accuracy(logits, generated.labels)
        coverage = class_coverage(logits, gather(test, np.arange(len(test)))["label"])
        metrics["class_accuracy"] = accuracy["accuracy"]
        metrics["class_total_variation"] = coverage["total_variation"]
        details["class_accuracy_per_class"] = accuracy["per_class"]
        details["class_shares"] = coverage["shares"]
    return metrics, details


def _unit_range(images: np.ndarray) -> np.ndarray:
    return from_uint8(images) if images.dtype == np.uint8 else images
