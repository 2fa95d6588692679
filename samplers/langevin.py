"""Langevin Monte Carlo: a density that stands still, given its score alone; and annealed, down the levels of a process.

  1. Overdamped, "lmc":    x_{k+1} = x_k + h score(x_k) + sqrt(2 h) z_k
  2. Underdamped, "ulmc":  position and velocity, with friction (`samplers/linear_dynamics.py`, equation 2)
  3. Either with each step the Poisson midpoint imitation of K micro steps of length h / K (`samplers/midpoint.py`).
  4. As a sampler h is in units of sigma(t)^2, the noise in x_t: the curvature of log p_t is at most 1 / sigma^2 for any
     data, so that the limit of stability is the same everywhere, 2 for equation 1. It moves u = x / sigma.
  5. Annealed [Song & Ermon 2019, algorithm 1]: at each of `steps` times of a grid `steps_per_level` steps; x / alpha is
     kept from level to level; at last x0_hat.

Bias of equation 1 on a Gaussian: the variance is too large by the factor 1 / (1 - a / 2), a = h times the precision; of
its midpoint form of large K, 1 + a^2 / 3 (mode bernoulli) and 1 + a^3 / 6 (single). Stochastic; one network call a step
for K = 1, else about two.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Float, Int, Key

from diffusion.base import Denoiser, Process, network_calls
from diffusion.random import image_noise, image_stream
from samplers.base import Samples
from samplers.linear_dynamics import LinearDynamics, overdamped, step_limit, underdamped
from samplers.midpoint import Walk, check_mode, random_offsets, walk, weights
from samplers.time_grids import check_grid, make_grid

Score = Callable[[Float[Array, "batch *shape"]], Float[Array, "batch *shape"]]


def langevin(
    score: Score,
    x: Float[Array, "batch *shape"],
    keys: Key[Array, " batch"],
    *,
    steps: int,
    step_size: float,
    micro_steps: int = 1,
    mode: str = "single",
    friction: float | None = None,
    keep_steps: bool = False,
) -> Samples:
    """Equations 1 to 3 on any density.

    Args:
      score: grad log p, for positions [B, ...].
      x: [B, ...] where the chains start; velocities start as standard normal draws.
      keys: [B] one per chain.
      steps: macro steps.
      step_size: h, in the units of x squared (overdamped) or of x (underdamped); at most 2 over the largest curvature
        of log p, or less for micro_steps > 1.
      micro_steps: K; 1 is plain Langevin Monte Carlo.
      mode: of the midpoints, a name of MODES.
      friction: None for the overdamped dynamics.
      keep_steps: also return the positions at the start of every step, in `x0_steps`.

    Returns:
      The positions at the end as `x0`, and the calls of the score as `nfe`. Outside of jit there is one call more, to
      look at the start.

    Raises:
      ValueError: for an option out of range, or a score that is not finite at the start (when not traced).
    """
    _check(steps=steps, micro_steps=micro_steps, step_size=step_size)
    check_mode(mode)
    if not isinstance(x, jax.core.Tracer):
        bad = ~jnp.isfinite(score(x))
        if bool(bad.any()):
            raise ValueError(f"score is not finite at {int(bad.sum())} of the {bad.size} coordinates of the start x")

    def evaluate(x: Array, m: Array, tau: Array) -> tuple[Array, Array]:
        return score(x[:, 0]), jnp.ones(len(x), jnp.int32)

    dynamics = _dynamics(step_size, micro_steps, steps, friction)
    result = _walk(dynamics, evaluate, _with_velocity(x, keys, friction), keys, mode, keep_steps)
    states = None if result.states is None else result.states[:, :, 0]
    return Samples(result.x[:, 0], result.nfe, states)


@dataclass(frozen=True, kw_only=True)
class Langevin:
    """Equations 1 and 3 to 5.

    Attributes:
      steps: of a density that stands still; levels of a process that moves.
      step_size: h in units of sigma(t)^2.
      steps_per_level: of a process that moves.
      micro_steps, mode: K, and how midpoints are chosen.
      start: a density that stands still is started from uniformly on [-start, start].
      grid: of the levels.
    """

    steps: int = 1000
    step_size: float = 0.4
    steps_per_level: int = 5
    micro_steps: int = 1
    mode: str = "single"
    start: float = 1.0
    grid: str = "uniform"

    def __post_init__(self) -> None:
        check_grid(self.grid, self.steps)
        check_mode(self.mode)
        _check(step_size=self.step_size, steps_per_level=self.steps_per_level, micro_steps=self.micro_steps,
               start=self.start)
        limit = step_limit(lambda step_size: _dynamics(step_size, self.micro_steps, 1, self._friction()), self.mode)
        if self.step_size >= limit:
            logging.warning("step_size = %g is beyond the limit of stability, %.3g: the chain diverges where the "
                            "density is as narrow as the noise", self.step_size, limit)

    def _friction(self) -> float | None:
        return None

    def sample(
        self,
        denoise: Denoiser,
        process: Process,
        keys: Key[Array, " batch"],
        label: Int[Array, " batch"] | None,
        *,
        shape: tuple[int, ...],
        keep_steps: bool = False,
    ) -> Samples:
        """With `keep_steps`, x0_hat at the last step of every level (of a density that stands still: at every step)."""
        still = process.diffusion(np.float64(process.time_max)) == 0
        grid = make_grid(process, self.grid, 1 if still else self.steps)
        alpha, sigma = grid.alpha[: len(grid.t)], grid.sigma[: len(grid.t)]
        inner = self.steps if still else self.steps_per_level
        dynamics = _dynamics(self.step_size, self.micro_steps, inner, self._friction())
        x = _uniform(keys, shape, self.start) if still else process.prior(keys, shape)
        rows = {
            "t": grid.t, "alpha": alpha, "sigma": sigma, "index": np.arange(len(grid.t)),
            # u = x / sigma of the next level, with x / alpha kept.
            "rescale": np.append(alpha[1:] * sigma[:-1] / (sigma[1:] * alpha[:-1]), 1.0),
        }  # fmt: skip
        rows = {name: jnp.asarray(table, jnp.int32 if name == "index" else jnp.float32) for name, table in rows.items()}

        def level(carry: Any, row: dict[str, Array]) -> Any:
            state, nfe = carry
            t = jnp.full(len(keys), row["t"])

            def evaluate(state: Array, m: Array, tau: Array) -> tuple[Array, Array]:
                u = state[:, 0]
                x0_hat = denoise(row["sigma"] * u, t, label)
                return row["alpha"] / row["sigma"] * x0_hat - u, network_calls(denoise, t, label)  # (4) sigma score

            level_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, row["index"] + 1)
            result = _walk(dynamics, evaluate, state, level_keys, self.mode, keep_steps)
            kept = None
            if keep_steps:
                u = result.states[:, :, 0]
                kept = (u + result.quantities) * row["sigma"] / row["alpha"]
            state = result.x.at[:, 0].multiply(row["rescale"])  # (5)
            return (state, nfe + result.nfe), kept

        state = _with_velocity(x / sigma[0], keys, self._friction())
        (state, nfe), kept = jax.lax.scan(level, (state, jnp.zeros(len(keys), jnp.int32)), rows)
        x = rows["sigma"][-1] * state[:, 0]
        if still:
            times = jnp.full(inner, rows["t"][0])
            return Samples(x, nfe, kept[0], times) if keep_steps else Samples(x, nfe)
        t = jnp.full(len(keys), rows["t"][-1])
        x0_hat, nfe = denoise(x, t, label), nfe + network_calls(denoise, t, label)
        return Samples(x0_hat, nfe, kept[:, -1], rows["t"]) if keep_steps else Samples(x0_hat, nfe)


@dataclass(frozen=True, kw_only=True)
class UnderdampedLangevin(Langevin):
    """Equation 2 in place of 1: `step_size` in units of sigma, and `friction` in units of 1 / sigma, positive."""

    step_size: float = 0.5
    friction: float = 2.0

    def __post_init__(self) -> None:
        _check(friction=self.friction)
        super().__post_init__()

    def _friction(self) -> float:
        return self.friction


def _dynamics(step_size: float, micro_steps: int, steps: int, friction: float | None) -> LinearDynamics:
    if friction is None:
        return overdamped(step_size, micro_steps, steps)
    return underdamped(step_size, micro_steps, steps, friction)


def _walk(
    dynamics: LinearDynamics, evaluate: Callable[..., Any], state: Array, keys: Key[Array, " batch"], mode: str,
    keep: bool,
) -> Walk:
    return walk(dynamics, evaluate, state, weight=weights(mode, dynamics.micro_steps), keep=keep,
                offsets=random_offsets(mode, keys, dynamics.micro_steps),
                normal=lambda count: image_noise(keys, count + 1, state.shape[1:]).astype(state.dtype))


def _with_velocity(x: Array, keys: Key[Array, " batch"], friction: float | None) -> Array:
    """[B, 1, ...] or [B, 2, ...]: the position, and if there is friction a velocity."""
    if friction is None:
        return x[:, None]
    velocity = image_noise(image_stream(keys, "velocity"), 0, x.shape[1:])
    return jnp.stack([x, velocity.astype(x.dtype)], axis=1)


def _uniform(keys: Key[Array, " batch"], shape: tuple[int, ...], half_width: float) -> Float[Array, "batch *shape"]:
    return jax.vmap(
        lambda key: jax.random.uniform(jax.random.fold_in(key, 0), shape, minval=-half_width, maxval=half_width)
    )(keys)


def _check(**positive: int | float) -> None:
    """Raises ValueError naming an option that is not positive."""
    for name, value in positive.items():
        if not value > 0:
            raise ValueError(f"{name} = {value} must be positive")
