"""Closed-form denoisers against Gaussian conditioning, quadrature and explicit sums in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.denoiser import score
from diffusion.exact import ExactEmpirical, exact_gaussian, exact_mixture
from diffusion.process import GaussianProcess
from diffusion.schedules import EDM, Cosine, RectifiedFlow, VPLinear

PROCESSES = {
    "vp_linear": GaussianProcess(VPLinear()),
    "cosine": GaussianProcess(Cosine()),
    "edm": GaussianProcess(EDM()),
    "rectified_flow": GaussianProcess(RectifiedFlow()),
}
COUNT = 12


@pytest.fixture(params=PROCESSES, ids=str)
def process(request):
    return PROCESSES[request.param]


def single(array):
    return jnp.asarray(array, jnp.float32)


def points(process, dimension, shape=None, levels=(0.05, 10.0)):
    """(x_t, t, alpha, sigma) with x_t where a unit-sized distribution has mass; `levels` bounds sigma / alpha."""
    rng = np.random.default_rng(0)
    t = process.time_of_logsnr(-2 * np.log(np.geomspace(*levels, COUNT)))
    t = np.asarray(single(t), np.float64)  # the very times that the denoiser gets
    alpha, sigma = process.alpha(t), process.sigma(t)
    x_t = alpha[:, None] * rng.normal(size=(COUNT, dimension)) + sigma[:, None] * rng.normal(size=(COUNT, dimension))
    return np.asarray(single(x_t), np.float64).reshape((COUNT, *(shape or (dimension,)))), t, alpha, sigma


def exact(process, mixture, classes=None):
    return exact_mixture(
        process, single(mixture.weights), single(mixture.means), single(mixture.covariances), classes
    )


def oracle(mixture, x_t, alpha, sigma):
    return np.stack([mixture.denoise(x[None], a, s)[0] for x, a, s in zip(x_t, alpha, sigma)])


def test_gaussian_is_the_textbook_conditional(process):
    """E[x0 | x_t] = m + Cov(x0, x_t) Cov(x_t)^-1 (x_t - E x_t) from the joint covariance; images are flattened."""
    rng = np.random.default_rng(1)
    root = rng.normal(size=(6, 6)) / 2
    mean, covariance = rng.normal(size=6), root @ root.T
    x_t, t, alpha, sigma = points(process, 6, (3, 2, 1))
    expected = []
    for x, a, s in zip(x_t.reshape(COUNT, 6), alpha, sigma):
        joint = np.block([[covariance, a * covariance], [a * covariance, a**2 * covariance + s**2 * np.eye(6)]])
        expected.append(mean + joint[:6, 6:] @ np.linalg.solve(joint[6:, 6:], x - a * mean))
    denoise = exact_gaussian(process, single(mean), single(covariance))
    got = denoise(single(x_t), single(t), None)
    assert got.shape == x_t.shape
    np.testing.assert_allclose(got.reshape(COUNT, 6), expected, atol=2e-3)
    # Negative control: the shrinkage of another noise level is not within that tolerance.
    wrong = denoise(single(x_t), single(process.time_of_logsnr(process.logsnr(t) + 0.1)), None)
    assert np.abs(wrong.reshape(COUNT, 6) - np.array(expected)).max() > 2e-2


def test_mixture_is_tweedie_in_float64(process, mixture):
    x_t, t, alpha, sigma = points(process, 2)
    got = exact(process, mixture)(single(x_t), single(t), None)
    np.testing.assert_allclose(got, oracle(mixture, x_t, alpha, sigma), atol=2e-3)


def test_mixture_is_the_posterior_mean_by_quadrature(process, mixture):
    """The integral of x0 p(x0) N(x_t; alpha x0, sigma^2) over a grid of the plane: no conjugacy used."""
    x_t, t, alpha, sigma = points(process, 2, levels=(0.2, 5.0))
    axis = np.linspace(-5, 5, 401)
    x0 = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    prior = mixture.log_prob(x0, 1.0, 0.0)
    expected, log_evidence = [], []
    for x, a, s in zip(x_t, alpha, sigma):
        log_joint = prior - ((x - a * x0) ** 2).sum(1) / (2 * s**2) - np.log(2 * np.pi * s**2)
        mass = np.exp(log_joint)
        expected.append(mass @ x0 / mass.sum())
        log_evidence.append(np.log(mass.sum() * (axis[1] - axis[0]) ** 2))
    denoise = exact(process, mixture)
    np.testing.assert_allclose(denoise(single(x_t), single(t), None), expected, atol=1e-3)
    np.testing.assert_allclose(denoise.log_prob(single(x_t), single(t)), log_evidence, atol=2e-3)


def test_score_is_the_gradient_of_log_prob(process, mixture):
    """Autodiff of the density against Tweedie's formula on the denoiser: they share the responsibilities alone."""
    x_t, t, alpha, sigma = points(process, 2, levels=(0.2, 10.0))
    denoise = exact(process, mixture)
    gradient = jax.grad(lambda x: denoise.log_prob(x, single(t)).sum())(single(x_t))
    np.testing.assert_allclose(score(denoise, process, single(x_t), single(t)), gradient, rtol=2e-3, atol=2e-3)
    expected = np.stack([mixture.score(x[None], a, s)[0] for x, a, s in zip(x_t, alpha, sigma)])
    np.testing.assert_allclose(gradient, expected, rtol=2e-3, atol=2e-3)


