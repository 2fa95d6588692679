"""Predictor-corrector: the algorithm in float64, the moments of one corrector step in closed form, and its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.kernel_free import DoubleWell
from diffusion.process import GaussianProcess
from diffusion.random import image_keys, image_noise
from diffusion.schedules import EDM, Cosine, VPLinear
from samplers import predictor_corrector
from samplers.ancestral import Ancestral
from samplers.predictor_corrector import PredictorCorrector, corrector_step

pytestmark = pytest.mark.usefixtures("quick_to_compile")

PROCESSES = {
    "vp_linear": GaussianProcess(VPLinear()), "edm": GaussianProcess(EDM()), "cosine": GaussianProcess(Cosine()),
}  # fmt: skip


def keys(count, start=0):
    return image_keys(0, jnp.arange(start, start + count))


def exact(process, mixture):
    """The mixture's denoiser in float64, for programs that run op by op."""

    def denoise(x_t, t, label):
        time = np.float64(t[0])
        x0_hat = mixture.denoise(np.asarray(x_t, np.float64), process.alpha(time), process.sigma(time))
        return jnp.asarray(x0_hat, jnp.float32)

    return denoise


def python_loop(body, carry, rows):
    """What lax.scan means, run op by op: for many short programs that would each take a compilation."""
    outputs = []
    for i in range(len(rows["t"])):
        carry, output = body(carry, {name: table[i] for name, table in rows.items()})
        outputs.append(output)
    return carry, (None if outputs[0] is None else jnp.stack(outputs))


@pytest.fixture
def op_by_op(monkeypatch):
    monkeypatch.setattr(jax.lax, "scan", python_loop)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_without_corrector_it_is_ancestral(mixture, op_by_op, variance):
    """Bit for bit, and one corrector is another path."""
    process = PROCESSES["cosine"]
    denoise = exact(process, mixture)
    options = {"label": None, "shape": (2,), "keep_steps": True}
    ancestral = Ancestral(steps=5, variance=variance).sample(denoise, process, keys(8), **options)
    for correctors, same in ((0, True), (1, False)):
        sampler = PredictorCorrector(steps=5, variance=variance, corrector_steps=correctors)
        got = sampler.sample(denoise, process, keys(8), **options)
        assert np.array_equal(got.x0, ancestral.x0) == same
        assert np.array_equal(got.x0_steps[0], ancestral.x0_steps[0])
    np.testing.assert_array_equal(got.nfe, 9)


