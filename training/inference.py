"""The mode `sample`, and what evaluation needs too: a trained checkpoint -> images.

  <workdir>/generated/<name>/   numbered batches of images (evaluation/generate.py), and samples.npz with all of them
"""

import hashlib
import json
import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import PyTree
from ml_collections import ConfigDict

from data.base import all_images
from data.images import to_uint8
from diffusion.random import image_keys
from evaluation.figures import image_grid, scatter_2d
from evaluation.files import code_sha256
from evaluation.generate import Generated, generate, labels_of
from evaluation.one_pass import Interrupted
from samplers.base import Samples
from training import components
from training.checkpointing import Checkpoints
from training.experiment import Experiment, build_experiment, sampling_params
from training.manifest import environment, state_hash
from training.mesh import batch_sharding
from training.metric_writers import MetricWriter
from training.preemption import StopSignals
from training.progress import duration
from training.workdir import check_config, compare_config, prepare_workdir, read_config, store_config

GRID_IMAGES = 100


@lru_cache(maxsize=4)  # one function per experiment, so that it is traced and compiled once
def sample_function(experiment: Experiment, *, keep_steps: bool = False) -> Callable[..., Samples]:
    """Jitted (params, keys, labels) -> Samples, spread over the mesh, cropped to the size of the data."""
    sampler = components.make_sampler(experiment.config)
    sharded, replicated = batch_sharding(experiment.mesh), NamedSharding(experiment.mesh, PartitionSpec())

    def solve(params: PyTree, keys: jax.Array, labels: jax.Array | None) -> Samples:
        return sampler.sample(experiment.sampling_denoiser(params), experiment.process, keys, labels,
                              shape=experiment.image_shape, keep_steps=keep_steps)  # fmt: skip

    if getattr(sampler, "mode", None) == "per_sample" and not keep_steps:
        # Every device has slots and a loop of its own; as one program all would wait for the slowest.
        solve = jax.shard_map(solve, mesh=experiment.mesh, in_specs=(replicated.spec, sharded.spec, sharded.spec),
                              out_specs=sharded.spec, check_vma=False)  # fmt: skip

    def sample(params: PyTree, keys: jax.Array, labels: jax.Array | None) -> Samples:
        keys, labels = jax.lax.with_sharding_constraint((keys, labels), sharded)
        samples = solve(params, keys, labels)
        crop = partial(_centre_crop, shape=experiment.train.image_shape)
        steps = None if samples.x0_steps is None else jax.vmap(crop)(samples.x0_steps)
        return samples._replace(x0=crop(samples.x0), x0_steps=steps)

    return jax.jit(sample, out_shardings=replicated)


def draw_samples(experiment: Experiment, params: PyTree, writer: MetricWriter, step: int) -> None:
    """A picture of the first images during training; the same noise and labels at every step."""
    x0 = np.asarray(first_images(experiment, params, GRID_IMAGES).x0)
    if x0.ndim == 2:
        scatter_2d(writer.workdir / "images" / f"samples-{step:08d}.png", all_images(experiment.test)[: len(x0)], x0)
    else:
        writer.write_images(step, {"samples": image_grid(to_uint8(x0), columns=10)})


def sample(config: ConfigDict, workdir: str) -> int:
    """Generates config.evaluation.num_samples images from the newest checkpoint; returns the exit code.

    Raises:
      FileNotFoundError, ValueError: no checkpoint, or one of another experiment.
    """
    with StopSignals() as stop:
        experiment, params, step, identity = load_run(config, workdir)
        folder = Path(workdir).expanduser().absolute()
        try:
            generated = generate_images(
                experiment, params, folder, step, identity, stop, count=config.evaluation.num_samples
            )
        except Interrupted as problem:
            logging.info("Stopped by a signal; %s", problem)
            return stop.exit_code
        path = folder / "generated" / name_of(experiment, step, identity) / "samples.npz"
        labels = {} if generated.labels is None else {"arr_1": generated.labels}
        arrays = {"arr_0": generated.read(0, len(generated))} | labels
        partial_path = path.with_suffix(".partial.npz")
        np.savez_compressed(partial_path, **arrays)
        partial_path.replace(path)
        logging.info("%d images, NFE %.4g: %s", len(generated), generated.nfe.mean(), path)
        return 0


