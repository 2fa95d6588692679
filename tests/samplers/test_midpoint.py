"""The Poisson midpoint engine on Langevin dynamics: against the recursion that defines it, and against closed forms.

A walk is fed with offsets and noise by hand. Where the score is linear, unit vectors in place of the state and of the
noise give the matrix of a macro step for every H, and from these come exact moments (`conftest.py`).
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

from diffusion.random import image_keys, image_noise
from samplers.linear_dynamics import overdamped, underdamped
from samplers.midpoint import MODES, random_offsets, walk, weights

pytestmark = pytest.mark.usefixtures("loops_in_python", "quick_to_compile")

PARTS = {"overdamped": 1, "underdamped": 2}


def dynamics(name, h, k, friction=2.0, steps=1):
    return overdamped(h, k, steps) if name == "overdamped" else underdamped(h, k, steps, friction)


def exact_steps(name, h, friction=2.0):
    """A, G and noise covariance of a step of length h, as matrix exponentials [Van Loan 1978]."""
    if name == "overdamped":
        return np.eye(1), np.full((1, 1), h), np.full((1, 1), 2 * h)
    drift = np.array([[0.0, 1.0], [0.0, -friction]])
    forced = expm(h * np.block([[drift, np.array([[0.0], [1.0]])], [np.zeros((1, 3))]]))
    pair = expm(h * np.block([[-drift, np.diag([0, 2 * friction])], [np.zeros((2, 2)), drift.T]]))
    force = np.stack([forced[:2, 2], np.zeros(2)], axis=1)  # the score of the position, and nothing of the velocity
    return forced[:2, :2], force, pair[2:, 2:].T @ pair[:2, 2:]


def tables(name, h, k, friction=2.0):
    """[K, S, S] A, G and covariance of every micro step, for the recursion."""
    return tuple(np.tile(table, (k, 1, 1)) for table in exact_steps(name, h / k, friction))


ROWS, CALLS = 1024, 8  # every case is padded to these: op by op, what is compiled for one is ready for all others


def padded(array, axis, size):
    """With its last slice repeated."""
    extra = np.repeat(np.take(array, [-1], axis), size - array.shape[axis], axis)
    return np.concatenate([array, extra], axis)


def macro_step(dynamics, x, offsets, z, weight, score, mutate=None):
    """[B, S] from states [B, S], offsets [B, C], draws [C, B, S], w [B]; score: (position [B], tau [B]) -> [B]."""
    count = len(x)
    x, weight = (padded(part, 0, ROWS) for part in (x, np.broadcast_to(weight, count)))
    offsets, z = padded(padded(offsets, 1, CALLS), 0, ROWS), padded(padded(z, 0, CALLS), 1, ROWS)
    x, z, weight = (jnp.asarray(part, jnp.float64) for part in (x, z, weight))
    offsets, rows = jnp.asarray(offsets, jnp.int32), jnp.arange(ROWS)
    one = SimpleNamespace(
        micro_steps=dynamics.micro_steps, mean=dynamics.mean, noise=dynamics.noise,
        correction=lambda m, tau, change: weight[:, None] * dynamics.correction(m, tau, change),
    )  # fmt: skip
    result = walk(
        mutate(one) if mutate else one,
        lambda y, m, tau: (score(y[:, 0], tau), jnp.ones(ROWS, jnp.int32)), x, weight=np.ones(1),
        offsets=lambda m, tau, count: offsets[rows, jnp.minimum(count, CALLS - 1)],
        normal=lambda count: z[jnp.minimum(count, CALLS - 1), rows],
    )  # fmt: skip
    return np.asarray(result.x)[:count]


def vector(score, parts):
    """The drift of the recursion: the score of the position, and zero for a velocity."""
    return lambda x, i: np.stack([score(x[:, 0], i), *[np.zeros(len(x))] * (parts - 1)], axis=1)


def curved(x, tau, xp=np):
    """A nonlinear score that also depends on the micro step."""
    return -x + 0.7 * xp.sin(2 * x + 0.3 * tau)


def case(micro, name, k, fired, seed=0):
    """Random states and noise: (x, noise of every micro step, offsets, draws)."""
    generator, parts = np.random.default_rng(seed), PARTS[name]
    a, _, covariance = tables(name, 0.6, k)
    x, z = generator.standard_normal((len(fired), parts)), generator.standard_normal((k, len(fired), parts))
    noise = z @ np.linalg.cholesky(covariance[0]).T
    return x, noise, *micro.segments(fired, noise, a, covariance)


# --- Dynamics -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("h", [1e-4, 0.3, 4.0])
def test_tables_are_the_exact_solution(name, h):
    """For a step of any length, including a noise variance of 1e-13, which the formula would lose."""
    got = dynamics(name, h, 4, friction=1.5)
    for n in range(5):
        a, g, covariance = exact_steps(name, n * h / 4, friction=1.5)
        np.testing.assert_allclose(got.transfer[n], a, rtol=1e-10)
        np.testing.assert_allclose(got.force[n], g[:, 0], rtol=1e-10)
        np.testing.assert_allclose(got.root[n] @ got.root[n].T, covariance, rtol=1e-9)
    assert np.allclose(got.root, np.tril(got.root)) and got.micro_steps.tolist() == [4]


# --- The recursion ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PARTS)
def test_the_walk_is_the_recursion(micro, name):
    """Every H of {0, 1}^5, nonlinear score, the same noise; and it is no other recursion."""
    k = 5
    fired = (np.arange(2**k)[:, None] >> np.arange(k)) & 1
    x, noise, offsets, z = case(micro, name, k, fired)
    a, g, _ = tables(name, 0.6, k)
    drift = vector(curved, PARTS[name])
    expected = micro.recursion(x, noise, fired.T, k, drift, a, g)
    with jax.enable_x64(True):
        got = macro_step(dynamics(name, 0.6, k), x, offsets, z, k, lambda x, tau: curved(x, tau, jnp))
    np.testing.assert_allclose(got, expected, atol=1e-13)
    wrong = micro.recursion(x, noise, fired.T, k - 1, drift, a, g)
    assert np.abs(wrong - expected).max() > 1e-2


@pytest.mark.parametrize("name", PARTS)
def test_mode_single_of_two_is_two_micro_steps(micro, name):
    """Pathwise, with any score: the midpoint is the chain's own first step."""
    fired = np.tile([0, 1], (8, 1))
    x, noise, offsets, z = case(micro, name, 2, fired)
    a, g, _ = tables(name, 0.6, 2)
    drift, y = vector(curved, PARTS[name]), x
    for i in range(2):
        y = y @ a[i].T + drift(y, i) @ g[i].T + noise[i]
    weight = float(weights("single", np.array([2]))[0])
    score = lambda x, tau: curved(x, tau, jnp)  # noqa: E731
    with jax.enable_x64(True):
        for w, same in ((weight, True), (2.0, False)):
            got = macro_step(dynamics(name, 0.6, 2), x, offsets, z, w, score)
            assert (np.abs(got - y).max() < 1e-13) == same


