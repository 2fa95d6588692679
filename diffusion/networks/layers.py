"""Small parts shared by the networks: dtypes, dropout, normalisation, attention, scanned stacks, shape checks.

Parameters are drawn on the host with numpy, seeded by the key that flax hands to each initialiser. Drawn by JAX, the
start of a U-Net compiles one program per shape: 12 to 15 s on two cores for 1 M parameters, against a fraction of a
second here, and the numbers would depend on the backend's PRNG options.

Parameters are float32. `dtype` is the compute dtype of the body; statistics of the norms and the softmax are float32
in either case (flax and `jax.nn.dot_product_attention` see to that).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def host_normal(key: Key[Array, ""], shape: tuple[int, ...], std: float) -> np.ndarray:
    """Float32 normal draws of the given standard deviation, a function of the key alone.

    Raises:
      ValueError: inside a transformation such as `jax.jit`, where the key has no value yet.
    """
    if isinstance(key, jax.core.Tracer):
        raise ValueError("networks are created outside jax.jit and other transformations: parameters are host draws")
    seed = np.asarray(jax.random.key_data(key)).ravel()
    return np.float32(std) * np.random.default_rng(seed).standard_normal(shape, np.float32)


def lecun_normal(key: Key[Array, ""], shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Normal with variance 1 / fan_in; the last axis of shape is the output (LeCun et al. 1998, section 4.6)."""
    return host_normal(key, shape, 1.0 / math.sqrt(math.prod(shape[:-1])))


def zeros(key: Key[Array, ""], shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Float32 zeros."""
    return np.zeros(shape, np.float32)


def linear(
    inputs: int,
    outputs: int,
    *,
    dtype: type = jnp.float32,
    init: Callable = lecun_normal,
    bias: bool = True,
    rngs: nnx.Rngs,
) -> nnx.Linear:
    """A linear layer; bias zero at the start."""
    return nnx.Linear(inputs, outputs, use_bias=bias, dtype=dtype, kernel_init=init, bias_init=zeros, rngs=rngs)


def conv(inputs: int, outputs: int, *, dtype: type, init: Callable = lecun_normal, rngs: nnx.Rngs) -> nnx.Conv:
    """A 3 x 3 convolution that keeps the image's size; bias zero at the start."""
    return nnx.Conv(inputs, outputs, (3, 3), dtype=dtype, kernel_init=init, bias_init=zeros, rngs=rngs)


def compute_dtype(name: str) -> type:
    """The jax.numpy dtype of a configuration's name; ValueError lists the known names."""
    if name not in DTYPES:
        raise ValueError(f"config.network.dtype is {name!r}; known dtypes: {', '.join(DTYPES)}")
    return DTYPES[name]


def check_positive(network: str, **options: int) -> None:
    """Raises ValueError naming the first option that is below 1."""
    for name, value in options.items():
        if value < 1:
            raise ValueError(f"{network}: config.network.{name} is {value}; it must be at least 1")


def check_rate(network: str, dropout: float) -> None:
    """Raises ValueError unless dropout is in [0, 1)."""
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"{network}: config.network.dropout is {dropout}; it must be in [0, 1)")


def image_side(network: str, shape: tuple[int, ...]) -> int:
    """The side of a square image shape (side, side, channels); ValueError for any other shape."""
    if len(shape) != 3 or shape[0] != shape[1]:
        raise ValueError(
            f"{network} needs images of shape (side, side, channels), not {tuple(shape)}; "
            "for other data choose config.network.name = 'mlp'"
        )
    return shape[0]


def dropout(x: Float[Array, "*shape"], rate: float, key: Key[Array, ""] | None) -> Float[Array, "*shape"]:
    """Zeroes entries with probability `rate` and divides the rest by 1 - rate; the identity when key is None."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def layer_key(key: Key[Array, ""] | None, index: int | Array) -> Key[Array, ""] | None:
    """The dropout key of layer `index`, or None."""
    return None if key is None else jax.random.fold_in(key, index)


def plain_layer_norm(width: int, dtype: type) -> nnx.LayerNorm:
    """A layer norm without parameters: the modulation that follows it has them."""
    # LayerNorm asks for rngs even when it draws nothing.
    return nnx.LayerNorm(width, use_bias=False, use_scale=False, dtype=dtype, rngs=nnx.Rngs(0))


def modulate(
    h: Float[Array, "batch *positions width"],
    scale: Float[Array, "batch width"],
    shift: Float[Array, "batch width"],
) -> Float[Array, "batch *positions width"]:
    """h * (1 + scale) + shift, the same at every position (FiLM, Perez et al. 2018; AdaLN, Peebles & Xie 2023)."""
    extra = tuple(range(1, h.ndim - 1))
    scale, shift = (jnp.expand_dims(v, extra).astype(h.dtype) for v in (scale, shift))
    return h * (1 + scale) + shift


class SelfAttention(nnx.Module):
    """Multi-head self-attention over a sequence.

    Queries, keys and values have no bias: a bias on the keys adds the same number to all logits of a query, so its
    gradient is always zero.
    """

    def __init__(self, *, width: int, num_heads: int, out_init: Callable = lecun_normal, dtype: type, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.qkv = linear(width, 3 * width, bias=False, dtype=dtype, rngs=rngs)
        self.out = linear(width, width, init=out_init, dtype=dtype, rngs=rngs)

    def __call__(self, h: Float[Array, "batch length width"]) -> Float[Array, "batch length width"]:
        batch, length, width = h.shape
        qkv = self.qkv(h).reshape(batch, length, 3, self.num_heads, width // self.num_heads)
        # "xla" rather than a fused kernel: moment matching and sliced score matching need its forward derivative.
        mixed = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], implementation="xla")
        return self.out(mixed.reshape(batch, length, width))


def stack_blocks(create: Callable[[], nnx.Module], depth: int) -> nnx.Module:
    """`depth` blocks, drawn one after another, as one module whose parameters have a leading axis of `depth`."""
    graphdefs, params = zip(*(nnx.split(create()) for _ in range(depth)))
    return nnx.merge(graphdefs[0], jax.tree.map(lambda *leaves: np.stack(leaves), *params))


def scan_blocks(
    blocks: nnx.Module,
    h: Float[Array, "batch *hidden"],
    conditioning: Float[Array, "batch width"],
    key: Key[Array, ""] | None,
) -> Float[Array, "batch *hidden"]:
    """Applies the stacked blocks one after another as block(h, conditioning, key): compiled once whatever the depth."""
    graphdef, params = nnx.split(blocks)
    depth = jax.tree.leaves(params)[0].shape[0]

    def body(h, layer):
        params, index = layer
        return nnx.merge(graphdef, params)(h, conditioning, layer_key(key, index)), None

    h, _ = jax.lax.scan(body, h, (params, jnp.arange(depth)))
    return h
