"""The lattice phi^4 field: noise that is itself a structured image, and no kernel in closed form.

One value of the field per pixel and channel, with kappa the stiffness of the bonds between neighbouring pixels:

  1. log pi(phi) = sum_i (phi_i^2 / 2 - phi_i^4 / 4) - kappa / 2 sum_bonds (phi_i - phi_j)^2 + const
  2. F = grad log pi = kappa Lap phi + phi - phi^3,  (Lap phi)_i = sum over the neighbours j of (phi_j - phi_i)
  3. dphi = beta(t) / 2 F dt + sqrt(beta(t)) dW     (`kernel_free.py`, equation 2)

The lattice is the image grid with periodic boundaries, each channel its own; a flat vector is a ring. The drift is
cubic, so paths are tamed (`simulation.py`, equation 2). Sites prefer -1 or +1, weakly, and neighbours the same sign;
the default stiffness is well below the transition at which the whole lattice takes one sign and mixing would never
end. On a 16x16 torus its neighbours are correlated by 0.2, its energies from cold and from hot starts agree after
tau = 20 within a standard error, and the magnetisation, the slowest of all, forgets as exp(-0.2 tau): 2 % remain.
"""

from dataclasses import dataclass
from math import sqrt

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion.kernel_free import LangevinProcess
from diffusion.schedules import require
from diffusion.simulation import Path, simulate

PRIOR_CLOCK = 20.0  # tau of the prior's path
PRIOR_STEPS = 1000


def laplacian(x: Float[Array, "batch *shape"]) -> Float[Array, "batch *shape"]:
    """Equation 2 on a ring ([B, d]) or on a torus ([B, H, W, C], each channel its own).

    Raises:
      ValueError: for another number of axes.
    """
    if x.ndim not in (2, 4):
        raise ValueError(f"the phi^4 lattice needs images [B, H, W, C] or flat vectors [B, d], not shape {x.shape}")
    axes = (1,) if x.ndim == 2 else (1, 2)
    neighbours = sum(jnp.roll(x, 1, axis) + jnp.roll(x, -1, axis) for axis in axes)
    return neighbours - 2 * len(axes) * x


@dataclass(frozen=True, kw_only=True)
class Phi4(LangevinProcess):
    """Equation 3.

    Attributes:
      kappa: stiffness of the bonds, at least 0 (independent sites).
    """

    kappa: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.kappa >= 0, f"kappa = {self.kappa} must be at least 0")

    @property
    def length(self) -> float:
        """The width of one site in its well, its neighbours fixed: (curvature 2 + 4 kappa)^(-1/2)."""
        return 1 / sqrt(2 + 4 * self.kappa)

    def steep_score(self, x: Float[Array, "batch *shape"]) -> Float[Array, "batch *shape"]:
        """-phi^3, the part of F that a network cannot follow far out."""
        return -(x**3)

    def force(self, x: Float[Array, "batch *shape"]) -> Float[Array, "batch *shape"]:
        return self.kappa * laplacian(x) + x - x**3

    def prior(self, keys: Key[Array, " batch"], shape: tuple[int, ...]) -> Float[Array, "batch *shape"]:
        """The end of a long tamed path from N(0, I), that of image i from keys[i] alone."""
        step = PRIOR_CLOCK / PRIOR_STEPS

        def advance(x: Array, index: Array) -> tuple[Array, None]:
            # Folded twice: samplers fold their own steps from the image's key.
            noise = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape))(roots)
            drift = 0.5 * self.force(x)
            return x + step * drift / (1 + step * jnp.abs(drift)) + sqrt(step) * noise, None

        roots = jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys)
        start = jax.vmap(lambda key: jax.random.normal(key, shape))(roots)
        return jax.lax.scan(advance, start, jnp.arange(PRIOR_STEPS))[0]

    def simulate(
        self, x0: Float[Array, "batch *shape"], t: Float[Array, " batch"], key: Key[Array, ""], steps: int
    ) -> Path:
        """x_t by the tamed method."""
        return simulate(self, x0, t, key, steps=steps, method="tamed", start=0.0)
