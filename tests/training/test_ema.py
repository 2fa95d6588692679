"""The averages against closed forms of their weights, in float64."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import digamma

from scoring.base import Update
from training.checkpointing import Checkpoints
from training.ema import EMA
from training.state import create_state
from training.step import make_step

NO_RAMP = float("inf")


def follow(ema, trajectory, batch_size):
    """The averages after the parameters have taken the values of `trajectory`, which begins with the initial ones."""
    trajectory = [jnp.asarray(value, jnp.float32) for value in trajectory]
    averages = {name: {"w": trajectory[0]} for name in ema.names}
    update = jax.jit(lambda averages, value, step: ema.update(averages, {"w": value}, step, batch_size))
    for step, value in enumerate(trajectory[1:]):
        averages = update(averages, value, jnp.asarray(step))
    return {name: np.asarray(average["w"], np.float64) for name, average in averages.items()}


@pytest.mark.parametrize("batch_size", [4, 10])
def test_a_linear_trajectory_without_ramp(batch_size):
    """p_n = a + b n. Geometric sums: average_n = a + b (n - d / (1 - d) (1 - d^(n - 1))), d = 2^(-batch/half-life)."""
    ema, steps = EMA(half_lives=(8, 50, 300), ramp=NO_RAMP), 40
    a, b = np.array([1.0, -2.0]), np.array([0.5, 0.25])
    averages = follow(ema, [a + b * n for n in range(steps + 1)], batch_size)
    assert ema.names == ("8", "50", "300") and averages.keys() == set(ema.names)
    for half_life in ema.half_lives:
        d = 0.5 ** (batch_size / half_life)
        expected = a + b * (steps - d / (1 - d) * (1 - d ** (steps - 1)))
        np.testing.assert_allclose(averages[str(half_life)], expected, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 5, 20])
def test_the_half_life_is_in_images(batch_size):
    """Parameters that switch from 0 to 1: half a life later, after so many images, the old value weighs one half."""
    half_life, before = 100, 10
    for images, weight in ((half_life, 0.5), (2 * half_life, 0.25)):
        trajectory = [0.0] * (before + 1) + [1.0] * (images // batch_size)
        average = follow(EMA(half_lives=(half_life,), ramp=NO_RAMP), trajectory, batch_size)["100"]
        assert 1 - average == pytest.approx(weight, rel=1e-5)


@pytest.mark.parametrize("ramp", [0.05, 0.3])
def test_the_ramp_makes_the_half_life_a_fraction_of_the_images_seen(ramp):
    """While the ramp rules, step m keeps 2^(-1 / (ramp m)) of the average, hence the weight that is left of the old
    value between steps n and k is 2^(-(H_(k-1) - H_(n-1)) / ramp), H the harmonic numbers; no batch size is in it."""
    first, last = 12, 90
    trajectory = [0.0] * (first + 1) + [1.0] * (last - first)
    weight = 2 ** -((digamma(last) - digamma(first)) / ramp)
    for batch_size in (1, 16):
        average = follow(EMA(half_lives=(10**9,), ramp=ramp), trajectory, batch_size)[str(10**9)]
        assert 1 - average == pytest.approx(weight, rel=1e-3, abs=1e-6)
    # About 2^(-1/ramp * ln(last / first)): a trajectory forgets as fast at ten times the number of images.
    assert np.log2(weight) == pytest.approx(-np.log(last / first) / ramp, rel=0.05)


def test_the_ramp_ends_where_the_half_life_begins_to_be_the_smaller():
    """The decay of one step, at equation 1's two sides; before the first image there is nothing to average."""
    ema, half_life, batch_size = EMA(half_lives=(1000,), ramp=0.1), 1000, 10
    steps = (0, 1, 999, 1000, 1001, 10**6)
    decay = {step: float(ema.decay(half_life, jnp.asarray(step), batch_size)) for step in steps}
    assert decay[0] == 0.0
    assert decay[1] == pytest.approx(2.0**-10)
    assert decay[999] < decay[1000]
    assert decay[1000] == pytest.approx(2**-0.01) == decay[1001] == decay[10**6]


@pytest.mark.parametrize("ramp", [NO_RAMP, 0.2])
def test_batches_of_twice_the_size_give_the_same_average(ramp):
    """A trajectory as a function of the images seen, followed in steps of 2 and of 4 images. Negative control: an
    average that counts steps is far off."""
    total, half_life = 4000, 500
    ema = EMA(half_lives=(half_life,), ramp=ramp)

    def average(images_per_step, batch_size):
        images = np.arange(0, total + 1, images_per_step)
        return float(follow(ema, np.sin(images / 700), batch_size)[str(half_life)])

    assert average(4, 4) == pytest.approx(average(2, 2), abs=0.005)
    assert abs(average(4, 2) - average(2, 2)) > 0.05


def test_every_average_starts_at_the_parameters_and_first_becomes_those_of_step_one():
    ema = EMA(half_lives=(10, 20))
    state = create_state({"score": {"w": jnp.ones(2)}}, {"score": optax.sgd(1.0)}, ema, ("score",))
    assert all((state.ema["score"][name]["w"] == 1).all() for name in ("10", "20"))
    assert list(follow(ema, [5.0, 1.0], 4).values()) == [1.0, 1.0]


def test_an_average_continues_where_a_checkpoint_left_it(tmp_path):
    """A constant gradient moves the parameters linearly, so that the average has the closed form of the first test; the
    same from one run and from two with a checkpoint between, which gives neither the parameters nor a fresh average."""
    rate, batch_size, half_life, steps = 0.125, 4, 20, 16
    slope = np.array([1.0, -3.0])
    update = Update("score", lambda params, *rest: (jnp.sum(params["w"] * jnp.asarray(slope, jnp.float32)), {}))
    optimizers, ema = {"score": optax.sgd(rate)}, EMA(half_lives=(half_life,), ramp=NO_RAMP)
    step = jax.jit(make_step((update,), optimizers, ema, seed=0, batch_size=batch_size))
    initial = create_state({"score": {"w": jnp.asarray([2.0, 7.0])}}, optimizers, ema, ("score",))
    batch = {"image": jnp.zeros((batch_size, 1))}

    def advance(state, count):
        for _ in range(count):
            state, _ = step(state, {}, batch)
        return state

    straight = advance(initial, steps)
    for at in (1, 5, 11):
        checkpoints = Checkpoints(tmp_path / str(at))
        checkpoints.save(at, advance(initial, at), data={}, config={})
        restored = checkpoints.restore(initial).state
        assert not np.array_equal(restored.ema["score"]["20"]["w"], restored.params["score"]["w"]) or at == 1
        resumed = advance(restored, steps - at)
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), straight, resumed))
    d = 0.5 ** (batch_size / half_life)
    expected = np.array([2.0, 7.0]) - rate * slope * (steps - d / (1 - d) * (1 - d ** (steps - 1)))
    np.testing.assert_allclose(straight.ema["score"]["20"]["w"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"half_lives": (10, 10)}, r"half_lives = \(10, 10\) must be positive and distinct"),
        ({"half_lives": (10, 0)}, r"half_lives = \(10, 0\) must be positive and distinct"),
        ({"half_lives": (10,), "ramp": 0.0}, r"ramp = 0.0 must be positive"),
    ],
)
def test_what_makes_no_average_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        EMA(**arguments)


def test_the_names_can_be_paths_and_json_keys():
    names = EMA(half_lives=(50_000, 500_000)).names
    assert json.loads(json.dumps(dict.fromkeys(names))).keys() == set(names) and not any("/" in name for name in names)