@pytest.mark.parametrize("name", PARTS)
def test_a_constant_score_forgets_which_fired(micro, name):
    """The same noise of the micro steps gives the same end for every H: that of one long exact step."""
    k = 6
    fired = (np.arange(2**k)[:, None] >> np.arange(k)) & 1
    x, noise, _, _ = case(micro, name, k, fired)
    x, noise = np.tile(x[:1], (len(fired), 1)), np.tile(noise[:, :1], (1, len(fired), 1))
    a, _, covariance = tables(name, 0.6, k)
    offsets, z = micro.segments(fired, noise, a, covariance)
    with jax.enable_x64(True):
        got = macro_step(dynamics(name, 0.6, k), x, offsets, z, k, lambda x, tau: jnp.full(x.shape, 0.8))
    long_a, long_g, _ = exact_steps(name, 0.6)
    path = 0
    for i in range(k):
        path = path @ a[i].T + noise[i] if i else noise[i]
    np.testing.assert_allclose(got, x @ long_a.T + 0.8 * long_g[:, 0] + path, atol=1e-13)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("mode", ["single", "single0"])
def test_the_mean_over_offsets_is_the_fine_chain(micro, name, mode):
    """With a score of time alone. An offset that is read as the number of the micro step is one too early."""
    k, parts = 7, PARTS[name]
    fired = micro.patterns(mode, k).astype(int)
    force = lambda tau, xp: xp.exp(0.4 * tau) - 2.0  # noqa: E731
    x, noise = np.ones((len(fired), parts)), np.zeros((k, len(fired), parts))
    a, g, covariance = tables(name, 0.6, k)
    expected = x[0]
    for i in range(k):
        expected = a[i] @ expected + g[i][:, 0] * force(i, np)
    weight, errors = float(weights(mode, np.array([k]))[0]), []
    with jax.enable_x64(True):
        for read in (fired, np.pad(fired[:, 1:], ((0, 0), (0, 1)))):
            offsets, z = micro.segments(read, noise, a, covariance)
            score = lambda x, tau: force(tau.astype(x.dtype), jnp)  # noqa: E731
            got = macro_step(dynamics(name, 0.6, k), x, offsets, z, weight, score)
            errors.append(np.abs(got.mean(0) - expected).max())
    assert errors[0] < 1e-10 and errors[1] > 1e-2


