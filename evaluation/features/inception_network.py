"""The Inception graph of 2015-12-05, Google's first release of Inception-v3 (Szegedy et al. 2016), up to its logits.

It differs from the Inception-v3 of today's libraries: 1008 classes, averages that leave out the padding, a maximum
where the last block should have an average, other weights. Features are only comparable within one of the two.

  299  stem                     149, 147, 147x64 | pool 73 "64" | 73x80, 71x192 | pool 35 "192"
   35  Mixed_5b, 5c, 5d         256, 288, 288 channels
   17  Mixed_6a, 6b .. 6e       768 channels; Mixed_6d "spatial", Mixed_6e "768"
    8  Mixed_7a, 7b, 7c         1280, 2048, 2048 channels; mean "features"; dense "logits"

What reads the same input is one 1x1 convolution, of all branches. An average and a 1x1 convolution commute, so that the
average comes second, on fewer channels.
"""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PyTree

from evaluation.features.inception_weights import folded
from evaluation.features.winograd import convolve

SIZE = 299
SPATIAL_CHANNELS = 7
_PRECISION = jax.lax.Precision.HIGHEST
# Images at once on CPUs, stem to last stage: activations stay in the cache there, and the late stages' weights are
# read once for several images. Measured: 1.4 times as fast as 16 images at once throughout.
_CPU_IMAGES = (1, 2, 8)
# Images smaller than this have too few tiles for Winograd's matrix products.
_WINOGRAD_SIZE = 32

_Weights = dict[str, np.ndarray]


def max_pool(x: Float[Array, "n h w c"], stride: int, padding: str) -> Float[Array, "n h2 w2 c"]:
    """Maximum over windows of 3x3."""
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padding)


def average_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """Average over the pixels of the image under a window of 3x3, at stride 1."""
    height, width = x.shape[1:3]
    # Shifted sums take a third of the time of reduce_window on CPUs.
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    x = x[:, :height] + x[:, 1 : height + 1] + x[:, 2:]
    x = x[:, :, :width] + x[:, :, 1 : width + 1] + x[:, :, 2:]
    rows, columns = (np.convolve(np.ones(size), np.ones(3), "same") for size in (height, width))
    return x / np.outer(rows, columns).astype(np.float32)[:, :, None]


