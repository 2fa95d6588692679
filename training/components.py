"""Sections of a config -> components: with `training/experiment.py`, the only place where names become objects.

A component is a frozen dataclass or a network class; the options of its section that are not None become its arguments.
"""

import contextlib
import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import logging
from jaxtyping import Array, Key, PyTree
from ml_collections import ConfigDict

from diffusion import PROCESSES, SCHEDULES
from diffusion.base import Process
from diffusion.networks import NETWORKS, Apply, initialise
from diffusion.prediction import PREDICTIONS
from diffusion.process import GaussianProcess
from distillation.base import AUXILIARY
from evaluation.exact import exact_denoiser
from evaluation.features import FEATURES
from evaluation.metrics import check_metrics
from evaluation.resize import RESIZES
from samplers import SAMPLERS
from samplers.adaptive import FEW_STEPS, Adaptive, with_preset
from samplers.base import Sampler
from scoring import OBJECTIVES
from scoring.base import Objective, Update
from scoring.time_samplers import TIME_SAMPLERS
from scoring.weightings import WEIGHTINGS
from training.ema import EMA
from training.exact_target import EXACT, ExactTarget
from training.optimizers import make_learning_rate, make_optimizer

# Fields of a section that belong to the section, not to the component it names.
_OF_SECTION = {
    "sampler": ("guidance", "guidance_interval"),
    "objective": ("label_dropout",),
    "distillation": ("teacher", "teacher_ema", "teacher_target", "guidance", "auxiliary_learning_rate",
                     "preconditioner"),
}  # fmt: skip


def check(config: ConfigDict) -> None:
    """Builds everything that is cheap, so that whatever is wrong with it is said now.

    Raises:
      ValueError: naming field, value and choices.
    """
    known("prediction", config.prediction, PREDICTIONS)
    check_method(config)
    make_ema(config)
    optimizer(config)
    network_options(config)
    exact = make_exact(config)
    if exact is not None:
        exact.check(config, make_process(config))
    check_evaluation(config)


def check_method(config: ConfigDict) -> None:
    """Traces objective and sampler on the process without computing anything: not every one can do with every other.

    Raises:
      ValueError: as `check`.
    """
    process, objective, sampler = make_process(config), make_objective(config), make_sampler(config)
    shape, keys = (4, 4, 1), jax.random.split(jax.random.key(0), 2)

    def denoise(x_t: Array, t: Array, label: Array | None) -> Array:
        return x_t

    with about("objective", config.objective):
        jax.eval_shape(lambda x0: objective(denoise, process, x0, None, keys[0]), jnp.zeros((2, *shape)))
    with about("sampler", config.sampler):
        jax.eval_shape(lambda keys: sampler.sample(denoise, process, keys, None, shape=shape), keys)
    if isinstance(sampler, Adaptive):
        _check_adaptive(config, sampler)
    middle = jnp.full(1, 0.5 * (process.time_min + process.time_max))
    if not 0 < objective.weighting(process, middle)[0] < jnp.inf:
        raise ValueError(f"config.objective.weighting.name = '{config.objective.weighting.name}' gives no weight on "
                         f"config.process.name = '{config.process.name}', which stands still")


def check_evaluation(config: ConfigDict) -> None:
    """Checks what config.evaluation says is measured, as far as that can be done without data and weights.

    Raises:
      ValueError: as `check`.
    """
    section = config.evaluation
    if not section.features or len({*section.features}) < len(section.features):
        raise ValueError(f"config.evaluation.features = {tuple(section.features)} must name at least one extractor, "
                         "each once")
    for name in section.features:
        known("evaluation.features", name, FEATURES)
    try:
        check_metrics(section.metrics, section.features, section.num_samples)
    except ValueError as error:
        raise ValueError(f"config.evaluation.metrics = {tuple(section.metrics)}: {error}") from error
    known("evaluation.inception_resize", section.inception_resize, RESIZES)
    if section.reference not in ("train", "test"):
        if not section.reference.endswith(".npz"):
            raise ValueError(f"config.evaluation.reference = '{section.reference}' must be train, test, or the path of "
                             "an .npz file of statistics")
        if len(section.features) > 1:
            raise ValueError(f"config.evaluation.reference = '{section.reference}': a file holds the statistics of one "
                             f"extractor, but config.evaluation.features = {tuple(section.features)}")
    check_fisher_times(config)


