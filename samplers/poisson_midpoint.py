"""The Poisson midpoint method for diffusion models [Kandasamy & Nagaraj 2024, appendix]: many fine steps in few calls.

A fine chain of N steps, x_s = A x_t + B x0_hat + C z from time to time of a grid, is imitated by macro steps of K of
its steps (`samplers/midpoint.py`). With h = log(alpha_s / alpha_t), beta = 1 - exp(-2 h) and C2 of the posterior:

  1. Variants 1, 1b, 1c, 1d: the reverse SDE of a variance-preserving process with frozen epsilon,
       x_s = e^h x_t - 2 (e^h - 1) / sigma_t epsilon + C z,  C^2 = beta / (1 + i beta) with i = -1, 0, 1, 2.
     (The source prints sigma_t^2; the root is what an epsilon prediction needs.)
  2. Variant 2: ancestral sampling, q(x_s | x_t, x0) of `diffusion/process.py` with C = C2.
  3. Variant 3: less noise, C = sigma_t C2, with DDIM's coefficients for this C, which keep the marginals
       x_s = alpha_s x0_hat + sqrt(sigma_s^2 - C^2) epsilon + C z.
     3printed: the same C with the A and B of variant 2. It loses variance at every step and is here to show that.
  4. In terms of a quantity q that is frozen over the macro step, with x0 = p x + r q (`diffusion/prediction.py`):
       x_s = (A + B p) x_t + (B r) q + C z.  epsilon is the source's; x0, v and score are ours.
  5. Macro steps end at the fine steps N - round(N (j / M)^spacing), j = M ... 0: equal ones for spacing = 1 as in the
     source, and with larger exponents finer ones near the data, where equal ones go wrong.

The defaults are ours, v and 2: at 40 calls the deviation of Gaussian data of 0.05 to 1 is then within 1 %, where the
source's epsilon and 1 are off by a factor of 9 at 0.05 (`docs/results.md`, row moments_grids). The preset `paper` of
`configs/samplers.py` has the source's.

Stochastic. Variants 2 and 3 end in x0_hat. NFE of M macro steps of K: at most 2 M for mode "single" (exactly, where all
K are at least 2) and "single0", M (2 - 1 / K) on average for "bernoulli".
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion.base import Denoiser, Process, expand, network_calls, require_kernel
from diffusion.prediction import PREDICTIONS
from diffusion.random import image_noise
from samplers.base import Samples
from samplers.midpoint import check_mode, random_offsets, walk, weights
from samplers.time_grids import Grid, check_grid, make_grid

COVARIANCES = {"1": -1, "1b": 0, "1c": 1, "1d": 2}  # i of equation 1
VARIANTS = (*COVARIANCES, "2", "3", "3printed")
FREEZES = ("epsilon", "x0", "v", "score")
PLANS = ("image", "batch")


def base_steps(grid: Grid, variant: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(A, B, C) of x_s = A x_t + B x0_hat + C z for each of the N steps of a grid, the last of which ends at the data.

    Raises:
      ValueError: variant 1 or 3 on a process that does not preserve variance.
    """
    if variant != "2" and np.abs(grid.alpha**2 + grid.sigma**2 - 1).max() > 1e-6:
        raise ValueError(f"variant = '{variant}' is of variance-preserving processes (alpha^2 + sigma^2 = 1); choose "
                         "variant 2, or config.process.name = vp_linear, cosine or discrete")
    alpha_t, alpha_s, sigma_t, sigma_s = grid.alpha[:-1], grid.alpha[1:], grid.sigma[:-1], grid.sigma[1:]
    if variant in COVARIANCES:
        h = np.log(alpha_s / alpha_t)
        beta = -np.expm1(-2 * h)
        b = -2 * np.expm1(h) / sigma_t
        a, c = np.exp(h), np.sqrt(beta / (1 + COVARIANCES[variant] * beta))
        return a + b / sigma_t, -b * alpha_t / sigma_t, c  # (1), epsilon = (x - alpha x0) / sigma
    r = (grid.level[1:] / grid.level[:-1]) ** 2
    with np.errstate(divide="ignore"):  # log 0 at the clean end
        one_minus_r = -np.expm1(2 * np.log(grid.level[1:] / grid.level[:-1]))
    a, b, c = r * alpha_s / alpha_t, alpha_s * one_minus_r, sigma_s * np.sqrt(one_minus_r)  # (2)
    if variant == "2":
        return a, b, c
    if variant == "3":
        a = np.sqrt(sigma_s**2 - (sigma_t * c) ** 2) / sigma_t
        b = alpha_s - a * alpha_t
    return a, b, sigma_t * c  # (3)


