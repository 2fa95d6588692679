"""The Poisson midpoint sampler of diffusion models, by linear probing: exact moments of the code, no sampling.

Where the network is linear in x a macro step is linear in (x, noise), given which offsets fire. Unit vectors in place
of x and of the normal draws give its matrix, and with all offsets enumerated the variance of the samples follows
exactly. The oracle (`conftest.py`) is the recursion that defines the method, on DDPM's own betas.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.base import expand
from diffusion.discrete import Discrete
from diffusion.process import GaussianProcess
from diffusion.random import image_keys, image_noise
from diffusion.schedules import EDM, RectifiedFlow, VPLinear
from samplers import DDIM, Ancestral
from samplers.midpoint import MODES, random_offsets, walk, weights
from samplers.poisson_midpoint import FREEZES, VARIANTS, PoissonMidpoint, base_steps
from samplers.time_grids import make_grid

pytestmark = pytest.mark.usefixtures("loops_in_python", "quick_to_compile")


def paper(**options):
    """The sampler with the settings of its paper, which are not our defaults."""
    return PoissonMidpoint(**{"freeze": "epsilon", "spacing": 1.0} | options)


PROCESS = GaussianProcess(Discrete())
SCALES = np.array([1.0, 0.5, 0.1])  # standard deviations of Gaussian data, in every row of probes
# abar_k of DDPM, k = 0 ... 1000.
ABAR = np.append(1.0, np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))


def fine_chain(variant, freeze="epsilon", abar=ABAR):
    """x_{k-1} = a x_k + b q + c z, k = N ... 1: the papers' formulas in abar, with q any of the four quantities."""
    bar, last = abar[:0:-1], abar[-2::-1]
    beta = 1 - bar / last
    if variant in ("1", "1b", "1c", "1d"):
        step = 1 / np.sqrt(1 - beta)
        a, b = step, -2 * (step - 1) / np.sqrt(1 - bar)
        c = np.sqrt(beta / (1 + {"1": -1, "1b": 0, "1c": 1, "1d": 2}[variant] * beta))
    else:
        full = (1 - last) * beta / (1 - bar)
        less = (1 - last) * beta
        a, c = np.sqrt(last / bar), np.sqrt(full if variant == "2" else less)
        b = np.sqrt(1 - last - (less if variant == "3" else full)) - a * np.sqrt(1 - bar)
    noise_level, level = np.sqrt(1 - bar), np.sqrt(bar)
    return {
        "epsilon": (a, b, c),
        "x0": (a + b / noise_level, -b * level / noise_level, c),
        "v": (a + b * noise_level, b * level, c),
        "score": (a, -b * noise_level, c),
    }[freeze]


def gains(freeze, level, noise_level, scale):
    """q / x of each quantity for data N(0, scale^2): x0 = level scale^2 x / variance, and what follows from it."""
    variance = (level * scale) ** 2 + noise_level**2
    return {
        "epsilon": noise_level / variance,
        "x0": level * scale**2 / variance,
        "v": level * noise_level * (1 - scale**2) / variance,
        "score": -1 / variance,
    }[freeze]


def grouped(table, ends):
    """[N] -> [K, M] by micro step and macro step, 1 for a and 0 for the others where a macro step has fewer."""
    sizes = np.diff(ends)
    index = np.minimum(ends[:-1] + np.arange(sizes.max())[:, None], len(table) - 1)
    return table[index], np.arange(sizes.max())[:, None] < sizes


def fine_std(variant):
    """[3] standard deviation of the samples of the fine chain itself, for data of SCALES."""
    a, b, c = fine_chain(variant)
    gain = gains("epsilon", np.sqrt(ABAR[:0:-1, None]), np.sqrt(1 - ABAR[:0:-1, None]), SCALES)
    v = np.ones(3)
    for i in range(1000):
        v = (a[i] + b[i] * gain[i]) ** 2 * v + c[i] ** 2
    return np.sqrt(v)


# --- One macro step of the code, on rows of probes ----------------------------------------------------------------


