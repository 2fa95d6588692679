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


def _known_score() -> ConfigDict:
    """A small network whose score is compared with the exact one."""
    c = dsm()
    c.network.width = 64
    c.objective.weighting.name = "uniform"
    c.training.steps = 3000
    c.evaluation.metrics = ("fd",)
    c.evaluation.memorisation = False
    return c


def lcss() -> ConfigDict:
    c = dsm()
    c.objective.name = "lcss"
    return c


def static() -> ConfigDict:
    """One noise level, 0.3 on a board of side 8, and no time: a score matching problem with an exact answer."""
    c = _known_score()
    c.data.batch_size = 512
    c.sigma_data = 0.58
    c.prediction = "epsilon"
    c.process.name = "constant"
    c.process.level = 0.075
    c.network.depth = 2
    c.objective.time_sampler.name = "uniform"
    c.training.checkpoint_every = 3000
    c.sampler.name = "langevin"
    c.sampler.steps = 300
    c.evaluation.num_samples = 2000
    c.evaluation.batch_size = 1000
    c.evaluation.fisher_times = (0.5,)
    return c


def energy() -> ConfigDict:
    """The network of the paper's first experiment: a scalar with two hidden layers of 300."""
    c = static()
    c.process.level = 0.025
    c.network.name = "energy"
    c.network.width = 300
    c.network.depth = 2
    c.objective.name = "lcss"
    return c


def lcss_nonaffine() -> ConfigDict:
    """A process without a kernel: every coordinate falls into one of two wells. The exact score is known on a grid."""
    c = _known_score()
    c.data.source = "toy2d:three_modes"
    # Not the deviation of the data: the smaller it is, the harder the score pulls back where no data are, and it must
    # pull harder than the drift of the double well pushes when time runs backwards.
    c.sigma_data = 0.3
    c.process.name = "double_well"
    c.objective.name = "lcss"
    c.objective.mode = "local"
    c.objective.local_c = 0.2
    c.objective.control_variate = "center"
    c.objective.simulation_steps = 128
    c.objective.time_sampler.name = "low_discrepancy"
    c.ema.half_lives = (1_000_000,)
    c.training.checkpoint_every = 1000
    c.sampler.name = "euler_maruyama"
    c.sampler.steps = 400
    c.evaluation.metrics = ("fd", "w1")
    # Where the clock of the process shows 0.1, 0.5 and 2.
    c.evaluation.fisher_times = (0.0683, 0.1558, 0.3141)
    return c


CONFIGS = {
    "dsm": Preset(dsm, "denoising score matching on a checkerboard, MLP", "4 minutes on 2 CPU cores"),
    "lcss": Preset(lcss, "the same by LCSS as its paper prints it: the same model, another curve",
                   "4 minutes on 2 CPU cores"),
    "static": Preset(static, "one noise level and no time: any objective against the exact score",
                     "1 minute on 2 CPU cores"),
    "energy": Preset(energy, "LCSS with an energy network, as in its paper's first experiment",
                     "not measured; minutes on a CPU"),
    "lcss_nonaffine": Preset(lcss_nonaffine, "local LCSS on a process without a kernel, a double well",
                             "2 minutes on 2 CPU cores"),
}


def get_config(name: str | None = None) -> ConfigDict:
    return choose(CONFIGS, name, "configs/toy2d.py")
