"""The classifier as a feature extractor: accurate, repeatable, blind to batching, cached safely.

One real training, on digits; the others take three steps.
"""

import dataclasses

import numpy as np
import pytest
from absl import logging

import evaluation.features.classifier as classifier_module
from data.base import array_source, gather
from data.sources import open_source
from evaluation.array_files import load_arrays
from evaluation.base import Features
from evaluation.distances import frechet_distance_of_features
from evaluation.features.classifier import class_accuracy, class_coverage, train_or_load_classifier
from evaluation.features.classifier_network import Recipe
from evaluation.one_pass import feature_rows

TINY = Recipe(minimum_steps=3, epochs=0, batch_size=16)


def stripes(split, count, shape=(8, 8, 1), classes=3, name="stripes"):
    """Images with one bright column, whose position is the class."""
    random = np.random.default_rng({"train": 0, "test": 1}[split])
    labels = random.integers(0, classes, count)
    images = random.integers(0, 60, (count, *shape), dtype=np.uint8)
    images[np.arange(count), :, 1 + 2 * labels] = 250
    names = [str(c) for c in range(classes)]
    return array_source(images, labels, names, name=name, split=split, split_rule="made", split_seed=0)


def everything(source):
    return gather(source, np.arange(len(source)))


@pytest.fixture(scope="session")
def digits():
    return {split: open_source("digits", split) for split in ("train", "test")}


@pytest.fixture(scope="session")
def digits_classifier(digits, tmp_path_factory):
    return train_or_load_classifier(digits["train"], digits["test"], tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """(classifier, cache folder, train, test) of three steps on stripes."""
    folder = tmp_path_factory.mktemp("tiny")
    train, test = stripes("train", 40), stripes("test", 20)
    return train_or_load_classifier(train, test, folder, recipe=TINY), folder, train, test


@pytest.fixture
def warnings_logged(monkeypatch):
    messages = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: messages.append(text % values))
    return messages


def test_digits_are_classified(digits, digits_classifier):
    data = everything(digits["test"])
    logits = feature_rows(digits_classifier, data["image"], "logits")
    accuracy = class_accuracy(logits, data["label"])
    assert accuracy["accuracy"] >= 0.97
    assert min(accuracy["per_class"]) >= 0.85
    assert digits_classifier.provenance["test_accuracy"] == accuracy["accuracy"]
    assert class_coverage(logits, data["label"])["total_variation"] < 0.03


def test_training_images_look_like_new_images_to_the_features(digits, digits_classifier):
    train, test = (feature_rows(digits_classifier, everything(digits[split])["image"]) for split in ("train", "test"))
    random = np.random.default_rng(0)
    n = len(test) // 2
    seen, unseen = [], []
    for _ in range(10):
        order = random.permutation(len(test))
        unseen.append(frechet_distance_of_features(test[order[:n]], test[order[n : 2 * n]]))
        seen.append(frechet_distance_of_features(random.permutation(train)[:n], test[order[:n]]))
    assert np.mean(seen) < 1.3 * np.mean(unseen)
    # Control: the distance does see a difference in content: one pixel of shift.
    shifted = np.roll(everything(digits["test"])["image"], 1, axis=2)
    assert frechet_distance_of_features(feature_rows(digits_classifier, shifted)[:n], test[-n:]) > 1.5 * np.mean(unseen)


def test_it_is_a_feature_extractor(digits_classifier):
    assert isinstance(digits_classifier, Features)
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    features, logits = feature_rows(digits_classifier, images), feature_rows(digits_classifier, images, "logits")
    assert features.dtype == np.float32
    assert features.shape == (5, digits_classifier.dimension)
    output = digits_classifier.params["output"]
    # The features are the input of the last layer.
    np.testing.assert_allclose(features @ output["kernel"] + output["bias"], logits, atol=1e-4)


def test_a_row_depends_neither_on_the_others_nor_on_their_number(digits, digits_classifier):
    images = everything(digits["train"])["image"][:600]
    whole = feature_rows(digits_classifier, images)
    for chosen in (slice(0, 1), slice(1, 8), slice(250, 263), slice(300, 600)):
        np.testing.assert_allclose(feature_rows(digits_classifier, images[chosen]), whole[chosen], atol=1e-5)
    assert np.abs(whole[0] - whole[1]).max() > 0.1


def test_training_is_repeatable_and_the_cache_is_read(tiny, tmp_path, warnings_logged):
    classifier, folder, train, test = tiny
    again = train_or_load_classifier(train, test, tmp_path, recipe=TINY)
    assert again.provenance == classifier.provenance
    (file,) = folder.iterdir()
    assert file.name == f"classifier-{classifier.provenance['hash']}.npz"
    before = file.stat().st_mtime_ns
    loaded = train_or_load_classifier(train, test, folder, recipe=TINY)
    assert file.stat().st_mtime_ns == before
    assert loaded.provenance == classifier.provenance
    images = everything(test)["image"]
    np.testing.assert_array_equal(feature_rows(loaded, images), feature_rows(classifier, images))
    np.testing.assert_array_equal(feature_rows(again, images), feature_rows(classifier, images))
    assert not warnings_logged