def stack(tables, mode, place, mutate=None):
    """Dynamics of one macro step, which in row i is macro step place[i] of `tables`."""
    most = int(tables.micro_steps.max())
    sizes, weight = jnp.asarray(tables.micro_steps), jnp.asarray(weights(mode, tables.micro_steps), jnp.float64)

    def inner(tau):
        return jnp.where(tau == most, sizes[place], tau)

    one = SimpleNamespace(
        micro_steps=np.array([most]),
        mean=lambda m, tau, x, q: tables.mean(place, inner(tau), x, q),
        noise=lambda m, tau, target, noise, z: tables.noise(place, inner(tau), inner(target), noise, z),
        correction=lambda m, tau, change: weight[place][:, None] * tables.correction(place, tau, change),
    )
    return mutate(one) if mutate else one


ROWS = 3072  # every case goes in blocks of so many: op by op, what is compiled for one is ready for the next


def macro_step(tables, mode, place, x, offsets, z, quantity, mutate=None):
    """[B, F] from x [B, F], offsets [B, C] and z [C, B, F], through `walk`; quantity: (x, t) -> q."""
    blocks, rows, last = [], jnp.arange(ROWS), offsets.shape[1] - 1
    for begin in range(0, len(x), ROWS):
        chosen = np.minimum(np.arange(begin, begin + ROWS), len(x) - 1)
        block, at, to, draws = (jnp.asarray(part) for part in (x[chosen], place[chosen], offsets[chosen], z[:, chosen]))
        evaluate = lambda y, m, tau, at=at: (  # noqa: E731
            quantity(y, jnp.asarray(tables.t)[at, tau]), jnp.ones(ROWS, jnp.int32))  # fmt: skip
        blocks.append(walk(
            stack(tables, mode, at, mutate), evaluate, block, weight=np.ones(1),
            normal=lambda count, draws=draws: draws[jnp.minimum(count, last), rows],
            offsets=lambda m, tau, count, to=to: to[rows, jnp.minimum(count, last)].astype(jnp.int32),
        ).x)  # fmt: skip
    return np.concatenate(blocks)[: len(x)]


def gaussian(freeze, process=PROCESS):
    """The quantity of data N(0, SCALES^2), one standard deviation in each of three features."""
    scales = jnp.asarray(SCALES)

    def quantity(x, t):
        return gains(freeze, expand(process.alpha(t), x), expand(process.sigma(t), x), scales) * x

    return quantity


def single_std(sampler, process=PROCESS, shift=0, mutate=None):
    """[3] standard deviation of the samples of a one-hot mode from N(0, 1): rows are (macro step, offset, probe)."""
    tables = sampler.dynamics(process)
    most, mode = tables.micro_steps.max(), sampler.mode
    cases = [(m, u) for m, k in enumerate(tables.micro_steps) for u in (range(mode == "single", k) if k > 1 else [0])]
    place, first = np.repeat(np.array(cases), 3, axis=0).T
    probe = np.tile(np.arange(3), len(cases))
    first = np.maximum(first - shift, 0)
    offsets = np.stack([np.where(first == 0, most, first), np.full(len(first), most)], axis=1)
    x = np.tile((probe == 0)[:, None] * 1.0, (1, 3))
    z = np.tile(np.stack([probe == 1, probe == 2])[..., None] * 1.0, (1, 1, 3))
    out = macro_step(tables, mode, place, x, offsets, z, gaussian(sampler.freeze, process), mutate)
    square = (out**2).reshape(len(cases), 3, 3)
    variance, of_case = np.ones(3), np.array(cases)[:, 0]
    for m in range(len(tables.micro_steps)):
        mean = square[of_case == m].mean(0)
        variance = mean[0] * variance + mean[1] + mean[2]
    return np.sqrt(variance)


def bernoulli_std(sampler, micro, ends, mutate=None):
    """[3] the same for independent H, on the noise of every micro step: rows are (macro step, H, unit vector)."""
    tables, k = sampler.dynamics(PROCESS), ends[1]
    a, _, c = (table.reshape(-1, k).T for table in fine_chain(sampler.variant, sampler.freeze))  # [K, M]
    fired = micro.patterns("bernoulli", k)
    shape = (len(ends) - 1, len(fired), k + 1)
    place, which, probe = (index.ravel() for index in np.indices(shape))
    noise = (probe - 1 == np.arange(k)[:, None])[..., None] * c[:, place, None]  # [K, B, 1]
    a, c = a[:, place, None, None], c[:, place, None, None]
    offsets, z = micro.segments(fired[which], noise, a, c**2)
    x = np.tile((probe == 0)[:, None] * 1.0, (1, 3))
    out = macro_step(tables, sampler.mode, place, x, offsets, np.tile(z, 3), gaussian(sampler.freeze), mutate)
    out, variance = out.reshape(*shape, 3), np.ones(3)
    for m in range(shape[0]):
        for i in range(3):
            terms = micro.terms("bernoulli", k, out[m, ..., i : i + 1])
            variance[i] = micro.propagate(terms, variance[i].reshape(1, 1))[0, 0]
    return np.sqrt(variance)


