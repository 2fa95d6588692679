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
from distillation.adversarial import initial_head
from distillation.base import DISCRIMINATOR, PRECONDITIONER, TEACHER, Method, Parts
from scoring.base import Objective, score_update
from training import components
from training.exact_target import EXACT, ExactTarget, arrays_of, is_toy
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
    scale = 1.0 if section.guidance is None else section.guidance
    if scale != 1 and train.num_classes == 0:
        raise ValueError(f"config.distillation.guidance = {scale} needs labelled data, and config.data.source = "
                         f"'{config.data.source}' has no classes")
    network = partial(network_denoiser, config, apply, process)
    teacher = partial(network, key=None)
    if section.teacher == EXACT:
        target = ExactTarget(target=section.teacher_target)
        exact = target.denoiser(config, train, process)
        teacher = partial(_with_arrays, exact)
        frozen = {TEACHER: arrays_of(exact)}
        facts = {"sha256": target.sha256(config, train), "step": 0, "workdir": EXACT}
    elif with_teacher:
        run = load_teacher(config, params, pipeline.image_shape)
        params, frozen, facts = run.params, {TEACHER: run.params}, run.facts
    if section.name == "instant_moment_matching" and run is not None:
        frozen[PRECONDITIONER] = preconditioner(config, run, network, pipeline, process)
    guide = partial(classifier_free, process=process, scale=scale, num_classes=train.num_classes)
    updates = method.updates(Parts(network=network, teacher=teacher, guide=guide, process=process,
                                   objective=components.make_objective(config), num_classes=train.num_classes))
    # Copies, since each role's buffers are donated on their own.
    of_roles = {update.role: jax.tree.map(np.array, params) for update in updates}
    if DISCRIMINATOR in of_roles:
        image = jax.ShapeDtypeStruct((1, *pipeline.image_shape), np.float32)
        features = jax.eval_shape(apply.features, params, image, jax.ShapeDtypeStruct((1,), np.float32))
        of_roles[DISCRIMINATOR] = initial_head(stream_key(config.seed, "discriminator"), features.shape[-1])
    return {
        "params": of_roles, "frozen": frozen, "teacher": facts,
        "updates": updates, "optimizers": {update.role: components.optimizer(config, update) for update in updates},
    }  # fmt: skip


def _with_arrays(exact: Any, arrays: dict[str, Array]) -> Denoiser:
    """A denoiser in closed form with its arrays as arguments."""
    return dataclasses.replace(exact, **arrays)


def network_denoiser(
    config: ConfigDict, apply: Apply, process: Process, params: PyTree, key: Key[Array, ""] | None
) -> NetworkDenoiser:
    """The network with these parameters as a denoiser; with a key, its dropout is on."""
    def network(x: Array, noise_level: Array, label: Array | None) -> Array:
        return apply(params, x, noise_level, label, key)

    def hidden(x: Array, noise_level: Array, label: Array | None) -> Array:
        return apply.features(params, x, noise_level, label, key)

    return NetworkDenoiser(network, process, prediction=config.prediction, sigma_data=config.sigma_data, hidden=hidden)


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
    # What a method is told of the data, if it wants to know: their deviation, and that points have no range to clip to.
    told = {"sigma_data": config.sigma_data}
    if is_toy(config.data.source) and section.clip_teacher is None:
        told["clip_teacher"] = False
    wanted = inspect.signature(METHODS[section.name].__init__).parameters
    return components.build("distillation", section, METHODS, **{k: v for k, v in told.items() if k in wanted})
