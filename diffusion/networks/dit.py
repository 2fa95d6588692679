"""Diffusion transformer (Peebles & Xie 2023, "Scalable Diffusion Models with Transformers"), adaLN-zero blocks.

    h_0 = W_in patches(x) + b_in + positions
(1) h   = h + g_1 * attention(LN(h) (1 + s_1) + d_1)
(2) h   = h + g_2 * (W_b drop(gelu(W_a (LN(h) (1 + s_2) + d_2) + b_a)) + b_b)
    with (s_1, d_1, g_1, s_2, d_2, g_2) = W_m c + b_m, W_m and b_m zero at the start, for each block   (section 3.2)
    F(x) = unpatch(W_out (LN(h) (1 + s) + d) + b_out), (s, d) = W_f c + b_f, all four zero at the start

Positions are the fixed sines and cosines of Vaswani et al. 2017, half of the width for the row and half for the
column. The blocks are scanned, so that compile time does not grow with depth.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from diffusion.networks.embeddings import ConditioningEmbedding
from diffusion.networks.layers import (
    SelfAttention,
    check_positive,
    check_rate,
    compute_dtype,
    dropout,
    image_side,
    linear,
    modulate,
    plain_layer_norm,
    scan_blocks,
    stack_blocks,
    zeros,
)

MLP_RATIO = 4


@functools.cache
def position_embedding(side: int, width: int) -> Float[np.ndarray, "length width"]:
    """Fixed embedding of the positions of a side x side grid in row-major order; width is a multiple of 4."""
    frequencies = 10_000.0 ** -(np.arange(width // 4) / (width // 4))
    angles = np.arange(side)[:, None] * frequencies
    line = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)  # [side, width / 2]
    rows = np.repeat(line, side, axis=0)
    columns = np.tile(line, (side, 1))
    return np.concatenate([rows, columns], axis=-1).astype(np.float32)


class DiTBlock(nnx.Module):
    """Equations (1) and (2)."""

    def __init__(self, *, width: int, num_heads: int, rate: float, dtype: type, rngs: nnx.Rngs):
        self.rate = rate
        self.norm = plain_layer_norm(width, dtype)
        self.modulation = linear(width, 6 * width, init=zeros, dtype=dtype, rngs=rngs)
        self.attention = SelfAttention(width=width, num_heads=num_heads, dtype=dtype, rngs=rngs)
        self.hidden = linear(width, MLP_RATIO * width, dtype=dtype, rngs=rngs)
        self.out = linear(MLP_RATIO * width, width, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        h: Float[Array, "batch length width"],
        conditioning: Float[Array, "batch width"],
        key: Key[Array, ""] | None,
    ) -> Float[Array, "batch length width"]:
        modulation = self.modulation(conditioning)
        scale_1, shift_1, gate_1, scale_2, shift_2, gate_2 = jnp.split(modulation, 6, axis=-1)
        h = h + gate_1[:, None] * self.attention(modulate(self.norm(h), scale_1, shift_1))
        inner = jax.nn.gelu(self.hidden(modulate(self.norm(h), scale_2, shift_2)))
        return h + gate_2[:, None] * self.out(dropout(inner, self.rate, key))


class DiT(nnx.Module):
    """Diffusion transformer; see the module docstring.

    Args:
      shape: (side, side, channels); side is a multiple of patch_size.
      num_classes: size of the label set; 0 for none.
      width: size of the tokens, a multiple of num_heads and of 4 (position embedding).
      depth: number of blocks.
      num_heads: attention heads.
      patch_size: side of the square of pixels that makes one token.
      dropout: rate in [0, 1) in each block's MLP, active only when a key is passed.
      dtype: "float32" or "bfloat16", the compute dtype of the body.
      rngs: source of the initial parameters.

    Raises:
      ValueError: an option is out of its range, or a size does not divide.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        num_classes: int = 0,
        width: int = 256,
        depth: int = 6,
        num_heads: int = 4,
        patch_size: int = 2,
        dropout: float = 0.0,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        side = image_side("dit", shape)
        check_positive("dit", width=width, depth=depth, num_heads=num_heads, patch_size=patch_size)
        check_rate("dit", dropout)
        if side % patch_size:
            raise ValueError(
                f"dit: image side {side} is not divisible by {patch_size}; "
                "change config.network.patch_size or config.data.pad_to"
            )
        if width % num_heads or width % 4:
            raise ValueError(
                f"dit: config.network.width is {width}; it must be divisible by "
                f"config.network.num_heads = {num_heads} and by 4"
            )
        self.dtype = compute_dtype(dtype)
        self.patch_size = patch_size
        size = patch_size * patch_size * shape[2]
        self.embedding = ConditioningEmbedding(num_classes=num_classes, width=width, rngs=rngs)
        self.inputs = linear(size, width, rngs=rngs)  # float32: bfloat16 would round small noise away
        self.blocks = stack_blocks(
            lambda: DiTBlock(width=width, num_heads=num_heads, rate=dropout, dtype=self.dtype, rngs=rngs),
            depth,
        )
        self.norm = plain_layer_norm(width, self.dtype)
        self.modulation = linear(width, 2 * width, init=zeros, dtype=self.dtype, rngs=rngs)
        self.outputs = linear(width, size, init=zeros, dtype=self.dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch side side channels"],
        noise_level: Float[Array, " batch"],
        label: Int[Array, " batch"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch side side channels"]:
        """The network's float32 output for inputs of about unit variance; see `diffusion.networks`."""
        batch, side, _, channels = x.shape
        patch, grid = self.patch_size, side // self.patch_size
        conditioning = self.embedding(noise_level, label)
        h = self._tokens(x, conditioning, key)
        scale, shift = jnp.split(self.modulation(conditioning), 2, axis=-1)
        tokens = self.outputs(modulate(self.norm(h), scale, shift)).astype(jnp.float32)
        return tokens.reshape(batch, grid, grid, patch, patch, channels).swapaxes(2, 3).reshape(x.shape)

    def features(
        self,
        x: Float[Array, "batch side side channels"],
        noise_level: Float[Array, " batch"],
        label: Int[Array, " batch"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch length width"]:
        """The tokens that the output is read from."""
        return self._tokens(x, self.embedding(noise_level, label), key)

    def _tokens(
        self,
        x: Float[Array, "batch side side channels"],
        conditioning: Float[Array, "batch width"],
        key: Key[Array, ""] | None,
    ) -> Float[Array, "batch length width"]:
        """After all blocks."""
        batch, side, _, channels = x.shape
        patch, grid = self.patch_size, side // self.patch_size
        tokens = x.reshape(batch, grid, patch, grid, patch, channels).swapaxes(2, 3).reshape(batch, grid * grid, -1)
        h = self.inputs(tokens).astype(self.dtype)
        h = h + jnp.asarray(position_embedding(grid, h.shape[-1]), self.dtype)
        return scan_blocks(self.blocks, h, conditioning, key)