# --- Tables -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_fine_steps_are_those_of_the_papers(variant):
    """In abar and beta, as printed; in x0_hat, with epsilon = (x - alpha x0) / sigma."""
    got = base_steps(make_grid(PROCESS, "uniform", 1000), variant)
    for mine, expected in zip(got, fine_chain(variant, "x0")):
        np.testing.assert_allclose(mine, expected, rtol=1e-9, atol=1e-13)
    other = fine_chain("1b" if variant == "1" else "1", "x0")
    assert np.abs(got[2] / other[2] - 1).max() > 1e-3  # the formulas do differ


@pytest.mark.parametrize("freeze", FREEZES)
def test_every_macro_step_is_the_recursion(micro, freeze):
    """With a nonlinear network, any number of offsets fired, macro steps of unequal length."""
    boundaries = (0, 1, 3, 10, 30, 45, 58, 60)
    process = GaussianProcess(Discrete(steps=60, beta_min=2e-3, beta_max=0.2))
    abar = np.append(1.0, np.cumprod(1 - np.linspace(2e-3, 0.2, 60)))
    generator, rows = np.random.default_rng(0), 70
    with jax.enable_x64(True):
        sampler = paper(steps=7, fine_steps=60, boundaries=boundaries, freeze=freeze, mode="bernoulli")
        tables, ends = sampler.dynamics(process), np.array(boundaries)
        np.testing.assert_array_equal(tables.micro_steps, np.diff(ends))
        place = np.arange(rows) % 7
        sizes = np.diff(ends)[place]
        a, b, c = fine_chain("2", freeze, abar)
        a, inside = grouped(a, ends)
        a, b, c = np.where(inside, a, 1.0), np.where(inside, grouped(b, ends)[0], 0.0), inside * grouped(c, ends)[0]
        a, b, c = (table[:, place, None, None] for table in (a, b, c))
        fired = (generator.random((rows, len(a))) < 4 / sizes[:, None]) & (np.arange(len(a)) < sizes[:, None])
        x, z = generator.standard_normal((rows, 1)), generator.standard_normal((len(a), rows, 1))
        time = grouped(np.arange(60, 0, -1) / 60, ends)[0][:, place, None]
        weight = np.diff(ends)[place][:, None]
        drift = lambda x, i: np.sin(3 * x) + time[i] ** 2 * np.cos(x)  # noqa: E731
        expected = micro.recursion(x, c[..., 0] * z, fired.T, weight, drift, a, b)
        offsets, draws = micro.segments(fired, c[..., 0] * z, a, c**2)
        quantity = lambda x, t: jnp.sin(3 * x) + expand(t, x) ** 2 * jnp.cos(x)  # noqa: E731
        got = macro_step(tables, "bernoulli", place, x, offsets, draws, quantity)
    scale = np.abs(expected).max()
    assert fired.sum(1).max() > 5
    np.testing.assert_allclose(got, expected, atol=1e-12 * scale)
    late = micro.recursion(x, c[..., 0] * z, np.roll(fired, 1, axis=1).T, weight, drift, a, b)
    assert np.abs(late - expected).max() > 1e-3 * scale


# --- Moments of Gaussian data -------------------------------------------------------------------------------------

# Excess of the standard deviation over the chain of 1000 steps, for data of standard deviation 1, 0.5 and 0.1.
SINGLE = {
    2: (0, 0, 0), 4: (1.310e-5, 3.260e-5, 8.460e-4), 5: (2.644e-5, 6.562e-5, 1.759e-3),
    8: (9.524e-5, 2.344e-4, 6.935e-3), 10: (1.666e-4, 4.076e-4, 1.287e-2), 20: (8.824e-4, 2.094e-3, 8.835e-2),
    25: (1.513e-3, 3.530e-3, 1.676e-1), 40: (5.019e-3, 1.097e-2, 6.818e-1), 50: (9.468e-3, 1.950e-2, 1.334),
}  # fmt: skip
BERNOULLI = {
    2: (1.016e-5, 1.357e-5, 2.139e-4), 4: (8.643e-5, 1.318e-4, 2.744e-3), 5: (1.540e-4, 2.393e-4, 5.347e-3),
    8: (4.843e-4, 7.725e-4, 2.042e-2), 10: (8.193e-4, 1.319e-3, 3.830e-2), 20: (4.169e-3, 6.864e-3, 2.840e-1),
    25: (7.148e-3, 1.182e-2, 5.530e-1), 40: (2.399e-2, 3.932e-2, 2.179), 50: (4.595e-2, 7.309e-2, 3.993),
}  # fmt: skip
ENDS = {k: np.arange(0, 1001, k) for k in (1, *SINGLE)}


