"""tfds:<name>, in a process of its own: TensorFlow Datasets is heavy, and its mock replaces global functions."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
import numpy as np
import tensorflow_datasets as tfds
from data.base import Source, gather
from data.pipeline import make_pipeline
from data.sources import open_source

def message(error_type, *arguments, **options):
    try:
        open_source(*arguments, **options)
    except error_type as error:
        return str(error)
    raise AssertionError("no error")

empty = sys.argv[1]
text = message(FileNotFoundError, "tfds:cifar10", "train", path=empty)
command = f"tfds.builder('cifar10', data_dir={empty!r}, file_format='array_record').download_and_prepare()"
assert "not prepared as array_record" in text and command in text, text
assert "BuilderConfig foo not found" in message(ValueError, "tfds:cifar10/foo", "train", path=empty)
text = message(ValueError, "tfds:no_such_set", "train", path=empty)
assert text == "config.data.source = 'tfds:no_such_set': TensorFlow Datasets has no such set", text
assert "no uint8 feature `image`" in message(ValueError, "tfds:ag_news_subset", "train", path=empty)
assert "several sizes: set config.data.image_size" in message(ValueError, "tfds:oxford_flowers102", "train", path=empty)

with tfds.testing.mock_data(num_examples=12):
    source = open_source("tfds:cifar10", "train", path=empty)
    assert isinstance(source, Source)
    assert (len(source), source.image_shape, source.num_classes) == (12, (32, 32, 3), 10)
    raw = tfds.data_source("cifar10", split="train", data_dir=empty)
    for i in range(12):
        np.testing.assert_array_equal(source[i]["image"], raw[i]["image"])
        assert source[i]["label"] == raw[i]["label"]
    batch = gather(source, np.array([5, 2]))
    np.testing.assert_array_equal(batch["image"][1], raw[2]["image"])
    small = open_source("tfds:cifar10", "train", path=empty, image_size=16)
    expected = raw[4]["image"].reshape(16, 2, 16, 2, 3).mean(axis=(1, 3))
    assert small.image_shape == (16, 16, 3)
    np.testing.assert_allclose(small[4]["image"], expected, atol=1.01)
    assert small.provenance["sha256"] != source.provenance["sha256"]
    batch = make_pipeline(source, batch_size=4, seed=0).batch(1)
    assert batch["image"].shape == (4, 32, 32, 3) and batch["label"].shape == (4,)
print("tensorflow" in sys.modules, "passed")
"""


def test_tfds_source(tmp_path):
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "none")], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.split()[-2:] == ["False", "passed"]  # reading did not import TensorFlow