def test_label_restricts_to_its_components(mixture):
    """Classes (0, 1, 0): label 0 is the mixture of the first and last, 1 the Gaussian in between, 2 and None all."""
    process = PROCESSES["cosine"]
    x_t, t, alpha, sigma = points(process, 2)
    denoise = exact(process, mixture, jnp.array([0, 1, 0]))

    def restricted(keep):
        parts = (mixture.weights[keep] / mixture.weights[keep].sum(), mixture.means[keep], mixture.covariances[keep])
        return oracle(type(mixture)(*parts), x_t, alpha, sigma)

    whole = restricted([0, 1, 2])
    for label, expected in [(0, restricted([0, 2])), (1, restricted([1])), (2, whole)]:
        got = denoise(single(x_t), single(t), jnp.full(COUNT, label))
        np.testing.assert_allclose(got, expected, atol=2e-3)
        assert label == 2 or np.abs(got - whole).max() > 0.1
    np.testing.assert_allclose(denoise(single(x_t), single(t), None), whole, atol=2e-3)
    mixed = jnp.arange(COUNT) % 3  # one label per image
    expected = np.choose(np.asarray(mixed)[:, None], [restricted([0, 2]), restricted([1]), whole])
    np.testing.assert_allclose(denoise(single(x_t), single(t), mixed), expected, atol=2e-3)
    # The conditional density is normalised: log p(x | label) of the one Gaussian.
    one = type(mixture)(np.ones(1), mixture.means[1:2], mixture.covariances[1:2])
    expected = [one.log_prob(x[None], a, s)[0] for x, a, s in zip(x_t, alpha, sigma)]
    got = denoise.log_prob(single(x_t), single(t), jnp.full(COUNT, 1))
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)


def test_mixture_samples_have_its_moments(mixture):
    x0, component = exact(PROCESSES["edm"], mixture).sample(jax.random.key(0), 40_000)
    x0, component = np.asarray(x0, np.float64), np.asarray(component)
    for k in range(3):
        mine = x0[component == k]
        count, covariance, weight = len(mine), mixture.covariances[k], mixture.weights[k]
        assert abs(count - 40_000 * weight) < 4 * np.sqrt(40_000 * weight * (1 - weight))
        errors = (mine.mean(0) - mixture.means[k]) / np.sqrt(np.diag(covariance) / count)
        assert np.abs(errors).max() < 4
        spread = np.sqrt((np.outer(np.diag(covariance), np.diag(covariance)) + covariance**2) / count)
        assert np.abs((np.cov(mine.T) - covariance) / spread).max() < 4


@pytest.fixture(scope="module")
def data():
    """23 images of shape [2, 2, 1] with a class each; 23 rows do not divide into the chunks of the implementation."""
    rng = np.random.default_rng(5)
    return rng.uniform(-1, 1, size=(23, 2, 2, 1)), rng.integers(0, 3, size=23)


def softmax_average(x_t, alpha, sigma, rows):
    flat = rows.reshape(len(rows), -1)
    expected = []
    for x, a, s in zip(x_t.reshape(len(x_t), -1), alpha, sigma):
        logits = -((x - a * flat) ** 2).sum(1) / (2 * s**2)
        weights = np.exp(logits - logits.max())
        expected.append(weights @ flat / weights.sum())
    return np.reshape(expected, (len(x_t), *rows.shape[1:]))


def test_empirical_is_the_explicit_softmax(process, data):
    images, classes = data
    x_t, t, alpha, sigma = points(process, 4, (2, 2, 1))
    denoise = ExactEmpirical(process, single(images), jnp.asarray(classes))
    np.testing.assert_allclose(
        denoise(single(x_t), single(t), None), softmax_average(x_t, alpha, sigma, images), atol=2e-3
    )
    for label in (1, 3):  # 3 belongs to no image: everything
        rows = images[classes == label] if label < 3 else images
        got = denoise(single(x_t), single(t), jnp.full(COUNT, label))
        np.testing.assert_allclose(got, softmax_average(x_t, alpha, sigma, rows), atol=2e-3)


def test_empirical_is_the_mixture_without_covariance(process, data):
    images, classes = data
    x_t, t, _, _ = points(process, 4, (2, 2, 1))
    empirical = ExactEmpirical(process, single(images), jnp.asarray(classes))
    mixture = exact_mixture(
        process, jnp.ones(23), single(images.reshape(23, 4)), jnp.zeros((23, 4, 4)), jnp.asarray(classes)
    )
    for label in (None, jnp.arange(COUNT) % 4):
        np.testing.assert_allclose(
            empirical(single(x_t), single(t), label), mixture(single(x_t), single(t), label), atol=2e-4
        )


def test_empirical_at_low_noise_is_the_nearest_datum(process, data):
    images, _ = data
    t = process.time_of_logsnr(-2 * np.log(np.full(23, 2e-3)))
    noise = np.random.default_rng(0).normal(size=images.shape)
    order = np.random.default_rng(1).permutation(23)
    x_t = process.corrupt(single(images[order]), single(noise), single(t))
    got = ExactEmpirical(process, single(images))(x_t, single(t), None)
    np.testing.assert_array_equal(got, single(images[order]))


def test_bad_mixtures_are_refused(mixture):
    process = PROCESSES["edm"]
    with pytest.raises(ValueError, match="weights must be positive"):
        exact_mixture(process, jnp.array([1.0, 0.0]), jnp.zeros((2, 1)), jnp.ones((2, 1, 1)))
    with pytest.raises(ValueError, match="positive semi-definite"):
        exact_mixture(process, jnp.ones(1), jnp.zeros((1, 2)), jnp.diag(jnp.array([1.0, -0.1]))[None])
    # Unnormalised weights are normalised: the density does not change.
    x_t, t, *_ = points(process, 2)
    scaled = type(mixture)(7 * mixture.weights, mixture.means, mixture.covariances)
    np.testing.assert_allclose(
        exact(process, scaled).log_prob(single(x_t), single(t)),
        exact(process, mixture).log_prob(single(x_t), single(t)), rtol=1e-5, atol=1e-5,
    )