# --- Stationary moments on a Gaussian -----------------------------------------------------------------------------


def closed_form(mode, a, k):
    """Variance times precision of the stationary law on N(0, 1 / precision), a = h precision."""
    q, r = 1 - 1 / k, 2 - 1 / k
    top, spread = {
        "bernoulli": (1 - a * q + a**2 * (q * r / 6 + q**2 / 2), q**2 * r / 6),
        "single0": (1 - a * q + a**2 * q / 2, q * (2 - q) / 12),
        "single": (1 - a * q + a**2 * q**2 / 2, q**2 * (r / 6 - 1 / 4)),
    }[mode]
    return top / ((1 - (1 - a + a**2 * q / 2) ** 2 - a**4 * spread) / (2 * a))


def probed(micro, name, h, k, precisions=(1.0,), friction=2.0, mutate=None, scale_weight=1.0):
    """{mode: [precisions] stationary variance times precision}: rows are (mode, precision, H, unit vector)."""
    a, _, covariance = tables(name, h, k, friction)
    x, noise = micro.unit_vectors(np.linalg.cholesky(covariance))
    cases = [(mode, value, fired) for mode in MODES for value in precisions for fired in micro.patterns(mode, k)]
    fired = np.repeat([case[2] for case in cases], len(x), axis=0)
    precision = np.repeat([case[1] for case in cases], len(x))
    weight = np.repeat([float(weights(case[0], np.array([k]))[0]) for case in cases], len(x)) * scale_weight
    x, noise = np.tile(x, (len(cases), 1)), np.tile(noise, (1, len(cases), 1))
    offsets, z = micro.segments(fired, noise, a, covariance)
    precision = jnp.asarray(padded(precision, 0, ROWS))
    score = lambda position, tau: -precision * position  # noqa: E731
    got = macro_step(dynamics(name, h, k, friction), x, offsets, z, weight, score, mutate=mutate)
    responses, results = got.reshape(len(cases), -1, x.shape[1]), {}
    for mode in MODES:
        results[mode] = []
        for value in precisions:
            chosen = [r for r, c in zip(responses, cases) if c[0] == mode and c[1] == value]
            results[mode].append(micro.stationary(micro.terms(mode, k, chosen))[0, 0] * value)
    return {mode: np.array(result) for mode, result in results.items()}


@pytest.mark.parametrize("k", [2, 5, 8])
def test_stationary_variance_in_closed_form(micro, k):
    """Overdamped, h = 1 on modes of four precisions at once."""
    a = (0.8, 0.4, 0.2, 0.1)
    with jax.enable_x64(True):
        got = probed(micro, "overdamped", 1.0, k, a)
    for mode in MODES:
        np.testing.assert_allclose(got[mode], closed_form(mode, np.array(a), k), rtol=1e-11)
    if k == 2:
        one, half = np.array(a), np.array(a) / 2
        np.testing.assert_allclose(got["single"], 1 / (1 - half / 2), rtol=1e-11)  # the chain of h / 2 itself
        assert (got["bernoulli"] < 1 / (1 - one / 2)).all()