def load_run(config: ConfigDict, workdir: str) -> tuple[Experiment, PyTree, int, str]:
    """The experiment, the selected parameters of its newest checkpoint, the step and the parameters' hash.

    An exact denoiser has no checkpoint, its step is 0, and its run begins here.
    """
    # Imported here: the loop imports this module for its grids.
    from training.loop import FREE_FIELDS, restore_state

    folder = Path(workdir).expanduser()
    stored = read_config(folder) if folder.is_dir() else None
    exact = components.make_exact(config)
    if stored is None and exact is None:
        raise FileNotFoundError(f"no run in workdir {folder}: train one first, with --mode=train")
    different = compare_config(stored or config.to_dict(), config.to_dict(), (*FREE_FIELDS, "training", "optimizer"))
    if different:
        raise ValueError(f"workdir {folder} holds another experiment:\n  " + "\n  ".join(different))
    experiment = build_experiment(config, with_teacher=False)
    if exact is not None:
        if stored is None:
            with prepare_workdir(folder) as prepared:
                check_config(prepared, config.to_dict())
                store_config(prepared, config.to_dict())
        return experiment, experiment.params["score"], 0, exact.sha256(config, experiment.train)
    where = folder / {"newest": "checkpoints", "best": "best"}[config.evaluation.checkpoint or "newest"]
    state, step = restore_state(experiment, Checkpoints(where, keep=config.training.keep), with_teacher=False)
    if step == 0:
        raise FileNotFoundError(f"no checkpoint in {where} yet: train first, with --mode=train"
                                + (" and --config.training.evaluate_every=STEPS" if where.name == "best" else ""))
    params = sampling_params(experiment, state)
    return experiment, params, step, state_hash(params)


def generate_images(
    experiment: Experiment, params: PyTree, folder: Path, step: int, identity: str, stop: StopSignals, *, count: int
) -> Generated:
    evaluation = experiment.config.evaluation
    if evaluation.batch_size % experiment.mesh.size:
        raise ValueError(f"config.evaluation.batch_size = {evaluation.batch_size} must be a multiple of the number of "
                         f"devices, {experiment.mesh.size}")
    function = sample_function(experiment)
    begin = time.monotonic()

    def progress(done: int) -> None:
        left = (time.monotonic() - begin) / done * (count - done)
        logging.info("%d of %d images, ETA %s", done, count, duration(left))

    return generate(
        function, params, folder / "generated" / name_of(experiment, step, identity), seed=evaluation.seed,
        num_samples=count, batch_size=evaluation.batch_size,
        num_classes=experiment.train.num_classes, stopped=lambda: stop.received is not None, progress=progress,
    )


def name_of(experiment: Experiment, step: int, identity: str) -> str:
    """A name for these images: readable, with a hash of all that they depend on."""
    config = experiment.config
    facts = {
        "parameters": identity, "sampler": components.sampler_settings(config), "seed": config.evaluation.seed,
        "batch_size": config.evaluation.batch_size, "sigma_data": config.sigma_data, "prediction": config.prediction,
        "process": config.process.to_dict(), "network": config.network.to_dict(), "image_shape": experiment.image_shape,
        "environment": environment(), "code": code_sha256("diffusion", "samplers"),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:8]
    sampler = components.make_sampler(config)
    return f"step{step}-{config.sampler.name}{sampler.steps}-{digest}"


def first_images(experiment: Experiment, params: PyTree, count: int, *, keep_steps: bool = False) -> Samples:
    """Images 0 ... count - 1, on the host."""
    padded = -(-count // experiment.mesh.size) * experiment.mesh.size
    labels = labels_of(np.arange(padded), experiment.train.num_classes)
    keys = image_keys(experiment.config.evaluation.seed, jnp.arange(padded))
    samples = jax.device_get(sample_function(experiment, keep_steps=keep_steps)(params, keys, labels))
    steps = None if samples.x0_steps is None else samples.x0_steps[:, :count]
    return samples._replace(x0=samples.x0[:count], nfe=samples.nfe[:count], x0_steps=steps)


def _centre_crop(images: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[B, H, W, C] -> [B, *shape], the inverse of the pipeline's padding."""
    if images.shape[1:] == shape:
        return images
    top, left = ((n - m) // 2 for n, m in zip(images.shape[1:3], shape[:2]))
    return images[:, top : top + shape[0], left : left + shape[1]]
