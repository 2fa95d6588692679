"""The Langevin samplers on processes that stand still or move; `test_langevin_bias.py` has the chains themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging

from diffusion.exact import exact_gaussian
from diffusion.kernel_free import Static
from diffusion.process import GaussianProcess
from diffusion.schedules import EDM, Constant, VPLinear
from samplers.langevin import Langevin, UnderdampedLangevin, langevin
from samplers.time_grids import make_grid

pytestmark = pytest.mark.usefixtures("quick_to_compile")

PROCESS = GaussianProcess(Constant(level=0.3))
VARIANCE = 0.25 + 0.3**2  # of N(0, 0.25) with the noise of the process
DENOISE = exact_gaussian(PROCESS, jnp.zeros(2), 0.25 * jnp.eye(2))
KEYS = jax.random.split(jax.random.key(0), 4_000)


def variance(denoise, process=PROCESS, sampler=Langevin, **options):
    samples = jax.jit(lambda keys: sampler(**options).sample(denoise, process, keys, None, shape=(2,)))(KEYS)
    assert (samples.nfe == options["steps"]).all()
    return float(jnp.var(samples.x0)), samples.x0


@pytest.mark.parametrize("step_size", [1.0, 1.8])
def test_the_stationary_variance_is_that_of_the_discretisation(step_size):
    """v / (1 - h / (2 v)) with h = step_size sigma^2, not v: the bias of the step is seen and is the known one."""
    expected = VARIANCE / (1 - step_size * 0.3**2 / (2 * VARIANCE))
    measured, x = variance(DENOISE, steps=60, step_size=step_size)
    error = expected * np.sqrt(2 / x.size)
    assert abs(measured - expected) < 4 * error < abs(measured - VARIANCE)


def test_underdamped_on_noise_alone():
    """On N(0, sigma^2), where sigma is the unit of length: variance 1.0525 sigma^2 at h = 0.2 and friction 2."""
    denoise = exact_gaussian(PROCESS, jnp.zeros(2), 1e-8 * jnp.eye(2))
    measured, x = variance(denoise, sampler=UnderdampedLangevin, steps=60, step_size=0.2, start=0.3)
    assert abs(measured / 0.09 - 1.05245) < 4 * np.sqrt(2 / x.size)


def test_a_score_of_the_wrong_sign_is_seen():
    assert variance(lambda x, t, label: 2 * x - DENOISE(x, t, label), steps=60, step_size=0.5)[0] > 10


def test_a_density_without_noise():
    """Static: the denoiser says x + scale^2 score."""
    process = Static(scale=0.7)
    expected = 0.25 / (1 - 0.1 * 0.49 / (2 * 0.25))
    measured, x = variance(lambda x, t, label: x - 0.7**2 * x / 0.25, process, steps=60, step_size=0.1)
    assert abs(measured - expected) < 4 * expected * np.sqrt(2 / x.size)


def test_it_starts_uniform_and_forgets_it():
    _, x = variance(DENOISE, steps=1, step_size=1e-12, start=3.0)
    assert abs(float(jnp.var(x)) - 3.0) < 0.1 and float(jnp.abs(x).max()) <= 3.001
    for start in (0.01, 3.0):
        assert abs(variance(DENOISE, steps=60, step_size=0.5, start=start)[0] / VARIANCE - 1) < 0.12


def annealed_variance(process, times, h, micro_steps, per_level):
    """Of annealed Langevin on N(., 1/4), from its definition: one midpoint of 1 ... K - 1, its change times K - 1."""
    variance = process.sigma(np.float64(1.0)) ** 2
    for i, t in enumerate(times):
        alpha, sigma = process.alpha(t), process.sigma(t)
        d, precision = h * sigma**2 / micro_steps, 1 / (sigma**2 + 0.25 * alpha**2)
        tau = np.arange(1, micro_steps) if micro_steps > 1 else np.zeros(1)
        w = (micro_steps - 1) * d * precision
        kept = 1 - micro_steps * d * precision + w * tau * d * precision
        noise = 2 * d * (tau * (1 - w) ** 2 + micro_steps - tau)
        for _ in range(per_level):
            variance = np.mean(kept**2 * variance + noise)
        variance *= (process.alpha(times[i + 1]) / alpha) ** 2 if i + 1 < len(times) else 1.0
    return (0.25 * alpha * precision) ** 2 * variance  # of the last x0_hat


@pytest.mark.parametrize("schedule, micro_steps", [(EDM(sigma_max=20.0), 1), (VPLinear(), 8)], ids=["edm", "vp"])
def test_annealing_does_what_its_definition_says(schedule, micro_steps):
    process = GaussianProcess(schedule)
    denoise = exact_gaussian(process, jnp.ones(2), 0.25 * jnp.eye(2))
    sampler = Langevin(steps=20, steps_per_level=5, step_size=0.3, micro_steps=micro_steps, grid="logsnr")
    samples = jax.jit(lambda keys: sampler.sample(denoise, process, keys, None, shape=(2,)))(KEYS)
    assert (samples.nfe == 20 * 5 * (1 if micro_steps == 1 else 2) + 1).all()
    times = make_grid(process, "logsnr", 20).t
    right, other = (annealed_variance(process, times, h, micro_steps, 5) for h in (0.3, 0.36))
    error = right * np.sqrt(2 / samples.x0.size)
    assert abs(float(samples.x0.var()) - right) < 4 * error < abs(right - other)


def test_enough_annealing_reaches_the_data():
    """Underdamped, with midpoints."""
    process = GaussianProcess(VPLinear())
    denoise = exact_gaussian(process, jnp.ones(2), 0.25 * jnp.eye(2))
    sampler = UnderdampedLangevin(steps=60, steps_per_level=10, step_size=0.8, micro_steps=8, grid="logsnr")
    samples = jax.jit(lambda keys: sampler.sample(denoise, process, keys, None, shape=(2,)))(KEYS)
    assert (samples.nfe == 1201).all()
    assert abs(float(samples.x0.mean()) - 1) < 0.03 and abs(float(samples.x0.std()) / 0.5 - 1) < 0.05


def kept(sampler, denoise, process):
    sample = jax.jit(lambda keys: sampler.sample(denoise, process, keys, None, shape=(2,), keep_steps=True))
    return sample(KEYS[:4])


def test_steps_that_are_kept():
    """x0_hat at every step of a density that stands still, at every level of one that moves."""
    samples = kept(Langevin(steps=3), DENOISE, PROCESS)
    assert samples.x0_steps.shape == (3, 4, 2) and samples.t_steps.shape == (3,)
    start = kept(Langevin(steps=1, step_size=1e-9), DENOISE, PROCESS).x0
    np.testing.assert_allclose(samples.x0_steps[0], DENOISE(start, jnp.ones(4), None), atol=1e-4)
    process = GaussianProcess(VPLinear())
    denoise = exact_gaussian(process, jnp.ones(2), 0.25 * jnp.eye(2))
    samples = kept(Langevin(steps=4), denoise, process)
    assert samples.x0_steps.shape == (4, 4, 2)
    # What is kept is a denoised image: near the mean at the highest level, where nothing is known of the image.
    assert float(jnp.abs(samples.x0_steps[0] - 1).max()) < 0.01 < float(jnp.abs(samples.x0_steps[3] - 1).max())


def test_a_step_beyond_the_limit_of_stability_is_warned_of(monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: lines.append(text % values))
    Langevin(step_size=1.9), Langevin(step_size=1.0, micro_steps=200, mode="bernoulli"), UnderdampedLangevin()
    assert not lines
    Langevin(step_size=2.1), Langevin(step_size=1.3, micro_steps=200, mode="bernoulli")
    Langevin(step_size=1.65, micro_steps=1000, mode="single0"), UnderdampedLangevin(step_size=5.1)
    limits = [float(line.split("stability, ")[1].split(":")[0]) for line in lines]
    # The three overdamped ones in the limit of many micro steps: 2, 1.215, 1.596.
    np.testing.assert_allclose(limits, [2.0, 1.219, 1.597, 5.0], atol=4e-3)


def test_what_does_not_fit_is_refused():
    for make, message in (
        (lambda: Langevin(step_size=0.0), r"step_size = 0.0 must be positive"),
        (lambda: Langevin(mode="one"), r"mode = 'one' is not known; choose from bernoulli, single0, single"),
        (lambda: UnderdampedLangevin(friction=-1.0), r"friction = -1.0 must be positive"),
        (lambda: langevin(lambda x: -x, jnp.ones((2, 1)), KEYS[:2], steps=3, step_size=0.1, friction=0.0), "friction"),
        (lambda: langevin(lambda x: -x / 0, jnp.ones((2, 1)), KEYS[:2], steps=3, step_size=0.1),
         r"score is not finite at 2 of the 2 coordinates"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            make()
