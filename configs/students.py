"""What makes a student of a teacher's config: used by the files of configs, not one of them."""

from ml_collections import ConfigDict

from configs.samplers import choose_sampler


def student(c: ConfigDict, method: str, teacher: str) -> ConfigDict:
    """`c`, the config of a teacher, as that of its student: for small networks that are trained for minutes.

    Args:
      method: for config.distillation.name.
      teacher: workdir of the teacher's run.
    """
    c.distillation.name = method
    c.distillation.teacher = teacher
    c.network.dropout = 0.0
    c.optimizer.beta1 = 0.0
    c.optimizer.learning_rate = 3e-4
    c.optimizer.warmup_steps = 200
    c.ema.half_lives = (10_000,)
    c.training.steps = 3000
    c.training.checkpoint_every = 500
    return c


def one_step(c: ConfigDict, teacher: str) -> ConfigDict:
    """A student of one step, by Score Implicit Matching with its defaults."""
    c = student(c, "score_implicit_matching", teacher)
    c.optimizer.beta2 = 0.999
    c.distillation.auxiliary_warmup = 200
    choose_sampler(c, "one_step")
    return c


def few_steps(c: ConfigDict, method: str, teacher: str) -> ConfigDict:
    """A student of eight steps, by one of the deterministic baselines."""
    c = student(c, method, teacher)
    c.distillation.num_steps = 8
    choose_sampler(c, "ddim")
    c.sampler.steps = 8
    c.sampler.grid = "trailing"
    return c


def moment_matching(c: ConfigDict, teacher: str) -> ConfigDict:
    """Eight steps by moment matching, alternating.

    Without the weight of the paper, whose attention is on noise far below what can be seen in small images.
    """
    c = few_steps(c, "moment_matching", teacher)
    choose_sampler(c, "ancestral:student")
    c.distillation.weight = "flat"
    c.data.batch_size = 256  # half for each of the two updates, or for each of the two estimates of the instant form
    c.optimizer.learning_rate = 1e-3
    c.training.steps = 6000
    c.training.checkpoint_every = 1000
    return c


def instant_moment_matching(c: ConfigDict, teacher: str) -> ConfigDict:
    """The same in parameter space, which at the higher rate of the alternating form is not stable."""
    c = moment_matching(c, teacher)
    c.distillation.name = "instant_moment_matching"
    c.optimizer.learning_rate = 3e-4
    return c
