"""How far a learnt score is from the exact one.

  relative Fisher error at t = E |s(x_t, t) - s*(x_t, t)|^2 / E |s*(x_t, t)|^2,   x_t ~ p_t,                        (1)

s the score that a denoiser stands for, s* = grad log p_t. 0 is exact, 1 what no network at all would get (s = 0). The
expectation is over fresh draws of x_t: held-out data that the process has noised, or simulated to t where it has no
kernel.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion.base import Denoiser, Process
from diffusion.denoiser import score
from diffusion.simulation import draw

# Euler steps to x_t where there is no kernel: so many that the simulated marginal is the exact one to within the spread
# of 10,000 points, also where the drift's rate is highest.
SIMULATION_STEPS = 1000


def noised(
    process: Process, x0: Float[Array, "batch *shape"], t: float | Float[Array, ""], key: Key[Array, ""]
) -> tuple[Float[Array, "batch *shape"], Float[Array, " batch"]]:
    """(draws of x_t given x0, t of each), a function of the key alone. `t` lies in [time_min, time_max]."""
    times = jnp.full(len(x0), t, jnp.float32)
    return draw(process, x0, times, key, SIMULATION_STEPS)[0], times


def relative_fisher_error(
    denoise: Denoiser,
    exact: Denoiser,
    process: Process,
    x_t: Float[Array, "batch *shape"],
    t: Float[Array, " batch"],
    label: Int[Array, " batch"] | None = None,
) -> float:
    """Equation 1 over the points x_t; at several times, of the sums over all of them.

    Args:
      denoise: what was learnt.
      exact: the posterior mean (evaluation/exact.py).
      process: gives the scales of both.
      x_t, t: draws of p_t.
      label: of each point, for densities of classes.
    """
    learnt, true = (np.asarray(score(each, process, x_t, t, label), np.float64) for each in (denoise, exact))
    return float(((learnt - true) ** 2).sum() / (true**2).sum())
