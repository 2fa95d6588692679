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
from jaxtyping import Array, Float, Int, Key

from diffusion.base import Denoiser, Process, expand
from scoring.base import Metrics
from scoring.terms import Terms, average, check_at_least_one, check_reduction, dot, draw, scaled_score, weighted_loss
from scoring.time_samplers import TimeSampler
from scoring.weightings import Weighting


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
class SSM:
    """Equations 1 to 3, averaged over `num_probes` probes; `simulation_steps` are of a process without a kernel."""

    weighting: Weighting
    time_sampler: TimeSampler
    reduction: str = "mean"
    probe: str = "rademacher"
    num_probes: int = 1
    simulation_steps: int = 256

    def __post_init__(self) -> None:
        check_reduction(self.reduction)
        check_at_least_one(num_probes=self.num_probes, simulation_steps=self.simulation_steps)
        if self.probe not in PROBES:
            raise ValueError(f"probe = '{self.probe}' is not known; choose from {', '.join(PROBES)}")

    def __call__(
        self,
        denoise: Denoiser,
        process: Process,
        x0: Float[Array, "batch *shape"],
        label: Int[Array, " batch"] | None,
        key: Key[Array, ""],
    ) -> tuple[Float[Array, ""], Metrics]:
        key_time, key_noise, key_probe = jax.random.split(key, 3)
        t = self.time_sampler(process, key_time, len(x0))
        x, noise = draw(process, x0, t, key_noise, self.simulation_steps)  # (1)
        r, sigma = scaled_score(denoise, process, t, label), expand(process.sigma(t), x)

        def one(key: Key[Array, ""]) -> Terms:
            v = PROBES[self.probe](key, x.shape)
            output, product = jax.jvp(r, (x,), (sigma * v,))
            return Terms(dot(v, product), self.norm(output, v))  # (2), (3)

        terms = average(one, key_probe, self.num_probes)._replace(noise=noise)
        return weighted_loss(terms, self.weighting, process, t, dimension=x0[0].size, reduction=self.reduction)

    def norm(self, output: Float[Array, "batch *shape"], v: Float[Array, "batch *shape"]) -> Float[Array, " batch"]:
        return 0.5 * jnp.square(dot(v, output))


class SSMVR(SSM):
    """SSM with the norm taken exactly."""

    def norm(self, output: Float[Array, "batch *shape"], v: Float[Array, "batch *shape"]) -> Float[Array, " batch"]:
        return 0.5 * dot(output, output)
