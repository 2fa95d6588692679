"""Closed-form denoisers of densities in the plane that are no mixtures of Gaussians: boxes and rings.

With a = alpha(t), s = sigma(t), x = x_t, phi and Q the standard normal density and upper tail:

  1. Uniform on a box prod_i [l_i, h_i], u_i = (a l_i - x_i) / s, v_i = (a h_i - x_i) / s:
       p_t(x) = prod_i (Q(u_i) - Q(v_i)) / (a (h_i - l_i)),
       E[x0_i | x] = (x_i + s m_i) / a,  m_i = (phi(u_i) - phi(v_i)) / (Q(u_i) - Q(v_i)).
     Where the interval lies left of x it is reflected, so that tails are always upper ones; with the hazard
     h = phi / Q, and e = exp((u^2 - v^2) / 2), r = Q(v) / Q(u) = e h(u) / h(v):
       log (Q(u) - Q(v)) = log Q(u) + log(1 - r),  m = h(u) (1 - e) / (1 - r).
     Where v - u and v^2 - u^2 are small these lose digits: there both integrals are done by Gauss-Legendre quadrature.
  2. Ring: x0 = r (cos w, sin w), r ~ N(R, c^2), w uniform. The integral over w is a Bessel function of
     z = a r |x| / s^2, and |x - a r|^2 joins the Gaussian of r: with S^2 = s^2 + a^2 c^2,
       p_t(x) = N(|x|; a R, S^2) E[exp(-z) I0(z)] / (sqrt(2 pi) s),
       E[x0 | x] = x / |x| E[exp(-z) I1(z) r] / E[exp(-z) I0(z)],  r ~ N((s^2 R + a c^2 |x|) / S^2, s^2 c^2 / S^2),
     both expectations by Gauss-Hermite quadrature: what is averaged is smooth at every s.
  3. Several boxes or rings: the average of their E[x0 | x], weighted by their p_t(x), as in `diffusion/exact.py`.
"""

from dataclasses import dataclass
from math import log, pi

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import i0e, i1e, log_ndtr
from jaxtyping import Array, Float, Int

from diffusion.exact import class_weights
from diffusion.process import GaussianProcess

_LEGENDRE = np.polynomial.legendre.leggauss(12)
_HERMITE = np.polynomial.hermite_e.hermegauss(16)


@dataclass(frozen=True, eq=False)
class ExactBoxes:
    """Equation 1: uniform on boxes that do not overlap, each as likely as the others. Labels are ignored.

    Attributes:
      process: the noising process.
      low: [K, d] the lower corners.
      sides: [d] the sides of every box.
    """

    process: GaussianProcess
    low: Float[Array, "k d"]
    sides: Float[Array, " d"]

    def __call__(
        self, x_t: Float[Array, "batch d"], t: Float[Array, " batch"], label: Int[Array, " batch"] | None = None
    ) -> Float[Array, "batch d"]:
        a, s = self.process.alpha(t)[:, None, None], self.process.sigma(t)[:, None, None]
        half = a * self.sides / (2 * s)
        middle = self.low + self.sides / 2
        centre = (a * middle - x_t[:, None, :]) / s
        log_mass, deviation = _interval(jnp.abs(centre), jnp.broadcast_to(half, centre.shape))
        weights = jax.nn.softmax(log_mass.sum(-1), axis=-1)[..., None]
        return jnp.sum(weights * (middle + s / a * jnp.sign(centre) * deviation), axis=1)


def _interval(centre: Float[Array, "*n"], half: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """(log P(y in I), E[y | y in I] - centre) of y ~ N(0, 1) and I = [centre - half, centre + half], centre >= 0."""
    narrow = (half < 0.5) & (centre * half < 1)
    u, v = centre - half, centre + half
    log_tail, hazard = _tail(u)
    e = jnp.where(narrow, 0.5, jnp.exp(-2 * centre * half))  # exp((u^2 - v^2) / 2)
    r = jnp.where(narrow, 0.5, e * hazard / _tail(v)[1])
    wide = log_tail + jnp.log1p(-r), hazard * (1 - e) / (1 - r) - centre

    centre, half = jnp.where(narrow, centre, 0), jnp.where(narrow, half, 0.5)
    nodes, weights = (jnp.asarray(values, jnp.float32) for values in _LEGENDRE)
    offset = half[..., None] * nodes
    density = weights * jnp.exp(-offset * (centre[..., None] + offset / 2))  # phi(centre + offset) / phi(centre)
    total = density.sum(-1)
    log_mass = jnp.log(half * total) - centre**2 / 2 - 0.5 * log(2 * pi)
    quadrature = log_mass, jnp.sum(density * offset, axis=-1) / total
    return tuple(jnp.where(narrow, one, other) for one, other in zip(quadrature, wide))


def _tail(u: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """(log Q(u), hazard phi(u) / Q(u)).

    From u = 3 on the hazard is Laplace's continued fraction u + 1 / (u + 2 / (u + 3 / ...)): there the difference of
    logarithms cancels, and jax.scipy.special.erfcx in float32 vanishes for arguments between 9.19 and 9.42.
    """
    far = hazard = jnp.maximum(u, 3)
    for k in range(12, 0, -1):
        hazard = far + k / hazard
    near = log_ndtr(-jnp.minimum(u, 3))
    log_density = -0.5 * u**2 - 0.5 * log(2 * pi)
    return (
        jnp.where(u > 3, log_density - jnp.log(hazard), near),
        jnp.where(u > 3, hazard, jnp.exp(log_density - near)),
    )


@dataclass(frozen=True, eq=False)
class ExactRings:
    """Equation 2: concentric rings, each as likely as the others; label k restricts to ring k, any other to nothing.

    Attributes:
      process: the noising process.
      radii: [K], each several times the spread.
      spread: standard deviation of the radius, c.
    """

    process: GaussianProcess
    radii: Float[Array, " k"]
    spread: float

    def __call__(
        self, x_t: Float[Array, "batch 2"], t: Float[Array, " batch"], label: Int[Array, " batch"] | None = None
    ) -> Float[Array, "batch 2"]:
        a, s = self.process.alpha(t)[:, None], self.process.sigma(t)[:, None]
        distance = jnp.linalg.norm(x_t, axis=-1, keepdims=True)
        variance = s**2 + (a * self.spread) ** 2
        mean = (s**2 * self.radii + a * self.spread**2 * distance) / variance
        nodes, weights = (jnp.asarray(values, jnp.float32) for values in _HERMITE)
        radius = mean[..., None] + (s * self.spread / jnp.sqrt(variance))[..., None] * nodes
        z = (a * distance / s**2)[..., None] * radius
        evidence = jnp.sum(weights * i0e(z), axis=-1)
        inward = jnp.sum(weights * i1e(z) * radius, axis=-1) / evidence
        log_joint = jnp.log(evidence) - 0.5 * (distance - a * self.radii) ** 2 / variance
        uniform = jnp.full(len(self.radii), -jnp.log(float(len(self.radii))))
        log_joint += class_weights(uniform, jnp.arange(len(self.radii)), label)
        direction = x_t / jnp.maximum(distance, jnp.finfo(x_t.dtype).tiny)
        return jnp.sum(jax.nn.softmax(log_joint, axis=-1) * inward, axis=-1, keepdims=True) * direction
