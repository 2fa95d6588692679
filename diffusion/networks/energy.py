"""An energy network: a vector field that is the gradient of a scalar, for points and small images.

(1) f(x) = <x, M(x)>,   M a residual MLP (`diffusion/networks/mlp.py`)
(2) F(x) = grad f(x),   by reverse mode: three times the cost of M

A field without curl, as every score is. With the predictions `score` and `epsilon` the learnt score is conservative; so
it is with `edm`, whose skip is a gradient, too. Written as an inner product, f has no constant that nothing can learn.
The smooth activation of M matters: training differentiates F.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from diffusion.networks.mlp import MLP


class Energy(nnx.Module):
    """Equations (1) and (2); options and errors are those of `MLP`."""

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        num_classes: int = 0,
        width: int = 256,
        depth: int = 4,
        dropout: float = 0.0,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        self.mlp = MLP(
            shape=shape, num_classes=num_classes, width=width, depth=depth, dropout=dropout, dtype=dtype, rngs=rngs
        )

    def __call__(
        self,
        x: Float[Array, "batch *shape"],
        noise_level: Float[Array, " batch"],
        label: Int[Array, " batch"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch *shape"]:
        """The gradient in x of each example's f; see `diffusion.networks`."""
        return jax.grad(lambda x: jnp.sum(x * self.mlp(x, noise_level, label, key)))(x)

    def features(
        self,
        x: Float[Array, "batch *shape"],
        noise_level: Float[Array, " batch"],
        label: Int[Array, " batch"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch width"]:
        """Those of M."""
        return self.mlp.features(x, noise_level, label, key)
