"""Convolutional U-Net after ADM (Dhariwal & Nichol 2021) and the DDPM++ of Song et al. 2021 and Karras et al. 2022.

(1) block:     h -> skip(r(h)) + conv_2(drop(silu(GN(u) (1 + s) + d))),    u = conv_1(r(silu(GN(h)))),
               (s, d) = W c + b, r = average pooling (down), nearest-neighbour repetition (up) or nothing
               (Dhariwal & Nichol 2021, section 3: "BigGAN residual blocks" and "adaptive group normalization")
(2) attention: h -> h + attention(GN(h)) over all positions, after each block at the chosen resolutions that does not
               change the resolution
(3) network:   conv_in; at each resolution, from fine to coarse, `blocks_per_level` blocks, then a downsampling block;
               two blocks in the middle; from coarse to fine `blocks_per_level + 1` blocks, each taking one saved
               activation of the way down by concatenation, then an upsampling block; GN, silu, conv_out

conv_2, the attention's output projection and conv_out start at zero.
"""

from typing import NamedTuple

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
    conv,
    dropout,
    image_side,
    layer_key,
    linear,
    zeros,
)

EMBEDDING_RATIO = 4
NORM_EPSILON = 1e-5


class GroupNorm(nnx.Module):
    """Group normalisation (Wu & He 2018) followed by a scale and shift per channel, of its own or of each image.

    At most 32 groups of at least 4 channels, where the channels can be shared out so. The image is read for its sums
    and once more for h * a + b; all else happens per image and channel, in float32. A training step with
    `nnx.GroupNorm` and a separate modulation took a fifth more CPU time.

    Args:
      affine: whether the module has a scale and shift; without, it is given them as (1 + scale) and shift.
    """

    def __init__(self, channels: int, *, affine: bool):
        most = max(1, min(32, channels // 4))
        self.groups = next(groups for groups in range(most, 0, -1) if channels % groups == 0)
        self.affine = affine
        if affine:
            self.scale = nnx.Param(np.ones(channels, np.float32))
            self.bias = nnx.Param(np.zeros(channels, np.float32))

    def __call__(
        self,
        h: Float[Array, "batch height width channels"],
        scale: Float[Array, "batch channels"] | None = None,
        shift: Float[Array, "batch channels"] | None = None,
    ) -> Float[Array, "batch height width channels"]:
        if self.affine:
            factor, shift = self.scale[...], self.bias[...]
        else:
            factor, shift = 1 + scale.astype(jnp.float32), shift.astype(jnp.float32)
        batch, _, _, channels = h.shape
        h32 = h.astype(jnp.float32)
        moments = jnp.stack([h32.mean(axis=(1, 2)), jnp.square(h32).mean(axis=(1, 2))])  # [2, batch, channels]
        grouped = moments.reshape(2, batch, self.groups, -1).mean(axis=-1)
        mean, square = jnp.repeat(grouped, channels // self.groups, axis=-1)
        # Rounding can make the difference of a constant image's moments negative.
        inverse = jax.lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0.0) + NORM_EPSILON)
        a = factor * inverse
        b = shift - mean * a
        return (h32 * a[:, None, None] + b[:, None, None]).astype(h.dtype)


def _resample(
    h: Float[Array, "batch height width channels"], how: str
) -> Float[Array, "batch new_height new_width channels"]:
    """Halves ("down", mean of 2x2), doubles ("up", repetition) or keeps ("") the side."""
    if how == "down":
        batch, height, width, channels = h.shape
        return h.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))
    if how == "up":
        return h.repeat(2, axis=1).repeat(2, axis=2)
    return h


