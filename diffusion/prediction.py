"""What a network's output means: the one table that converts it to and from x0.

With a = alpha(t), s = sigma(t), noise = (x_t - a x0) / s and d = sigma_data (the standard deviation of the data):

  x0        the clean image
  epsilon   the noise                      x0 = (x_t - s epsilon) / a            [Ho et al. 2020, eq. 11]
  v         a noise - s x0                 x0 = (a x_t - s v) / (a^2 + s^2)      [Salimans & Ho 2022, app. D]
  score     -noise / s                     x0 = (x_t + s^2 score) / a            [Tweedie]
  edm       F of EDM's preconditioning     x0 = c_skip x_t + c_out F             [Karras et al. 2022, eq. 7]
            c_skip = a d^2 / (s^2 + a^2 d^2),  c_out = s d / sqrt(s^2 + a^2 d^2)

EDM states c_skip and c_out for x_t / a and the noise level s / a; written for x_t they hold for every schedule and
stay finite where a vanishes. The matching input scale, 1 / sqrt(s^2 + a^2 d^2), is in `diffusion/denoiser.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

Image = Float[Array, "..."]


@dataclass(frozen=True)
class Prediction:
    """Both directions of one row of the table. The arguments broadcast against the images.

    Attributes:
      to_x0: (output, x_t, alpha, sigma, sigma_data) -> x0.
      from_x0: (x0, x_t, alpha, sigma, sigma_data) -> output; the regression target of the network.
    """

    to_x0: Callable[..., Image]
    from_x0: Callable[..., Image]


def _edm_coefficients(a: Image, s: Image, d: float) -> tuple[Image, Image]:
    variance = s**2 + (a * d) ** 2
    return a * d**2 / variance, s * d / jnp.sqrt(variance)


def _edm_to_x0(output: Image, x_t: Image, a: Image, s: Image, d: float) -> Image:
    c_skip, c_out = _edm_coefficients(a, s, d)
    return c_skip * x_t + c_out * output


def _edm_from_x0(x0: Image, x_t: Image, a: Image, s: Image, d: float) -> Image:
    c_skip, c_out = _edm_coefficients(a, s, d)
    return (x0 - c_skip * x_t) / c_out


PREDICTIONS = {
    "x0": Prediction(
        to_x0=lambda output, x_t, a, s, d: output,
        from_x0=lambda x0, x_t, a, s, d: x0,
    ),
    "epsilon": Prediction(
        to_x0=lambda output, x_t, a, s, d: (x_t - s * output) / a,
        from_x0=lambda x0, x_t, a, s, d: (x_t - a * x0) / s,
    ),
    "v": Prediction(
        to_x0=lambda output, x_t, a, s, d: (a * x_t - s * output) / (a**2 + s**2),
        from_x0=lambda x0, x_t, a, s, d: (a * x_t - (a**2 + s**2) * x0) / s,
    ),
    "score": Prediction(
        to_x0=lambda output, x_t, a, s, d: (x_t + s**2 * output) / a,
        from_x0=lambda x0, x_t, a, s, d: (a * x0 - x_t) / s**2,
    ),
    "edm": Prediction(to_x0=_edm_to_x0, from_x0=_edm_from_x0),
}
