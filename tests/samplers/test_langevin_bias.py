"""What midpoints add to the bias of Langevin dynamics on a density that is no Gaussian, where there is no closed form.

The density is the mixture N(-m, 1) / 2 + N(m, 1) / 2, with score -x + m tanh(m x) and E x^2 = 1 + m^2. Given which
offsets fire and all normal draws of a macro step but the last, its end is Gaussian: on a grid of x, with Gauss-Hermite
nodes for those draws, it is a matrix, whose stationary vector has the bias without sampling.
"""

from itertools import combinations, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samplers.langevin
from diffusion.process import GaussianProcess
from diffusion.random import image_keys
from diffusion.schedules import Constant, VPLinear
from samplers.langevin import UnderdampedLangevin, langevin
from samplers.linear_dynamics import overdamped, step_limit
from samplers.midpoint import walk, weights

pytestmark = pytest.mark.usefixtures("quick_to_compile")

GRID = np.linspace(-6.5, 6.5, 220)
COLUMNS = 352  # of every case, the rest having no weight: op by op, what is compiled for one is ready for the next


def score(x, m, xp=np):
    return -x + m * xp.tanh(m * x)


def second_moment(means, spreads, chances):
    """E x^2 of the chain that from GRID[i] goes to N(means[i, j], spreads[j]^2) with probability chances[j]."""
    width = GRID[1] - GRID[0]
    transition = np.zeros((len(GRID), len(GRID)))
    for mean, spread, chance in zip(means.T, spreads, chances):
        density = np.exp(-0.5 * ((GRID - mean[:, None]) / spread) ** 2) / (spread * np.sqrt(2 * np.pi))
        transition += chance * width * density
    equations = np.vstack([transition.T - np.eye(len(GRID)), np.ones(len(GRID))])
    law = np.linalg.lstsq(equations, np.append(np.zeros(len(GRID)), 1.0), rcond=None)[0]
    return law @ GRID**2


def euler(m, h):
    return second_moment((GRID + h * score(GRID, m))[:, None], [np.sqrt(2 * h)], [1.0])


def columns(mode, k, nodes):
    """[(offsets that fire, a node for each, probability)] of a macro step of `mode`."""
    points, chances = np.polynomial.hermite_e.hermegauss(nodes)
    chances = chances / chances.sum()
    if mode == "bernoulli":
        sets = [(fired, k ** -len(fired) * (1 - 1 / k) ** (k - 1 - len(fired)))
                for count in range(k) for fired in combinations(range(1, k), count)]  # fmt: skip
    else:
        first = int(mode == "single")
        sets = [((u,) if u else (), 1 / (k - first)) for u in range(first, k)]
    return [
        (fired, points[list(at)], chance * np.prod(chances[list(at)]))
        for fired, chance in sets for at in product(range(nodes), repeat=len(fired))
    ]  # fmt: skip


def midpoint(mode, m, h, k, nodes):
    """E x^2 from the code: rows are (x, column), run with the last draw 0, and 1 to see how far it moves them."""
    cases, calls = columns(mode, k, nodes), 4
    offsets, draws = np.full((calls, COLUMNS), k), np.zeros((2, calls, COLUMNS))
    for i, (fired, at, _) in enumerate(cases):
        offsets[: len(fired), i] = fired
        draws[:, : len(fired), i] = at
        draws[1, len(fired), i] = 1.0
    with jax.enable_x64(True):
        tile = lambda table: jnp.asarray(np.tile(table, len(GRID)))  # noqa: E731
        x, rows, to = np.repeat(GRID, COLUMNS)[:, None], np.arange(len(GRID) * COLUMNS), tile(offsets.astype(np.int32))
        ends = []
        for z in (tile(draws[0]), tile(draws[1])):
            ends.append(np.asarray(walk(
                overdamped(h, k, 1), lambda y, _, tau: (score(y[:, 0], m, jnp), jnp.ones(len(y), jnp.int32)),
                jnp.asarray(x), weight=weights(mode, np.array([k])), normal=lambda count, z=z: z[count, rows][:, None],
                offsets=lambda _, tau, count: to[jnp.minimum(count, calls - 1), rows],
            ).x).reshape(len(GRID), COLUMNS))  # fmt: skip
    means, spreads = ends[0][:, : len(cases)], (ends[1] - ends[0])[0, : len(cases)]
    return second_moment(means, spreads, [case[2] for case in cases])


