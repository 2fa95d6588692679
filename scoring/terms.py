"""What the objectives that need no kernel have in common: one loss of two terms [Hyvarinen 2005].

  1. L(x) = T + N,   T an estimate of tr ds/dx,  N one of |s|^2 / 2;   E_p[L] is least where s = grad log p_t.
  2. In units of the process: r = sigma_t s = (alpha x0_hat - x) / sigma_t, which is minus the predicted noise and of
     order one at every t, so that nothing is divided by a small number:   sigma^2 L = sigma^2 T + |r|^2 / 2.
  3. loss = mean over the batch of f w(t) / snr(t) * sigma^2 L,   w a weighting of the squared error of x0_hat
     (`scoring/weightings.py`).   f = 2 / d for "mean", which makes it, up to a constant, DSM's mean squared error over
     the d coordinates; f = 1 for "sum", the loss as score-matching papers write it.
  4. T + 2 N = 0 at the minimum, since scaling s must not help. It is logged as `balance`.
  5. If x = c + b z with c data and z ~ N(0, I):  DSM = L + |z|^2 / (2 b^2) in expectation (per sample for LCSS).
     Logged as `dsm_equivalent`, it makes the curves of all objectives comparable.

L is unbounded below as a value and negative at the minimum: nothing may test "loss > 0".
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffusion.base import Denoiser, Process, expand
from diffusion.simulation import draw
from scoring.base import Metrics
from scoring.time_samplers import TimeSampler
from scoring.weightings import Weighting

REDUCTIONS = ("mean", "sum")
ScaledScore = Callable[[Float[Array, "batch *shape"]], Float[Array, "batch *shape"]]


class Terms(NamedTuple):
    """sigma^2 times the parts of equation 1, per example.

    Attributes:
      trace: sigma^2 T.
      norm: sigma^2 N.
      noise: sigma^2 |z|^2 / (2 b^2) of equation 5; None where x was not made by adding noise.
    """

    trace: Float[Array, " batch"]
    norm: Float[Array, " batch"]
    noise: Float[Array, " batch"] | None = None


def check_reduction(reduction: str) -> None:
    """Raises ValueError for an unknown name."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction = '{reduction}' is not known; choose from {', '.join(REDUCTIONS)}")


def dot(a: Float[Array, "batch *shape"], b: Float[Array, "batch *shape"]) -> Float[Array, " batch"]:
    """Sum over all coordinates of each example, in float32 at least."""
    products = (a * b).reshape(len(a), -1)
    return jnp.sum(products.astype(jnp.promote_types(products.dtype, jnp.float32)), axis=-1)


def half_square(z: Float[Array, "batch *shape"] | None) -> Float[Array, " batch"] | None:
    """|z|^2 / 2 of each example, None of None."""
    return None if z is None else 0.5 * dot(z, z)


def scaled_score(
    denoise: Denoiser, process: Process, t: Float[Array, " batch"], label: Int[Array, " batch"] | None
) -> ScaledScore:
    """x -> r(x) of equation 2, at fixed times and labels."""
    alpha, sigma = process.alpha(t), process.sigma(t)

    def r(x: Float[Array, "batch *shape"]) -> Float[Array, "batch *shape"]:
        return (expand(alpha, x) * denoise(x, t, label) - x) / expand(sigma, x)

    return r


def average(one: Callable[[Key[Array, ""]], Terms], key: Key[Array, ""], count: int) -> Terms:
    """The mean of `count` independent estimates; a single one is made with `key` itself."""
    if count == 1:
        return one(key)
    return jax.tree.map(lambda term: term.mean(axis=0), jax.vmap(one)(jax.random.split(key, count)))


def weighted_loss(
    terms: Terms, weighting: Weighting, process: Process, t: Float[Array, " batch"], *, dimension: int, reduction: str
) -> tuple[Float[Array, ""], Metrics]:
    """Equation 3, and the metrics of equations 4 and 5.

    Args:
      terms: per example.
      weighting: w(t).
      process, t: as the terms.
      dimension: d, coordinates of an example.
      reduction: a name of REDUCTIONS.
    """
    factor = 2 / dimension if reduction == "mean" else 1.0
    weight = factor * weighting(process, t) * jnp.exp(-process.logsnr(t))
    loss, trace, norm = (jnp.mean(weight * term) for term in (terms.trace + terms.norm, terms.trace, terms.norm))
    metrics = {"loss": loss, "trace": trace, "norm": norm, "balance": trace + 2 * norm}
    if terms.noise is not None:
        metrics["dsm_equivalent"] = loss + jnp.mean(weight * terms.noise)
    return loss, metrics


@dataclass(frozen=True, kw_only=True)
class TraceObjective:
    """An objective of two terms. Its kinds say in `terms` where x is and how T and N are estimated.

    Attributes:
      weighting, time_sampler: w(t), and which times are drawn.
      reduction: a name of REDUCTIONS.
      simulation_steps: to x_t, of a process without a kernel.
    """

    weighting: Weighting
    time_sampler: TimeSampler
    reduction: str = "mean"
    simulation_steps: int = 256

    def __post_init__(self) -> None:
        """Raises ValueError for an unknown reduction, or a count below 1 (all fields of type int are counts)."""
        check_reduction(self.reduction)
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{field.name} = {value} must be at least 1")

    def __call__(
        self,
        denoise: Denoiser,
        process: Process,
        x0: Float[Array, "batch *shape"],
        label: Int[Array, " batch"] | None,
        key: Key[Array, ""],
    ) -> tuple[Float[Array, ""], Metrics]:
        """Equation 3; the key is used as DSM uses its own, so that both see the same draws."""
        key_time, key_draw = jax.random.split(key)
        t = self.time_sampler(process, key_time, len(x0))
        terms = self.terms(scaled_score(denoise, process, t, label), process, x0, t, key_draw)
        return weighted_loss(terms, self.weighting, process, t, dimension=x0[0].size, reduction=self.reduction)

    def terms(
        self, r: ScaledScore, process: Process, x0: Float[Array, "batch *shape"], t: Float[Array, " batch"],
        key: Key[Array, ""],
    ) -> Terms:
        """The estimates at points made of x0 [B, ...] at times t [B]; r: equation 2 at these times."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class ProbeObjective(TraceObjective):
    """x by the process; T and N by random probes of the network there, averaged over `num_probes` of them."""

    num_probes: int = 1

    def terms(
        self, r: ScaledScore, process: Process, x0: Float[Array, "batch *shape"], t: Float[Array, " batch"],
        key: Key[Array, ""],
    ) -> Terms:
        key_x, key_probe = jax.random.split(key)
        x, z = draw(process, x0, t, key_x, self.simulation_steps)
        terms = average(lambda key: self.probed(r, x, expand(process.sigma(t), x), key), key_probe, self.num_probes)
        return terms._replace(noise=half_square(z))

    def probed(
        self, r: ScaledScore, x: Float[Array, "batch *shape"], sigma: Float[Array, "batch ..."], key: Key[Array, ""]
    ) -> Terms:
        """One estimate at x, with sigma broadcasting against it."""
        raise NotImplementedError