@dataclass(frozen=True, eq=False)
class ReverseSteps:
    """The fine chain in groups, as `samplers.midpoint.Dynamics`. Host tables of M macro steps of at most K micro steps.

    Attributes:
      micro_steps: [M].
      t: [M, K] time of the network's call at each micro step.
      decay, gain, spread: [M, K + 1] of equation 2 there: a_{0..i}, sum_{j < i} a_{j+1..i} b_j, deviation of N_i.
      effect: [M, K] a_{i+1..K} b_i.
    """

    micro_steps: np.ndarray
    t: np.ndarray
    decay: np.ndarray
    gain: np.ndarray
    spread: np.ndarray
    effect: np.ndarray

    def at(self, name: str, m: Array, tau: Array, like: Array) -> Array:
        """Entries [B, 1, ...] of a table, to multiply `like` with."""
        return expand(jnp.asarray(getattr(self, name), like.dtype)[m, tau], like)

    def mean(self, m: Array, tau: Array, x: Array, q: Array) -> Array:
        return self.at("decay", m, tau, x) * x + self.at("gain", m, tau, x) * q

    def noise(self, m: Array, tau: Array, target: Array, noise: Array, z: Array) -> Array:
        ratio = self.at("decay", m, target, z) / self.at("decay", m, tau, z)
        spread = self.at("spread", m, target, z)
        # Of N_target's standard deviation what is N_tau's. Where it is nothing, the fine step's own c is left exactly.
        old = ratio * self.at("spread", m, tau, z) / jnp.where(spread > 0, spread, 1)
        return ratio * noise + spread * jnp.sqrt(jnp.maximum(1 - old**2, 0)) * z

    def correction(self, m: Array, tau: Array, change: Array) -> Array:
        return self.at("effect", m, tau, change) * change


def reverse_steps(grid: Grid, boundaries: np.ndarray, variant: str, freeze: str) -> ReverseSteps:
    """The tables of a fine grid.

    Args:
      grid: of N steps.
      boundaries: [M + 1] from 0 to N, increasing: the fine steps at which macro steps begin and end.
      variant, freeze: names of VARIANTS and FREEZES.

    Raises:
      ValueError: as `base_steps`.
    """
    a, b, c = base_steps(grid, variant)
    to_x0 = PREDICTIONS[freeze].to_x0
    ends = grid.alpha[:-1], grid.sigma[:-1], None
    a, b = a + b * to_x0(0.0, 1.0, *ends), b * to_x0(1.0, 0.0, *ends)  # (4)
    sizes = np.diff(boundaries)
    macro_steps, most = len(sizes), sizes.max()
    index = boundaries[:-1, None] + np.arange(most)
    inside = np.arange(most) < sizes[:, None]
    index = np.minimum(index, len(a) - 1)
    a, b, c = np.where(inside, a[index], 1.0), np.where(inside, b[index], 0.0), np.where(inside, c[index], 0.0)
    decay, gain, variance = np.ones((macro_steps, most + 1)), *np.zeros((2, macro_steps, most + 1))
    for i in range(most):
        decay[:, i + 1] = a[:, i] * decay[:, i]
        gain[:, i + 1] = a[:, i] * gain[:, i] + b[:, i]
        variance[:, i + 1] = a[:, i] ** 2 * variance[:, i] + c[:, i] ** 2
    to_the_end = np.cumprod(np.append(a[:, 1:], np.ones((macro_steps, 1)), axis=1)[:, ::-1], axis=1)[:, ::-1]
    return ReverseSteps(sizes, grid.t[index], decay, gain, np.sqrt(variance), to_the_end * b)


def power_boundaries(fine_steps: int, steps: int, spacing: float) -> np.ndarray:
    """Equation 5. Ends that round to the same fine step are one: there may be fewer macro steps than `steps`."""
    left = np.round(fine_steps * (np.arange(steps, -1, -1) / steps) ** spacing).astype(int)
    return fine_steps - np.unique(left)[::-1]


