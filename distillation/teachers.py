"""The teacher's side of a distillation: its value for the moment-matching losses. `training/teacher_run.py` loads it.

  T = sg(v - y) + y,   y = D(x_t, t, label) the plain teacher,   v its guided value, clipped to the range of images

so that values are the guided ones and derivatives those of the plain teacher (straight-through) [Salimans et al. 2024,
sections 3.3 and 5.3]: derivatives through the guide would be of another network, and those through a clip are 0.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion.base import Denoiser


def teacher_value(denoise: Denoiser, guide: Callable[[Denoiser], Denoiser], *, clip: bool) -> Denoiser:
    """The denoiser T.

    Args:
      denoise: the plain teacher.
      guide: gives a denoiser guidance: calls it with the label that it is given, and with another; returns its argument
        for none.
      clip: to [-1, 1].
    """
    guided = guide(denoise)
    if guided is denoise and not clip:
        return denoise

    def value(
        x_t: Float[Array, "batch *shape"], t: Float[Array, " batch"], label: Int[Array, " batch"] | None
    ) -> Float[Array, "batch *shape"]:
        plain = denoise(x_t, t, label)

        def known(x: Array, t: Array, other: Array | None) -> Array:
            """The plain teacher, without a second call for what it has said already."""
            return plain if other is label else denoise(x, t, other)

        v = plain if guided is denoise else guide(known)(x_t, t, label)
        v = jnp.clip(v, -1.0, 1.0) if clip else v
        return plain + jax.lax.stop_gradient(v - plain)

    return value
