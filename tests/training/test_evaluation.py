"""The modes evaluate and reference: what is measured against what, ranges, interruptions, refusals."""

import json
import shutil

import numpy as np
import pytest

from data.sources import open_source
from evaluation import one_pass
from evaluation.distances import frechet_distance
from evaluation.moments import moments
from evaluation.references import read_reference
from training import evaluation, inference
from training.workdir import read_json_lines

pytestmark = pytest.mark.usefixtures("no_tensorboard", "pixel_features")
COUNT = 20


@pytest.fixture
def workdir(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def results(workdir):
    return read_json_lines(workdir / "results.jsonl")


def without_times(record):
    """What an interruption may not change: everything but the clock."""
    return json.dumps({key: value for key, value in record.items() if key not in ("time", "seconds")}, sort_keys=True)


def generated(workdir):
    """All images on disk, in order."""
    files = sorted(workdir.glob("generated/*/0*.npz"))
    return np.concatenate([np.load(path)["image"] for path in files])


def vectors(images):
    """What conftest's extractor makes of images, in float64: the means of quarters."""
    return images.reshape(len(images), 4, -1).mean(axis=2) / 255


def test_three_ranges_are_three_sets_of_images(workdir, tiny_config):
    """Each by hand, from the images on disk; the mean and the least of them are what is reported."""
    assert evaluation.evaluate(tiny_config({"evaluation.ranges": 3}), str(workdir)) == 0
    (record,) = results(workdir)
    images, test = generated(workdir), open_source("digits", "test").images
    name = f"fd{COUNT}_test_pixels"
    by_hand = [frechet_distance(moments(vectors(images[first : first + COUNT])), moments(vectors(test)))
               for first in (0, COUNT, 2 * COUNT)]  # fmt: skip
    assert [entry["first"] for entry in record["ranges"]] == [0, COUNT, 2 * COUNT]
    assert [entry["metrics"][name] for entry in record["ranges"]] == pytest.approx(by_hand, rel=1e-5)
    assert record["metrics"][f"{name}_mean"] == pytest.approx(np.mean(by_hand), rel=1e-5)
    assert record["metrics"][f"{name}_min"] == pytest.approx(min(by_hand), rel=1e-5)
    assert name not in record["metrics"] and len(set(by_hand)) == 3 and record["num_samples"] == COUNT


def test_one_range_is_the_first_of_three(workdir, tiny_config):
    assert evaluation.evaluate(tiny_config({"evaluation.ranges": 3}), str(workdir)) == 0
    assert evaluation.evaluate(tiny_config(), str(workdir)) == 0
    three, one = results(workdir)
    assert one["metrics"] == three["ranges"][0]["metrics"]


def test_the_baseline_is_of_as_many_training_images(workdir, tiny_config):
    """All of them here, so that it can be computed by hand without the choice."""
    config = tiny_config({"evaluation.num_samples": 1438, "evaluation.batch_size": 719})
    assert evaluation.evaluate(config, str(workdir)) == 0
    (record,) = results(workdir)
    splits = [moments(vectors(open_source("digits", split).images)) for split in ("train", "test")]
    expected = frechet_distance(*splits)
    assert record["metrics"]["fd1438_test_pixels_of_train"] == pytest.approx(expected, rel=1e-4)
    ratio = record["metrics"]["fd1438_test_pixels"] / record["metrics"]["fd1438_test_pixels_of_train"]
    assert record["metrics"]["fd1438_test_pixels_ratio"] == pytest.approx(ratio)
    more = tiny_config({"evaluation.num_samples": 1439, "evaluation.batch_size": 719})
    assert evaluation.evaluate(more, str(workdir)) == 0  # there are not so many training images
    names = results(workdir)[1]["metrics"].keys() - {"memorisation_ratio"}
    assert names == {"fd1439_test_pixels", "kid1439_test_pixels"}


class Killed(BaseException):
    """Stands for a kill: nothing handles it, nothing is saved on the way out."""


@pytest.mark.parametrize("reads", [1, 3, 5, 8])
def test_an_evaluation_that_was_killed_ends_in_the_same_record(trained, tmp_path, tiny_config, monkeypatch, reads):
    monkeypatch.setattr(one_pass, "SAVE_SECONDS", 0.0)
    config = tiny_config({"evaluation.ranges": 2, "evaluation.batch_size": 8})
    # One generation, since the seconds of sampling are those of the machine.
    whole, cut = (shutil.copytree(trained, tmp_path / name) for name in ("whole", "cut"))
    assert evaluation.evaluate(config, str(whole)) == 0
    padded, left = one_pass._padded, iter(range(reads))

    def dying(*arguments):
        if next(left, None) is None:
            raise Killed
        return padded(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(one_pass, "_padded", dying)
        with pytest.raises(Killed):
            evaluation.evaluate(config, str(cut))
    assert results(cut) == []
    measured = []
    monkeypatch.setattr(one_pass, "_padded", lambda *arguments: measured.append(1) or padded(*arguments))
    assert evaluation.evaluate(config, str(cut)) == 0
    assert without_times(results(cut)[0]) == without_times(results(whole)[0])
    batches = -(-359 // 8) + -(-COUNT // 8) * 3  # the test split; two ranges; as many training images
    assert len(measured) == batches - reads


def test_reference_files_give_the_numbers_of_the_split(workdir, tiny_config, tmp_path):
    """Mode reference writes them; evaluate reads them."""
    assert evaluation.reference(tiny_config(), str(tmp_path / "statistics")) == 0
    path = tmp_path / "statistics" / "reference-classifier-test.npz"
    stored, exact = read_reference(path), moments(vectors(open_source("digits", "test").images))
    np.testing.assert_allclose(stored.moments["features"].mean, exact.mean, atol=1e-6)
    np.testing.assert_allclose(stored.moments["features"].covariance, exact.covariance, atol=1e-6)
    assert stored.provenance["num_images"] == 359 and stored.provenance["dataset"] == "digits"
    for reference in ("test", str(path)):
        assert evaluation.evaluate(tiny_config({"evaluation.reference": reference}), str(workdir)) == 0
    by_split, by_file = (record["metrics"] for record in results(workdir))
    assert by_file == {"memorisation_ratio": by_split["memorisation_ratio"]} | {
        name.replace("_test_", "_reference-classifier-test_"): by_split[name]
        for name in (f"fd{COUNT}_test_pixels", f"kid{COUNT}_test_pixels")
    }


def test_a_reference_of_another_extractor_is_refused(workdir, tiny_config, tmp_path, monkeypatch, pixels):
    assert evaluation.reference(tiny_config(), str(tmp_path)) == 0
    config = tiny_config({"evaluation.reference": str(tmp_path / "reference-classifier-test.npz")})
    monkeypatch.setattr(pixels, "provenance", {"name": "pixels", "weights_sha256": "1"})
    with pytest.raises(ValueError, match="cannot be compared: weights_sha256 is 1 of the samples, but 0 of"):
        evaluation.evaluate(config, str(workdir))
    missing = tiny_config({"evaluation.reference": str(tmp_path / "missing.npz")})
    with pytest.raises(FileNotFoundError, match=r"missing\.npz"):
        evaluation.evaluate(missing, str(workdir))
    assert not (workdir / "generated").exists()  # before any image is made


def test_features_that_do_not_fit_the_data(workdir, tiny_config):
    with pytest.raises(ValueError, match=r"'points' does not fit config.data.source = 'digits', whose examples are im"):
        evaluation.evaluate(tiny_config({"evaluation.features": ("points",)}), str(workdir))


def test_without_weights_inception_is_refused_before_anything_is_generated(workdir, tiny_config, monkeypatch):
    for name in ("INCEPTION_WEIGHTS", "INCEPTION_WEIGHTS_SHA256"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=r"pt_inception-2015-12-05-6726825d\.pth"):
        evaluation.evaluate(tiny_config({"evaluation.features": ("inception",)}), str(workdir))
    assert not (workdir / "generated").exists()


def test_sampling_again_with_other_ranges_uses_what_is_there(workdir, tiny_config, monkeypatch):
    assert evaluation.evaluate(tiny_config(), str(workdir)) == 0
    made = {path: path.stat().st_mtime_ns for path in workdir.glob("generated/*/0*.npz")}
    assert evaluation.evaluate(tiny_config({"evaluation.ranges": 2}), str(workdir)) == 0
    after = {path: path.stat().st_mtime_ns for path in workdir.glob("generated/*/0*.npz")}
    assert made.items() <= after.items() and len(after) == 5
    assert inference.sample(tiny_config(), str(workdir)) == 0