@dataclass(frozen=True, kw_only=True)
class PoissonMidpoint:
    """`steps` macro steps, about 2 `steps` network calls.

    Attributes:
      fine_steps: N of the chain that is imitated, of the grid `grid` (a name of TIME_GRIDS).
      mode: a name of MODES; single0 and bernoulli suit many macro steps of few fine ones.
      variant, freeze: names of VARIANTS and FREEZES.
      spacing: at least 1; with 1, `steps` must divide `fine_steps`.
      boundaries: in place of `spacing`, the fine steps at which macro steps end, from 0 to `fine_steps`.
      plan: whether every image has its offsets drawn from its own key, or all of a batch share those of its first
        image: then images depend on their batch.
    """

    steps: int = 40
    fine_steps: int = 1000
    grid: str = "uniform"
    mode: str = "single"
    variant: str = "2"
    freeze: str = "v"
    spacing: float = 2.0
    boundaries: tuple[int, ...] = ()
    plan: str = "image"

    def __post_init__(self) -> None:
        check_grid(self.grid, self.steps)
        check_mode(self.mode)
        for name, choices in (("variant", VARIANTS), ("freeze", FREEZES), ("plan", PLANS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} = '{getattr(self, name)}' is not known; choose from {', '.join(choices)}")
        if self.fine_steps < self.steps:
            raise ValueError(f"fine_steps = {self.fine_steps} must be at least steps = {self.steps}")
        if self.boundaries:
            inner = np.diff(np.asarray(self.boundaries))
            if self.boundaries[0] != 0 or self.boundaries[-1] != self.fine_steps or inner.min() < 1:
                raise ValueError(f"boundaries = {self.boundaries} must increase from 0 to fine_steps = "
                                 f"{self.fine_steps}")
            if len(inner) != self.steps:
                raise ValueError(f"boundaries = {self.boundaries}: these are {len(inner)} steps, not {self.steps}")
        elif self.spacing < 1:
            raise ValueError(f"spacing = {self.spacing} must be at least 1")
        elif self.spacing == 1 and self.fine_steps % self.steps:
            divisors = [str(k) for k in range(1, self.fine_steps + 1) if self.fine_steps % k == 0]
            raise ValueError(f"steps = {self.steps} must divide fine_steps = {self.fine_steps} for spacing = 1; choose "
                             f"from {', '.join(divisors)}, or a larger spacing")

    def dynamics(self, process: Process) -> ReverseSteps:
        """The tables on a process. Raises ValueError as `reverse_steps`, or for a process without a kernel."""
        require_kernel(process, "the Poisson midpoint sampler")
        ends = np.asarray(self.boundaries) if self.boundaries else power_boundaries(
            self.fine_steps, self.steps, self.spacing)  # fmt: skip
        return reverse_steps(make_grid(process, self.grid, self.fine_steps), ends, self.variant, self.freeze)

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
        """With `keep_steps`, x0_hat at the start of every macro step."""
        dynamics = self.dynamics(process)
        planned = keys if self.plan == "image" else jnp.broadcast_to(keys[:1], keys.shape)
        result = walk(
            dynamics, _evaluator(denoise, process, dynamics, label, self.freeze), process.prior(keys, shape),
            weight=weights(self.mode, dynamics.micro_steps),
            offsets=random_offsets(self.mode, planned, dynamics.micro_steps),
            normal=lambda count: image_noise(keys, count + 1, shape), keep=keep_steps,
        )  # fmt: skip
        if not keep_steps:
            return Samples(result.x, result.nfe)
        t = jnp.asarray(dynamics.t[:, 0], jnp.float32)
        scales = (expand(scale(t), result.states) for scale in (process.alpha, process.sigma))
        x0_steps = PREDICTIONS[self.freeze].to_x0(result.quantities, result.states, *scales, None)
        return Samples(result.x, result.nfe, x0_steps, t)


def _evaluator(
    denoise: Denoiser, process: Process, dynamics: ReverseSteps, label: Int[Array, " batch"] | None, freeze: str
) -> Callable[..., Any]:
    """(x, m, tau) -> (the frozen quantity there, network calls)."""

    def evaluate(
        x: Float[Array, "batch *shape"], m: Int[Array, " batch"], tau: Int[Array, " batch"]
    ) -> tuple[Float[Array, "batch *shape"], Int[Array, " batch"]]:
        t = jnp.asarray(dynamics.t, x.dtype)[m, tau]
        x0_hat = denoise(x, t, label)
        alpha, sigma = expand(process.alpha(t), x), expand(process.sigma(t), x)
        return PREDICTIONS[freeze].from_x0(x0_hat, x, alpha, sigma, None), network_calls(denoise, t, label)

    return evaluate
