"""Local curvature smoothing with Stein's identity [Osada et al. 2024]: no trace, no second derivative, no projection.

Stein's identity, for x' = x + b z with z ~ N(0, I):  E[z's(x')] / b = E[tr ds/dx (x')]   [paper, eq. 16]

Mode `kernel`, the paper's loss [eq. 18 to 20; `gamma`: eq. 21]:
  1. x' = center + b z,   center = alpha x0 (`mean`) or x0 as printed (`x0`),   b = sigma_t (`std`) or g(t) (`g`)
  2. T = gamma z's(x') / b,   N = |s(x')|^2 / 2
  3. Completing the square:  T + N = |s(x') + z / b|^2 / 2 - |z|^2 / (2 b^2)   for gamma = 1:
     DSM minus a term without parameters. Same gradient for every draw, same minimiser, same cost; only the value that
     is plotted differs. The minimiser is gamma times the score of center + b z: p_t's own only with the defaults.

Mode `local`, ours, for any process, also one that can only be simulated:
  4. x_t ~ p_t,   x' = x_t + b z,   b = local_c sigma_t
  5. T = z'(s(x') - v) / b,   v = 0 (`none`), s(x_t) (`center`), or T = z'(s(x') - s(x_t - b z)) / (2 b) (`antithetic`)
  6. N = |s(x')|^2 / 2 (`xprime`), whose minimiser is the score of p_t convolved with N(0, b^2 I): a bias of relative
     order local_c^2; or |s(x_t)|^2 / 2 (`x`), whose bias is smaller in few dimensions but grows with d, and which has
     no minimum where p_t has compact support.
  Small local_c costs variance (the deviation of T is about |s| / b without a control variate), large local_c bias.

One evaluation of the network; two with a control variate or norm_at = "x". x' is formed in float32: in bfloat16 a
perturbation of 0.01 would be 10 % wrong.
"""

from dataclasses import dataclass

import jax
from absl import logging
from jaxtyping import Array, Float, Key

from diffusion.base import Process, expand, require_kernel
from diffusion.simulation import draw
from scoring.terms import ScaledScore, Terms, TraceObjective, average, dot, half_square

_CHOICES = {
    "mode": ("kernel", "local"),
    "center": ("mean", "x0"),
    "sigma": ("std", "g"),
    "norm_at": ("xprime", "x"),
    "control_variate": ("none", "center", "antithetic"),
}
# Fields that say nothing in a mode, and the one value that they may have there.
_IDLE = {"kernel": {"norm_at": "xprime", "control_variate": "none"}, "local": {"center": "mean", "sigma": "std"}}


@dataclass(frozen=True, kw_only=True)
class LCSS(TraceObjective):
    """Equations 1, 2 or 4 to 6, averaged over `num_probes` draws of x'.

    Attributes:
      mode: kernel (the paper) or local.
      center, sigma: of mode kernel; `x0` and `g` are for demonstration, since they learn another score.
      gamma: weight of T, positive.
      local_c: b / sigma_t of mode local, positive; below 1 with norm_at = "x".
      norm_at, control_variate: of mode local.
    """

    num_probes: int = 1
    mode: str = "kernel"
    center: str = "mean"
    sigma: str = "std"
    gamma: float = 1.0
    local_c: float = 0.2
    norm_at: str = "xprime"
    control_variate: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} = '{getattr(self, name)}' is not known; choose from {', '.join(choices)}")
        for name, only in _IDLE[self.mode].items():
            if getattr(self, name) != only:
                raise ValueError(f"{name} = '{getattr(self, name)}' has no meaning in mode '{self.mode}'; it must be "
                                 f"'{only}' there")
        if self.gamma <= 0:
            raise ValueError(f"gamma = {self.gamma} must be positive")
        if self.local_c <= 0 or (self.norm_at == "x" and self.local_c >= 1):
            raise ValueError(f"local_c = {self.local_c} must be positive, and below 1 with norm_at = 'x', whose loss "
                             "has no minimum otherwise")
        if self.mode == "local" and self.local_c > 0.5:
            logging.warning("local_c = %g: x' is as far from x_t as p_t is wide, and the score learnt is that of a "
                            "much smoother density; 0.2 is usual", self.local_c)

    def terms(
        self, r: ScaledScore, process: Process, x0: Float[Array, "batch *shape"], t: Float[Array, " batch"],
        key: Key[Array, ""],
    ) -> Terms:
        if self.mode == "kernel":
            require_kernel(process, "objective lcss in mode 'kernel'")
            return average(lambda key: self._kernel(r, process, x0, t, key), key, self.num_probes)
        key_path, key_local = jax.random.split(key)
        x_t, _ = draw(process, x0, t, key_path, self.simulation_steps)
        return average(lambda key: self._local(r, process, x_t, t, key), key_local, self.num_probes)

    def _kernel(self, r: ScaledScore, process: Process, x0: Array, t: Array, key: Key[Array, ""]) -> Terms:
        noise = jax.random.normal(key, x0.shape)
        centre = x0 if self.center == "x0" else expand(process.alpha(t), x0) * x0
        width = process.sigma(t) if self.sigma == "std" else process.diffusion(t)
        output = r(centre + expand(width, x0) * noise)  # (1)
        ratio = process.sigma(t) / width
        return Terms(  # (2)
            self.gamma * ratio * dot(noise, output), half_square(output), ratio**2 * half_square(noise)
        )

    def _local(self, r: ScaledScore, process: Process, x_t: Array, t: Array, key: Key[Array, ""]) -> Terms:
        noise, c = jax.random.normal(key, x_t.shape), self.local_c
        shift = c * expand(process.sigma(t), x_t) * noise
        output = r(x_t + shift)  # (4)
        at_x = r(x_t) if self.norm_at == "x" or self.control_variate == "center" else None
        if self.control_variate == "antithetic":  # (5)
            opposite = r(x_t - shift)
            trace, norm = dot(noise, output - opposite) / 2, (half_square(output) + half_square(opposite)) / 2
        else:
            trace = dot(noise, output - at_x if self.control_variate == "center" else output)
            norm = half_square(output)
        if self.norm_at == "x":  # (6)
            norm = half_square(at_x)
        return Terms(self.gamma * trace / c, norm, half_square(noise) / c**2)
