"""Teachers and students of the distillation tables: `measure(seed, folder, **options)` -> figures.

Imported without JAX, like all tables; each function runs in a process of its own. A teacher is trained once per seed
for all tables (`trained_runs.py`).

Figures of a set of images: fd and kid to the test images in the features of a classifier trained on the training
images, accuracy (the share that this classifier gives the class asked for), calls (network calls per image). Of images
that are not finite fd and kid are infinite.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.overrides import resolve
from configs.tables.trained_runs import features_of

# The text of a measurement is a part of its identity (`Check`), and theirs has these names.
from configs.tables.trained_runs import train_here as _trained
from configs.tables.trained_runs import trained_run as _teacher


def _figures(config: Any, workdir: Path, folder: Path, sampler: Any = None) -> dict[str, float]:
    """Those of the images that the newest checkpoint makes with a sampler, by default that of its config."""
    import jax
    import jax.numpy as jnp

    from data.base import all_images
    from data.images import to_uint8
    from diffusion.random import image_keys
    from evaluation.distances import frechet_distance_of_features, kernel_distance
    from evaluation.features.classifier import class_accuracy
    from evaluation.generate import labels_of
    from evaluation.one_pass import feature_rows
    from training import components
    from training.inference import load_run

    experiment, params, _, _ = load_run(config, str(workdir))
    features = features_of(config, experiment, folder)
    count, solver = config.evaluation.num_samples, sampler or components.make_sampler(config)
    labels = labels_of(np.arange(count), experiment.train.num_classes)
    run = jax.jit(lambda params, keys, labels: solver.sample(
        experiment.sampling_denoiser(params), experiment.process, keys, labels, shape=experiment.image_shape)[:2])
    x0, nfe = jax.device_get(run(params, image_keys(config.evaluation.seed, jnp.arange(count)), jnp.asarray(labels)))
    calls = {"calls": float(nfe.mean())}
    if not np.isfinite(x0).all():
        return {"fd": math.inf, "kid": math.inf, "accuracy": 0.0} | calls
    images = to_uint8(x0)
    rows, real = (feature_rows(features, some).astype(np.float64) for some in (images, all_images(experiment.test)))
    logits = feature_rows(features, images, "logits")
    return {
        "fd": frechet_distance_of_features(rows, real), "kid": kernel_distance(rows, real, subsets=20)[0],
        "accuracy": class_accuracy(logits, labels)["accuracy"], **calls,
    }  # fmt: skip


def teacher_figures(
    seed: int, folder: Path, *, teacher: str, teacher_overrides: Mapping[str, Any],
    samplers: Mapping[str, tuple[str, Mapping[str, Any]]],
) -> dict[str, float]:
    """The teacher itself with several samplers: <figure>_<label>.

    Args:
      teacher, teacher_overrides: its config.
      samplers: label -> (name, options).
    """
    from samplers import SAMPLERS

    config, workdir = _teacher(teacher, teacher_overrides, seed, folder)
    figures = {}
    for label, (name, options) in samplers.items():
        found = _figures(config, workdir, folder, SAMPLERS[name](**options))
        figures |= {f"{figure}_{label}": value for figure, value in found.items()}
    return figures


def student_figures(
    seed: int, folder: Path, *, config: str, overrides: Mapping[str, Any], teacher: str,
    teacher_overrides: Mapping[str, Any], stages: Sequence[tuple[str, Mapping[str, Any]]] = (("", {}),),
) -> dict[str, float]:
    """A student, or a chain of them, each the teacher of the next: <figure> or <figure>_<label of the stage>.

    Args:
      config, overrides: of the students.
      teacher, teacher_overrides: config of the first teacher.
      stages: (label, further overrides).
    """
    _, workdir = _teacher(teacher, teacher_overrides, seed, folder)
    figures = {}
    for label, more in stages:
        chosen = {**overrides, **more, "seed": seed, "training.tensorboard": False,
                  "distillation.teacher": str(workdir)}  # fmt: skip
        resolved, workdir = resolve(config, chosen), folder / f"student{label}"
        _trained(resolved, workdir)
        found = _figures(resolved, workdir, folder)
        figures |= {f"{figure}_{label}" if label else figure: value for figure, value in found.items()}
    return figures
