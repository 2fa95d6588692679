"""Features from a small convolutional classifier, trained on the data set's own training split.

Inception features say little about 8x8 or grey-scale images. This classifier takes their place: trained once per data
set from a fixed recipe and seed, cached, and identified by a hash, so that a distance can name the features it was
measured in.

A classifier that overfits gives training images other features than new images, and every distance between the two is
then inflated. Its provenance states the training and the test accuracy, so that the gap can be seen.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree, UInt8

from data.base import Source, gather
from evaluation.array_files import content_hash, load_arrays, save_arrays
from evaluation.features.classifier_network import DIMENSION, Recipe, abstract, train
from evaluation.one_pass import feature_rows

# Part of the cache's hash: raise it when a change of code changes what a trained classifier computes.
_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Classifier:
    """A trained classifier: a `Features` of dimension 64, which also names the class of an image.

    Attributes:
      provenance: name, hash (of recipe, data and shape), weights_sha256, test_accuracy, train_accuracy, train_count,
        recipe, train and test (the provenance of the two splits).
    """

    graphdef: nnx.GraphDef
    params: PyTree
    image_shape: tuple[int, ...]
    num_classes: int
    provenance: dict[str, Any]
    name: str = "classifier"
    dimension: int = DIMENSION

    def taps(self, params: PyTree, images: UInt8[Array, "n h w c"]) -> dict[str, Float[Array, "n _d"]]:
        """"features": the 64 activations before the last dense layer; "logits": one per class.

        Raises:
          ValueError: if the images are not of the trained shape.
        """
        if images.shape[1:] != self.image_shape:
            raise ValueError(f"the classifier takes images of shape {self.image_shape}, got {images.shape[1:]}")
        features, logits = nnx.merge(self.graphdef, params)(images)
        return {"features": features, "logits": logits}


def train_or_load_classifier(
    train_source: Source, test_source: Source, cache_dir: Path, *, recipe: Recipe | None = None
) -> Classifier:
    """The classifier of a data set: read from `<cache_dir>/classifier-<hash>.npz` if it is there, else trained and
    written there.

    Only the training split is learned from; the test split gives the test accuracy. The hash covers the recipe, the
    code's version, the provenance of both splits and the image shape. On CPUs training is repeatable to the bit on one
    kind of machine; elsewhere two trainings of one hash may differ a little, which `provenance["weights_sha256"]`
    shows.

    Raises:
      ValueError: if the splits are not 8-bit images of one shape with one set of at least 2 classes.
    """
    recipe = recipe or Recipe()
    _check_sources(train_source, test_source)
    identity = {
        "version": _VERSION,
        "recipe": dataclasses.asdict(recipe),
        "image_shape": list(train_source.image_shape),
        "num_classes": train_source.num_classes,
        "train": train_source.provenance,
        "test": test_source.provenance,
    }
    identifier = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    path = Path(cache_dir) / f"classifier-{identifier}.npz"
    try:
        classifier = _load(path, identity, recipe)
    except FileNotFoundError:
        pass
    except ValueError as error:
        logging.warning("Training the classifier again: %s", error)
    else:
        logging.info("Classifier read from %s", path)
        return classifier
    classifier = _train(train_source, test_source, identity, identifier, recipe)
    save_arrays(path, _arrays(classifier.params), classifier.provenance)
    return classifier


def _check_sources(train_source: Source, test_source: Source) -> None:
    for field in ("image_shape", "num_classes"):
        ours, theirs = getattr(train_source, field), getattr(test_source, field)
        if ours != theirs:
            raise ValueError(f"the classifier's training and test split differ in {field}: {ours} and {theirs}")
    if len(train_source.image_shape) != 3 or min(train_source.image_shape[:2]) < 4:
        raise ValueError(f"the classifier needs images [H, W, C] of at least 4x4, got shape {train_source.image_shape}")
    if train_source.num_classes < 2:
        name = train_source.provenance.get("name")
        raise ValueError(f"the classifier needs labels of at least 2 classes; {name} has {train_source.num_classes}")


def _train(
    train_source: Source, test_source: Source, identity: dict[str, Any], identifier: str, recipe: Recipe
) -> Classifier:
    learned, unseen = (gather(source, np.arange(len(source))) for source in (train_source, test_source))
    logging.info("Training the classifier on %d images, %d steps", len(train_source), recipe.steps(len(train_source)))
    graphdef, params = train(learned["image"], learned["label"], train_source.num_classes, recipe)
    classifier = Classifier(
        graphdef=graphdef,
        params=params,
        image_shape=tuple(train_source.image_shape),
        num_classes=train_source.num_classes,
        provenance={},
    )
    accuracies = {}
    for split, data in (("train", learned), ("test", unseen)):
        logits = feature_rows(classifier, data["image"], "logits")
        accuracies[f"{split}_accuracy"] = class_accuracy(logits, data["label"])["accuracy"]
    provenance = {
        "name": "classifier",
        "hash": identifier,
        "weights_sha256": content_hash(_arrays(params), {}),
        "train_count": len(train_source),
        "test_count": len(test_source),
        **accuracies,
        "steps": recipe.steps(len(train_source)),
        **identity,
    }
    logging.info("Classifier trained: test accuracy %.4f", accuracies["test_accuracy"])
    return dataclasses.replace(classifier, provenance=provenance)


def _load(path: Path, identity: dict[str, Any], recipe: Recipe) -> Classifier:
    arrays, provenance = load_arrays(path)
    image_shape, num_classes = tuple(identity["image_shape"]), identity["num_classes"]
    graphdef, expected = abstract(image_shape, num_classes, recipe)
    shapes = {name: leaf.shape for name, leaf in _named(expected).items()}
    if {name: array.shape for name, array in arrays.items()} != shapes or any(
        provenance.get(key) != json.loads(json.dumps(value)) for key, value in identity.items()
    ):
        raise ValueError(f"{path} holds another classifier than its name says")
    params = jax.tree.unflatten(jax.tree.structure(expected), [jax.numpy.asarray(arrays[name]) for name in shapes])
    return Classifier(
        graphdef=graphdef, params=params, image_shape=image_shape, num_classes=num_classes, provenance=provenance
    )


def _named(params: PyTree) -> dict[str, Any]:
    """The leaves by their path, in the order of the tree: {"stem/kernel": ...}."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _arrays(params: PyTree) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in _named(params).items()}


