"""Exponential moving averages of parameters, by half-life in images [Karras et al. 2022, app. F.2; 2024b].

  1. H = min(half_life, ramp * images seen so far)   (ramp = inf: no ramp)
  2. decay = 2^(-batch_size / H), and 0 while H = 0
  3. average <- decay * average + (1 - decay) * params

Counting in images keeps the average the same when the batch size changes. Several half-lives are kept at once.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree


@dataclass(frozen=True, kw_only=True)
class EMA:
    """Several averages of one set of parameters.

    Attributes:
      half_lives: in images; each gives one average, named by `names`.
      ramp: fraction of the images seen that bounds the half-life early in training.
    """

    half_lives: tuple[int, ...]
    ramp: float = 0.05

    def __post_init__(self) -> None:
        if any(h <= 0 for h in self.half_lives) or len(set(self.half_lives)) < len(self.half_lives):
            raise ValueError(f"half_lives = {self.half_lives} must be positive and distinct numbers of images")
        if self.ramp <= 0:
            raise ValueError(f"ramp = {self.ramp} must be positive")

    @property
    def names(self) -> tuple[str, ...]:
        """One name per average, in the order of half_lives."""
        return tuple(str(half_life) for half_life in self.half_lives)

    def decay(self, half_life: int, step: Int[Array, ""], batch_size: int) -> Float[Array, ""]:
        """Equations 1 and 2; `step` counts the steps before this one."""
        images = step.astype(jnp.float32) * batch_size
        effective = jnp.minimum(half_life, self.ramp * images)
        return jnp.where(effective > 0, jnp.exp2(-batch_size / jnp.maximum(effective, 1e-8)), 0.0)

    def update(
        self, averages: dict[str, PyTree], params: PyTree, step: Int[Array, ""], batch_size: int
    ) -> dict[str, PyTree]:
        """Equation 3 for every half-life."""
        new = {}
        for name, half_life in zip(self.names, self.half_lives):
            decay = self.decay(half_life, step, batch_size)
            new[name] = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, averages[name], params)
        return new
