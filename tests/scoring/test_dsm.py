"""Denoising score matching on Gaussian data, where the minimiser and the minimum are known; and the label dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.process import GaussianProcess
from diffusion.schedules import EDM, Cosine, RectifiedFlow, VPLinear
from scoring.base import drop_labels, score_update
from scoring.dsm import DSM
from scoring.time_samplers import LowDiscrepancyTimes, UniformTimes
from scoring.weightings import EDMWeighting, UniformWeighting

PROCESSES = {
    "vp_linear": GaussianProcess(VPLinear()),
    "cosine": GaussianProcess(Cosine()),
    "edm": GaussianProcess(EDM()),
    "rectified_flow": GaussianProcess(RectifiedFlow()),
}
VARIANCE = 0.3
COUNT, DIMENSION = 20_000, 5


@pytest.fixture(scope="module")
def x0():
    """Data of exactly zero mean and variance VARIANCE over all entries."""
    draw = np.random.default_rng(0).normal(size=(COUNT, DIMENSION))
    return jnp.asarray(np.sqrt(VARIANCE) * (draw - draw.mean()) / draw.std(), jnp.float32)


@pytest.fixture(scope="module", params=PROCESSES, ids=str)
def fixed(request, one_time):
    """A process and a sampler of the time at noise level 0.8, with alpha and sigma there in float64."""
    process = PROCESSES[request.param]
    t = process.time_of_logsnr(np.float64(-2 * np.log(0.8)))
    return process, one_time(float(t)), float(process.alpha(t)), float(process.sigma(t))


def linear_loss(fixed, x0, weighting=None):
    """The DSM loss of x0_hat = k x_t as a function of k, on one batch and one time."""
    process, time_sampler, _, _ = fixed
    objective = DSM(weighting=weighting or EDMWeighting(), time_sampler=time_sampler)
    return jax.jit(lambda k: objective(lambda x_t, t, label: k * x_t, process, x0, None, jax.random.key(1))[0])


def gain(alpha, sigma):
    """E[x0 | x_t] = k x_t for data N(0, VARIANCE)."""
    return alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2)


def test_minimiser_is_the_posterior_mean(fixed, x0):
    """The loss is a parabola in k; its bottom, by three points, is the regression coefficient, to 4 standard errors."""
    _, _, alpha, sigma = fixed
    loss = linear_loss(fixed, x0)
    best = gain(alpha, sigma)
    below, at, above = (float(loss(factor * best)) for factor in (0.5, 1.0, 1.5))
    found = best * (1 - 0.25 * (above - below) / (above - 2 * at + below))
    residual = VARIANCE * sigma**2 / (alpha**2 * VARIANCE + sigma**2)
    error = np.sqrt(residual / (alpha**2 * VARIANCE + sigma**2) / (COUNT * DIMENSION))
    assert abs(found - best) < 4 * error
    # Negative controls: the coefficients of mistaken kernels (sigma for sigma^2, the score's sign) are not it.
    for wrong in (alpha * VARIANCE / (alpha**2 * VARIANCE + sigma), -best, VARIANCE / (VARIANCE + sigma)):
        assert abs(found - wrong) > 10 * error


def test_expected_gradient_vanishes_at_the_posterior_mean(fixed, x0):
    """And points to it from both sides."""
    _, _, alpha, sigma = fixed
    best = gain(alpha, sigma)
    gradient = jax.jit(jax.grad(linear_loss(fixed, x0)))
    low, at, high = (float(gradient(factor * best)) for factor in (0.9, 1.0, 1.1))
    assert low < 0 < high and abs(at) < 0.1 * min(-low, high)


def test_minimum_is_the_posterior_variance(fixed, x0):
    """At the exact denoiser: w(lambda) Var(x0 | x_t) = w v sigma^2 / (alpha^2 v + sigma^2), EDM's w at d = 1/2."""
    _, _, alpha, sigma = fixed
    variance = VARIANCE * sigma**2 / (alpha**2 * VARIANCE + sigma**2)
    weight = (0.8**2 + 0.25) / (0.8 * 0.5) ** 2
    loss = float(linear_loss(fixed, x0)(gain(alpha, sigma)))
    assert abs(loss / (weight * variance) - 1) < 4 * np.sqrt(2 / (COUNT * DIMENSION))


def test_noise_mse_of_no_estimate_is_one(fixed, x0):
    """Uniform weighting is the error of the noise: predicting none, x0_hat = x_t / alpha, costs E|noise|^2 / d = 1."""
    _, _, alpha, _ = fixed
    loss = float(linear_loss(fixed, x0, UniformWeighting())(1 / alpha))
    assert abs(loss - 1) < 4 * np.sqrt(2 / (COUNT * DIMENSION))