# Relative bias of the variance at a = 0.4 and 0.2, K = 4.
KNOWN = {"bernoulli": (1.139e-1, 3.722e-2), "single0": (8.108e-2, 3.084e-2), "single": (5.711e-2, 2.610e-2)}


def independent(one):
    """The noise of the midpoint is not that of the step: every segment draws from the start anew."""
    noise = lambda m, tau, target, noise, z: one.noise(m, 0 * tau, target, 0 * noise, z)  # noqa: E731
    return SimpleNamespace(**vars(one) | {"noise": noise})


def last_lost(one):
    """The noise ends with the last midpoint."""
    kept = lambda tau, target: (tau > 0) & (target == one.micro_steps[0])  # noqa: E731

    def noise(m, tau, target, noise, z):
        return jnp.where(kept(tau, target)[:, None], noise, one.noise(m, tau, target, noise, z))

    return SimpleNamespace(**vars(one) | {"noise": noise})


def printed(name, h, k):
    """The effect of a correction is G of the rest of the step, in place of A of the rest times G of a micro step."""
    force = np.stack([exact_steps(name, i * h / k)[1][:, 0] for i in range(k + 1)])

    def mutate(one):
        def correction(m, tau, change):
            # Through the weight, which `one` applies to its own.
            weight = one.correction(m, 0 * tau + k - 1, jnp.ones_like(change)) / force[1]
            return weight * jnp.asarray(force)[k - 1 - tau] * change[:, None]

        return SimpleNamespace(**vars(one) | {"correction": correction})

    return mutate


@pytest.mark.parametrize("fault", [None, "independent noise", "last noise lost", "printed effect", "weight"])
def test_known_biases_and_faults_that_must_be_seen(micro, fault):
    k, a = 4, np.array([0.4, 0.2])
    mutate = {"independent noise": independent, "last noise lost": last_lost,
              "printed effect": printed("overdamped", 1.0, k)}.get(fault)  # fmt: skip
    scale = 4 / 3 if fault == "weight" else 1.0  # K in place of K - 1 in mode single
    with jax.enable_x64(True):
        got = probed(micro, "overdamped", 1.0, k, tuple(a), mutate=mutate, scale_weight=scale)
    for mode in MODES:
        off = np.abs((got[mode] - 1) / KNOWN[mode] - 1)
        assert (off < 1e-3).all() if fault is None else (off > 0.02).all(), (mode, off)
    if fault == "independent noise":  # of first order, and larger than that of one long step
        assert (got["single"] - 1 > 1.2 * a / 2).all()


def test_orders_of_the_bias_overdamped(micro):
    """Slopes in a = h precision: 1 of the Euler step, 2 and 3 of what bernoulli and single add to the fine chain."""
    a, k = np.array([0.1, 0.05, 0.025]), 8
    with jax.enable_x64(True):
        got = probed(micro, "overdamped", 1.0, k, tuple(a))
        euler = probed(micro, "overdamped", 1.0, 1, tuple(a))["single0"]
    slope = lambda bias: np.polyfit(np.log(a), np.log(bias), 1)[0]  # noqa: E731
    fine = 1 / (1 - a / k / 2)
    assert 0.95 < slope(euler - 1) < 1.1
    assert 1.9 < slope(got["bernoulli"] - fine) < 2.2
    assert 2.9 < slope(got["single"] - fine) < 3.2
    assert 1.9 < slope(got["single0"] - fine) < 2.2


# Excess of the variance over the chain of h / 8 at h = 0.4, 0.2, 0.1, 0.05, precision 1, friction 2.
UNDERDAMPED = {
    "bernoulli": (2.697e-3, 3.553e-4, 4.596e-5, 5.858e-6),
    "single0": (5.263e-4, 6.523e-5, 8.279e-6, 1.049e-6),
    "single": (4.642e-5, 1.647e-6, 5.437e-8, 1.743e-9),
}


