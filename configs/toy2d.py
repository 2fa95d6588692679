"""Points in the plane: checkerboard, swiss roll, rings, mixture. A minute on a laptop, and exact answers to compare."""

from ml_collections import ConfigDict

from configs.base import Preset, choose
from configs.base import get_config as base_config


def dsm() -> ConfigDict:
    c = base_config()
    c.data.source = "toy2d:checkerboard"
    c.data.batch_size = 1024
    c.sigma_data = 1.0
    c.network.name = "mlp"
    c.network.width = 128
    c.network.depth = 3
    c.objective.label_dropout = 0.0
    c.optimizer.learning_rate = 2e-3
    c.ema.half_lives = (200_000,)
    c.training.steps = 5000
    c.training.checkpoint_every = 2500
    c.evaluation.num_samples = 10_000
    c.evaluation.batch_size = 5000
    c.evaluation.features = ("points",)
    return c


CONFIGS = {
    "dsm": Preset(dsm, "denoising score matching on a checkerboard, MLP", "4 minutes on 2 CPU cores"),
}


def get_config(name: str | None = None) -> ConfigDict:
    return choose(CONFIGS, name, "configs/toy2d.py")
