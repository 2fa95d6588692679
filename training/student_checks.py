"""What config.distillation says, checked before anything is built: training/distilling.py builds it."""

import jax
import jax.numpy as jnp
from absl import logging
from jaxtyping import Array, Key, PyTree
from ml_collections import ConfigDict

from diffusion.denoiser import NetworkDenoiser
from distillation import METHODS
from distillation.adversarial import initial_head
from distillation.base import AUXILIARY, DISCRIMINATOR, GENERATOR, PRECONDITIONER, TEACHER, Method, Parts
from distillation.transitions import Transitions
from scoring.base import Update
from training import components
from training.distilling import PRECONDITIONERS, make_method
from training.exact_target import EXACT, ExactTarget, is_toy


def check(config: ConfigDict) -> None:
    """Checks config.distillation without its teacher, and warns of a sampler that is not the student's.

    Raises:
      ValueError: naming field, value and choices.
    """
    section, method = config.distillation, make_method(config)
    if method is None:
        given = [name for name, value in section.items() if value not in (None, "")]
        if given:
            raise ValueError(f"config.distillation.{given[0]} = {section[given[0]]} has no meaning without "
                             f"config.distillation.name; choose from {', '.join(METHODS)}")
        return
    _check_teacher(config)
    if section.clip_teacher and is_toy(config.data.source):
        raise ValueError(f"config.distillation.clip_teacher = True is for images, whose range is [-1, 1], and "
                         f"config.data.source = '{config.data.source}' has points: leave it out")
    if section.name == "instant_moment_matching":
        _check_instant(section)
    elif section.preconditioner is not None:
        raise ValueError(f"config.distillation.preconditioner = '{section.preconditioner}' has no meaning for "
                         f"config.distillation.name = '{section.name}'")
    rate = section.auxiliary_learning_rate
    if rate is not None and not rate > 0:
        raise ValueError(f"config.distillation.auxiliary_learning_rate = {rate} must be positive")
    slices = config.training.accumulation
    if isinstance(method, Transitions) and config.data.batch_size // slices % 2:
        raise ValueError(f"config.data.batch_size = {config.data.batch_size} over config.training.accumulation = "
                         f"{slices} must be even: {section.name} takes two halves of it")
    with components.about("distillation", section):
        updates = _traced(config, method)
    for update in updates:
        components.optimizer(config, update)
    _warn_of_sampler(config, method)


def _check_teacher(config: ConfigDict) -> None:
    section = config.distillation
    if not section.teacher:
        raise ValueError("config.distillation.teacher is missing: the workdir of the teacher's run, or exact")
    if section.guidance is not None and section.guidance < 0:
        raise ValueError(f"config.distillation.guidance = {section.guidance} must be at least 0 (1: no guidance)")
    if section.teacher != EXACT:
        if section.teacher_target is not None:
            raise ValueError(f"config.distillation.teacher_target = '{section.teacher_target}' is for "
                             f"config.distillation.teacher = '{EXACT}'")
        return
    try:
        target = ExactTarget(target=section.teacher_target)
    except ValueError as error:
        raise ValueError(f"config.distillation.teacher_{error}") from error
    target.check(config, components.make_process(config), name="distillation.teacher",
                 target="distillation.teacher_target")  # fmt: skip


def _check_instant(section: ConfigDict) -> None:
    if section.preconditioner is not None:
        components.known("distillation.preconditioner", section.preconditioner, PRECONDITIONERS)
    if section.teacher == EXACT:
        raise ValueError("config.distillation.teacher = 'exact': instant moment matching moves the teacher's "
                         "parameters, and a closed form has none")
    if section.centre_on_data and section.guidance not in (None, 1.0):
        raise ValueError(f"config.distillation.centre_on_data = True with config.distillation.guidance = "
                         f"{section.guidance}: centring would take out what guidance adds; choose one of them")


def _traced(config: ConfigDict, method: Method) -> tuple[Update, ...]:
    """The updates of a method, each loss traced on a network of one parameter, without computing anything."""
    process, params, key = components.make_process(config), {"scale": jnp.ones(())}, jax.random.key(0)

    def network(params: PyTree, key: Key[Array, ""] | None) -> NetworkDenoiser:
        def scaled(x: Array, noise_level: Array, label: Array | None) -> Array:
            return params["scale"] * x

        return NetworkDenoiser(scaled, process, config.prediction, config.sigma_data, hidden=scaled)

    parts = Parts(
        network=network, teacher=lambda params: network(params, None), guide=lambda denoise: denoise, process=process,
        objective=components.make_objective(config), num_classes=0,
    )
    others = dict.fromkeys((TEACHER, GENERATOR, AUXILIARY, PRECONDITIONER), params)
    others[DISCRIMINATOR] = initial_head(key, 1)
    batch = {"image": jnp.zeros((2, 4, 4, 1))}
    updates = method.updates(parts)
    for update in updates:
        jax.eval_shape(lambda params, loss=update.loss: loss(params, others, batch, key), others[update.role])
    return updates


def _warn_of_sampler(config: ConfigDict, method: Method) -> None:
    """A student is right for one sampler alone."""
    wanted, given = method.sampler, components.sampler_settings(config)
    names = {wanted["name"], *(("ddpm",) if wanted["name"] == "ancestral" else ())}
    off = {name: value for name, value in wanted.items() if name != "name" and given.get(name) != value}
    if given["name"] not in names or off:
        text = ", ".join(f"config.sampler.{name} = {value}" for name, value in wanted.items())
        logging.warning("This student of %s was made for %s; it is sampled with %s", config.distillation.name, text,
                        {name: given.get(name) for name in wanted})


