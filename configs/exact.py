"""No network and no training: any sampler on the denoiser of the data itself, in closed form. Modes sample, evaluate.

What is wrong with the samples is then the sampler's fault. Any other `data.source` of images or toy2d can be set.
"""

from ml_collections import ConfigDict

from configs.base import Preset, choose
from configs.base import get_config as base_config


def _exact(source: str) -> ConfigDict:
    c = base_config()
    c.data.source = source
    c.network.name = "exact"
    c.evaluation.ema = -1  # there are no averages
    return c


def _toy2d(name: str) -> ConfigDict:
    c = _exact(f"toy2d:{name}")
    c.evaluation.num_samples = 10_000
    c.evaluation.batch_size = 5000
    c.evaluation.features = ("points",)
    c.evaluation.metrics = ("fd", "w1")
    return c


def checkerboard() -> ConfigDict:
    return _toy2d("checkerboard")


def mixture() -> ConfigDict:
    return _toy2d("mixture")


def digits() -> ConfigDict:
    """The training images, whose copies the samples are: a test of samplers, not a model of the data."""
    c = _exact("digits")
    c.network.target = "empirical"
    c.sampler.steps = 18
    c.evaluation.num_samples = 1438  # as many as there are training images, with which they are compared
    return c


def gaussians_digits() -> ConfigDict:
    c = digits()
    c.network.target = "gaussians"
    return c


def gaussians_mnist5k() -> ConfigDict:
    """On the schedule of DDPM, as samplers for discrete-time models expect."""
    c = _exact("mnist5k")
    c.network.target = "gaussians"
    c.process.name = "vp_linear"
    c.sampler.steps = 18
    return c


CONFIGS = {
    "checkerboard": Preset(checkerboard, "the exact denoiser of a checkerboard in the plane", "no training"),
    "mixture": Preset(mixture, "the exact denoiser of eight Gaussians in the plane, one per class", "no training"),
    "digits": Preset(digits, "the exact denoiser of the 8x8 training digits: samplers alone", "no training"),
    "gaussians_digits": Preset(gaussians_digits, "a Gaussian per class fitted to the 8x8 digits", "no training"),
    "gaussians_mnist5k": Preset(gaussians_mnist5k, "a Gaussian per class fitted to 28x28 MNIST digits", "no training"),
}


def get_config(name: str | None = None) -> ConfigDict:
    return choose(CONFIGS, name, "configs/exact.py")
