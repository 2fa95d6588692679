"""Simulation of a process: Euler-Maruyama from data to x_t, for processes whose kernel nobody knows.

With K equal steps of dt = (t - start) / K, one time t per sample, f the drift and g the diffusion:

  1. Euler:  x_{k+1} = x_k + dt f(x_k, t_k) + g(t_k) sqrt(dt) z_k
  2. Tamed:  x_{k+1} = x_k + dt f / (1 + dt |f|) + g(t_k) sqrt(dt) z_k, coordinate by coordinate: a drift that grows
             faster than linearly cannot throw x to infinity [Hutzenthaler, Jentzen & Kloeden 2012].

Given x_{K-1}, the last step is Gaussian with covariance g^2 dt, so E[-z_K / (g sqrt(dt)) | x_K] is exactly the score of
the simulated x_K, whatever the drift [Vincent 2011, for one step instead of the whole way].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion.base import Process, expand, has_kernel

METHODS = ("euler", "tamed")


class Path(NamedTuple):
    """The end of a simulated path.

    Attributes:
      x: [B, ...] x_K, at time t.
      before: [B, ...] x_{K-1}.
      noise: [B, ...] z_K, the standard normal draw of the last step.
      step: [B] dt.
    """

    x: Float[Array, "batch *shape"]
    before: Float[Array, "batch *shape"]
    noise: Float[Array, "batch *shape"]
    step: Float[Array, " batch"]


def simulate(
    process: Process,
    x: Float[Array, "batch *shape"],
    t: Float[Array, " batch"],
    key: Key[Array, ""],
    *,
    steps: int,
    method: str = "euler",
    start: float | None = None,
) -> Path:
    """x_t of each sample, without gradient. Only `drift` and `diffusion` are asked of the process.

    Args:
      process: any.
      x: data at time `start`.
      t: one time per sample, at least `start`.
      key: of all noise; that of step k is folded from (key, k).
      steps: K; K times the largest |df/dx| dt should not be much above a tenth.
      method: "euler" (1) or "tamed" (2).
      start: the time of the data; None for the process's time_min.

    Raises:
      ValueError: for a method that does not exist or less than one step.
    """
    if method not in METHODS:
        raise ValueError(f"method = '{method}' is not known; choose from {', '.join(METHODS)}")
    if steps < 1:
        raise ValueError(f"steps = {steps} must be at least 1")
    first = process.time_min if start is None else start
    x = x.astype(jnp.float32)
    step = (t.astype(jnp.float32) - first) / steps
    dt = expand(step, x)

    def advance(path: tuple[Array, Array, Array], index: Array) -> tuple[tuple[Array, Array, Array], None]:
        before = path[0]
        now = first + index * step
        noise = jax.random.normal(jax.random.fold_in(key, index), x.shape)
        drift = process.drift(before, now)
        if method == "tamed":
            drift = drift / (1 + dt * jnp.abs(drift))
        spread = expand(process.diffusion(now) * jnp.sqrt(step), x)
        return (before + dt * drift + spread * noise, before, noise), None

    (end, before, noise), _ = jax.lax.scan(advance, (x, x, jnp.zeros_like(x)), jnp.arange(steps))
    return jax.lax.stop_gradient(Path(end, before, noise, step))


def draw(
    process: Process, x0: Float[Array, "batch *shape"], t: Float[Array, " batch"], key: Key[Array, ""], steps: int
) -> tuple[Float[Array, "batch *shape"], Float[Array, "batch *shape"] | None]:
    """x_t of each datum, for any process.

    Returns:
      (x_t, the standard normal draw in it) by the kernel; where there is none, (x_t after `steps` steps, None).
    """
    if not has_kernel(process):
        return process.simulate(x0, t, key, steps).x, None
    noise = jax.random.normal(key, x0.shape)
    return process.corrupt(x0, noise, t), noise