def test_orders_of_the_bias_underdamped(micro):
    h, k = np.array([0.4, 0.2, 0.1, 0.05]), 8
    with jax.enable_x64(True):
        got = [probed(micro, "underdamped", step, k) for step in h]
        whole, fine = ([probed(micro, "underdamped", step, 1)["single0"][0] for step in steps] for steps in (h, h / k))
    slope = lambda bias: np.polyfit(np.log(h), np.log(bias), 1)[0]  # noqa: E731
    np.testing.assert_allclose(np.array(whole) - 1, [1.096e-1, 5.245e-2, 2.562e-2, 1.266e-2], rtol=1e-3)
    for mode, known in UNDERDAMPED.items():
        excess = np.array([one[mode][0] for one in got]) - fine
        np.testing.assert_allclose(excess, known, rtol=2e-3)
        low, high = {"bernoulli": (2.8, 3.1), "single0": (2.8, 3.1), "single": (4.7, 5.1)}[mode]
        assert low < slope(excess) < high
    assert 0.95 < slope(np.array(whole) - 1) < 1.1


# --- What every row does ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_offsets_have_their_law(mode):
    """For macro steps of different lengths, 1 among them: within 4 standard errors."""
    sizes, count = np.array([1, 2, 5, 8]), 5_000
    keys, rows = image_keys(0, jnp.arange(count)), np.arange(count)
    offsets = jax.jit(random_offsets(mode, keys, sizes))
    for m, k in enumerate(sizes):
        fired, tau = np.zeros((count, k + 1)), np.zeros(count, np.int32)
        for call in range(k):
            going = tau < k
            target = np.asarray(offsets(np.full(count, m, np.int32), np.where(going, tau, 0),
                                        np.full(count, 10 * m + call, np.int32)))  # fmt: skip
            assert (target[going] > tau[going]).all() and (target <= k).all()
            tau = np.where(going, target, tau)
            fired[rows, tau] = 1
        assert (tau == k).all()
        fired = fired[:, 1:k]
        chance = 1 / (k - 1) if mode == "single" and k > 1 else 1 / k
        assert (np.abs(fired.mean(0) - chance) <= 4 * np.sqrt(chance * (1 - chance) / count)).all()
        total = fired.sum(1)
        if mode == "single":
            assert (total == (k > 1)).all()
        elif mode == "single0":
            assert total.max() <= 1
        elif k > 1:  # independent: the number that fire has the binomial variance, which pairs would change
            spread = (k - 1) * chance * (1 - chance)
            assert abs(total.var() / spread - 1) < 4 * np.sqrt(3 / count)


@pytest.mark.parametrize("mode", MODES)
def test_calls_are_counted(monkeypatch, mode):
    """Every row by itself: exactly 2 a step, or 1 + Binomial(K - 1, 1 / K), or 1 + Bernoulli(1 - 1 / K)."""
    k, steps, count = 5, 12, 1_000
    keys = image_keys(1, jnp.arange(count))

    monkeypatch.undo()  # the loop of JAX

    def run(keys):
        return walk(
            overdamped(0.1, k, steps), lambda y, m, tau: (-y[:, 0], jnp.ones(len(y), jnp.int32)),
            jnp.zeros((len(keys), 1)), weight=weights(mode, np.full(steps, k)),
            offsets=random_offsets(mode, keys, np.full(steps, k)),
            normal=lambda calls: image_noise(keys, calls + 1, (1,)),
        )  # fmt: skip

    result = jax.jit(run)(keys)
    nfe = np.asarray(result.nfe, np.float64)
    assert result.rounds == nfe.max()
    if mode == "single":
        assert (nfe == 2 * steps).all()
        return
    mean, variance = steps * (2 - 1 / k), steps * ((1 - 1 / k) ** 2 if mode == "bernoulli" else (1 - 1 / k) / k)
    assert abs(nfe.mean() - mean) < 4 * np.sqrt(variance / count)
    assert abs(nfe.var() / variance - 1) < 4 * np.sqrt(3 / count)
