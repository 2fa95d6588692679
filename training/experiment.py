"""Config -> experiment: every object that training, sampling and evaluation need, built once and in one place."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Key, PyTree
from ml_collections import ConfigDict

from data.base import Source
from data.pipeline import Pipeline, make_pipeline
from data.sources import open_source
from diffusion.base import Denoiser, Process
from diffusion.guidance import classifier_free
from diffusion.networks import Apply
from diffusion.random import stream_key
from distillation.base import GENERATOR
from scoring.base import Update, score_update
from training import components
from training.distilling import make_method, make_student, network_denoiser
from training.ema import EMA
from training.exact_target import arrays_of
from training.mesh import make_mesh, state_sharding
from training.state import TrainState, create_state
from training.step import Step, make_step


@dataclass(frozen=True, kw_only=True, eq=False)
class Experiment:
    """What a config describes.

    Attributes:
      config: the resolved config.
      train, test: data splits.
      pipeline: batches of `train`.
      process: the noising process.
      apply: the network as a pure function of its parameters; None where `exact` stands in its place.
      params: initial parameters by role.
      exact: the denoiser in closed form, whose arrays are the parameters, and which nothing trains.
      updates: the training method.
      optimizers: one per role.
      ema: which averages are kept.
      mesh: the devices.
      frozen: networks that no update moves, by name: the teacher of a student.
      teacher: which it is, for the checkpoints; None without one.
    """

    config: ConfigDict
    train: Source
    test: Source
    pipeline: Pipeline
    process: Process
    apply: Apply | None
    params: dict[str, PyTree]
    updates: tuple[Update, ...]
    optimizers: dict[str, optax.GradientTransformation]
    ema: EMA
    mesh: Mesh
    exact: Any = None
    frozen: dict[str, PyTree] = field(default_factory=dict)
    teacher: dict[str, Any] | None = None

    @property
    def role(self) -> str:
        """Whose parameters are averaged, sampled and evaluated."""
        return GENERATOR if GENERATOR in self.params else "score"

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of what the network sees and the sampler makes, [H, W, C] or [2]."""
        return self.pipeline.image_shape

    def denoiser(self, params: PyTree, key: Key[Array, ""] | None = None) -> Denoiser:
        """The network with these parameters as a denoiser; with a key, its dropout is on."""
        if self.exact is not None:
            return dataclasses.replace(self.exact, **params)
        return network_denoiser(self.config, self.apply, self.process, params, key)

    def sampling_denoiser(self, params: PyTree) -> Denoiser:
        """`denoiser` with the guidance of config.sampler."""
        sampler = self.config.sampler
        return classifier_free(
            self.denoiser(params), self.process, scale=sampler.guidance, num_classes=self.train.num_classes,
            interval=tuple(sampler.guidance_interval),
        )

    def step(self) -> Step:
        """The pure training step."""
        return make_step(
            self.updates, self.optimizers, self.ema, seed=self.config.seed, batch_size=self.config.data.batch_size,
            accumulation=self.config.training.accumulation,
        )

    def initial_state(self) -> TrainState:
        """The state before step one, laid out over the mesh."""
        def create(params: PyTree) -> TrainState:
            return create_state(params, self.optimizers, self.ema, (self.role,))

        sharding = state_sharding(self.mesh, jax.eval_shape(create, self.params))
        return jax.jit(create, out_shardings=sharding)(self.params)


def build_experiment(config: ConfigDict, *, with_teacher: bool = True) -> Experiment:
    """Builds everything a validated config describes; writes nothing.

    Args:
      with_teacher: False for a student that is only sampled, which does not need its teacher.

    Raises:
      ValueError, FileNotFoundError: for data that are missing or do not fit the network, naming field and remedy.
    """
    data = config.data
    train, test = (
        open_source(data.source, split, path=data.path, image_size=data.image_size) for split in ("train", "test")
    )
    pipeline = make_pipeline(
        train, batch_size=data.batch_size, seed=config.seed, flip=data.flip, shift=data.shift,
        dequantise=data.dequantise, pad_to=data.pad_to, process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    mesh = make_mesh(config.mesh.fsdp)
    if data.batch_size % (mesh.size * config.training.accumulation):
        raise ValueError(f"config.data.batch_size = {data.batch_size} must be a multiple of the number of devices, "
                         f"{mesh.size}, times config.training.accumulation = {config.training.accumulation}")
    if config.sampler.guidance != 1 and train.num_classes == 0:
        raise ValueError(f"config.sampler.guidance = {config.sampler.guidance} needs labelled data, and "
                         f"config.data.source = '{data.source}' has no classes")
    process = components.make_process(config)
    model = _model(config, train, pipeline, process, with_teacher)
    frozen = model.pop("frozen", {})
    sharding = state_sharding(mesh, jax.eval_shape(lambda tree: tree, frozen))
    return Experiment(
        config=config, train=train, test=test, pipeline=pipeline, process=process, ema=components.make_ema(config),
        mesh=mesh, frozen=jax.device_put(frozen, sharding), **model,
    )


def _model(
    config: ConfigDict, train: Source, pipeline: Pipeline, process: Process, with_teacher: bool
) -> dict[str, Any]:
    """The attributes of an experiment that are about its network, or about what stands in its place."""
    target = components.make_exact(config)
    if target is not None:
        exact = target.denoiser(config, train, process)
        return {"exact": exact, "apply": None, "params": {"score": arrays_of(exact)}, "updates": (), "optimizers": {}}
    key = stream_key(config.seed, "network")
    apply, params = components.make_network(config, pipeline.image_shape, train.num_classes, key)
    method = make_method(config)
    if method is not None:
        student = make_student(config, method, apply, params, pipeline, train, process, with_teacher=with_teacher)
        return {"apply": apply, **student}
    update = score_update(
        components.make_objective(config),
        lambda params, key: network_denoiser(config, apply, process, params, key),
        process, label_dropout=config.objective.label_dropout, num_classes=train.num_classes,
    )
    return {"apply": apply, "params": {"score": params}, "updates": (update,),
            "optimizers": {"score": components.optimizer(config)}}  # fmt: skip


def sampling_params(experiment: Experiment, state: TrainState) -> PyTree:
    """The parameters that config.evaluation.ema selects: an average, or the live ones."""
    index = experiment.config.evaluation.ema
    return state.params[experiment.role] if index < 0 else state.ema[experiment.role][experiment.ema.names[index]]
