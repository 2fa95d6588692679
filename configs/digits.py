"""Handwritten digits: 1,797 images of 8x8, ten classes, inside scikit-learn. Minutes on a laptop."""

from ml_collections import ConfigDict

from configs.base import Preset, choose
from configs.base import get_config as base_config


def dsm() -> ConfigDict:
    c = base_config()
    c.data.source = "digits"
    c.data.batch_size = 128
    c.sigma_data = 0.7
    # 17 grey levels on 64 pixels: finer or coarser noise than this is wasted steps.
    c.process.sigma_min = 0.01
    c.process.sigma_max = 20.0
    # Shifted to higher noise than EDM's default: between the classes lies what is hard here.
    c.objective.time_sampler.mean = -0.4
    c.objective.time_sampler.std = 1.4
    c.network.name = "mlp"
    c.network.width = 256
    c.network.depth = 4
    c.network.dropout = 0.2
    c.optimizer.learning_rate = 2e-3
    c.training.steps = 5000
    c.training.checkpoint_every = 1000
    c.sampler.name = "heun"
    c.sampler.steps = 18
    c.evaluation.num_samples = 1438  # as many as there are training images, with which they are compared
    return c


CONFIGS = {
    "dsm": Preset(dsm, "denoising score matching, class-conditional MLP", "3 minutes on 2 CPU cores"),
}


def get_config(name: str | None = None) -> ConfigDict:
    return choose(CONFIGS, name, "configs/digits.py")
