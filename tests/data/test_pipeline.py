"""Order, resume, processes, augmentation and errors of the pipeline."""

import json
import threading
import time

import numpy as np
import pytest
from scipy import stats

from data.base import array_source
from data.pipeline import make_pipeline
from data.sources import open_source


def make_source(images, classes=3):
    labels = np.arange(len(images)) % classes if classes else None
    names = [str(k) for k in range(classes)]
    return array_source(images, labels, names, name="made up", split="train", split_rule="none", split_seed=0)


@pytest.fixture(scope="module")
def source():
    images = np.random.default_rng(0).integers(0, 256, (50, 6, 6, 2)).astype(np.uint8)
    return make_source(images)


def take(pipeline, start, count, prefetch=2):
    with pipeline.batches(start, prefetch) as batches:
        return [next(batches) for _ in range(count)]


def assert_equal(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], strict=True)


def test_every_id_once_per_epoch_and_epochs_differ(source):
    pipeline = make_pipeline(source, batch_size=8, seed=0)
    ids = np.concatenate([batch["index"] for batch in take(pipeline, 0, 25)])  # 200 = 4 epochs; 50 is no multiple of 8
    epochs = ids.reshape(4, 50)
    for epoch in epochs:
        assert sorted(epoch) == list(range(50))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_seeds_give_unrelated_orders(source):
    ids = [
        np.concatenate([b["index"] for b in take(make_pipeline(source, batch_size=10, seed=seed), 0, 10)])
        for seed in (0, 1)
    ]
    assert (ids[0] == ids[1]).mean() < 0.1
    assert not np.array_equal(ids[0][50:], ids[1][:50])  # epoch 1 of seed 0 is not epoch 0 of seed 1


def test_batches_hold_the_examples_they_name(source):
    for batch in take(make_pipeline(source, batch_size=7, seed=4), 3, 5):
        expected = np.stack([source[i]["image"] for i in batch["index"]]) / 127.5 - 1
        np.testing.assert_allclose(batch["image"], expected, atol=1e-6)
        assert batch["label"].tolist() == [source[i]["label"] for i in batch["index"]]
        assert batch["image"].dtype == np.float32
        assert batch["label"].dtype == batch["index"].dtype == np.int32


@pytest.mark.parametrize("prefetch", [0, 1, 16])
@pytest.mark.parametrize("start", [3, 5, 6])  # mid-epoch, just before and just after the epoch's edge
def test_resume_continues(source, start, prefetch):
    settings = {"batch_size": 8, "seed": 2, "flip": True, "shift": 1, "dequantise": True}
    uninterrupted = take(make_pipeline(source, **settings), 0, 12)
    resumed = take(make_pipeline(source, **settings), start, 12 - start, prefetch)
    assert_equal(resumed, uninterrupted[start:])
    assert_equal([make_pipeline(source, **settings).batch(n) for n in (9, 7)], [uninterrupted[9], uninterrupted[7]])


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_global_batch(source, count):
    settings = {"batch_size": 8, "seed": 2, "flip": True, "shift": 2, "dequantise": True, "pad_to": 9}
    whole = make_pipeline(source, **settings)
    parts = [make_pipeline(source, **settings, process_index=k, process_count=count) for k in range(count)]
    for n in (0, 5, 6, 40):
        rows = [part.batch(n) for part in parts]
        joined = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
        assert_equal([joined], [whole.batch(n)])


class Wrapped:
    """A source without `gather`, whose examples go through `change` one by one."""

    def __init__(self, source, change):
        self.source, self.change = source, change
        self.image_shape, self.num_classes = source.image_shape, source.num_classes
        self.class_names, self.provenance = source.class_names, source.provenance

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        return self.change(self.source[index])


def test_close_ends_every_thread(source):
    finished = []

    def slow(example):
        time.sleep(0.02)
        finished.append(1)
        return example

    before = set(threading.enumerate())
    batches = make_pipeline(Wrapped(source, slow), batch_size=8, seed=0).batches(0, prefetch=4)
    next(batches)
    assert len(set(threading.enumerate()) - before) >= 2
    batches.close()
    count = len(finished)
    batches.close()
    time.sleep(0.1)
    assert len(finished) == count and count % 8 == 0  # nothing was still at work
    for worker in set(threading.enumerate()) - before:
        worker.join(timeout=10)
        assert not worker.is_alive()
    with pytest.raises(ValueError):
        next(batches)


def test_an_error_in_a_worker_reaches_the_caller(source):
    def fail(example):
        raise ValueError("cannot read 7.png as an image")

    pipeline = make_pipeline(Wrapped(source, fail), batch_size=2, seed=0)
    with pipeline.batches(0) as batches, pytest.raises(ValueError, match=r"7\.png"):
        next(batches)


def test_flip_mirrors_half_of_the_images_anew_in_every_epoch():
    images = np.random.default_rng(3).integers(0, 256, (400, 3, 4, 1)).astype(np.uint8)
    pipeline = make_pipeline(make_source(images), batch_size=400, seed=1, flip=True)
    by_example, by_row = np.empty((2, 2, 400), bool)
    for epoch in (0, 1):
        batch = pipeline.batch(epoch)
        plain = images[batch["index"]] / 127.5 - 1
        as_is = np.isclose(batch["image"], plain, atol=1e-6).all(axis=(1, 2, 3))
        mirrored = np.isclose(batch["image"], plain[:, :, ::-1], atol=1e-6).all(axis=(1, 2, 3))
        assert (as_is ^ mirrored).all()
        by_row[epoch] = by_example[epoch, batch["index"]] = mirrored
    assert stats.binomtest(int(by_row.sum()), 800).pvalue > 1e-3
    for flipped in (by_example, by_row):
        assert stats.binomtest(int((flipped[0] == flipped[1]).sum()), 400).pvalue > 1e-3