class UNetBlock(nnx.Module):
    """Equations (1) and, where num_heads > 0, (2)."""

    def __init__(
        self,
        *,
        inputs: int,
        outputs: int,
        embedding: int,
        resample: str,
        num_heads: int,
        rate: float,
        dtype: type,
        rngs: nnx.Rngs,
    ):
        self.resample, self.rate = resample, rate
        self.norm_1 = GroupNorm(inputs, affine=True)
        self.conv_1 = conv(inputs, outputs, dtype=dtype, rngs=rngs)
        self.modulation = linear(embedding, 2 * outputs, dtype=dtype, rngs=rngs)
        # The modulation that follows has the scale and shift.
        self.norm_2 = GroupNorm(outputs, affine=False)
        self.conv_2 = conv(outputs, outputs, init=zeros, dtype=dtype, rngs=rngs)
        self.has_projection = inputs != outputs
        if inputs != outputs:
            self.skip = linear(inputs, outputs, dtype=dtype, rngs=rngs)
        self.has_attention = num_heads > 0
        if num_heads:
            self.attention_norm = GroupNorm(outputs, affine=True)
            self.attention = SelfAttention(width=outputs, num_heads=num_heads, out_init=zeros, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        h: Float[Array, "batch side side inputs"],
        conditioning: Float[Array, "batch embedding"],
        key: Key[Array, ""] | None,
    ) -> Float[Array, "batch new_side new_side outputs"]:
        scale, shift = jnp.split(self.modulation(conditioning), 2, axis=-1)
        inner = self.conv_1(_resample(jax.nn.silu(self.norm_1(h)), self.resample))
        inner = jax.nn.silu(self.norm_2(inner, scale, shift))
        h = _resample(h, self.resample)
        h = (self.skip(h) if self.has_projection else h) + self.conv_2(dropout(inner, self.rate, key))
        if self.has_attention:
            batch, height, width, channels = h.shape
            sequence = self.attention_norm(h).reshape(batch, height * width, channels)
            h = h + self.attention(sequence).reshape(h.shape)
        return h


class _Step(NamedTuple):
    """One block of the network, in order of application; `side` is that of its output."""

    name: str
    side: int
    inputs: int
    outputs: int
    resample: str = ""
    saves_skip: bool = False
    takes_skip: bool = False


def _plan(side: int, width: int, multipliers: tuple[int, ...], blocks_per_level: int) -> tuple[_Step, ...]:
    """Equation (3) as a list of blocks."""
    plan, channels = [], width
    saved = [width]  # channels of the activations that the way up will take; the first is conv_in's
    for level, multiplier in enumerate(multipliers):
        size = side >> level
        if level:
            plan.append(_Step(f"encoder_{size}_down", size, channels, channels, "down", saves_skip=True))
            saved.append(channels)
        for block in range(blocks_per_level):
            plan.append(_Step(f"encoder_{size}_{block}", size, channels, multiplier * width, saves_skip=True))
            channels = multiplier * width
            saved.append(channels)
    plan += [_Step(f"middle_{block}", size, channels, channels) for block in range(2)]
    for level, multiplier in reversed(list(enumerate(multipliers))):
        size = side >> level
        for block in range(blocks_per_level + 1):
            inputs = channels + saved.pop()
            plan.append(_Step(f"decoder_{size}_{block}", size, inputs, multiplier * width, takes_skip=True))
            channels = multiplier * width
        if level:
            plan.append(_Step(f"decoder_{2 * size}_up", 2 * size, channels, channels, "up"))
    return tuple(plan)


def _check_levels(
    side: int, width: int, multipliers: tuple[int, ...], attention_resolutions: tuple[int, ...], num_heads: int
) -> None:
    """Raises ValueError where the levels, the image and the attention do not fit together."""
    if not multipliers or min(multipliers) < 1:
        raise ValueError(
            f"unet: config.network.channel_multipliers is {multipliers}; it must hold one positive integer per level"
        )
    divisor = 2 ** (len(multipliers) - 1)
    if side % divisor:
        raise ValueError(
            f"unet: image side {side} is not divisible by {divisor} = 2 ** (levels - 1); "
            f"change config.network.channel_multipliers (now {multipliers}) or config.data.pad_to"
        )
    sides = [side >> level for level in range(len(multipliers))]
    for resolution in attention_resolutions:
        if resolution not in sides:
            raise ValueError(
                f"unet: config.network.attention_resolutions has {resolution}, which is the side of no level; "
                f"the sides are {', '.join(map(str, sides))}"
            )
        channels = multipliers[sides.index(resolution)] * width
        if channels % num_heads:
            raise ValueError(
                f"unet: the {channels} channels at side {resolution} are not divisible by "
                f"config.network.num_heads = {num_heads}"
            )