# Excess of E x^2 over the Euler chain of h / 16, by simulation of 4e5 chains: (value, standard error).
EXCESS = {
    (0.9, 0.2): {"euler": (0.07684, 2e-4), "single0": (-5e-4, 1e-4), "single": (-1.41e-3, 6e-5)},
    (1.5, 0.4): {"euler": (0.10280, 3e-4), "single0": (6.7e-3, 5e-4), "single": (8e-4, 3e-4)},
}


@pytest.mark.parametrize("m, h", EXCESS)
def test_bias_on_a_mixture(loops_in_python, m, h):
    """Within 4 standard errors of a simulation, and far below that of the Euler step."""
    fine, k = euler(m, h / 16), 16
    excess = {"euler": euler(m, h) - fine}
    excess |= {mode: midpoint(mode, m, h, k, 10) - fine for mode in ("single0", "single")}
    for name, (known, error) in EXCESS[m, h].items():
        assert abs(excess[name] - known) < 4 * error, (name, excess[name])
    assert abs(excess["single"]) < 0.1 * excess["euler"]


def test_bernoulli_on_a_gaussian(loops_in_python):
    """m = 0: the matrix has the closed form, for K = 4 and a = 0.4."""
    assert abs(midpoint("bernoulli", 0.0, 0.4, 4, 6) - 1.1139) < 1e-4


@pytest.mark.parametrize("m", [0.9, 1.5])
def test_order_of_bernoulli_on_a_mixture(loops_in_python, m):
    """Second, and first for the Euler step; single adds less than half as much. K = 4."""
    steps, k = (0.4, 0.2, 0.1), 4
    fine = [euler(m, h / k) for h in steps]
    bernoulli, whole = ([f(h) - x for h, x in zip(steps, fine)] for f in (
        lambda h: midpoint("bernoulli", m, h, k, 6), lambda h: euler(m, h)))  # fmt: skip
    assert 3.5 < bernoulli[1] / bernoulli[2] < 6 and 1.8 < whole[1] / whole[2] < 2.6
    for i in (0, 1):
        assert abs(midpoint("single", m, steps[i], k, 6) - fine[i]) < bernoulli[i] / 2 < whole[i] / 2


def test_limits_of_stability():
    """Of the mean square on a Gaussian of precision 1: for large K below the 2 of the Euler step."""
    assert abs(step_limit(lambda h: overdamped(h, 1, 1), "single") - 2) < 2e-3
    for mode, limit in (("bernoulli", 1.215), ("single0", 1.596), ("single", 1.596)):
        assert abs(step_limit(lambda h: overdamped(h, 400, 1), mode) - limit) < 6e-3


@pytest.mark.parametrize("friction", [None, 2.0])
def test_langevin_is_the_walk_of_its_dynamics(friction):
    """On a Gaussian of precision 1: the stationary variance in closed form, within 4 standard errors; calls counted."""
    count, steps, k, a = 8_000, 30, 4, 0.4
    keys = image_keys(5, jnp.arange(count))
    run = jax.jit(lambda x, keys: langevin(lambda x: -x, x, keys, steps=steps, step_size=a, micro_steps=k,
                                           mode="single", friction=friction))  # fmt: skip
    samples = run(jnp.zeros((count, 1)), keys)
    assert (samples.nfe == 2 * steps).all()
    variance = float(jnp.var(samples.x0))
    expected = 1.05711 if friction is None else 1.02571  # with friction nearly that of the fine chain
    assert abs(variance / expected - 1) < 4 * np.sqrt(2 / count)


class Started(Exception):
    """The first loop was reached, with this state."""


@pytest.mark.parametrize("process", [GaussianProcess(VPLinear()), GaussianProcess(Constant())])
@pytest.mark.parametrize("stream, independent", [(True, True), (False, False)])
def test_velocities_start_apart_from_positions(monkeypatch, process, stream, independent):
    """Position and velocity are independent draws; from the same stream of random numbers they would be one."""

    def stop(body, carry, rows):
        raise Started(carry[0])

    monkeypatch.setattr(jax.lax, "scan", stop)
    if not stream:
        monkeypatch.setattr(samplers.langevin, "image_stream", lambda keys, name: keys)
    keys = image_keys(6, jnp.arange(2_000))
    with pytest.raises(Started) as started:
        UnderdampedLangevin().sample(lambda x, t, label: 0 * x, process, keys, None, shape=(1,))
    position, velocity = np.asarray(started.value.args[0])[..., 0].T
    assert (abs(np.corrcoef(position, velocity)[0, 1]) < 4 / np.sqrt(2_000)) == independent
