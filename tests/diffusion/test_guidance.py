"""Guidance on exact mixtures: the formula, when the guide is called, and what is counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.base import network_calls
from diffusion.exact import exact_mixture
from diffusion.guidance import Guided, Unconditional, classifier_free
from diffusion.process import GaussianProcess
from diffusion.random import image_keys
from diffusion.schedules import EDM
from samplers import DDIM, Heun
from samplers.time_grids import make_grid

PROCESS = GaussianProcess(EDM())
LEVELS = np.array([0.1, 0.5, 1.0, 3.0, 20.0, 60.0])
CLASSES = jnp.array([0, 1, 0])
LABEL = jnp.array([0, 1, 0, 1, 1, 0])


@pytest.fixture(scope="module")
def conditional(mixture):
    """The exact class-conditional denoiser of two classes; label 2 is "no class"."""
    parts = (jnp.asarray(part, jnp.float32) for part in (mixture.weights, mixture.means, mixture.covariances))
    return exact_mixture(PROCESS, *parts, CLASSES)


@pytest.fixture(scope="module")
def batch():
    t = jnp.asarray(PROCESS.time_of_logsnr(-2 * np.log(LEVELS)), jnp.float32)
    x_t = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2)) * np.hypot(1, LEVELS)[:, None], jnp.float32)
    return x_t, t


class Counter:
    """A denoiser that reports each evaluation, as it happens at run time, with its time and labels."""

    def __init__(self, denoise):
        self.denoise, self.times, self.labels = denoise, [], []

    def __call__(self, x_t, t, label):
        jax.debug.callback(self._record, t, label)
        return self.denoise(x_t, t, label)

    def _record(self, t, label):
        self.times.append(float(t[0]))
        self.labels.append(np.asarray(label))


def oracle(mixture, x_t, t, label, scale):
    """unconditional + scale (conditional - unconditional) in float64, from the scores of the restricted mixtures."""
    expected = []
    for x, level, one in zip(np.asarray(x_t, np.float64), LEVELS, np.asarray(label)):
        keep = np.asarray(CLASSES) == one
        weights = mixture.weights[keep] / mixture.weights[keep].sum()
        part = type(mixture)(weights, mixture.means[keep], mixture.covariances[keep])
        plain, with_class = (one_mixture.denoise(x[None], 1.0, level)[0] for one_mixture in (mixture, part))
        expected.append(plain + scale * (with_class - plain))
    return np.array(expected)


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_classifier_free_formula(mixture, conditional, batch, scale):
    denoise = classifier_free(conditional, PROCESS, scale=scale, num_classes=2)
    got = denoise(*batch, LABEL)
    np.testing.assert_allclose(got, oracle(mixture, *batch, LABEL, scale), atol=5e-3)
    # Negative control: the other convention, main + scale (main - guide), differs.
    assert np.abs(got - oracle(mixture, *batch, LABEL, scale + 1)).max() > 0.05


def test_scale_one_is_the_denoiser_itself(conditional):
    assert classifier_free(conditional, PROCESS, scale=1.0, num_classes=2) is conditional
    assert classifier_free(conditional, PROCESS, scale=1.0, num_classes=0) is conditional


def test_bad_guidance_is_refused(conditional):
    with pytest.raises(ValueError, match=r"guidance scale = -0.5"):
        classifier_free(conditional, PROCESS, scale=-0.5, num_classes=2)
    with pytest.raises(ValueError, match=r"guidance scale = 2.0 needs labelled data"):
        classifier_free(conditional, PROCESS, scale=2.0, num_classes=0)


def test_interval_guides_its_images_only(mixture, conditional, batch):
    """(0.5, 3]: open below, closed above; the other images of a mixed batch keep the conditional denoiser."""
    level = np.exp(-0.5 * np.asarray(PROCESS.logsnr(batch[1]), np.float32))
    interval = (float(level[1]), float(level[3]))
    denoise = classifier_free(conditional, PROCESS, scale=3.0, num_classes=2, interval=interval)
    guided, plain = oracle(mixture, *batch, LABEL, 3.0), oracle(mixture, *batch, LABEL, 1.0)
    inside = np.array([False, False, True, True, False, False])[:, None]
    np.testing.assert_allclose(denoise(*batch, LABEL), np.where(inside, guided, plain), atol=5e-3)


def test_autoguidance_passes_the_label(batch):
    """Two denoisers of one's own: D_guide + w (D_main - D_guide), both with the label."""
    labels = []

    def main(x_t, t, label):
        return 2.0 * x_t

    def guide(x_t, t, label):
        labels.append(label)
        return 0.5 * x_t

    denoise = Guided(main=main, guide=guide, process=PROCESS, scale=2.0)
    np.testing.assert_allclose(denoise(*batch, LABEL), 3.5 * batch[0], rtol=1e-6)
    assert labels and labels[0] is LABEL


def test_unconditional_hides_every_label(batch):
    seen = []
    Unconditional(lambda x_t, t, label: seen.append(label) or x_t, 7)(*batch, LABEL)
    np.testing.assert_array_equal(seen[0], np.full(6, 7))


def test_unconditional_counts_what_it_wraps(batch):
    """Guidance over a guided pair: each level of nesting doubles the calls."""
    pair = Guided(main=lambda x, t, y: x, guide=lambda x, t, y: x, process=PROCESS, scale=2.0)
    nested = classifier_free(pair, PROCESS, scale=2.0, num_classes=2)
    np.testing.assert_array_equal(network_calls(nested, batch[1], LABEL), np.full(6, 4))


def run(sampler, denoise, count=3):
    keys = image_keys(0, jnp.arange(count))
    samples = sampler.sample(denoise, PROCESS, keys, jnp.array([0, 1, 0]), shape=(2,))
    jax.effects_barrier()
    return samples


@pytest.mark.parametrize("interval, inside", [((0.0, np.inf), 12), ((0.2, 5.0), None), ((100.0, np.inf), 0)])
def test_calls_of_a_guided_sampler(conditional, interval, inside):
    """nfe is N plus the number of grid times inside the interval, and that is how often the guide really runs."""
    sampler = DDIM(steps=12)
    grid = make_grid(PROCESS, "uniform", 12)
    within = (grid.level[:-1] > interval[0]) & (grid.level[:-1] <= interval[1])
    if inside is None:
        inside = int(within.sum())
        assert 0 < inside < 12
    counter = Counter(conditional)
    samples = run(sampler, classifier_free(counter, PROCESS, scale=3.0, num_classes=2, interval=interval))
    np.testing.assert_array_equal(samples.nfe, np.full(3, 12 + inside))
    hidden = [time for time, label in zip(counter.times, counter.labels) if (label == 2).all()]
    assert len(counter.times) == 12 + inside and len(hidden) == inside
    np.testing.assert_allclose(sorted(hidden), sorted(grid.t[within]), atol=1e-6)


def test_calls_of_guided_heun(conditional):
    """Both halves of each step are guided where their own noise level is inside."""
    counter = Counter(conditional)
    denoise = classifier_free(counter, PROCESS, scale=2.0, num_classes=2, interval=(0.2, 5.0))
    samples = run(Heun(steps=6), denoise)
    level = make_grid(PROCESS, "karras", 6).level[:-1]
    inside = (level > 0.2) & (level <= 5.0)
    expected = 11 + 2 * inside.sum() - inside[0]
    assert (samples.nfe == expected).all() and len(counter.times) == expected
