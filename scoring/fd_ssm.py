"""Finite-difference sliced score matching [Pang et al. 2020, eq. 12; the paper of LCSS, eq. 7].

  1. x by the process at time t; u uniform on the unit sphere, s+- = s(x +- e u) with e = difference * sigma_t.
  2. T = d / (2 e) u'(s+ - s-)
  3. N = d / 8 (u'(s+ + s-))^2 for `fd_ssm`;   N = |s+ + s-|^2 / 8 for `fd_ssm_vr` (less variance).

It tends to SSM with a probe on the sphere as e -> 0, with a bias of order e^2, and never differentiates the network
twice; two evaluations, hence about twice the cost of DSM. The step follows the noise level, because a fixed one would
be lost in rounding at high noise and blur p_t at low noise.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from scoring.ssm import sphere
from scoring.terms import ProbeObjective, ScaledScore, Terms, dot


@dataclass(frozen=True, kw_only=True)
class FDSSM(ProbeObjective):
    """Equations 1 to 3; `difference` is e / sigma_t."""

    difference: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.difference <= 0:
            raise ValueError(f"difference = {self.difference} must be positive")

    def probed(
        self, r: ScaledScore, x: Float[Array, "batch *shape"], sigma: Float[Array, "batch ..."], key: Key[Array, ""]
    ) -> Terms:
        e, size = self.difference, x[0].size
        u = sphere(key, x.shape) / jnp.sqrt(float(size))
        plus, minus = r(x + e * sigma * u), r(x - e * sigma * u)  # (1)
        return Terms(size / (2 * e) * dot(u, plus - minus), self.norm(plus + minus, u))  # (2), (3)

    def norm(self, total: Float[Array, "batch *shape"], u: Float[Array, "batch *shape"]) -> Float[Array, " batch"]:
        return total[0].size / 8 * jnp.square(dot(u, total))


class FDSSMVR(FDSSM):
    """FD-SSM with the norm taken exactly."""

    def norm(self, total: Float[Array, "batch *shape"], u: Float[Array, "batch *shape"]) -> Float[Array, " batch"]:
        return dot(total, total) / 8
