"""A residual multilayer perceptron for points and small images.

    h_0     = W_in x + b_in
(1) h_{k+1} = h_k + W_b drop(silu(W_a (LN(h_k) (1 + s_k) + d_k) + b_a)) + b_b,    (s_k, d_k) = W_m c + b_m
    F(x)    = W_out silu(LN(h_depth)) + b_out

with c the embedding of noise level and label. W_b and W_out start at zero. Source of the modulation in (1): Perez et
al. 2018 (FiLM), equation 1; of LN before it: Peebles & Xie 2023, section 3.2 (adaLN).
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from diffusion.networks.embeddings import ConditioningEmbedding
from diffusion.networks.layers import (
    check_positive,
    check_rate,
    compute_dtype,
    dropout,
    linear,
    modulate,
    plain_layer_norm,
    scan_blocks,
    stack_blocks,
    zeros,
)


class MLPBlock(nnx.Module):
    """Equation (1)."""

    def __init__(self, *, width: int, rate: float, dtype: type, rngs: nnx.Rngs):
        self.rate = rate
        self.norm = plain_layer_norm(width, dtype)
        self.modulation = linear(width, 2 * width, dtype=dtype, rngs=rngs)
        self.hidden = linear(width, width, dtype=dtype, rngs=rngs)
        self.out = linear(width, width, init=zeros, dtype=dtype, rngs=rngs)

    def __call__(
        self, h: Float[Array, "batch width"], conditioning: Float[Array, "batch width"], key: Key[Array, ""] | None
    ) -> Float[Array, "batch width"]:
        scale, shift = jnp.split(self.modulation(conditioning), 2, axis=-1)
        inner = jax.nn.silu(self.hidden(modulate(self.norm(h), scale, shift)))
        return h + self.out(dropout(inner, self.rate, key))


class MLP(nnx.Module):
    """Residual MLP; see the module docstring.

    Args:
      shape: shape of one datum, for example (2,) or (8, 8, 1).
      num_classes: size of the label set; 0 for none.
      width: size of the hidden vectors.
      depth: number of residual blocks.
      dropout: rate in [0, 1) inside each block, active only when a key is passed.
      dtype: "float32" or "bfloat16", the compute dtype of the body.
      rngs: source of the initial parameters.

    Raises:
      ValueError: an option is out of its range.
    """

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
        check_positive("mlp", width=width, depth=depth)
        check_rate("mlp", dropout)
        self.dtype = compute_dtype(dtype)
        size = math.prod(shape)
        self.embedding = ConditioningEmbedding(num_classes=num_classes, width=width, rngs=rngs)
        self.inputs = linear(size, width, rngs=rngs)  # float32: bfloat16 would round small noise away
        self.blocks = stack_blocks(lambda: MLPBlock(width=width, rate=dropout, dtype=self.dtype, rngs=rngs), depth)
        self.norm = plain_layer_norm(width, self.dtype)
        self.outputs = linear(width, size, init=zeros, dtype=self.dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch *shape"],
        noise_level: Float[Array, " batch"],
        label: Int[Array, " batch"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch *shape"]:
        """The network's float32 output for inputs of about unit variance; see `diffusion.networks`."""
        h = self.features(x, noise_level, label, key)
        return self.outputs(jax.nn.silu(self.norm(h))).astype(jnp.float32).reshape(x.shape)

    def features(
        self,
        x: Float[Array, "batch *shape"],
        noise_level: Float[Array, " batch"],
        label: Int[Array, " batch"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch width"]:
        """h_depth, what the output is read from."""
        h = self.inputs(x.reshape(x.shape[0], -1)).astype(self.dtype)
        return scan_blocks(self.blocks, h, self.embedding(noise_level, label), key)