@pytest.mark.parametrize("name, snr", [("vp_linear", 0.16), ("edm", 0.3)])
def test_algorithm_of_the_paper(mixture, op_by_op, name, snr):
    """Song et al. 2021, algorithms 2 to 5, in eps and the score, step by step in float64; eps at most sigma^2."""
    process, steps, correctors = PROCESSES[name], 5, 2
    t = np.linspace(1.0, process.time_min, steps)
    if name == "edm":
        alpha, sigma = np.ones(steps), (0.002 ** (1 / 7) + t * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    else:
        alpha, sigma = np.exp(-(0.05 * t + 4.975 * t**2)), np.sqrt(-np.expm1(-(0.1 * t + 9.95 * t**2)))
    index, capped = 0, 0
    x = np.asarray(process.prior(keys(8), (2,)), np.float64)

    def noise():
        return np.asarray(image_noise(keys(8), index, (2,)), np.float64)

    for i in range(steps - 1):
        score = mixture.score(x, alpha[i], sigma[i])
        growth = alpha[i] / alpha[i + 1]
        step_variance = sigma[i] ** 2 - growth**2 * sigma[i + 1] ** 2
        index += 1
        x = (x + step_variance * score) / growth + np.sqrt(step_variance) * sigma[i + 1] / sigma[i] * noise()
        for _ in range(correctors):
            score = mixture.score(x, alpha[i + 1], sigma[i + 1])
            eps = 2 * snr**2 * 2 / (score**2).sum(1, keepdims=True)
            capped += (eps > sigma[i + 1] ** 2).sum()
            eps = np.minimum(eps, sigma[i + 1] ** 2)
            index += 1
            x = x + eps * score + np.sqrt(2 * eps) * noise()
    sampler = PredictorCorrector(steps=steps, corrector_steps=correctors, snr=snr)
    got = sampler.sample(exact(process, mixture), process, keys(8), None, shape=(2,), keep_steps=True)
    np.testing.assert_allclose(got.x0, mixture.denoise(x, alpha[-1], sigma[-1]), atol=5e-4)
    assert 0 < capped < 2 * 8 * (steps - 1)  # both kinds of step occurred
    np.testing.assert_array_equal(got.nfe, steps + (steps - 1) * correctors)
    np.testing.assert_allclose(got.t_steps, [t[0], *np.repeat(t[1:], 3)], rtol=1e-6)


def test_moments_of_a_corrector(op_by_op):
    """One predictor and one corrector on isotropic normal data: E x^2 in closed form, within 4 standard errors.

    The predictor leaves N(0, b I) where the score is that of N(0, w I). With eps = 2 snr^2 d w^2 / |x|^2 and
    E 1 / |x|^2 = 1 / (b (d - 2)), the corrector leaves b - 4 snr^2 w + 4 snr^2 (1 + snr^2) w^2 d / (b (d - 2)).
    """
    process, data, snr, d, count = GaussianProcess(EDM(sigma_min=1.0, sigma_max=3.0)), 0.3, 0.25, 16, 30_000
    states = []

    def denoise(x_t, t, label):
        states.append(np.asarray(x_t, np.float64))
        return data / (data + process.sigma(t) ** 2)[:, None, None, None] * x_t

    samples = PredictorCorrector(steps=2, snr=snr).sample(denoise, process, keys(count), None, shape=(4, 2, 2))
    assert len(states) == 3 and samples.x0.shape == (count, 4, 2, 2)
    error = 4 * np.sqrt(2 / (count * d))
    before = (1 / 9 + data / (data + 9) * (1 - 1 / 9)) ** 2 * 9 + (1 - 1 / 9)
    assert abs(np.mean(states[1] ** 2) / before - 1) < error
    w, got = data + 1, np.mean(states[2] ** 2)
    inverse = w**2 / before * d / (d - 2)
    assert abs(got / (before - 4 * snr**2 * w + 4 * snr**2 * (1 + snr**2) * inverse) - 1) < error
    # Negative controls: the norm of the draw in the place of sqrt(d); eps taken for the variance of the noise.
    assert abs(got / (before - 4 * snr**2 * w + 4 * snr**2 * (1 + 2 / d + snr**2) * inverse) - 1) > 3 * error
    assert abs(got / (before - 4 * snr**2 * w + 4 * snr**2 * (0.5 + snr**2) * inverse) - 1) > 3 * error


def test_step_is_per_image_and_bounded():
    """2 snr^2 for a score of the size of the noise, 1 where there is no score; nobody else's score matters."""
    score = jnp.stack([jnp.ones((3, 2)), 10 * jnp.ones((3, 2)), jnp.zeros((3, 2)), 1e-4 * jnp.ones((3, 2))])
    k = corrector_step(score, 0.1)
    assert k.shape == (4, 1, 1)
    np.testing.assert_allclose(k.ravel(), [0.02, 0.0002, 1.0, 1.0], rtol=1e-6)
    np.testing.assert_array_equal(corrector_step(score[1:2], 0.1), k[1:2])


def test_step_is_the_same_in_other_units(op_by_op, monkeypatch):
    """x / alpha under a VP process goes through the same states as under a VE process with the same noise levels."""
    vp = PROCESSES["vp_linear"]
    levels = np.linspace(np.log(2.0), np.log(0.1), 4)
    states = {}
    for name, process in (("vp_linear", vp), ("edm", PROCESSES["edm"])):
        times = process.time_of_logsnr(-2 * levels)
        monkeypatch.setattr(predictor_corrector, "check_grid", lambda *unused: None)
        monkeypatch.setattr(predictor_corrector, "make_grid", lambda *unused, t=times: type("Grid", (), {"t": t}))
        start = 2.0 * process.alpha(times[0]) * image_noise(keys(8), 0, (2,))
        monkeypatch.setattr(GaussianProcess, "prior", lambda *unused, x=start: x)
        states[name] = []

        def denoise(x_t, t, label, process=process, name=name):
            alpha = process.alpha(t)[:, None]
            states[name].append(np.asarray(x_t / alpha))
            return jnp.tanh(x_t / alpha)

        PredictorCorrector(steps=4).sample(denoise, process, keys(8), None, shape=(2,))
    np.testing.assert_allclose(states["vp_linear"], states["edm"], rtol=1e-4, atol=1e-5)


def test_image_does_not_depend_on_its_batch(op_by_op):
    """The same images in other company; and what leaves nothing to correct stays finite."""
    process = PROCESSES["vp_linear"]
    sampler = PredictorCorrector(steps=5)
    one, other = (
        np.asarray(sampler.sample(lambda x, t, label: jnp.tanh(x), process, batch, None, shape=(2,)).x0)
        for batch in (keys(8), jnp.concatenate([keys(4, 4), keys(4, 100)]))
    )
    np.testing.assert_allclose(other[:4], one[4:], atol=1e-6)
    assert np.abs(other[4:] - one[:4]).max() > 0.01
    still = sampler.sample(lambda x, t, label: x / process.alpha(t)[:, None], process, keys(8), None, shape=(2,))
    assert np.isfinite(still.x0).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"corrector_steps": -1}, "corrector_steps = -1"),
        ({"snr": 0.0}, "snr = 0.0"),
        ({"variance": "medium"}, "'medium' is not known; choose from small, large"),
        ({"grid": "cubic"}, "grid = 'cubic'"),
    ],
)
def test_bad_fields_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        PredictorCorrector(**options)


def test_process_without_kernel_is_refused():
    with pytest.raises(ValueError, match=r"the predictor-corrector sampler needs .*, and DoubleWell has none"):
        PredictorCorrector().sample(lambda x, t, label: x, DoubleWell(), keys(2), None, shape=(2,))