def test_loss_on_every_time_is_the_mean_over_times(x0):
    """With the denoiser exact at each t: E over t of the closed form, by quadrature, and unweighted in the metrics."""
    process = PROCESSES["cosine"]

    def denoise(x_t, t, label):
        alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
        return gain(alpha, sigma) * x_t

    objective = DSM(weighting=EDMWeighting(sigma_data=0.5), time_sampler=LowDiscrepancyTimes())
    loss, metrics = objective(denoise, process, x0, None, jax.random.key(2))
    t = (np.arange(4000) + 0.5) / 4000
    alpha, sigma = process.alpha(t), process.sigma(t)
    variance = VARIANCE * sigma**2 / (alpha**2 * VARIANCE + sigma**2)
    level = sigma / alpha
    assert abs(float(loss) / np.mean((level**2 + 0.25) / (0.5 * level) ** 2 * variance) - 1) < 0.03
    assert abs(float(metrics["x0_mse"]) / np.mean(variance) - 1) < 0.03
    assert float(metrics["loss"]) == float(loss)


def test_x_t_label_and_time_reach_the_denoiser():
    """Per image: x_t is the corruption of its own x0 by standard noise at its own time."""
    process, seen = PROCESSES["vp_linear"], {}
    x0 = jnp.linspace(-1, 1, 4000).reshape(1000, 2, 2, 1)
    label = jnp.arange(1000)

    def denoise(x_t, t, label):
        seen.update(x_t=np.asarray(x_t), t=np.asarray(t, np.float64), label=label)
        return x_t

    DSM(weighting=EDMWeighting(), time_sampler=UniformTimes())(denoise, process, x0, label, jax.random.key(0))
    np.testing.assert_array_equal(seen["label"], label)
    alpha, sigma = (np.reshape(function(seen["t"]), (-1, 1, 1, 1)) for function in (process.alpha, process.sigma))
    noise = (seen["x_t"] - alpha * np.asarray(x0)) / sigma
    assert len(np.unique(seen["t"])) > 990
    assert abs(noise.mean()) < 4 / np.sqrt(4000) and abs(noise.std() - 1) < 4 / np.sqrt(8000)
    assert abs(np.corrcoef(noise.ravel(), np.asarray(x0).ravel())[0, 1]) < 4 / np.sqrt(4000)
    # The time and the noise come from different keys: with one number per image the same key would give the same bits.
    one = jnp.zeros((1000, 1))
    DSM(weighting=EDMWeighting(), time_sampler=UniformTimes())(denoise, process, one, label, jax.random.key(0))
    noise = seen["x_t"][:, 0] / process.sigma(seen["t"])
    assert abs(np.corrcoef(noise, seen["t"])[0, 1]) < 4 / np.sqrt(1000)


def test_drop_labels_rate():
    label = jnp.asarray(np.random.default_rng(0).integers(0, 10, 20_000))
    dropped = np.asarray(drop_labels(label, jax.random.key(0), probability=0.1, num_classes=10))
    hidden = dropped == 10
    assert abs(hidden.mean() - 0.1) < 4 * np.sqrt(0.1 * 0.9 / 20_000)
    np.testing.assert_array_equal(dropped[~hidden], np.asarray(label)[~hidden])
    # Which ones are hidden does not depend on the class.
    rates = [hidden[np.asarray(label) == k].mean() for k in range(10)]
    assert np.abs(np.array(rates) - 0.1).max() < 4 * np.sqrt(0.09 / 1900)


def test_drop_labels_at_the_ends():
    label = jnp.array([3, 1])
    assert drop_labels(label, jax.random.key(0), probability=0.0, num_classes=4) is label
    assert drop_labels(None, jax.random.key(0), probability=0.5, num_classes=4) is None
    np.testing.assert_array_equal(drop_labels(label, jax.random.key(0), probability=1.0, num_classes=4), [4, 4])


def test_score_update_hands_everything_on():
    """Role "score"; the objective sees the denoiser of the parameters, the images, and labels with some hidden."""
    seen = {}

    def objective(denoise, process, x0, label, key):
        seen.update(denoise=denoise, process=process, x0=x0, label=label, key=key)
        return jnp.float32(7), {}

    keys = []
    process = PROCESSES["edm"]
    update = score_update(
        objective, lambda params, key: keys.append(key) or params["denoiser"], process, label_dropout=0.5, num_classes=3
    )
    assert update.role == "score" and update.repeats == 1
    batch = {"image": jnp.zeros((100, 2)), "label": jnp.ones(100, jnp.int32)}
    loss, _ = update.loss({"denoiser": "D"}, {}, batch, jax.random.key(0))
    assert loss == 7 and seen["denoise"] == "D" and seen["process"] is process and seen["x0"] is batch["image"]
    assert set(np.asarray(seen["label"]).tolist()) == {1, 3}
    used = [jax.random.key_data(key).tolist() for key in (keys[0], seen["key"], jax.random.key(0))]
    assert len({tuple(key) for key in used}) == 3  # no key is used twice, nor for the labels:
    for key in (keys[0], seen["key"], jax.random.key(0)):
        other = drop_labels(batch["label"], key, probability=0.5, num_classes=3)
        assert (np.asarray(other) != np.asarray(seen["label"])).mean() > 0.2
    update.loss({"denoiser": "D"}, {}, {"image": batch["image"]}, jax.random.key(0))
    assert seen["label"] is None