def test_the_hash_tells_recipes_and_data_apart(tiny, tmp_path, monkeypatch):
    classifier, _, train, test = tiny
    trained = []

    def no_training(*arguments):
        trained.append(arguments)
        return classifier.graphdef, classifier.params

    monkeypatch.setattr(classifier_module, "train", no_training)
    variants = [
        (train, test, TINY),
        (train, test, dataclasses.replace(TINY, seed=1)),
        (stripes("train", 41), test, TINY),
        (train, stripes("test", 21), TINY),
        (stripes("train", 40, name="other"), test, TINY),
    ]
    hashes = [train_or_load_classifier(a, b, tmp_path, recipe=r).provenance["hash"] for a, b, r in variants * 2]
    assert hashes[0] == classifier.provenance["hash"]
    assert len(set(hashes)) == len(trained) == 5
    assert hashes[:5] == hashes[5:]


def corrupt_byte(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def cut(content):
    return content[:1000]


def empty(content):
    return b""


@pytest.mark.parametrize("damage", [corrupt_byte, cut, empty])
def test_a_damaged_cache_is_trained_anew_with_a_warning(tiny, tmp_path, warnings_logged, damage):
    classifier, folder, train, test = tiny
    (file,) = folder.iterdir()
    copy = tmp_path / file.name
    copy.write_bytes(damage(file.read_bytes()))
    again = train_or_load_classifier(train, test, tmp_path, recipe=TINY)
    assert again.provenance == classifier.provenance
    assert len(warnings_logged) == 1 and "Training the classifier again" in warnings_logged[0]
    assert load_arrays(copy)[1] == classifier.provenance
    assert [p.name for p in tmp_path.iterdir()] == [file.name]


def test_a_cache_of_other_contents_under_this_name_is_not_believed(tiny, tmp_path, warnings_logged):
    _, folder, train, test = tiny
    (file,) = folder.iterdir()
    with np.load(file) as original:
        arrays = {name: original[name] for name in original.files}
    arrays["output/bias"] = arrays["output/bias"] + 1  # a valid npz, whose sha256 no longer fits
    np.savez(tmp_path / file.name, **arrays)
    train_or_load_classifier(train, test, tmp_path, recipe=TINY)
    assert "sha256 differs" in warnings_logged[0]


def test_colour_images_of_other_sizes(tmp_path):
    shape = (29, 33, 3)
    recipe = Recipe(minimum_steps=2, epochs=0, batch_size=8)
    train, test = stripes("train", 20, shape), stripes("test", 10, shape)
    classifier = train_or_load_classifier(train, test, tmp_path, recipe=recipe)
    assert feature_rows(classifier, everything(test)["image"]).shape == (10, 64)
    assert classifier.provenance["train_count"] == 20


def test_images_and_sources_that_do_not_fit_are_refused(tiny, tmp_path):
    classifier, _, train, _ = tiny
    with pytest.raises(ValueError, match="takes images of shape"):
        feature_rows(classifier, np.zeros((2, 9, 8, 1), np.uint8))
    with pytest.raises(ValueError, match="differ in image_shape"):
        train_or_load_classifier(train, stripes("test", 5, (8, 9, 1)), tmp_path)
    with pytest.raises(ValueError, match="differ in num_classes"):
        train_or_load_classifier(train, stripes("test", 5, classes=2), tmp_path)
    with pytest.raises(ValueError, match="labels of at least 2 classes"):
        train_or_load_classifier(stripes("train", 5, classes=1), stripes("test", 5, classes=1), tmp_path)
    toy = open_source("toy2d:rings", "train")
    with pytest.raises(ValueError, match="needs images"):
        train_or_load_classifier(toy, toy, tmp_path)


def test_class_accuracy_and_coverage_by_hand():
    logits = np.eye(4, dtype=np.float32)[[0, 0, 1, 2]]
    accuracy = class_accuracy(logits, np.array([0, 1, 1, 2]))
    assert accuracy == {"accuracy": 0.75, "per_class": [1.0, 0.5, 1.0, None]}
    coverage = class_coverage(logits, np.array([0, 1, 2, 3, 0, 1, 2, 3]))
    assert coverage["shares"] == [0.5, 0.25, 0.25, 0.0]
    assert coverage["reference"] == [0.25] * 4
    assert coverage["total_variation"] == 0.25
    assert class_coverage(logits[:1], np.array([3]))["total_variation"] == 1.0
    with pytest.raises(ValueError, match=r"all in 0\.\.3"):
        class_accuracy(logits, np.array([0, 1, 2, 4]))
    with pytest.raises(ValueError, match="one label per image"):
        class_accuracy(logits, np.array([0, 1]))
    with pytest.raises(ValueError, match="needs samples"):
        class_coverage(logits[:0], np.array([0]))
