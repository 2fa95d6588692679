"""Small evaluations during training, config.training.evaluate_every, and the best state that they have seen.

The loss of a distillation does not say how good its images are; some of these losses are no loss at all. So every so
many steps a few hundred images are made and compared with the test images, by the kernel distance in the features of
config.evaluation.features[0]. The images are others than those that mode `evaluate` makes, so that what is chosen by
them is not also judged by them.

  <workdir>/best/<step>/   the state with the smallest distance, a checkpoint like any other
  <workdir>/best.json      its step and distance

A new best is written whole beside the old one before it takes its place: a run that was restarted may find it at an
earlier step, or at the same step with other bits.
"""

import json
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from data.base import all_images
from data.images import to_uint8
from diffusion.random import image_keys
from evaluation.distances import kernel_distance
from evaluation.generate import labels_of
from evaluation.one_pass import feature_rows
from training.checkpointing import Checkpoints
from training.evaluation import make_features
from training.experiment import Experiment, sampling_params
from training.inference import sample_function
from training.state import TrainState
from training.workdir import write_json_atomic

BEST, NEW, OLD = "best", "best.new", "best.old"
IMAGES = 500


class Monitor:
    """See the module docstring. Makes or loads the features when it is made."""

    def __init__(self, experiment: Experiment, folder: Path):
        config = experiment.config
        count = config.training.evaluate_images or IMAGES
        self._experiment, self._folder = experiment, folder
        self._count = -(-count // experiment.mesh.size) * experiment.mesh.size
        self._features = make_features(config, config.evaluation.features[0], experiment.train, experiment.test,
                                       folder / "features")  # fmt: skip
        self._real = self._rows(all_images(experiment.test))
        if (folder / OLD).exists() and not (folder / BEST).exists():  # killed between the two renames
            (folder / OLD).rename(folder / BEST)
        self._best = _read_best(folder)

    def __call__(self, state: TrainState, step: int, data: dict) -> dict[str, float]:
        """{"evaluate/kid": ..., "evaluate/nfe": ...} of the averaged parameters; keeps the state if it is the best.

        Args:
          data: what a checkpoint says of the data.
        """
        experiment = self._experiment
        evaluation = experiment.config.evaluation
        indices = np.arange(self._count)
        first = evaluation.num_samples * evaluation.ranges  # after those of mode `evaluate`
        keys = image_keys(evaluation.seed, jnp.asarray(first + indices))
        labels = labels_of(indices, experiment.train.num_classes)
        samples = sample_function(experiment)(sampling_params(experiment, state), keys, labels)
        x0, nfe = np.asarray(samples.x0), float(np.mean(samples.nfe))
        finite = bool(np.isfinite(x0).all())
        distance = kernel_distance(self._rows(_images(x0)), self._real)[0] if finite else math.nan
        logging.info("Step %d: kid %.4g of %d images, NFE %.4g", step, distance, self._count, nfe)
        if distance < self._best:  # False for NaN
            self._best = distance
            self._keep(step, state, data)
            write_json_atomic(self._folder / f"{BEST}.json", {"step": step, "kid": distance, "images": self._count})
        return {"evaluate/kid": distance, "evaluate/nfe": nfe}

    def _keep(self, step: int, state: TrainState, data: dict) -> None:
        best, new, old = (self._folder / name for name in (BEST, NEW, OLD))
        shutil.rmtree(new, ignore_errors=True)
        Checkpoints(new, keep=1).save(step, state, data=data, config=self._experiment.config.to_dict())
        if jax.process_index() == 0:
            shutil.rmtree(old, ignore_errors=True)
            if best.exists():
                best.rename(old)
            new.rename(best)
            shutil.rmtree(old, ignore_errors=True)

    def _rows(self, images: np.ndarray) -> np.ndarray:
        return feature_rows(self._features, images).astype(np.float64)


def _images(x0: np.ndarray) -> np.ndarray:
    """8-bit images; points as they are."""
    return to_uint8(x0) if x0.ndim == 4 else x0


def _read_best(folder: Path) -> float:
    """The smallest distance so far, also of an earlier process; infinity where there is none."""
    path = folder / f"{BEST}.json"
    return float(json.loads(path.read_text())["kid"]) if path.is_file() else math.inf
