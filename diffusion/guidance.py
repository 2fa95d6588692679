"""Guidance: a denoiser made of two.

  1. D = D_guide + w (D_main - D_guide); w = 1 leaves D_main as it is.
  2. Classifier-free guidance [Ho & Salimans 2022]: D_guide is the same network without its label.
  3. Autoguidance [Karras et al. 2024a]: D_guide is a worse version of the network, with the label.
  4. Guidance interval [Kynkaanniemi et al. 2024]: guide only for noise levels sigma / alpha in (low, high].
"""

from dataclasses import dataclass
from math import inf
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion.base import Denoiser, Process, array_namespace, expand, network_calls


@dataclass(frozen=True)
class Unconditional:
    """`denoise` with every label replaced by `no_class` (the index num_classes): the guide of equation 2."""

    denoise: Denoiser
    no_class: int

    def __call__(
        self, x_t: Float[Array, "batch *shape"], t: Float[Array, " batch"], label: Int[Array, " batch"] | None
    ) -> Float[Array, "batch *shape"]:
        return self.denoise(x_t, t, self._hidden(t))

    def network_calls(self, t: Float[Array, " batch"], label: Int[Array, " batch"] | None) -> Int[Array, " batch"]:
        return network_calls(self.denoise, t, self._hidden(t))

    def _hidden(self, t: Float[Array, " batch"]) -> Int[Array, " batch"]:
        return jnp.full(t.shape, self.no_class, jnp.int32)


@dataclass(frozen=True, kw_only=True)
class Guided:
    """Equation 1 with the interval of equation 4.

    Attributes:
      main, guide: denoisers.
      process: gives the noise level at t.
      scale: w, at least 0.
      interval: (low, high] of sigma / alpha in which the guide acts. Outside of it the guide is not called when the
        whole batch is outside, as it is in a sampler, where all images share t.

    Raises:
      ValueError: for a negative scale or an empty interval.
    """

    main: Denoiser
    guide: Denoiser
    process: Process
    scale: float
    interval: tuple[float, float] = (0.0, inf)

    def __post_init__(self) -> None:
        low, high = self.interval
        if self.scale < 0:
            raise ValueError(f"guidance scale = {self.scale} must be at least 0 (1 is no guidance)")
        if not 0 <= low < high:
            raise ValueError(f"guidance interval = {self.interval} must be (low, high) with 0 <= low < high")

    @property
    def one_time(self) -> bool:
        """Whether one of the two takes one time for all images."""
        return getattr(self.main, "one_time", False) or getattr(self.guide, "one_time", False)

    def guided(self, t: Float[Any, " batch"]) -> Bool[Any, " batch"]:
        """Where the guide acts, numpy for times on the host."""
        level = array_namespace(t).exp(-0.5 * self.process.logsnr(t))
        low, high = self.interval
        return (level > low) & (level <= high)

    def __call__(
        self, x_t: Float[Array, "batch *shape"], t: Float[Array, " batch"], label: Int[Array, " batch"] | None
    ) -> Float[Array, "batch *shape"]:
        main = self.main(x_t, t, label)
        active = self.guided(t)

        def guided() -> Array:
            guide = self.guide(x_t, t, label)
            return jnp.where(expand(active, x_t), guide + self.scale * (main - guide), main)

        # One flag for the whole batch, so that the branch not taken costs nothing.
        return jax.lax.cond(active.any(), guided, lambda: main)

    def network_calls(self, t: Float[Array, " batch"], label: Int[Array, " batch"] | None) -> Int[Array, " batch"]:
        calls = network_calls(self.main, t, label)
        # Counted as run: if one image of the batch is guided, the guide is evaluated for all.
        return calls + jnp.where(self.guided(t).any(), network_calls(self.guide, t, label), 0)


def classifier_free(
    denoise: Denoiser,
    process: Process,
    *,
    scale: float,
    num_classes: int,
    interval: tuple[float, float] = (0.0, inf),
) -> Denoiser:
    """Classifier-free guidance of a label-conditional denoiser; `denoise` itself if scale is 1.

    Raises:
      ValueError: for a negative scale or data without labels.
    """
    if scale == 1:
        return denoise
    if num_classes == 0:
        raise ValueError(f"guidance scale = {scale} needs labelled data, and this data set has no classes")
    return Guided(
        main=denoise, guide=Unconditional(denoise, num_classes), process=process, scale=scale, interval=interval
    )