def test_shift_moves_by_every_offset_and_repeats_the_edge():
    height, width = 5, 7
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    source = make_source(np.tile(np.stack([rows, columns], -1).astype(np.uint8), (300, 1, 1, 1)))
    batch = make_pipeline(source, batch_size=300, seed=0, shift=2).batch(0)
    moved = np.round((batch["image"] + 1) * 127.5).astype(int)
    offsets = [(2 - image[2, 3, 0], 3 - image[2, 3, 1]) for image in moved]
    for image, (down, right) in zip(moved, offsets):
        for i in range(height):
            for j in range(width):
                nearest = (min(max(i - down, 0), height - 1), min(max(j - right, 0), width - 1))
                assert tuple(image[i, j]) == nearest
    counts = np.array([offsets.count((a, b)) for a in range(-2, 3) for b in range(-2, 3)])
    assert counts.sum() == 300
    assert stats.chisquare(counts).pvalue > 1e-3
    later = np.round((make_pipeline(source, batch_size=300, seed=0, shift=2).batch(1)["image"] + 1) * 127.5)
    assert (later == moved).all(axis=(1, 2, 3)).mean() < 0.15  # one in 25


def test_dequantisation_is_uniform_within_each_level():
    images = np.tile(np.array([0, 255], np.uint8)[:, None, None, None], (2, 40, 40, 3))
    pipeline = make_pipeline(make_source(images), batch_size=4, seed=0, dequantise=True)
    batch = pipeline.batch(0)
    image = batch["image"]
    assert image.min() >= -1 and image.max() < 1
    noise = (image.astype(np.float64) + 1) * 128 - images[batch["index"]]
    assert stats.kstest(noise.ravel(), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(noise.reshape(4, -1))[0, 1]) < 0.1  # rows have noise of their own
    assert abs(np.corrcoef(noise.ravel()[1:], noise.ravel()[:-1])[0, 1]) < 0.05
    later = pipeline.batch(1)
    later_noise = (later["image"].astype(np.float64) + 1) * 128 - images[later["index"]]
    assert abs(np.corrcoef(noise.ravel(), later_noise.ravel())[0, 1]) < 0.05


@pytest.mark.parametrize("pad_to", [6, 9])
def test_padding_is_background_around_the_centre(source, pad_to):
    pipeline = make_pipeline(source, batch_size=5, seed=0, pad_to=pad_to)
    plain = make_pipeline(source, batch_size=5, seed=0).batch(0)["image"]
    image = pipeline.batch(0)["image"]
    assert pipeline.image_shape == image.shape[1:] == (pad_to, pad_to, 2)
    before = (pad_to - 6) // 2
    np.testing.assert_array_equal(image[:, before : before + 6, before : before + 6], plain)
    assert (image == -1).sum() == (plain == -1).sum() + 5 * 2 * (pad_to**2 - 36)


def test_points_pass_as_they_are():
    source = open_source("toy2d", "test")
    batch = make_pipeline(source, batch_size=16, seed=0).batch(3)
    np.testing.assert_array_equal(batch["image"], source.images[batch["index"]])
    assert "label" not in batch


def test_a_source_without_gather_gives_the_same_batches(source):
    one_by_one = Wrapped(source, lambda example: example)
    settings = {"batch_size": 6, "seed": 0}
    assert_equal([make_pipeline(one_by_one, **settings).batch(4)], [make_pipeline(source, **settings).batch(4)])


def test_fingerprint_tells_everything_apart(source):
    settings = {"batch_size": 8, "seed": 2}
    base = make_pipeline(source, **settings).fingerprint()
    assert base == make_pipeline(source, **settings).fingerprint()
    assert base == json.loads(json.dumps(base))
    other_images = source.images.copy()
    other_images[3, 0, 0, 0] ^= 1
    variants = [
        make_pipeline(source, batch_size=8, seed=2, **{name: value})
        for name, value in [("flip", True), ("shift", 1), ("dequantise", True), ("pad_to", 8), ("process_count", 2)]
    ]
    variants += [make_pipeline(source, batch_size=4, seed=2), make_pipeline(source, batch_size=8, seed=3)]
    others = [make_source(other_images), make_source(source.images, 2)]
    variants += [make_pipeline(other, **settings) for other in others]
    prints = [str(variant.fingerprint()) for variant in variants]
    assert len({str(base), *prints}) == 1 + len(variants)
    assert base == make_pipeline(source, **settings).fingerprint()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 51}, "batch_size = 51 must lie in 1..50"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"batch_size": 9, "process_count": 2}, "multiple of the process count 2"),
        ({"batch_size": 8, "process_count": 2, "process_index": 2}, "process index 2"),
        ({"batch_size": 8, "pad_to": 5}, "pad_to = 5"),
        ({"batch_size": 8, "shift": 6}, "shift = 6"),
        ({"batch_size": 8, "shift": -1}, "shift = -1"),
        ({"batch_size": 8, "seed": -1}, "seed = -1"),
    ],
)
def test_bad_arguments(source, settings, message):
    with pytest.raises(ValueError, match=message):
        make_pipeline(source, **{"seed": 0, **settings})


def test_points_cannot_be_augmented():
    with pytest.raises(ValueError, match="toy2d:rings has points"):
        make_pipeline(open_source("toy2d:rings", "test"), batch_size=4, seed=0, flip=True)


def test_negative_start(source):
    with pytest.raises(ValueError, match="start = -1"):
        make_pipeline(source, batch_size=4, seed=0).batches(-1)