def check_fisher_times(config: ConfigDict) -> None:
    """Checks the times at which the learnt score is compared with the exact one.

    Raises:
      ValueError: for times that the process does not have or that are given twice, or data whose score nobody knows.
    """
    times, process = tuple(config.evaluation.fisher_times), make_process(config)
    names = {f"{time:g}" for time in times}
    if len(names) < len(times) or not all(process.time_min <= time <= process.time_max for time in times):
        raise ValueError(f"config.evaluation.fisher_times = {times} must be times between {process.time_min} and "
                         f"{process.time_max}, those of config.process.name = '{config.process.name}', each once (six "
                         "digits are told apart)")
    if times and exact_denoiser(config.data.source, process) is None:
        raise ValueError(f"config.evaluation.fisher_times = {times}: nobody knows the exact score of "
                         f"config.data.source = '{config.data.source}' under config.process.name = "
                         f"'{config.process.name}'. It is known of toy2d under every process with a Gaussian kernel, "
                         "and of toy2d:three_modes under double_well")


def features_options(config: ConfigDict, name: str) -> dict[str, Any]:
    """The arguments of a pretrained extractor's loader."""
    section = config.evaluation
    if name == "inception":
        return {"path": section.inception_weights or None, "sha256": section.inception_sha256 or None,
                "resize": section.inception_resize}
    if name == "dinov2":
        return {"path": section.dinov2_weights or None, "sha256": section.dinov2_sha256 or None}
    return {}


def _check_adaptive(config: ConfigDict, sampler: Adaptive) -> None:
    """Warns where there is little to skip. Raises ValueError for a student, whose few steps are all different."""
    if config.distillation.name:
        raise ValueError("config.sampler.adaptive is for samplers of many steps, and a student of "
                         f"config.distillation.name = '{config.distillation.name}' needs all of its calls")
    if sampler.steps < FEW_STEPS:
        logging.warning("config.sampler.steps = %d leaves little to skip for config.sampler.adaptive; it is worth its "
                        "name from %d on", sampler.steps, FEW_STEPS)


def known(field: str, name: str, choices: Any) -> None:
    """Raises ValueError unless `name` is one of `choices`."""
    if name not in choices:
        raise ValueError(f"config.{field} = '{name}' is not known; choose from {', '.join(choices)}")


def options(field: str, section: ConfigDict, classes: dict[str, type]) -> dict[str, Any]:
    """The options of a section that are set, checked against the parameters of the class it names.

    Raises:
      ValueError: for an unknown name, or an option that the class does not have.
    """
    known(f"{field}.name", section.name, classes)
    parameters = inspect.signature(classes[section.name].__init__).parameters
    skip = {"name", *_OF_SECTION.get(field, ())}
    given = {k: v for k, v in section.items() if k not in skip and v is not None and not isinstance(v, ConfigDict)}
    for name, value in given.items():
        if name not in parameters:
            accepted = [k for k in section if k in parameters]
            raise ValueError(f"config.{field}.{name} = {value} has no meaning for config.{field}.name = "
                             f"'{section.name}', whose options are {', '.join(accepted) or 'none'}")
    return given


def build(field: str, section: ConfigDict, classes: dict[str, type], **more: Any) -> Any:
    """The component that a section names, made of its options and `more`.

    Raises:
      ValueError: as `options`, or what the component says of a value, with the section's name before it.
    """
    given = options(field, section, classes)
    with about(field, section):
        return classes[section.name](**given, **more)


@contextlib.contextmanager
def about(field: str, section: ConfigDict) -> Iterator[None]:
    """Says which section a component's complaint is about; messages begin with an option, or speak of several."""
    try:
        yield
    except ValueError as error:
        separator = "." if str(error).split(" ")[0] in section else ": "
        raise ValueError(f"config.{field}{separator}{error}") from error


def make_process(config: ConfigDict) -> Process:
    """config.process -> process: one without a kernel, or the Gaussian one over the schedule that is named."""
    made = build("process", config.process, SCHEDULES | PROCESSES)
    return made if config.process.name in PROCESSES else GaussianProcess(made)


