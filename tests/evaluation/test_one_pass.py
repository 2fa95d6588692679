"""One pass over images: the same statistics for any batch size, device count and interruption; run as a program, this
file measures with as many virtual devices as its argument says, or dies in the middle of a pass."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from evaluation import one_pass as module
from evaluation.distances import frechet_distance
from evaluation.moments import moments
from evaluation.one_pass import Interrupted, feature_rows, one_pass

COUNT = 203


class Toy:
    """Two taps of images: a nonlinear random projection, and a linear one."""

    name, dimension, provenance = "toy", 20, {"name": "toy"}

    def __init__(self):
        draw = np.random.default_rng(1)
        self.params = {"w": draw.normal(size=(48, 20)).astype(np.float32), "v": np.eye(48, dtype=np.float32)[:, :7]}
        self.traces = 0

    def taps(self, params, images):
        self.traces += 1
        if images.shape[1:] != (4, 4, 3):
            raise ValueError("toy takes 4x4x3")
        flat = images.reshape(len(images), -1).astype(jnp.float32) / 255
        return {"features": 5 + jnp.tanh(flat @ params["w"]), "logits": flat @ params["v"]}


TOY = Toy()  # one for most tests, so that it is compiled once


def images_of(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), np.uint8)


def mesh_of_all():
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def measure(images, toy=None, **options):
    settings = {"moments_of": ["features"], "rows_of": ["logits"], "batch_size": 16, "mesh": mesh_of_all()} | options
    return one_pass(lambda start, stop: images[start:stop], len(images), toy or TOY, **settings)


def by_hand(images):
    """Both taps in float64 numpy."""
    params, flat = TOY.params, images.reshape(len(images), -1).astype(np.float64) / 255
    return 5 + np.tanh(flat @ params["w"]), flat @ params["v"]


@pytest.mark.parametrize("batch_size", [1, 3, 64, 203, 1000])
def test_any_batch_size_gives_the_statistics_of_numpy(batch_size):
    images = images_of(COUNT)
    features, logits = by_hand(images)
    statistics = measure(images, batch_size=batch_size)
    found = statistics.moments["features"]
    assert found.count == COUNT and statistics.rows.keys() == {"logits"}
    np.testing.assert_allclose(found.mean, features.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.covariance, np.cov(features.T), atol=1e-6 * np.cov(features.T).max())
    np.testing.assert_allclose(statistics.rows["logits"], logits, atol=1e-6)
    other = moments(by_hand(images_of(150, seed=1))[0])
    exact = frechet_distance(moments(features), other)
    assert frechet_distance(found, other) == pytest.approx(exact, rel=1e-5)


def test_images_are_read_once_in_order_and_the_network_is_traced_once():
    images, asked, toy = images_of(50), [], Toy()

    def read(start, stop):
        asked.append((start, stop))
        return images[start:stop]

    one_pass(read, 50, toy, moments_of=["features"], rows_of=["logits"], batch_size=16, mesh=mesh_of_all())
    assert asked[1:] == [(0, 16), (16, 32), (32, 48), (48, 50)]  # after the one that tells the shapes
    traces = toy.traces
    one_pass(read, 40, toy, moments_of=["features"], rows_of=["logits"], batch_size=16, mesh=mesh_of_all())
    assert toy.traces == traces + 1  # the shapes again, but no second compilation


def test_without_rows_no_activations_come_back():
    toy, mesh, batch = Toy(), mesh_of_all(), 8
    step = module._step(toy, ("features",), (), mesh)
    carry = {"features": (module.new_accumulator(20, mesh), jnp.zeros(20))}
    _, fetched = jax.eval_shape(step, toy.params, carry, images_of(batch), np.ones(batch, np.float32), True)
    assert [leaf.shape for leaf in jax.tree.leaves(fetched)] == [()]
    _, fetched = jax.eval_shape(module._step(toy, (), ("logits",), mesh), toy.params, {}, images_of(batch),
                                np.ones(batch, np.float32), True)  # fmt: skip
    assert fetched["logits"].shape == (batch, 7)


def crash_after(images, reads):
    """A reader that fails like a full disk would, after so many batches."""
    left = iter(range(reads + 1))

    def read(start, stop):
        if next(left, None) is None:
            raise OSError("the machine is gone")
        return images[start:stop]

    return read


@pytest.mark.parametrize("batches", [0, 1, 5, 12])
def test_a_crash_costs_nothing_that_was_saved(tmp_path, monkeypatch, batches):
    images = images_of(COUNT)
    whole = measure(images, folder=tmp_path / "whole")
    monkeypatch.setattr(module, "SAVE_SECONDS", 0.0)
    settings = {"moments_of": ["features"], "rows_of": ["logits"], "batch_size": 16, "mesh": mesh_of_all(),
                "folder": tmp_path / "cut"}  # fmt: skip
    with pytest.raises(OSError, match="the machine is gone"):
        one_pass(crash_after(images, batches), COUNT, TOY, **settings)
    asked = []

    def read(start, stop):
        asked.append(start)
        return images[start:stop]

    resumed = one_pass(read, COUNT, TOY, **settings)
    assert asked == [0, *range(16 * batches, COUNT, 16)]
    for found, expected in ((resumed.moments["features"].mean, whole.moments["features"].mean),
                            (resumed.moments["features"].covariance, whole.moments["features"].covariance),
                            (resumed.rows["logits"], whole.rows["logits"])):  # fmt: skip
        assert np.array_equal(found, expected)  # to the bit
    asked.clear()
    assert np.array_equal(one_pass(read, COUNT, TOY, **settings).rows["logits"], whole.rows["logits"])
    assert asked == [0]  # a finished pass is read, not done again


def test_a_kill_costs_nothing_that_was_saved(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.run([sys.executable, __file__, "die", str(tmp_path)], env=environment, timeout=120)
    assert process.returncode == -signal.SIGKILL and (tmp_path / "partial.npz").exists()
    images = images_of(COUNT)
    resumed, whole = measure(images, folder=tmp_path), measure(images)
    assert np.array_equal(resumed.moments["features"].covariance, whole.moments["features"].covariance)
    assert np.array_equal(resumed.rows["logits"], whole.rows["logits"])


def test_a_stop_is_obeyed_and_resumed(tmp_path):
    images, answers = images_of(COUNT), iter([False] * 4 + [True])
    with pytest.raises(Interrupted, match="64 of 203"):
        measure(images, folder=tmp_path, stopped=lambda: next(answers))
    done = []
    resumed = measure(images, folder=tmp_path, progress=done.append)
    assert done[0] == 80 and done[-1] == COUNT
    assert np.array_equal(resumed.rows["logits"], measure(images).rows["logits"])


@pytest.mark.parametrize("change", ["identity", "count", "code", "damage", "missing rows"])
def test_what_was_done_for_something_else_is_done_again(tmp_path, change, monkeypatch):
    """Two different sets in one folder: the second must not be given the statistics of the first."""
    measure(images_of(COUNT), folder=tmp_path, identity={"set": 1})
    new = images_of(COUNT - (change == "count"), seed=2)
    if change == "code":
        monkeypatch.setattr(module, "code_sha256", lambda folder: "of another extractor")
    if change == "damage":
        path = tmp_path / "partial.npz"
        path.write_bytes(path.read_bytes()[:-100])
    elif change == "missing rows":
        (tmp_path / "rows-logits.npy").unlink()
    found = measure(new, folder=tmp_path, identity={"set": 2 if change == "identity" else 1})
    assert np.array_equal(found.rows["logits"], measure(new).rows["logits"])
    assert np.array_equal(found.moments["features"].mean, measure(new).moments["features"].mean)


def test_device_counts_agree():
    """1, 2 and 4 devices: rows to 1e-5, Frechet distance to 1e-4."""
    results = {}
    for devices in (1, 2, 4):
        flags = f"--xla_force_host_platform_device_count={devices}"
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "XLA_FLAGS": flags}
        process = subprocess.run([sys.executable, __file__, "devices"], env=environment, timeout=120,
                                 capture_output=True, text=True, check=True)  # fmt: skip
        results[devices] = json.loads(process.stdout)
        assert results[devices]["devices"] == devices
    for devices in (2, 4):
        np.testing.assert_allclose(results[devices]["rows"], results[1]["rows"], atol=1e-5)
        assert results[devices]["fd"] == pytest.approx(results[1]["fd"], rel=1e-4)
        assert results[devices]["batches"] == results[1]["batches"]


def test_memory_does_not_grow_with_the_number_of_images():
    """Forty times as many images, 24 MB of them, may cost a few MB of garbage, but not their size."""
    batch = images_of(256)

    def read(start, stop):
        return batch[: stop - start]

    options = {"moments_of": ["features"], "batch_size": 256, "mesh": mesh_of_all()}
    toy = Toy()
    one_pass(read, 12_500, toy, **options)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    one_pass(read, 500_000, toy, **options)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000  # KiB


def test_bad_input():
    with pytest.raises(ValueError, match="toy has no tap 'spatial'; it has features, logits"):
        measure(images_of(5), rows_of=["spatial"])
    with pytest.raises(ValueError, match="toy takes 4x4x3"):
        feature_rows(TOY, np.zeros((3, 5, 5, 3), np.uint8))
    broken = Toy()
    broken.params["v"][0] = np.nan
    with pytest.raises(FloatingPointError, match="the logits of toy are not finite"):
        measure(images_of(5), broken)


def _program(arguments):
    images = images_of(COUNT)
    if arguments[0] == "die":
        module.SAVE_SECONDS = 0.0

        def die(done):
            if done >= 100:
                os.kill(os.getpid(), signal.SIGKILL)

        measure(images, folder=Path(arguments[1]), progress=die)
    statistics, seen = measure(images, batch_size=30), []
    measure(images, batch_size=30, progress=seen.append)
    other = moments(by_hand(images_of(150, seed=1))[0])
    print(json.dumps({"devices": jax.device_count(), "rows": statistics.rows["logits"].tolist(), "batches": len(seen),
                      "fd": frechet_distance(statistics.moments["features"], other)}))  # fmt: skip


if __name__ == "__main__":
    _program(sys.argv[1:])
