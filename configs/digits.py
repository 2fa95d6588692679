"""Handwritten digits: 1,797 images of 8x8, ten classes, inside scikit-learn. Minutes on a laptop."""

from ml_collections import ConfigDict

from configs import students
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


def lcss() -> ConfigDict:
    c = dsm()
    c.objective.name = "lcss"
    return c


def lcss_nonaffine() -> ConfigDict:
    """A process without a kernel: every pixel falls into one of two wells, black or white."""
    c = dsm()
    # Not the deviation of the data: the smaller it is, the harder the score pulls back where no data are, and it must
    # pull harder than the drift of the double well pushes when time runs backwards.
    c.sigma_data = 0.3
    c.process.name = "double_well"
    c.process.sigma_min = None
    c.process.sigma_max = None
    c.objective.name = "lcss"
    c.objective.mode = "local"
    c.objective.control_variate = "center"
    c.objective.simulation_steps = 128
    c.objective.weighting.name = "uniform"
    c.objective.time_sampler.name = "low_discrepancy"
    c.objective.time_sampler.mean = None
    c.objective.time_sampler.std = None
    c.sampler.name = "euler_maruyama"
    c.sampler.steps = 400
    return c


def lcss_phi4() -> ConfigDict:
    """The harder one: the pixels are a lattice field with bonds between neighbours, and so is the noise."""
    c = lcss_nonaffine()
    c.process.name = "phi4"
    return c


# --- Students of the run that configs/digits.py:dsm makes -------------------------------------------------------------

TEACHER = "runs/digits_dsm"


def sim() -> ConfigDict:
    """One step, without data. Pseudo-Huber distance; no options of the papers' relatives."""
    return students.one_step(dsm(), TEACHER)


def sid() -> ConfigDict:
    """SiD at its best published coefficient."""
    c = sim()
    c.distillation.distance = "l2"
    c.distillation.normalizer = "l1"
    c.distillation.sid_coefficient = 1.2
    return c


def diff_instruct() -> ConfigDict:
    """The KL member of the family."""
    c = sim()
    c.distillation.distance = "l2"
    c.distillation.through_scores = False
    return c


def dmd() -> ConfigDict:
    """The KL with the normaliser of DMD, without its regression loss."""
    c = diff_instruct()
    c.distillation.normalizer = "l1"
    return c


def moment_matching() -> ConfigDict:
    return students.moment_matching(dsm(), TEACHER)


def instant_moment_matching() -> ConfigDict:
    return students.instant_moment_matching(dsm(), TEACHER)


def progressive_distillation() -> ConfigDict:
    """One stage: 8 steps from 16. For fewer, take a student as the teacher of the next."""
    return students.few_steps(dsm(), "progressive_distillation", TEACHER)


def consistency_distillation() -> ConfigDict:
    return students.few_steps(dsm(), "consistency_distillation", TEACHER)


_AFTER = "2 to 5 minutes on 2 CPU cores, after dsm"
CONFIGS = {
    "dsm": Preset(dsm, "denoising score matching, class-conditional MLP", "3 minutes on 2 CPU cores"),
    "lcss": Preset(lcss, "the same by LCSS as its paper prints it: the same model, another curve",
                   "3 minutes on 2 CPU cores"),
    "lcss_nonaffine": Preset(lcss_nonaffine, "local LCSS on a process without a kernel, a double well in every pixel",
                             "not measured; tens of minutes on a CPU"),
    "lcss_phi4": Preset(lcss_phi4, "local LCSS on the lattice phi^4 field, without a kernel or an exact answer",
                        "not measured; tens of minutes on a CPU"),
    "sim": Preset(sim, "one step by Score Implicit Matching, from the run runs/digits_dsm", _AFTER),
    "sid": Preset(sid, "one step by SiD, coefficient 1.2", _AFTER),
    "diff_instruct": Preset(diff_instruct, "one step by Diff-Instruct", _AFTER),
    "dmd": Preset(dmd, "one step by the KL loss of DMD", _AFTER),
    "moment_matching": Preset(moment_matching, "eight steps by moment matching, alternating", _AFTER),
    "instant_moment_matching": Preset(instant_moment_matching, "eight steps, in parameter space", _AFTER),
    "progressive_distillation": Preset(progressive_distillation, "eight steps from sixteen of DDIM", _AFTER),
    "consistency_distillation": Preset(consistency_distillation, "eight steps, consistent within segments", _AFTER),
}


def get_config(name: str | None = None) -> ConfigDict:
    return choose(CONFIGS, name, "configs/digits.py")