FINE = {variant: fine_std(variant) for variant in VARIANTS}


def test_standard_deviations_of_the_fine_chain():
    """Relative errors of DDPM with 1000 steps. One reading of variant 3 loses a third of the deviation."""
    known = {"1": (1.40e-3, 2.60e-3), "1b": (-1.40e-3, 8.16e-4), "1c": (-4.17e-3, -9.47e-4), "1d": (-6.90e-3, -2.70e-3),
             "2": (-4.48e-3, -7.78e-3), "3": (-2.50e-3, -3.47e-3), "3printed": (-0.294, -0.468)}  # fmt: skip
    for variant, expected in known.items():
        np.testing.assert_allclose((FINE[variant] / SCALES - 1)[:2], expected, rtol=1e-2)
    with jax.enable_x64(True):
        one = single_std(paper(steps=1000, variant="3"))
    np.testing.assert_allclose(one, FINE["3"], rtol=1e-9)


@pytest.mark.parametrize("k", [2, 10, 25, 50])
def test_excess_of_mode_single(k):
    with jax.enable_x64(True):
        excess = single_std(paper(steps=1000 // k)) / FINE["2"] - 1
    np.testing.assert_allclose(excess, SINGLE[k], rtol=1e-3, atol=1e-10)


@pytest.mark.parametrize("k", [4, 10, pytest.param(25, marks=pytest.mark.slow)])
def test_excess_of_mode_bernoulli(micro, k):
    with jax.enable_x64(True):
        sampler = paper(steps=1000 // k, mode="bernoulli")
        excess = bernoulli_std(sampler, micro, ENDS[k]) / FINE["2"] - 1
    np.testing.assert_allclose(excess, BERNOULLI[k], rtol=1e-3)


@pytest.mark.parametrize("options, known", [
    ({"steps": 40, "variant": "3"}, (1.489e-3, 2.201e-3, 6.497e-2)),
    ({"spacing": 2.0}, (6.364e-2, 2.676e-2, 3.522e-2)),
    ({"spacing": 2.0, "freeze": "x0"}, (-9.947e-3, -1.349e-2, -2.076e-2)),
    ({"spacing": 2.0, "freeze": "v"}, (0.0, 1.245e-3, 2.873e-2)),
])  # fmt: skip
def test_excess_of_other_choices(options, known):
    """Excess of 20 macro steps of growing length, by what is frozen; and of variant 3."""
    sampler = paper(**{"steps": 20} | options)
    with jax.enable_x64(True):
        excess = single_std(sampler) / FINE[sampler.variant] - 1
    np.testing.assert_allclose(excess, known, rtol=1e-3, atol=1e-10)


def test_closer_to_the_data_than_respaced_samplers():
    """80 calls against 100 of DDPM and of DDIM on every tenth level, for data of deviation 1 and 0.5; not for 0.1."""
    with jax.enable_x64(True):
        ours = np.abs(single_std(paper(steps=40)) / SCALES - 1)
    bar, others = ABAR[::10], []
    for eta in (1.0, 0.0):
        v = np.ones(3)
        for t, s in zip(bar[:0:-1], bar[-2::-1]):
            spread = eta * (1 - s) / (1 - t) * (1 - t / s)
            a = np.sqrt(s / t)
            b = np.sqrt(1 - s - spread) - a * np.sqrt(1 - t)
            v = (a + b * gains("epsilon", np.sqrt(t), np.sqrt(1 - t), SCALES)) ** 2 * v + spread
        others.append(np.sqrt(v) / SCALES - 1)
    np.testing.assert_allclose(others, [[-0.0400, -0.0636, -0.209], [-0.0184, -0.0291, -0.1405]], rtol=1e-2)
    assert (5 * ours[:2] < np.abs(others)[:, :2]).all() and ours[2] > 0.8 * 0.1405


def independent(one):
    """The noise of the midpoint is not that of the step."""
    noise = lambda m, tau, target, noise, z: one.noise(m, 0 * tau, target, 0 * noise, z)  # noqa: E731
    return SimpleNamespace(**vars(one) | {"noise": noise})


def last_lost(one):
    """The noise ends with the midpoint."""
    noise = lambda m, tau, target, noise, z: one.noise(m, tau, target, noise, (tau == 0)[:, None] * z)  # noqa: E731
    return SimpleNamespace(**vars(one) | {"noise": noise})


def weight_of_k(one):
    """K in place of K - 1, for K = 5."""
    correction = lambda m, tau, change: 5 / 4 * one.correction(m, tau, change)  # noqa: E731
    return SimpleNamespace(**vars(one) | {"correction": correction})


@pytest.mark.parametrize("fault", [
    {"mutate": independent}, {"mutate": last_lost}, {"mutate": weight_of_k}, {"shift": 1}
])  # fmt: skip
def test_faults_that_the_moments_show(fault):
    """The last: offsets read as the number of the micro step, one too early."""
    with jax.enable_x64(True):
        excess = single_std(paper(steps=200), **fault) / FINE["2"] - 1
    assert (np.abs(excess / SINGLE[5] - 1) > 0.1).all()


@pytest.mark.parametrize("shift", [0, 1])
def test_the_mean_over_offsets_is_the_fine_chain(shift):
    """With a network of time alone, in every macro step; offsets one too early leave out the last micro step."""
    sampler, k = paper(steps=100), 10
    a, b, _ = fine_chain("2")
    place, first = (index.ravel() for index in np.indices((100, k - 1)))
    first = first + 1 - shift
    offsets = np.stack([np.where(first == 0, k, first), np.full(len(first), k)], axis=1)
    with jax.enable_x64(True):
        x = np.ones((len(first), 3))
        force = lambda x, t: expand(jnp.exp(jnp.sin(40 * t)), x) * jnp.ones(3)  # noqa: E731
        got = macro_step(sampler.dynamics(PROCESS), "single", place, x, offsets, np.zeros((2, *x.shape)), force)
    expected = np.ones(100)
    for i in range(k):
        expected = a[i::k] * expected + b[i::k] * np.exp(np.sin(0.04 * np.arange(1000 - i, 0, -k)))
    error = np.abs(got.reshape(100, k - 1, 3).mean(1) - expected[:, None]).max()
    assert error < 1e-10 if shift == 0 else error > 1e-5


# --- The sampler --------------------------------------------------------------------------------------------------

VP = GaussianProcess(VPLinear())
KEYS = image_keys(3, jnp.arange(6))
LABEL = jnp.arange(6) % 3


class Bent:
    """A nonlinear denoiser of three classes, of two network calls a time."""

    def __call__(self, x_t, t, label):
        return jnp.tanh(x_t + 0.5 * expand(label.astype(x_t.dtype), x_t)) * expand(1 - 0.5 * t, x_t)

    def network_calls(self, t, label):
        return jnp.full(t.shape, 2, jnp.int32)


def sample(process=VP, **options):
    samples = paper(**options).sample(Bent(), process, KEYS, LABEL, shape=(2,))
    return np.asarray(samples.x0), np.asarray(samples.nfe)


@pytest.mark.parametrize("freeze", ["epsilon", "v"])
def test_macro_steps_of_one_and_of_two(freeze):
    """K = 1 is ancestral sampling on the same noise, and so is mode single of K = 2, whatever is frozen."""
    ancestral = DDIM(steps=8, eta=1.0).sample(Bent(), VP, KEYS, LABEL, shape=(2,)).x0
    for steps, mode, calls in ((8, "single", 8), (8, "bernoulli", 8), (4, "single", 8)):
        x0, nfe = sample(steps=steps, fine_steps=8, mode=mode, freeze=freeze)
        np.testing.assert_allclose(x0, ancestral, atol=1e-5)
        assert (nfe == 2 * calls).all()
    four, _ = sample(steps=2, fine_steps=8, freeze=freeze)
    assert np.abs(four - ancestral).max() > 1e-2


def test_macro_steps_of_one_are_ancestral_to_the_bit(loops_in_python):
    """Op by op; a compiler may contract the same sums differently, to an ulp. With x0 frozen nothing is converted."""
    ancestral = Ancestral(steps=8).sample(Bent(), VP, KEYS, LABEL, shape=(2,)).x0
    for mode in MODES:
        np.testing.assert_array_equal(sample(steps=8, fine_steps=8, mode=mode, freeze="x0")[0], ancestral)
    assert (sample(steps=8, fine_steps=8, freeze="epsilon")[0] != ancestral).any()


@pytest.mark.parametrize("mode", MODES)
def test_the_whole_sampler_step_by_step(micro, mode):
    """In float64, on the sampler's own offsets and noise: an image's draw j is that of its call j."""
    process = GaussianProcess(Discrete(steps=12, beta_min=0.02, beta_max=0.5))
    abar, k = np.append(1.0, np.cumprod(1 - np.linspace(0.02, 0.5, 12))), 4
    a, b, c = fine_chain("2", "epsilon", abar)
    offsets = random_offsets(mode, KEYS, np.full(3, k))
    rows, prior = np.arange(6), np.asarray(image_noise(KEYS, 0, (2,)), np.float64)
    x, count = np.sqrt(1 - abar[-1]) * prior, np.zeros(6, int)
    weight = k - 1 if mode == "single" else k
    for m in range(3):
        index = np.arange(m * k, m * k + k)
        fired, noise, tau = np.zeros((6, k)), np.zeros((k, 6, 2)), np.zeros(6, np.int32)
        while (tau < k).any():
            going = tau < k
            target = np.asarray(offsets(jnp.full(6, m), jnp.asarray(tau % k), jnp.asarray(count)))
            z = np.asarray(image_noise(KEYS, jnp.asarray(count) + 1, (2,)), np.float64)
            for row in rows[going]:  # all the noise of a segment where it ends, which no midpoint inside sees
                v = 0.0
                for i in index[tau[row] : target[row]]:
                    v = a[i] ** 2 * v + c[i] ** 2
                noise[target[row] - 1, row] = np.sqrt(v) * z[row]
                if target[row] < k:
                    fired[row, target[row]] = 1
            tau, count = np.where(going, target, tau), count + going

        def drift(x, i, index=index):
            bar, label = abar[12 - index[i]], np.asarray(LABEL)[:, None]
            x0 = np.tanh(x + 0.5 * label) * (1 - 0.5 * (12 - index[i]) / 12)
            return (x - np.sqrt(bar) * x0) / np.sqrt(1 - bar)

        eye = np.eye(2)
        x = micro.recursion(x, noise, fired.T, weight, drift, a[index, None, None] * eye, b[index, None, None] * eye)
    x0, nfe = sample(process, steps=3, fine_steps=12, mode=mode)
    np.testing.assert_allclose(x0, x, atol=1e-5)
    np.testing.assert_array_equal(nfe, 2 * count)  # guidance: two network calls each
    assert (count == 6).all() if mode == "single" else len(set(count)) > 1


def test_a_shared_plan():
    """All images of a batch as many calls, those of the first; with their own, different numbers."""
    options = {"steps": 3, "fine_steps": 12, "mode": "bernoulli"}
    own, shared = sample(**options), sample(**options, plan="batch")
    assert len(set(own[1])) > 1 and (shared[1] == own[1][0]).all()
    np.testing.assert_allclose(shared[0][0], own[0][0], atol=1e-6)


def test_bad_options_are_named():
    for options, match in (
        ({"steps": 3, "spacing": 1.0}, "steps = 3 must divide fine_steps = 1000"), ({"spacing": 0.5}, "spacing = 0.5"),
        ({"mode": "x"}, "mode = 'x'"), ({"freeze": "x"}, "freeze = 'x'"), ({"variant": "4"}, "variant = '4'"),
        ({"plan": "x"}, "plan = 'x'"), ({"fine_steps": 20}, "fine_steps = 20 must be at least steps = 40"),
        ({"boundaries": (0, 5, 5, 1000), "steps": 3}, "boundaries"), ({"boundaries": (0, 1000)}, "boundaries"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            PoissonMidpoint(**options)
    for process in (GaussianProcess(EDM()), GaussianProcess(RectifiedFlow())):
        with pytest.raises(ValueError, match="variant = '3' is of variance-preserving"):
            PoissonMidpoint(variant="3").dynamics(process)
        PoissonMidpoint(freeze="x0").dynamics(process)
