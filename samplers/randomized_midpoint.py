"""The randomized midpoint method [Shen & Lee 2019] on the reverse SDE in data prediction, for any schedule.

With rho = exp(lambda) = alpha^2 / sigma^2 as the clock and y = alpha x / sigma^2 as the state, the reverse SDE is

  1. dy = x0_hat(x, t) drho + dw,

since q(y | x0) = N(rho x0, rho I) is a Brownian motion with drift x0. So the exact step from t to s < t is linear in
the mean of x0_hat over the interval, uniform in SNR:

  2. x_s = A x_t + B mean_{rho in [rho_t, rho_s]} x0_hat + C z,   A, B, C of q(x_s | x_t, x0) (`diffusion/process.py`).

Ancestral sampling puts x0_hat(x_t, t) in the place of the mean. Here it is x0_hat at one random time u, whose
expectation is the mean, with p uniform in (0, 1] for each image:

  3. rho_u = rho_t + p (rho_s - rho_t),  hence  rho_u / rho_s = m = r + p q,  r = exp(lambda_t - lambda_s),  q = 1 - r
  4. x_u = A' x_t + B' x0_hat(x_t, t) + C' z1:  the coefficients of q(x_u | x_t, x0), where 1 - rho_t / rho_u = p q / m,
         A' = r / m alpha_u / alpha_t,   B' = alpha_u p q / m,   C' = sigma_u sqrt(p q / m)
  5. x_s = A x_t + B x0_hat(x_u, u) + C (sqrt(p) z1 + sqrt(1 - p) z2)

The noise z1 of equation 4 is the first part of that of equation 5: w over [rho_t, rho_u], carried on. With an
independent draw there the order would be 1, and the error near that of ancestral sampling with as many steps. In the
last interval x = x0_hat.

Weak order 2, stochastic; 2 (steps - 1) + 1 network calls. For diffusion models: Gupta, Cai & Chen 2024 and Jiao & Li
2024 (in the probability-flow ODE), Zhang et al. 2025 (DDRaM, in the SDE, as here). It is the limit of the Poisson
midpoint method in mode `single0`, with x0_hat frozen, for infinitely many micro steps uniform in SNR
(`samplers/midpoint.py`).

The default grid is log-SNR: the step in y is stable where rho_s / rho_t is bounded, and on a uniform grid the last of
these ratios are large, so that details smaller than the noise there are lost.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion.base import Denoiser, Process, expand, require_kernel
from diffusion.random import image_noise, image_stream, image_uniform
from samplers.base import Samples, run_scan, scan_tables
from samplers.time_grids import check_grid, make_grid


def image_fractions(keys: Key[Array, " batch"], count: int) -> Float[Array, "count batch"]:
    """p of equation 3 in `count` intervals, uniform in (0, 1]: 0, where rho_u = rho_t, could be log 0."""
    stream = image_stream(keys, "midpoint")
    return 1 - jax.vmap(lambda index: image_uniform(stream, index))(jnp.arange(count))


@dataclass(frozen=True, kw_only=True)
class RandomizedMidpoint:
    """`steps` intervals on the grid `grid` (a name of TIME_GRIDS), 2 steps - 1 network calls.

    The times of the calls in between differ from image to image; `t_steps` has those of the mean SNR, p = 1/2.
    """

    steps: int = 50
    grid: str = "logsnr"

    def __post_init__(self) -> None:
        check_grid(self.grid, self.steps)

    def _rows(self, process: Process, p: Float[Array, "intervals batch"]) -> dict[str, Array]:
        """One row per network call, at the start of an interval, inside it, ..., and the last; [rows, B] each.

        A call moves x to a x + b x0_hat + c z + d base, and base to keep_x x + keep_z z.
        """
        grid = make_grid(process, self.grid, self.steps)
        lam = process.logsnr(grid.t)
        a, b, c = process.posterior(grid.t[1:], grid.t[:-1])
        # Everything that cancels is computed here in float64; in float32 there are only products and sums of what is
        # positive.
        table = scan_tables(
            t=grid.t[:-1], alpha=grid.alpha[:-2], lam_s=lam[1:], r=np.exp(-np.diff(lam)), q=-np.expm1(-np.diff(lam)),
            a=a, b=b, c=c,
        )  # fmt: skip
        table = {name: jnp.broadcast_to(column[:, None], p.shape) for name, column in table.items()}
        m = table["r"] + p * table["q"]  # (3)
        u = jnp.clip(process.time_of_logsnr(table["lam_s"] + jnp.log(m)), process.time_min, process.time_max)
        alpha_u, sigma_u, passed = process.alpha(u), process.sigma(u), p * table["q"] / m
        zero = jnp.zeros_like(p)
        first = {
            "t": table["t"], "a": table["r"] / m * alpha_u / table["alpha"], "b": alpha_u * passed,
            "c": sigma_u * jnp.sqrt(passed), "d": zero,  # (4)
            "keep_x": table["a"], "keep_z": table["c"] * jnp.sqrt(p),
        }  # fmt: skip
        second = {
            "t": u, "a": zero, "b": table["b"], "c": table["c"] * jnp.sqrt(1 - p), "d": zero + 1,  # (5)
            "keep_x": zero, "keep_z": zero,
        }  # fmt: skip
        last = {"t": grid.t[-1], "b": 1.0}
        rows = {}
        for name in first:
            pairs = jnp.stack([first[name], second[name]], axis=1).reshape(2 * len(p), p.shape[1])
            rows[name] = jnp.append(pairs, jnp.full((1, p.shape[1]), last.get(name, 0.0)), axis=0)
        return rows | {"index": jnp.arange(len(rows["t"]))}

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
        require_kernel(process, "the randomized midpoint sampler")
        rows = self._rows(process, image_fractions(keys, self.steps - 1))
        x = process.prior(keys, shape)

        def update(x: Float[Array, "batch *shape"], base: Array, x0_hat: Array, row: dict[str, Array]) -> Any:
            row = {name: column if column.ndim == 0 else expand(column, x) for name, column in row.items()}
            noise = image_noise(keys, row["index"] + 1, shape)
            moved = row["a"] * x + row["b"] * x0_hat + row["c"] * noise + row["d"] * base
            return moved, row["keep_x"] * x + row["keep_z"] * noise

        samples = run_scan(update, denoise, x, jnp.zeros_like(x), rows, label, keep_steps=keep_steps)
        if not keep_steps:
            return samples
        typical = self._rows(process, jnp.full((self.steps - 1, 1), 0.5))["t"][:, 0]
        return samples._replace(t_steps=typical)
