"""Teachers and students of the distillation tables: `measure(seed, folder, **options)` -> figures.

Imported without JAX, like all tables; each function runs in a process of its own. A teacher is trained once per seed
for all tables, in a folder beside theirs; whoever comes first trains it and the others wait.

Figures of a set of images: fd and kid to the test images in the features of a classifier trained on the training
images, accuracy (the share that this classifier gives the class asked for), calls (network calls per image). Of images
that are not finite fd and kid are infinite.
"""

import contextlib
import fcntl
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.overrides import identity, resolve


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Waits until no other process is in here with this path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _trained(config: Any, folder: Path) -> None:
    """Trains, or goes on training; does nothing where it is done. Leaves the process on a stop request."""
    from configs.base import validate
    from training.loop import train

    validate(config)
    with _alone(folder.with_name(f"{folder.name}.turn")):
        code = train(config, str(folder))
    if code:
        sys.exit(code)


def _shared(folder: Path) -> Path:
    """What the runs of all tables have in common, of a run in <root>/<table>/<run>."""
    return folder.parent.parent / "distillation"


def _teacher(config: str, overrides: Mapping[str, Any], seed: int, folder: Path) -> tuple[Any, Path]:
    """(config, workdir) of the trained teacher of this seed."""
    resolved = resolve(config, {**overrides, "seed": seed, "training.tensorboard": False})
    workdir = _shared(folder) / f"teacher-{identity(resolved)[:8]}"
    _trained(resolved, workdir)
    return resolved, workdir


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
    from training.evaluation import make_features
    from training.inference import load_run

    experiment, params, _, _ = load_run(config, str(workdir))
    cache = _shared(folder) / "features"
    with _alone(cache.with_name("features.turn")):
        features = make_features(config, "classifier", experiment.train, experiment.test, cache)
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