def class_accuracy(logits: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " _n"]) -> dict[str, Any]:
    """How often images are classified as the class they were meant to be.

    Returns:
      {"accuracy": share of all images, "per_class": [share of the images of each class, None where there is none]}.

    Raises:
      ValueError: if there are no images, not one label per image, or a label is not in 0..C-1.
    """
    classes = logits.shape[1]
    if len(labels) != len(logits):
        raise ValueError(f"class_accuracy needs one label per image, got {len(labels)} for {len(logits)}")
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"class_accuracy needs at least one label, all in 0..{classes - 1}, got {np.unique(labels)}")
    correct = logits.argmax(axis=1) == labels
    per_class = [float(correct[labels == c].mean()) if (labels == c).any() else None for c in range(classes)]
    return {"accuracy": float(correct.mean()), "per_class": per_class}


def class_coverage(logits: Float[np.ndarray, "n classes"], reference_labels: Int[np.ndarray, " m"]) -> dict[str, Any]:
    """Whether samples drawn without a label cover the classes as the data do.

    Args:
      logits: of the N samples.
      reference_labels: of M real images.

    Returns:
      {"shares": [share of the samples classified as each class], "reference": [share of the real images],
      "total_variation": half the sum of the absolute differences, 0 for equal shares and at most 1}. Sampling alone
      makes it about sqrt(C / (2 pi N)) for N samples of C equally likely classes.

    Raises:
      ValueError: if there are no samples or no reference labels, or a label is not in 0..C-1.
    """
    classes = logits.shape[1]
    if len(logits) == 0 or len(reference_labels) == 0:
        raise ValueError(f"class_coverage needs samples and labels, got {len(logits)} and {len(reference_labels)}")
    if reference_labels.min() < 0 or reference_labels.max() >= classes:
        raise ValueError(f"the reference labels must be in 0..{classes - 1}, got {np.unique(reference_labels)}")
    shares = np.bincount(logits.argmax(axis=1), minlength=classes) / len(logits)
    reference = np.bincount(reference_labels, minlength=classes) / len(reference_labels)
    return {
        "shares": shares.tolist(),
        "reference": reference.tolist(),
        "total_variation": float(np.abs(shares - reference).sum() / 2.0),
    }
