"""config.distillation -> method, teacher and everything else that a student's training is made of.

The teacher is a run of this project, or the data's own denoiser in closed form. Student and auxiliary network have its
architecture and begin with its parameters; of a closed form they begin as fresh networks do.
"""

import dataclasses
import inspect
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Key, PyTree
from ml_collections import ConfigDict

from data.base import Source
from data.pipeline import Pipeline
from diffusion.base import Denoiser, Process
from diffusion.denoiser import NetworkDenoiser
from diffusion.guidance import classifier_free
from diffusion.networks import Apply
from diffusion.random import stream_key
from distillation import METHODS
from distillation.base import PRECONDITIONER, TEACHER, Method, Parts
from distillation.transitions import Transitions
from scoring.base import Objective, score_update
from training import components
from training.exact_target import EXACT, ExactTarget, arrays_of
from training.teacher_run import TeacherRun, load_teacher

PRECONDITIONERS = ("adam_state", "fresh", "identity")
FRESH_BATCHES = 256
PRECONDITIONER_EPSILON = 1e-8


def make_student(
    config: ConfigDict, method: Method, apply: Apply, params: PyTree, pipeline: Pipeline, train: Source,
    process: Process, *, with_teacher: bool,
) -> dict[str, Any]:
    """The attributes of an Experiment that the distillation decides: params, frozen, updates, optimizers, teacher.

    Args:
      apply, params: the network and fresh parameters of it.
      with_teacher: load it. Sampling a student does not need its teacher; training does.

    Raises:
      FileNotFoundError, ValueError: for a teacher that is missing or does not fit.
    """
    section, frozen, facts, run = config.distillation, {}, None, None
    network = partial(network_denoiser, config, apply, process)

    def teacher(params: PyTree) -> Denoiser:
        return network(params, None)

    if section.teacher == EXACT:
        target = ExactTarget(target=section.teacher_target)
        exact = target.denoiser(config, train, process)
        frozen = {TEACHER: arrays_of(exact)}
        facts = {"sha256": target.sha256(config, train), "step": 0, "workdir": EXACT}

        def teacher(params: PyTree) -> Denoiser:
            return dataclasses.replace(exact, **params)

    elif with_teacher:
        run = load_teacher(config, params)
        params, frozen, facts = run.params, {TEACHER: run.params}, run.facts
    if section.name == "instant_moment_matching" and run is not None:
        frozen[PRECONDITIONER] = preconditioner(config, run, network, pipeline, process)
    scale = 1.0 if section.guidance is None else section.guidance
    guide = partial(classifier_free, process=process, scale=scale, num_classes=train.num_classes)
    updates = method.updates(Parts(network=network, teacher=teacher, guide=guide, process=process,
                                   objective=components.make_objective(config), num_classes=train.num_classes))
    roles = [update.role for update in updates]
    return {
        # Copies, since each role's buffers are donated on their own.
        "params": {role: jax.tree.map(np.array, params) for role in roles}, "frozen": frozen, "teacher": facts,
        "updates": updates, "optimizers": {update.role: components.optimizer(config, update) for update in updates},
    }  # fmt: skip


def network_denoiser(
    config: ConfigDict, apply: Apply, process: Process, params: PyTree, key: Key[Array, ""] | None
) -> NetworkDenoiser:
    """The network with these parameters as a denoiser; with a key, its dropout is on."""
    def network(x: Array, noise_level: Array, label: Array | None) -> Array:
        return apply(params, x, noise_level, label, key)

    return NetworkDenoiser(network, process, prediction=config.prediction, sigma_data=config.sigma_data)


def preconditioner(
    config: ConfigDict, run: TeacherRun, network: Any, pipeline: Pipeline, process: Process
) -> PyTree:
    """Lambda of instant moment matching, 1 / (sqrt(v) + 1e-8), with v the second moment of the teacher's gradients.

    Raises:
      ValueError: where v is to be that of the teacher's run, which did not keep one.
    """
    choice = config.distillation.preconditioner or PRECONDITIONERS[0]
    if choice == "identity":
        return jax.tree.map(lambda x: np.ones_like(x), run.params)
    moment = run.second_moment
    if choice == "fresh":
        moment = fresh_second_moment(config, run.params, network, components.make_objective(config), pipeline, process)
    if moment is None:
        raise ValueError(f"config.distillation.preconditioner = '{choice}': the run of config.distillation.teacher = "
                         f"'{config.distillation.teacher}' has no second moment of Adam; choose fresh or identity")
    return jax.tree.map(lambda v: np.asarray(1 / (np.sqrt(v) + PRECONDITIONER_EPSILON), np.float32), moment)


