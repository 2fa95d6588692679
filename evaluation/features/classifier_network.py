"""The network behind the features "classifier", and its training.

Random shifts, dropout, label smoothing and a short training keep it from giving the training images, which it knows,
other features than new ones.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PyTree, UInt8

DIMENSION = 64
_PRECISION = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the classifier is trained: AdamW with a cosine decay to 0, on randomly shifted images.

    Attributes:
      minimum_steps: lower bound of the number of steps, for small sets.
      epochs: passes over the training set, where these are more steps.
    """

    minimum_steps: int = 500
    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 4e-3
    weight_decay: float = 0.05
    dropout: float = 0.3
    label_smoothing: float = 0.1
    seed: int = 0

    def steps(self, train_count: int) -> int:
        """The number of steps on so many training images."""
        return max(self.minimum_steps, self.epochs * train_count // self.batch_size)


class Network(nnx.Module):
    """3x3 convolutions, halving the image to about 4x4, then 64 hidden units (the features) and the logits."""

    def __init__(self, image_shape: tuple[int, ...], num_classes: int, *, dropout: float, rngs: nnx.Rngs):
        height, width, channels = image_shape
        conv = functools.partial(nnx.Conv, precision=_PRECISION, rngs=rngs)
        # At 16 pixels and above the first layer halves too: at full size it would cost more than all the others.
        stride = 1 if min(height, width) < 16 else 2
        self.stem = conv(channels, 32, (2 * stride + 1,) * 2, strides=stride)
        height, width = -(-height // stride), -(-width // stride)
        halvings = max(1, math.ceil(math.log2(min(height, width) / 4)))
        inputs = [32] + [64] * (halvings - 1)
        self.halvings = nnx.List([conv(n, 64, (3, 3), strides=2) for n in inputs])
        self.norms = nnx.List([nnx.GroupNorm(64, num_groups=8, rngs=rngs) for _ in inputs])
        self.last = conv(64, 64, (3, 3))
        positions = -(-height // 2**halvings) * -(-width // 2**halvings)
        self.hidden = nnx.Linear(positions * 64, DIMENSION, precision=_PRECISION, rngs=rngs)
        self.output = nnx.Linear(DIMENSION, num_classes, precision=_PRECISION, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)

    def __call__(
        self, images: UInt8[Array, "n h w c"], key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "n d"], Float[Array, "n classes"]]:
        """(features, logits) of images of 0..255; `key` draws the dropout of training, None: no dropout."""
        x = nnx.gelu(self.stem(images.astype(jnp.float32) / 127.5 - 1.0))
        for halve, norm in zip(self.halvings, self.norms):
            x = nnx.gelu(norm(halve(x)))
        x = nnx.gelu(self.last(x)).reshape(len(images), -1)
        features = nnx.gelu(self.hidden(self._drop(x, key, 0)))
        return features, self.output(self._drop(features, key, 1))

    def _drop(self, x: Float[Array, "n d"], key: Key[Array, ""] | None, layer: int) -> Float[Array, "n d"]:
        return x if key is None else self.dropout(x, deterministic=False, rngs=jax.random.fold_in(key, layer))


def abstract(image_shape: tuple[int, ...], num_classes: int, recipe: Recipe) -> tuple[nnx.GraphDef, PyTree]:
    """The network's graph, and its nested dictionary of parameters with shapes in place of arrays."""
    network = nnx.eval_shape(
        lambda: Network(image_shape, num_classes, dropout=recipe.dropout, rngs=nnx.Rngs(recipe.seed))
    )
    graphdef, params = nnx.split(network)
    return graphdef, nnx.to_pure_dict(params)


def _initial(shapes: PyTree, seed: int) -> PyTree:
    """LeCun-normal kernels, zero biases, unit scales; drawn by numpy, which needs no compilation of seconds."""
    random = np.random.default_rng(seed)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> Array:
        name = path[-1].key
        if name != "kernel":
            return jnp.full(leaf.shape, {"bias": 0.0, "scale": 1.0}[name], jnp.float32)
        fan_in = math.prod(leaf.shape[:-1])
        return jnp.asarray(random.standard_normal(leaf.shape, np.float32) / np.sqrt(fan_in, dtype=np.float32))

    return jax.tree_util.tree_map_with_path(draw, shapes)


def _shift(images: Array, key: Array, most: int) -> Array:
    """Moves each image by its own -most..most pixels along both axes, repeating the edge."""
    n, h, w, c = images.shape
    padded = jnp.pad(images, ((0, 0), (most, most), (most, most), (0, 0)), mode="edge")
    offsets = jax.random.randint(key, (n, 2), 0, 2 * most + 1)
    return jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), (h, w, c)))(padded, offsets)


def _batches(count: int, steps: int, recipe: Recipe) -> Int[np.ndarray, "steps batch"]:
    """The indices of every batch: one fresh permutation after the other."""
    random = np.random.default_rng(recipe.seed)
    size = min(recipe.batch_size, count)
    passes = -(-steps * size // count)
    order = np.concatenate([random.permutation(count) for _ in range(passes)])
    return order[: steps * size].reshape(steps, size).astype(np.int32)


def _optimizer(recipe: Recipe, steps: int) -> optax.GradientTransformation:
    schedule = optax.cosine_decay_schedule(recipe.learning_rate, steps)
    return optax.adamw(schedule, weight_decay=recipe.weight_decay)


@functools.partial(jax.jit, static_argnames=("graphdef", "recipe", "steps"), donate_argnames=("params", "state"))
def _step(
    params: PyTree,
    state: PyTree,
    data: tuple[Array, Array],
    batch: Int[Array, " b"],
    number: Int[Array, ""],
    *,
    graphdef: nnx.GraphDef,
    recipe: Recipe,
    steps: int,
) -> tuple[PyTree, PyTree]:
    images, labels = data[0][batch], data[1][batch]
    shift_key, dropout_key = jax.random.split(jax.random.fold_in(jax.random.key(recipe.seed), number))
    images = _shift(images, shift_key, 1 if min(images.shape[1:3]) < 16 else 2)

    def loss(params):
        _, logits = nnx.merge(graphdef, params)(images, dropout_key)
        targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[1]), recipe.label_smoothing)
        return optax.softmax_cross_entropy(logits, targets).mean()

    updates, state = _optimizer(recipe, steps).update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state


def train(
    images: UInt8[np.ndarray, "n h w c"], labels: Int[np.ndarray, " n"], num_classes: int, recipe: Recipe
) -> tuple[nnx.GraphDef, PyTree]:
    """The trained network: its graph and its parameters.

    The data stay on the device. The loop is Python's: XLA on the CPU runs convolutions inside lax.scan 20 times slower.
    """
    graphdef, shapes = abstract(images.shape[1:], num_classes, recipe)
    steps = recipe.steps(len(images))
    params = _initial(shapes, recipe.seed)
    state = jax.jit(_optimizer(recipe, steps).init)(params)
    data = jax.device_put((images, labels))
    for number, batch in enumerate(_batches(len(images), steps, recipe)):
        params, state = _step(
            params, state, data, batch, np.int32(number), graphdef=graphdef, recipe=recipe, steps=steps
        )
    return graphdef, params
