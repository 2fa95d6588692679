"""What the linear multistep samplers share: a step is a linear form in the state and the last outputs of the network.

  1. x_s = a x_t + sum_j w_j x0_hat_j + c z,  x0_hat_0 the output at t, x0_hat_1 the one before, and so on.

The coefficients do not depend on the state, so they are tables made on the host in float64. Before the first call there
are no outputs: their weights have to be 0.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion.base import Denoiser, Process, require_kernel
from diffusion.random import image_noise
from samplers.base import Samples, run_scan, scan_tables


class Tables(NamedTuple):
    """Attributes:
      t: [N] times of the calls.
      a: [N] coefficients of the state.
      weights: [N, K] of the output at t and of the K - 1 before it.
      noise: [N] c; no noise is drawn if all are 0.
    """

    t: np.ndarray
    a: np.ndarray
    weights: np.ndarray
    noise: np.ndarray


def half_logsnr_steps(process: Process, t: np.ndarray) -> np.ndarray:
    """[N - 1] h = l_s - l_t > 0 between N decreasing times, l = log(alpha / sigma).

    Raises:
      ValueError: where the noise level stands still, since a polynomial in l then has no nodes.
    """
    h = 0.5 * np.diff(process.logsnr(t))
    if not (h > 0).all():
        raise ValueError(
            f"a multistep sampler needs a noise level that falls at every step; that of {process} stands still. "
            "Choose another schedule (config.process.name), or name = 'ddim'"
        )
    return h


class Multistep:
    """What these samplers share; the tables are their own."""

    def tables(self, process: Process) -> Tables:
        """The coefficients on a process with a kernel."""
        raise NotImplementedError

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
        """Equation 1 from the prior on, one network call a step. Raises ValueError for a process without a kernel."""
        require_kernel(process, type(self).__name__)
        tables = self.tables(process)
        rows, stochastic = scan_tables(**tables._asdict()), bool(tables.noise.any())

        def update(
            x: Float[Array, "batch *shape"], earlier: tuple[Array, ...], x0_hat: Array, row: dict[str, Array]
        ) -> tuple[Array, tuple[Array, ...]]:
            outputs = (x0_hat, *earlier)
            x = row["a"] * x + sum(row["weights"][j] * output for j, output in enumerate(outputs))
            if stochastic:
                x = x + row["noise"] * image_noise(keys, row["index"] + 1, shape)
            return x, outputs[:-1]

        x = process.prior(keys, shape)
        earlier = (jnp.zeros_like(x),) * (tables.weights.shape[1] - 1)
        return run_scan(update, denoise, x, earlier, rows, label, keep_steps=keep_steps)
