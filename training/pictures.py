"""The pictures of an evaluation, written into its folder of figures."""

from pathlib import Path

import numpy as np
from jaxtyping import PyTree

from data.base import gather
from data.images import to_uint8
from evaluation.figures import denoising_strip, real_beside_generated, save_grid, scatter_2d
from evaluation.generate import Generated
from training.experiment import Experiment
from training.inference import first_images

STRIP_IMAGES, STRIP_STEPS, SAMPLES, POINTS = 10, 12, 64, 5000


def draw(
    experiment: Experiment, params: PyTree, generated: Generated, folder: Path, name: str
) -> dict[str, Path]:
    """Samples by number, real beside generated, and the strip from noise to image; returns the files by kind."""
    paths = {kind: folder / f"{name}-{kind}.png" for kind in ("samples", "grid", "strip")}
    test = experiment.test
    shown = gather(test, np.arange(len(test)))
    if len(test.image_shape) == 1:
        count = min(len(generated), len(test), POINTS)
        scatter_2d(paths["grid"], shown["image"][:count], generated.read(0, count))
        return {"grid": paths["grid"]}
    count = min(len(generated), 100 * max(1, test.num_classes))
    images, labels = generated.read(0, count), None if generated.labels is None else generated.labels[:count]
    save_grid(paths["samples"], images[:SAMPLES], 8)
    real_beside_generated(paths["grid"], shown["image"], images, shown["label"] if test.num_classes else None, labels)
    samples = first_images(experiment, params, STRIP_IMAGES, keep_steps=True)
    steps = np.unique(np.linspace(0, len(samples.t_steps) - 1, STRIP_STEPS).round().astype(int))
    levels = np.exp(-0.5 * experiment.process.logsnr(np.asarray(samples.t_steps[steps], np.float64)))
    denoising_strip(paths["strip"], to_uint8(samples.x0_steps[steps]), levels)
    return paths
