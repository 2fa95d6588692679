"""How far the learnt score of a run is from the exact one, for data whose score is known: numbers and pictures."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from data.base import all_images, gather
from diffusion.base import Denoiser
from diffusion.denoiser import score
from diffusion.random import stream_key
from evaluation.exact import exact_denoiser
from evaluation.fields import Field, grid_over, save_fields
from evaluation.fisher import noised, relative_fisher_error
from training.experiment import Experiment

_SHOWN = 1500  # points behind the arrows


def score_errors(
    experiment: Experiment, params: PyTree, folder: Path, name: str
) -> tuple[dict[str, float], dict[str, Path]]:
    """Compares the scores at config.evaluation.fisher_times, at all points of the test split, noised.

    The draws are a function of (config.evaluation.seed, time) alone. Guidance is left out: a guided denoiser is no
    score of the data. Where the data have classes, both scores are those of each point's class, and of the first class
    in the picture.

    Args:
      params: the parameters that are sampled from.
      folder, name: where the picture goes, and the beginning of its name.

    Returns:
      (fisher_error_t<time> for each time and fisher_error, their mean; the picture as "field"), both empty without
      times.
    """
    times = [float(time) for time in experiment.config.evaluation.fisher_times]
    if not times:
        return {}, {}
    exact = exact_denoiser(experiment.config.data.source, experiment.process)
    learnt = jax.jit(lambda params, *of: experiment.denoiser(params)(*of))
    denoisers: tuple[Denoiser, Denoiser] = (lambda *of: learnt(params, *of), jax.jit(exact))
    x0 = jnp.asarray(all_images(experiment.test))
    label = jnp.asarray(gather(experiment.test, np.arange(len(x0)))["label"]) if experiment.test.num_classes else None
    key = stream_key(experiment.config.evaluation.seed, "score errors")
    draw = jax.jit(lambda x0, t: noised(experiment.process, x0, t, key))
    errors, fields = {}, []
    for time in times:
        x_t, t = draw(x0, time)
        error = relative_fisher_error(*denoisers, experiment.process, x_t, t, label)
        errors[f"fisher_error_t{time:g}"] = error
        fields.append(_field(experiment, denoisers, x_t, t, label, f"t = {time:g}", error))
    path = folder / f"{name}-field.png"
    save_fields(path, fields)
    return errors | {"fisher_error": float(np.mean(list(errors.values())))}, {"field": path}


def _field(
    experiment: Experiment, denoisers: tuple[Denoiser, Denoiser], x_t: Array, t: Array, label: Array | None, title: str,
    error: float,
) -> Field:
    """Both scores on a grid over the points x_t."""
    points = grid_over(np.asarray(x_t, np.float64))
    rms = float(jnp.sqrt(jnp.mean(jnp.sum(score(denoisers[1], experiment.process, x_t, t, label) ** 2, axis=-1))))
    if label is not None:
        title += f", {experiment.test.class_names[0]}"
        x_t = x_t[label == 0]
        label = jnp.zeros(len(points), label.dtype)
    at = jnp.asarray(points, jnp.float32)
    times = jnp.full(len(at), t[0])
    learnt, exact = (np.asarray(score(each, experiment.process, at, times, label)) for each in denoisers)
    return Field(title, error, points, learnt, exact, rms, np.asarray(x_t[:_SHOWN]))