class UNet(nnx.Module):
    """U-Net; see the module docstring.

    Args:
      shape: (side, side, channels); side is a multiple of 2 ** (len(channel_multipliers) - 1).
      num_classes: size of the label set; 0 for none.
      width: channels at multiplier 1.
      channel_multipliers: channels / width of each level, from fine to coarse; the side halves between levels.
      blocks_per_level: residual blocks at each resolution on the way down; one more on the way up.
      attention_resolutions: the sides at which self-attention follows the residual blocks, for example (16, 8);
        each must be the side of a level. Empty: no attention.
      num_heads: attention heads; divides the channels wherever there is attention.
      dropout: rate in [0, 1) in each block, active only when a key is passed.
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
        width: int = 64,
        channel_multipliers: tuple[int, ...] = (1, 2),
        blocks_per_level: int = 2,
        attention_resolutions: tuple[int, ...] = (),
        num_heads: int = 4,
        dropout: float = 0.0,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        side, channels = image_side("unet", shape), shape[2]
        check_positive("unet", width=width, blocks_per_level=blocks_per_level, num_heads=num_heads)
        check_rate("unet", dropout)
        _check_levels(side, width, tuple(channel_multipliers), tuple(attention_resolutions), num_heads)
        self.dtype = compute_dtype(dtype)
        embedding = EMBEDDING_RATIO * width
        self.plan = _plan(side, width, tuple(channel_multipliers), blocks_per_level)
        self.embedding = ConditioningEmbedding(num_classes=num_classes, width=embedding, rngs=rngs)
        # float32: bfloat16 would round small noise away.
        self.inputs = conv(channels, width, dtype=jnp.float32, rngs=rngs)
        self.blocks = nnx.Dict(
            {
                step.name: UNetBlock(
                    inputs=step.inputs,
                    outputs=step.outputs,
                    embedding=embedding,
                    resample=step.resample,
                    num_heads=num_heads if step.side in attention_resolutions and not step.resample else 0,
                    rate=dropout,
                    dtype=self.dtype,
                    rngs=rngs,
                )
                for step in self.plan
            }
        )
        self.norm = GroupNorm(self.plan[-1].outputs, affine=True)
        self.outputs = conv(self.plan[-1].outputs, channels, init=zeros, dtype=self.dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch side side channels"],
        noise_level: Float[Array, " batch"],
        label: Int[Array, " batch"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch side side channels"]:
        """The network's float32 output for inputs of about unit variance; see `diffusion.networks`."""
        h = self._walk(self.plan, x, noise_level, label, key)
        return self.outputs(jax.nn.silu(self.norm(h))).astype(jnp.float32)

    def features(
        self,
        x: Float[Array, "batch side side channels"],
        noise_level: Float[Array, " batch"],
        label: Int[Array, " batch"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch coarse_side coarse_side width"]:
        """The bottleneck: what the way up begins with."""
        middle = next(index for index, step in enumerate(self.plan) if step.takes_skip)
        return self._walk(self.plan[:middle], x, noise_level, label, key)

    def _walk(
        self,
        plan: tuple[_Step, ...],
        x: Float[Array, "batch side side channels"],
        noise_level: Float[Array, " batch"],
        label: Int[Array, " batch"] | None,
        key: Key[Array, ""] | None,
    ) -> Float[Array, "batch _ _ _"]:
        """The activation after the blocks of `plan`, a beginning of the network."""
        conditioning = self.embedding(noise_level, label)
        h = self.inputs(x).astype(self.dtype)
        skips = [h]
        for index, step in enumerate(plan):
            if step.takes_skip:
                h = jnp.concatenate([h, skips.pop()], axis=-1)
            h = self.blocks[step.name](h, conditioning, layer_key(key, index))
            if step.saves_skip:
                skips.append(h)
        return h