def fresh_second_moment(
    config: ConfigDict, params: PyTree, network: Any, objective: Objective, pipeline: Pipeline, process: Process
) -> PyTree:
    """The mean over 256 batches of the squared gradient of the teacher's own objective."""
    update = score_update(objective, network, process, label_dropout=config.objective.label_dropout,
                          num_classes=pipeline.source.num_classes)

    @jax.jit
    def add(total: PyTree, batch: dict[str, Array], key: Key[Array, ""]) -> PyTree:
        gradient = jax.grad(lambda params: update.loss(params, {}, batch, key)[0])(params)
        return jax.tree.map(lambda t, g: t + g**2 / FRESH_BATCHES, total, gradient)

    moment = jax.tree.map(jnp.zeros_like, params)
    for number in range(FRESH_BATCHES):
        batch = {name: rows for name, rows in pipeline.batch(number).items() if name != "index"}
        moment = add(moment, batch, jax.random.fold_in(stream_key(config.seed, "preconditioner"), number))
    return jax.device_get(moment)


def make_method(config: ConfigDict) -> Method | None:
    """config.distillation -> method; None where the network learns from data."""
    section = config.distillation
    if not section.name:
        return None
    components.known("distillation.name", section.name, METHODS)
    has_sigma_data = "sigma_data" in inspect.signature(METHODS[section.name].__init__).parameters
    more = {"sigma_data": config.sigma_data} if has_sigma_data else {}
    return components.build("distillation", section, METHODS, **more)


def check(config: ConfigDict) -> None:
    """Checks config.distillation without its teacher, and warns of a sampler that is not the student's.

    Raises:
      ValueError: as `check`.
    """
    section, method = config.distillation, make_method(config)
    if method is None:
        given = [name for name, value in section.items() if value not in (None, "")]
        if given:
            raise ValueError(f"config.distillation.{given[0]} = {section[given[0]]} has no meaning without "
                             f"config.distillation.name; choose from {', '.join(METHODS)}")
        return
    if not section.teacher:
        raise ValueError("config.distillation.teacher is missing: the workdir of the teacher's run, or exact")
    if section.guidance is not None and section.guidance < 0:
        raise ValueError(f"config.distillation.guidance = {section.guidance} must be at least 0 (1: no guidance)")
    instant = section.name == "instant_moment_matching"
    if section.preconditioner is not None:
        components.known("distillation.preconditioner", section.preconditioner, PRECONDITIONERS)
    if section.preconditioner is not None and not instant:
        raise ValueError(f"config.distillation.preconditioner = '{section.preconditioner}' has no meaning for "
                         f"config.distillation.name = '{section.name}'")
    if instant and section.teacher == EXACT:
        raise ValueError("config.distillation.teacher = 'exact': instant moment matching moves the teacher's "
                         "parameters, and a closed form has none")
    if instant and section.centre_on_data and section.guidance not in (None, 1.0):
        raise ValueError(f"config.distillation.centre_on_data = True with config.distillation.guidance = "
                         f"{section.guidance}: centring would take out what guidance adds; choose one of them")
    if section.teacher_target is not None and section.teacher != EXACT:
        raise ValueError(f"config.distillation.teacher_target = '{section.teacher_target}' is for "
                         f"config.distillation.teacher = '{EXACT}'")
    if section.auxiliary_learning_rate is not None and not section.auxiliary_learning_rate > 0:
        raise ValueError(f"config.distillation.auxiliary_learning_rate = {section.auxiliary_learning_rate} must be "
                         "positive")
    if isinstance(method, Transitions) and config.data.batch_size % 2:
        raise ValueError(f"config.data.batch_size = {config.data.batch_size} must be even: the updates of "
                         f"{section.name} see one half of it each")
    with components.about("distillation", section):
        _trace_method(config, method)
    _warn_of_sampler(config, method)


def _trace_method(config: ConfigDict, method: Method) -> None:
    """Every loss on a network of one parameter, without computing anything."""
    def network(params: PyTree, key: Key[Array, ""] | None) -> Any:
        return lambda x_t, t, label: params["scale"] * x_t

    parts = Parts(
        network=network, teacher=lambda params: network(params, None), guide=lambda denoise: denoise,
        process=components.make_process(config), objective=components.make_objective(config), num_classes=0,
    )
    params, key = {"scale": jnp.ones(())}, jax.random.key(0)
    others = dict.fromkeys(("teacher", "generator", "auxiliary", "preconditioner"), params)
    batch = {"image": jnp.zeros((2, 4, 4, 1))}
    for update in method.updates(parts):
        jax.eval_shape(lambda params, loss=update.loss: loss(params, others, batch, key), params)


def _warn_of_sampler(config: ConfigDict, method: Method) -> None:
    """A student is right for one sampler alone."""
    wanted, given = method.sampler, components.sampler_settings(config)
    names = {wanted["name"], *(("ddpm",) if wanted["name"] == "ancestral" else ())}
    off = {name: value for name, value in wanted.items() if name != "name" and given.get(name) != value}
    if given["name"] not in names or off:
        text = ", ".join(f"config.sampler.{name} = {value}" for name, value in wanted.items())
        logging.warning("This student of %s was made for %s; it is sampled with %s", config.distillation.name, text,
                        {name: given.get(name) for name in wanted})


