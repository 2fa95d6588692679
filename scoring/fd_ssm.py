"""Finite-difference sliced score matching [Pang et al. 2020, eq. 12; the paper of LCSS, eq. 7].

  1. x by the process at time t; u uniform on the unit sphere, s+- = s(x +- e u) with e = difference * sigma_t.
  2. T = d / (2 e) u'(s+ - s-)
  3. N = d / 8 (u'(s+ + s-))^2 for `fd_ssm`;   N = |s+ + s-|^2 / 8 for `fd_ssm_vr` (less variance).

It tends to SSM with a probe on the sphere as e -> 0, with a bias of order e^2, and never differentiates the network
twice; two evaluations, hence about twice the cost of DSM. The step follows the noise level, because a fixed one would
be lost in rounding at high noise and blur p_t at low noise.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffusion.base import Denoiser, Process, expand
from scoring.base import Metrics
from scoring.ssm import sphere
from scoring.terms import Terms, average, check_at_least_one, check_reduction, dot, draw, scaled_score, weighted_loss
from scoring.time_samplers import TimeSampler
from scoring.weightings import Weighting


@dataclass(frozen=True, kw_only=True)
class FDSSM:
    """Equations 1 to 3, averaged over `num_probes` directions.

    Attributes:
      difference: e / sigma_t.
      simulation_steps: of a process without a kernel.
    """

    weighting: Weighting
    time_sampler: TimeSampler
    reduction: str = "mean"
    difference: float = 0.1
    num_probes: int = 1
    simulation_steps: int = 256

    def __post_init__(self) -> None:
        check_reduction(self.reduction)
        check_at_least_one(num_probes=self.num_probes, simulation_steps=self.simulation_steps)
        if self.difference <= 0:
            raise ValueError(f"difference = {self.difference} must be positive")

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
        x, noise = draw(process, x0, t, key_noise, self.simulation_steps)
        r, e, size = scaled_score(denoise, process, t, label), self.difference, x0[0].size

        def one(key: Key[Array, ""]) -> Terms:
            u = sphere(key, x.shape) / jnp.sqrt(float(size))
            shift = e * expand(process.sigma(t), x) * u
            plus, minus = r(x + shift), r(x - shift)  # (1)
            return Terms(size / (2 * e) * dot(u, plus - minus), self.norm(plus + minus, u))  # (2), (3)

        terms = average(one, key_probe, self.num_probes)._replace(noise=noise)
        return weighted_loss(terms, self.weighting, process, t, dimension=size, reduction=self.reduction)

    def norm(self, total: Float[Array, "batch *shape"], u: Float[Array, "batch *shape"]) -> Float[Array, " batch"]:
        return total[0].size / 8 * jnp.square(dot(u, total))


class FDSSMVR(FDSSM):
    """FD-SSM with the norm taken exactly."""

    def norm(self, total: Float[Array, "batch *shape"], u: Float[Array, "batch *shape"]) -> Float[Array, " batch"]:
        return dot(total, total) / 8
