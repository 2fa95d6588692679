"""Sliced score matching [Song, Garg, Shi & Ermon 2019, eq. 7 and 8].

  1. x by the process at time t; a probe v with E[v v'] = I: `rademacher`, `gaussian`, or `sphere` of radius sqrt(d).
  2. T = v' ds/dx v by one forward-mode product.
  3. N = (v's)^2 / 2 for `ssm`;   N = |s|^2 / 2, its mean over v, for `ssm_vr` (less variance).

Both are unbiased for the loss of ISM, so the minimiser is grad log p_t. They differentiate the network twice, at about
twice the cost of DSM, and carry the variance of Hutchinson's estimate, up to |ds/dx|_F for one probe.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion.base import expand
from scoring.terms import ProbeObjective, ScaledScore, Terms, dot, half_square


def rademacher(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "batch *shape"]:
    return jax.random.rademacher(key, shape, jnp.float32)


def gaussian(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "batch *shape"]:
    return jax.random.normal(key, shape)


def sphere(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "batch *shape"]:
    """Uniform on the sphere of radius sqrt(d) in the d coordinates of each example."""
    direction = jax.random.normal(key, shape)
    norm = jnp.sqrt(dot(direction, direction) / direction[0].size)
    return direction / expand(norm, direction)


PROBES = {"rademacher": rademacher, "gaussian": gaussian, "sphere": sphere}


@dataclass(frozen=True, kw_only=True)
class SSM(ProbeObjective):
    """Equations 1 to 3; `probe` is a name of PROBES."""

    probe: str = "rademacher"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.probe not in PROBES:
            raise ValueError(f"probe = '{self.probe}' is not known; choose from {', '.join(PROBES)}")

    def probed(
        self, r: ScaledScore, x: Float[Array, "batch *shape"], sigma: Float[Array, "batch ..."], key: Key[Array, ""]
    ) -> Terms:
        v = PROBES[self.probe](key, x.shape)
        output, product = jax.jvp(r, (x,), (sigma * v,))
        return Terms(dot(v, product), self.norm(output, v))  # (2), (3)

    def norm(self, output: Float[Array, "batch *shape"], v: Float[Array, "batch *shape"]) -> Float[Array, " batch"]:
        return 0.5 * jnp.square(dot(v, output))


class SSMVR(SSM):
    """SSM with the norm taken exactly."""

    def norm(self, output: Float[Array, "batch *shape"], v: Float[Array, "batch *shape"]) -> Float[Array, " batch"]:
        return half_square(output)