def make_objective(config: ConfigDict) -> Objective:
    """config.objective -> objective."""
    section = config.objective
    more = {"sigma_data": config.sigma_data} if section.weighting.name == "edm" else {}
    weighting = build("objective.weighting", section.weighting, WEIGHTINGS, **more)
    time_sampler = build("objective.time_sampler", section.time_sampler, TIME_SAMPLERS)
    return build("objective", section, OBJECTIVES, weighting=weighting, time_sampler=time_sampler)


def make_sampler(config: ConfigDict) -> Sampler:
    """config.sampler -> sampler, without guidance, which is a property of the denoiser."""
    solver = build("sampler", config.sampler, SAMPLERS)
    section = config.sampler.adaptive
    given = {name: value for name, value in section.items() if name != "preset" and value is not None}
    if section.preset is None and not given:
        return solver
    with about("sampler.adaptive", section):
        return Adaptive(solver=solver, **with_preset(section.preset, given))


def sampler_settings(config: ConfigDict) -> dict[str, Any]:
    """Every setting that sampling depends on, defaults filled in, ready for json."""
    guidance = {"guidance": config.sampler.guidance, "guidance_interval": list(config.sampler.guidance_interval)}
    settings = dataclasses.asdict(make_sampler(config))
    if "solver" in settings:  # an adaptive one: the solver's settings are where they are without
        settings = settings.pop("solver") | {"adaptive": settings}
    return {"name": config.sampler.name, **settings, **guidance}


def make_ema(config: ConfigDict) -> EMA:
    """config.ema -> averages."""
    try:
        return EMA(half_lives=tuple(config.ema.half_lives), ramp=config.ema.ramp)
    except ValueError as error:
        raise ValueError(f"config.ema: {error}") from error


def learning_rate(config: ConfigDict, update: Update | None = None) -> optax.Schedule:
    """config.optimizer -> learning rate as a function of the optimiser's own steps.

    An update that runs several times a step has the rate of one that runs once; one that starts late goes through the
    whole schedule in the steps that are left.
    """
    section, steps, repeats, start = config.optimizer, config.training.steps, 1, 0
    rate = section.learning_rate
    if update is not None:
        repeats, start = update.repeats, update.start
        if update.role == AUXILIARY:
            rate = config.distillation.auxiliary_learning_rate or rate
    if start >= steps:
        raise ValueError(f"config.distillation.auxiliary_warmup = {start} must be less than config.training.steps = "
                         f"{steps}")
    if start and section.warmup_steps >= steps - start:
        raise ValueError(f"config.optimizer.warmup_steps = {section.warmup_steps} must be less than the "
                         f"{steps - start} of config.training.steps = {steps} that are left after "
                         f"config.distillation.auxiliary_warmup = {start}")
    return make_learning_rate(learning_rate=rate, schedule=section.schedule,
                              warmup_steps=section.warmup_steps * repeats, total_steps=(steps - start) * repeats)


def optimizer(config: ConfigDict, update: Update | None = None) -> optax.GradientTransformation:
    """config.optimizer -> optax chain, of one update of a method."""
    section = config.optimizer
    return make_optimizer(name=section.name, learning_rate=learning_rate(config, update), beta1=section.beta1,
                          beta2=section.beta2, weight_decay=section.weight_decay, gradient_clip=section.gradient_clip,
                          epsilon=1e-8 if section.epsilon is None else section.epsilon)  # fmt: skip


def network_options(config: ConfigDict) -> dict[str, Any]:
    """The options of config.network, sequences as tuples."""
    given = options("network", config.network, NETWORKS | {EXACT: ExactTarget})
    return {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in given.items()}


def make_exact(config: ConfigDict) -> ExactTarget | None:
    """config.network -> the closed form that is asked for; None where it names a network."""
    return build("network", config.network, {EXACT: ExactTarget}) if config.network.name == EXACT else None


def make_network(
    config: ConfigDict, shape: tuple[int, ...], num_classes: int, key: Key[Array, ""]
) -> tuple[Apply, PyTree]:
    """config.network -> (apply, initial parameters) for images of `shape`.

    Raises:
      ValueError: for a size that the network cannot take.
    """
    return initialise(config.network.name, key, shape=shape, num_classes=num_classes, **network_options(config))
