"""Exact denoisers of the data sets against averages over draws of these sets themselves, weighted by Bayes' rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.sources import toy2d
from diffusion.denoiser import score
from diffusion.exact_densities import ExactBoxes
from diffusion.kernel_free import DoubleWell, Static
from diffusion.process import GaussianProcess
from diffusion.schedules import EDM, VPLinear
from evaluation import exact
from evaluation.exact import exact_denoiser

EXPLODING, PRESERVING = GaussianProcess(EDM()), GaussianProcess(VPLinear())
DRAWS = 60_000


def at_level(process, ratio, count):
    t = process.time_of_logsnr(-2 * np.log(ratio))
    return jnp.full(count, t, jnp.float32), process.alpha(np.float64(t)), process.sigma(np.float64(t))


def posterior(x, alpha, sigma, draws):
    """E[x0 | x] and its standard error, by importance sampling from the data."""
    log_weight = -((x - alpha * draws) ** 2).sum(1) / (2 * sigma**2)
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    mean = weight @ draws
    return mean, np.sqrt((weight**2) @ (draws - mean) ** 2)


def deviations(denoise, process, ratio, draws, label=None):
    """Errors over standard errors at points where draws are; the last from draws of a slightly larger data set."""
    rng = np.random.default_rng(7)
    t, alpha, sigma = at_level(process, ratio, 16)
    x = alpha * draws[rng.integers(len(draws), size=16)] + sigma * rng.normal(size=(16, 2))
    got = np.asarray(denoise(jnp.asarray(x, jnp.float32), t, None if label is None else jnp.full(16, label)))
    right, wrong = (
        np.stack([(got_ - mean) / error for got_, (mean, error) in
                  zip(got, (posterior(point, alpha, sigma, scale * draws) for point in x))])
        for scale in (1, 1.1)
    )  # fmt: skip
    return right, wrong


@pytest.mark.parametrize("name", toy2d.VARIANTS)
def test_every_data_set_is_bayes_rule_over_its_draws(name):
    draws, labels = toy2d.VARIANTS[name](np.random.default_rng(3).uniform(size=(DRAWS, 5)))
    for process, ratio in ((EXPLODING, 0.08), (PRESERVING, 0.3)):
        denoise = jax.jit(exact_denoiser(f"toy2d:{name}", process))
        chosen = [(None, draws)] if labels is None else [(None, draws), (2, draws[labels == 2])]
        for label, mine in chosen:
            right, wrong = deviations(denoise, process, ratio, mine, label)
            assert np.abs(right).max() < 5 and np.sqrt((right**2).mean()) < 2
            assert np.sqrt((wrong**2).mean()) > 5  # negative control


def test_the_quadrature_over_the_roll_has_converged(monkeypatch):
    """Twice as many nodes change nothing, also where only the roll's own width smooths."""
    denoise = exact_denoiser("toy2d:swiss_roll", EXPLODING)
    monkeypatch.setattr(exact, "_ROLL_NODES", 2 * exact._ROLL_NODES)
    finer = exact._swiss_roll(EXPLODING)
    for ratio in (0.002, 0.02, 1.0):
        t, _, sigma = at_level(EXPLODING, ratio, 400)
        rng = np.random.default_rng(0)
        points, _ = toy2d.swiss_roll(rng.uniform(size=(400, 5)))
        x = jnp.asarray(points + sigma * rng.normal(size=(400, 2)), jnp.float32)
        fine, coarse = (np.asarray(score(each, EXPLODING, x, t)) for each in (finer, denoise))
        assert ((fine - coarse) ** 2).sum() < 1e-6 * (fine**2).sum()


def test_three_modes_under_the_double_well_have_the_published_scores():
    """dx = grad log pi / 2 dtau + dW from the three modes, at x = -1, 0, 0.5, 1, 1.5 and two clocks."""
    process = DoubleWell()
    denoise = exact_denoiser("toy2d:three_modes", process)
    x = np.array([-1, 0, 0.5, 1, 1.5])
    for clock, expected in ((0.1, [1.2774, 0.7265, -2.3162, 3.9496, -1.6707]),
                            (0.5, [0.6755, -0.6343, 1.7894, -0.1960, -2.5809])):  # fmt: skip
        t = jnp.full(5, process.time_of_clock(clock), jnp.float32)
        got = score(denoise, process, jnp.asarray(np.stack([x, x[::-1]], 1), jnp.float32), t)
        np.testing.assert_allclose(got[:, 0], expected, rtol=5e-3, atol=5e-3)
        np.testing.assert_allclose(got[:, 1], got[::-1, 0], atol=1e-5)


@pytest.mark.parametrize(
    ("source", "process"),
    [("digits", EXPLODING), ("folder:rings", EXPLODING), ("toy2d:rings", Static()), ("toy2d", DoubleWell())],
)
def test_nobody_knows_the_others(source, process):
    assert exact_denoiser(source, process) is None


def test_the_default_variant_is_the_checkerboard():
    assert isinstance(exact_denoiser("toy2d", EXPLODING), ExactBoxes)