class Convolution(nnx.Module):
    """Convolutions of one input under one kernel size, with their batch normalisation folded in, and ReLU."""

    def __init__(self, weights: _Weights, *names: str, stride: int = 1, padding: str = "SAME"):
        kernels, shifts = zip(*(folded(weights, name) for name in names))
        self.kernel = nnx.Param(jnp.asarray(np.concatenate(kernels, axis=-1)))
        self.shift = nnx.Param(jnp.asarray(np.concatenate(shifts)))
        self.ends = tuple(np.cumsum([len(shift) for shift in shifts])[:-1].tolist())
        self.stride = stride
        self.padding = padding

    def linear(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 d"]:
        """Before the shift and ReLU."""
        kernel = self.kernel[...]
        if kernel.shape[:2] == (1, 1):
            return jnp.matmul(x, kernel[0, 0], precision=_PRECISION)
        if (
            jax.default_backend() == "cpu" and kernel.shape[:2] == (3, 3) and self.stride == 1
            and min(x.shape[1:3]) >= _WINOGRAD_SIZE
        ):  # fmt: skip
            return convolve(x, kernel, self.padding)
        return jax.lax.conv_general_dilated(
            x, kernel, (self.stride, self.stride), self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=_PRECISION,
        )  # fmt: skip

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 d"]:
        return jax.nn.relu(self.linear(x) + self.shift[...])

    def branches(self, x: Float[Array, "n h w c"], average_last: bool) -> list[Array]:
        """The output of each convolution; `average_last`: the last one's of the averaged input."""
        parts, shifts = jnp.split(self.linear(x), self.ends, axis=-1), jnp.split(self.shift[...], self.ends)
        if average_last:
            parts[-1] = average_pool(parts[-1])
        return [jax.nn.relu(part + shift) for part, shift in zip(parts, shifts)]


def _maker(weights: _Weights, block: str) -> Callable[..., Convolution]:
    """`Convolution` of branches of a block."""
    return lambda *branches, **options: Convolution(weights, *(f"{block}.{name}" for name in branches), **options)


class BlockA(nnx.Module):
    """Mixed_5b, 5c, 5d: 1x1, 5x5, two 3x3, average."""

    def __init__(self, weights: _Weights, name: str):
        make = _maker(weights, name)
        self.entry = make("branch1x1", "branch5x5_1", "branch3x3dbl_1", "branch_pool")
        self.five = make("branch5x5_2")
        self.threes = nnx.List([make("branch3x3dbl_2"), make("branch3x3dbl_3")])

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w d"]:
        direct, five, three, pooled = self.entry.branches(x, average_last=True)
        return jnp.concatenate([direct, self.five(five), _chain(self.threes, three), pooled], axis=-1)


class BlockB(nnx.Module):
    """Mixed_6a, which halves: 3x3, two 3x3, maximum."""

    def __init__(self, weights: _Weights, name: str):
        make = _maker(weights, name)
        self.three = make("branch3x3", stride=2, padding="VALID")
        self.threes = nnx.List(
            [make("branch3x3dbl_1"), make("branch3x3dbl_2"), make("branch3x3dbl_3", stride=2, padding="VALID")]
        )

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 d"]:
        return jnp.concatenate([self.three(x), _chain(self.threes, x), max_pool(x, 2, "VALID")], axis=-1)


class BlockC(nnx.Module):
    """Mixed_6b .. 6e: 1x1, one and two pairs of 1x7 and 7x1, average."""

    def __init__(self, weights: _Weights, name: str):
        make = _maker(weights, name)
        self.entry = make("branch1x1", "branch7x7_1", "branch7x7dbl_1", "branch_pool")
        self.pair = nnx.List([make(f"branch7x7_{i}") for i in (2, 3)])
        self.pairs = nnx.List([make(f"branch7x7dbl_{i}") for i in (2, 3, 4, 5)])

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w d"]:
        direct, pair, pairs, pooled = self.entry.branches(x, average_last=True)
        return jnp.concatenate([direct, _chain(self.pair, pair), _chain(self.pairs, pairs), pooled], axis=-1)


class BlockD(nnx.Module):
    """Mixed_7a, which halves: 3x3, 1x7 and 7x1 and 3x3, maximum."""

    def __init__(self, weights: _Weights, name: str):
        make = _maker(weights, name)
        self.entry = make("branch3x3_1", "branch7x7x3_1")
        self.three = make("branch3x3_2", stride=2, padding="VALID")
        self.sevens = nnx.List(
            [make("branch7x7x3_2"), make("branch7x7x3_3"), make("branch7x7x3_4", stride=2, padding="VALID")]
        )

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 d"]:
        three, sevens = self.entry.branches(x, average_last=False)
        return jnp.concatenate([self.three(three), _chain(self.sevens, sevens), max_pool(x, 2, "VALID")], axis=-1)


class BlockE(nnx.Module):
    """Mixed_7b, 7c: 1x1, 1x3 beside 3x1, 3x3 and 1x3 beside 3x1, average; in 7c a maximum in its place."""

    def __init__(self, weights: _Weights, name: str, *, average: bool):
        make = _maker(weights, name)
        self.average = average
        names = ("branch1x1", "branch3x3_1", "branch3x3dbl_1")
        self.entry = make(*names, "branch_pool") if average else make(*names)
        self.pooled = None if average else make("branch_pool")  # 1x1 and a maximum do not commute
        self.crosses = nnx.List([make("branch3x3_2a"), make("branch3x3_2b")])
        self.three = make("branch3x3dbl_2")
        self.three_crosses = nnx.List([make("branch3x3dbl_3a"), make("branch3x3dbl_3b")])

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w d"]:
        direct, cross, three, *pooled = self.entry.branches(x, average_last=self.average)
        if not self.average:
            pooled = [self.pooled(max_pool(x, 1, "SAME"))]
        three = self.three(three)
        crosses = [conv(cross) for conv in self.crosses] + [conv(three) for conv in self.three_crosses]
        return jnp.concatenate([direct, *crosses, *pooled], axis=-1)


def _chain(layers: Iterable[nnx.Module], x: Array) -> Array:
    for layer in layers:
        x = layer(x)
    return x


def _mean(x: Array) -> Array:
    return x.mean(axis=(1, 2))


def _by_images(stage: Callable[[Array], PyTree], x: Array, images: int) -> PyTree:
    """`stage(x)`; on CPUs for at most so many images at once."""
    if jax.default_backend() != "cpu":
        return stage(x)
    images = max(size for size in range(1, images + 1) if len(x) % size == 0)
    if images == len(x):
        return stage(x)
    result = jax.lax.map(stage, x.reshape(-1, images, *x.shape[1:]))
    return jax.tree.map(lambda part: part.reshape(-1, *part.shape[2:]), result)


class InceptionNetwork(nnx.Module):
    """The whole graph, from weights by the names of `inception_weights.manifest`."""

    def __init__(self, weights: _Weights):
        self.first = nnx.List(
            [
                Convolution(weights, "Conv2d_1a_3x3", stride=2, padding="VALID"),
                Convolution(weights, "Conv2d_2a_3x3", padding="VALID"),
                Convolution(weights, "Conv2d_2b_3x3"),
            ]
        )
        self.second = nnx.List(
            [Convolution(weights, "Conv2d_3b_1x1"), Convolution(weights, "Conv2d_4a_3x3", padding="VALID")]
        )
        self.blocks35 = nnx.List([BlockA(weights, f"Mixed_5{i}") for i in "bcd"] + [BlockB(weights, "Mixed_6a")])
        self.blocks17 = nnx.List([BlockC(weights, f"Mixed_6{i}") for i in "bcd"])
        self.last17 = BlockC(weights, "Mixed_6e")
        self.blocks8 = nnx.List(
            [
                BlockD(weights, "Mixed_7a"),
                BlockE(weights, "Mixed_7b", average=True),
                BlockE(weights, "Mixed_7c", average=False),
            ]
        )
        self.dense = nnx.Param(jnp.asarray(weights["fc.weight"].T))
        self.dense_bias = nnx.Param(jnp.asarray(weights["fc.bias"]))

    def __call__(self, x: Float[Array, "n 299 299 3"]) -> dict[str, Float[Array, "n _d"]]:
        """The taps of normalised images, by name; "64", "192" and "768" are means over positions, "logits" have no
        bias, and "spatial" [N, 2023] are the first 7 channels of Mixed_6d, channels varying fastest."""
        tap64, x = _by_images(self._stem, x, _CPU_IMAGES[0])
        tap192 = _mean(x)
        x = _by_images(lambda x: _chain(self.blocks35, x), x, _CPU_IMAGES[1])
        spatial, tap768, features = _by_images(self._late, x, _CPU_IMAGES[2])
        logits = jnp.matmul(features, self.dense[...], precision=_PRECISION)
        return {
            "features": features,
            "64": tap64,
            "192": tap192,
            "768": tap768,
            "logits": logits,
            "logits_biased": logits + self.dense_bias[...],
            "spatial": spatial,
        }

    def _stem(self, x: Array) -> tuple[Array, Array]:
        x = max_pool(_chain(self.first, x), 2, "VALID")
        return _mean(x), max_pool(_chain(self.second, x), 2, "VALID")

    def _late(self, x: Array) -> tuple[Array, Array, Array]:
        x = _chain(self.blocks17, x)
        spatial = x[..., :SPATIAL_CHANNELS].reshape(len(x), -1)
        x = self.last17(x)
        return spatial, _mean(x), _mean(_chain(self.blocks8, x))
