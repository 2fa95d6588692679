"""config.network.name = "exact": the denoiser of the data in closed form where others have a network.

    toy2d                        of the density that the points are drawn from (evaluation/exact.py)
    images, target "empirical"   of the training images themselves, which is what it generates; the default
    images, target "gaussians"   of a Gaussian per class fitted to the training images, of one where there are no labels

Nothing is trained. The arrays of the closed form are handed on as the parameters of a network are, so that no compiled
program holds them.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from data.base import Source, gather
from data.images import from_uint8
from diffusion.base import Denoiser, Process
from diffusion.exact import ExactEmpirical, fitted_gaussians
from diffusion.process import GaussianProcess
from evaluation.exact import exact_denoiser
from training.manifest import json_hash

EXACT = "exact"
TARGETS = ("empirical", "gaussians")
GREY_LEVEL = 1 / 127.5  # of 256 on [-1, 1]
MAX_BYTES = 2 * 2**30
_AUGMENTATIONS = ("flip", "shift", "dequantise", "pad_to")


@dataclass(frozen=True, kw_only=True)
class ExactTarget:
    """What config.network asks for when its name is "exact"; None is the only target of toy2d.

    Raises:
      ValueError: for an unknown target.
    """

    target: str | None = None

    def __post_init__(self) -> None:
        if self.target not in (None, *TARGETS):
            raise ValueError(f"target = '{self.target}' is not known; choose from {', '.join(TARGETS)}")

    def check(
        self, config: ConfigDict, process: Process, *, name: str = "network.name", target: str = "network.target"
    ) -> None:
        """Raises ValueError for data or a process without a closed form, as far as it is known without the data.

        Args:
          name, target: the fields that ask for it.
        """
        source = config.data.source
        if is_toy(source):
            if self.target is not None:
                raise ValueError(f"config.{target} = '{self.target}' is for images, and config.data.source = "
                                 f"'{source}' has a density of its own: leave it out")
            if exact_denoiser(source, process) is None:
                raise ValueError(f"config.{name} = 'exact': nobody knows the denoiser of config.data.source = "
                                 f"'{source}' under config.process.name = '{config.process.name}'. It is known of "
                                 "toy2d:checkerboard, rings, mixture, swiss_roll and three_modes under every process "
                                 "with a Gaussian kernel, and of toy2d:three_modes under double_well")
            return
        if not isinstance(process, GaussianProcess):
            raise ValueError(f"config.{name} = 'exact' needs a process with a Gaussian kernel for images, and "
                             f"config.process.name = '{config.process.name}' has none")
        for field in _AUGMENTATIONS:
            if config.data[field]:
                raise ValueError(f"config.data.{field} = {config.data[field]} does not go with config.{name} = "
                                 "'exact', whose closed form is of the images as they are")

    def denoiser(self, config: ConfigDict, train: Source, process: Process) -> Denoiser:
        """The closed form, of the training split where it depends on data.

        Raises:
          ValueError: if it would take more than 2 GB.
        """
        if is_toy(config.data.source):
            return exact_denoiser(config.data.source, process)
        self._check_size(config, train)
        examples = gather(train, np.arange(len(train)))
        images, labels = from_uint8(examples["image"]), examples["label"] if train.num_classes else None
        if self.target == "gaussians":
            return fitted_gaussians(process, images, labels, floor=GREY_LEVEL**2)
        return ExactEmpirical(process, jnp.asarray(images), None if labels is None else jnp.asarray(labels))

    def _check_size(self, config: ConfigDict, train: Source) -> None:
        """Float32 numbers: the images, distances and weights of a batch; or the covariances, and products with them."""
        count, pixels, batch = len(train), math.prod(train.image_shape), config.evaluation.batch_size
        classes = max(train.num_classes, 1)
        rows = classes * pixels if self.target == "gaussians" else count
        numbers = rows * (pixels + 2 * batch)
        if 4 * numbers > MAX_BYTES:
            raise ValueError(f"config.network.target = '{self.target or TARGETS[0]}' would hold {4e-9 * numbers:.1f} "
                             f"GB, more than {MAX_BYTES / 1e9:.1f}, for the {count} images {train.image_shape} of "
                             f"config.data.source = '{config.data.source}' in {classes} classes and "
                             f"config.evaluation.batch_size = {batch}: choose smaller data, smaller batches, or the "
                             f"other of the targets {', '.join(TARGETS)}")

    def sha256(self, config: ConfigDict, train: Source) -> str:
        """Of all that the closed form depends on, besides the code."""
        target = None if is_toy(config.data.source) else self.target or TARGETS[0]
        return json_hash({"target": target, "data": train.provenance, "process": config.process.to_dict()})


def arrays_of(denoise: Any) -> dict[str, jax.Array]:
    """The arrays among the attributes of a denoiser in closed form, to be put into another by `dataclasses.replace`."""
    values = {field.name: getattr(denoise, field.name) for field in fields(denoise)}
    return {name: value for name, value in values.items() if isinstance(value, jax.Array)}


def is_toy(source: str) -> bool:
    """Whether config.data.source names points in the plane, not images."""
    return source.partition(":")[0] == "toy2d"
