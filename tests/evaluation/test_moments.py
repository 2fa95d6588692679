"""Against numpy's float64 mean and covariance. This file run as a program streams on eight virtual CPU devices."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from evaluation.distances import frechet_distance_to
from evaluation.moments import Moments, accumulate, finish, from_host, moments, new_accumulator, to_host

DEVICES = (1, 2, 4, 8)
# (count, dimension, rows of a batch): neither count is a multiple of its batch.
SIZES = {"long": (50_000, 256, 1024), "wide": (5_000, 2048, 640)}
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")


def network_features(count, dimension, seed=0):
    """Like features behind a ReLU: correlated, non-negative, many exact zeros, means of about their deviations."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((count, 32), np.float32) @ random.standard_normal((32, dimension), np.float32) / 8
    mixed += 0.3 * random.standard_normal((count, dimension), np.float32)
    return np.maximum(0, mixed + 0.4)


def make_mesh(count):
    devices = jax.devices()[:count]
    return jax.make_mesh((len(devices), 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices)


def over(mesh):
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def compiled(mesh):
    return jax.jit(functools.partial(accumulate), donate_argnums=0, out_shardings=over(mesh))


def stream(features, rows, mesh, shift=None, start=None, step=None):
    """All batches, the last one padded with what must not count; the accumulator is donated."""
    shift = features[:rows].mean(axis=0) if shift is None else shift
    step = step or compiled(mesh)
    accumulator = start or new_accumulator(features.shape[1], mesh)
    for first in range(0, len(features), rows):
        batch = np.full((rows, features.shape[1]), np.nan, np.float32)
        part = features[first : first + rows]
        batch[: len(part)] = part
        mask = np.arange(rows) < len(part)
        accumulator = step(accumulator, *jax.device_put((batch, mask), over(mesh)), shift)
    return accumulator, shift


def run_on_virtual_devices(folder):
    """Moments of both sizes on 1, 2, 4, 8 devices; of sums that moved from 4 devices to others; and the programs."""
    results, facts = {}, {"compiled": []}
    for name, (count, dimension, rows) in SIZES.items():
        features = network_features(count, dimension)
        for devices in DEVICES:
            mesh = make_mesh(devices)
            step = compiled(mesh)
            accumulator, shift = stream(features, rows, mesh, step=step)
            results[f"{name}-{devices}"] = finish(accumulator, shift)
            facts["compiled"].append(step._cache_size())
            facts[f"{name}-{devices}"] = [len(accumulator.second.sharding.device_set), accumulator.count.tolist()]
    batch, mask = jax.device_put((features[:rows], np.ones(rows, bool)), over(mesh))
    facts["step"] = step.lower(accumulator, batch, mask, shift).compile().as_text()
    facts["sum"] = jax.jit(lambda a: a.sum.sum(axis=0)).lower(accumulator).compile().as_text()
    first, second = np.split(network_features(*SIZES["long"][:2]), [20_480])
    halfway, shift = stream(first, 1024, make_mesh(4))
    stored = to_host(halfway, shift)
    for devices in DEVICES:
        accumulator, shift = from_host(stored, make_mesh(devices))
        results[f"moved-{devices}"] = finish(*stream(second, 1024, make_mesh(devices), shift, accumulator))
    np.savez(folder / "moments.npz", **{f"{key}/{name}": value for key, found in results.items()
                                        for name, value in found._asdict().items()})  # fmt: skip
    (folder / "facts.json").write_text(json.dumps(facts))


@pytest.fixture(scope="module")
def virtual_devices(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moments")
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={max(DEVICES)}"
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": root}
    ended = subprocess.run([sys.executable, __file__, str(folder)], env=environment, cwd=root, capture_output=True,
                           text=True, timeout=300)  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    with np.load(folder / "moments.npz") as file:
        arrays = dict(file)
    keys, fields = {key.split("/")[0] for key in arrays}, ("count", "mean", "covariance")
    found = {key: Moments(*(arrays[f"{key}/{name}"] for name in fields)) for key in keys}
    return found, json.loads((folder / "facts.json").read_text())


@pytest.fixture(scope="module")
def by_numpy():
    """Of each size: numpy's moments in float64, and those of another set."""
    found = {}
    for name, (count, dimension, _) in SIZES.items():
        x = network_features(count, dimension).astype(np.float64)
        y = 1.1 * network_features(count // 3, dimension, seed=1).astype(np.float64)
        found[name] = [Moments(len(z), z.mean(axis=0), np.cov(z.T)) for z in (x, y)]
    return found


def errors(got, expected):
    """(of the mean, of the covariance over its largest variance)."""
    scale = expected.covariance.diagonal().max()
    return np.abs(got.mean - expected.mean).max(), np.abs(got.covariance - expected.covariance).max() / scale


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("name", SIZES)
def test_streamed_moments_are_those_of_numpy_on_any_number_of_devices(name, devices, virtual_devices, by_numpy):
    got, expected = virtual_devices[0][f"{name}-{devices}"], by_numpy[name][0]
    assert got.count == SIZES[name][0]
    assert max(errors(got, expected)) < 1e-6
    spread, counts = virtual_devices[1][f"{name}-{devices}"]
    assert spread == len(counts) == devices and sum(counts) == SIZES[name][0] and min(counts) > 0


@pytest.mark.parametrize("width", [512, pytest.param(2048, marks=pytest.mark.slow)])
def test_the_frechet_distance_does_not_see_the_streaming(width, virtual_devices, by_numpy):
    """Of all 256 dimensions of the long set, and the first ones of the wide set."""

    def part(found):
        return Moments(found.count, found.mean[:width], found.covariance[:width, :width])

    for name, devices in (("long", 1), ("long", 8), ("wide", 4)):
        expected, other = map(part, by_numpy[name])
        distance = frechet_distance_to(other)
        assert abs(distance(part(virtual_devices[0][f"{name}-{devices}"])) - distance(expected)) <= 1e-5
    divisor_n = expected._replace(covariance=expected.covariance * (expected.count - 1) / expected.count)
    assert abs(distance(divisor_n) - distance(expected)) > 1e-3


@pytest.mark.parametrize("devices", DEVICES)
def test_sums_that_move_to_another_number_of_devices(devices, virtual_devices, by_numpy):
    """Stored halfway on four devices, gone on with on others; on four, to the bit as if nothing had happened."""
    moved, unmoved = virtual_devices[0][f"moved-{devices}"], virtual_devices[0]["long-4"]
    assert moved.count == SIZES["long"][0] and max(errors(moved, by_numpy["long"][0])) < 1e-6
    assert np.array_equal(moved.covariance, unmoved.covariance) == (devices == 4)
    assert np.array_equal(moved.mean, unmoved.mean) or devices != 4


def test_a_step_does_not_communicate_and_is_compiled_once(virtual_devices):
    facts = virtual_devices[1]
    assert set(facts["compiled"]) == {1}
    assert not [name for name in COLLECTIVES if name in facts["step"]]
    assert "dot(" in facts["step"] or "gemm" in facts["step"]
    assert [name for name in COLLECTIVES if name in facts["sum"]]  # control: a sum over the devices does


@pytest.mark.parametrize("rows", [1, 7, 64, 1000])
def test_any_split_into_batches(rows):
    features = network_features(1000, 24)
    expected = Moments(1000, features.mean(axis=0, dtype=np.float64), np.cov(features.T.astype(np.float64)))
    # A shift that is not near the mean at all costs digits, and changes nothing else.
    for shift, tolerance in ((None, 1e-6), (np.full(24, 3, np.float32), 3e-5)):
        got = finish(*stream(features, rows, make_mesh(1), shift))
        assert got.count == 1000 and max(errors(got, expected)) < tolerance
    divisor_n = expected._replace(covariance=expected.covariance * 0.999)
    assert errors(got, divisor_n)[1] > 5e-4


def test_why_sums_are_shifted_and_compensated():
    """The same stream without either misses the tolerance that it meets with both."""
    start, mask = new_accumulator(16, make_mesh(1)), jnp.ones(8, bool)

    def run(features, shift):
        def add(accumulator, batch):
            return accumulate(accumulator, batch, mask, shift), None

        return jax.jit(lambda: jax.lax.scan(add, start, features.reshape(-1, 8, 16))[0])()

    def check(features, shift, sums=None):
        return errors(finish(run(features, shift) if sums is None else sums, shift), moments(features))[1]

    features = network_features(40_000, 16)
    shift = jnp.asarray(features[:8].mean(axis=0))
    sums = run(features, shift)
    plain = sums._replace(sum_error=0 * sums.sum_error, second_error=0 * sums.second_error)
    assert check(features, shift, sums) < 2e-7 and check(features, shift, plain) > 1e-6
    far = features + np.float32(100)
    assert check(far, jnp.asarray(far[:8].mean(axis=0))) < 1e-6 and check(far, jnp.zeros(16)) > 1e-5


def test_counts_stay_exact_where_float32_would_not():
    accumulator = new_accumulator(2, make_mesh(1))
    accumulator = accumulator._replace(count=jnp.full(1, 2**24, jnp.int32))
    for _ in range(3):
        accumulator = accumulate(accumulator, jnp.ones((1, 2)), jnp.ones(1), jnp.ones(2))
    assert finish(accumulator, np.ones(2)).count == 2**24 + 3
    assert np.float32(2**24) + np.float32(1) == 2**24  # control


def test_a_mask_of_any_type_and_a_donated_accumulator():
    features = network_features(10, 3)
    bad = features.copy()
    bad[6:] = np.inf
    step = jax.jit(accumulate, donate_argnums=0)
    results = []
    for kind in (bool, np.int32, np.float32):
        accumulator = new_accumulator(3, make_mesh(1))
        results.append(step(accumulator, bad, (np.arange(10) < 6).astype(kind), features[0]))
        assert accumulator.second.is_deleted()
    for result in results:
        assert errors(finish(result, features[0]), moments(features[:6])) < (1e-6, 1e-6)


def test_sums_that_cannot_be_finished_or_restored_are_refused():
    mesh = make_mesh(1)
    with pytest.raises(ValueError, match="at least 2 samples for a covariance, got 1"):
        finish(*stream(np.ones((1, 3), np.float32), 4, mesh))
    with pytest.raises(FloatingPointError, match="one of the 5 feature vectors"):
        finish(*stream(np.where(np.arange(15).reshape(5, 3) == 7, np.nan, 1).astype(np.float32), 5, mesh))
    two_slots = jax.tree.map(lambda x: jnp.concatenate([x, x]), new_accumulator(3, mesh))
    with pytest.raises(ValueError, match="a batch of 5 rows cannot be split evenly over 2 devices"):
        jax.eval_shape(accumulate, two_slots, jnp.ones((5, 3)), jnp.ones(5), jnp.ones(3))
    stored = to_host(*stream(np.ones((4, 3), np.float32), 4, mesh))
    with pytest.raises(ValueError, match="lack second, shift"):
        from_host({name: array for name, array in stored.items() if name not in ("second", "shift")}, mesh)
    with pytest.raises(ValueError, match="do not fit each other"):
        from_host(stored | {"second": np.zeros((1, 3, 4), np.float32)}, mesh)


def test_moments_of_float32_with_a_large_mean_are_float64():
    x = (1000 + np.random.default_rng(2).standard_normal((9000, 5))).astype(np.float32)
    found = moments(x)
    assert found.count == 9000 and found.mean.dtype == found.covariance.dtype == np.float64
    np.testing.assert_allclose(found.mean, x.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(x.astype(np.float64).T), rtol=1e-9, atol=1e-10)
    assert np.abs(np.cov(x.T, dtype=np.float32) - found.covariance).max() > 1e-6  # control: in float32


if __name__ == "__main__":
    run_on_virtual_devices(Path(sys.argv[1]))
