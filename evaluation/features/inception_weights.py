"""The weights of the Inception graph of 2015-12-05: their names and shapes in the public PyTorch file, random ones for
tests, and the folding of each batch normalisation into the convolution before it.

    y = scale * (conv(x) - mean) / sqrt(variance + 1e-3) + shift                                                  (1)
      = conv(x; factor * kernel) + (shift - factor * mean),     factor = scale / sqrt(variance + 1e-3)            (2)

(2) is computed in float64 and rounded once.
"""

import numpy as np
from jaxtyping import Float

CLASSES = 1008
DIMENSION = 2048
_EPSILON = 1e-3
_NORM = ("weight", "bias", "running_mean", "running_var")  # scale, shift, mean, variance


def _block_a(inputs: int, pool: int) -> dict[str, tuple[int, ...]]:
    return {
        "branch1x1": (64, inputs, 1, 1),
        "branch5x5_1": (48, inputs, 1, 1),
        "branch5x5_2": (64, 48, 5, 5),
        "branch3x3dbl_1": (64, inputs, 1, 1),
        "branch3x3dbl_2": (96, 64, 3, 3),
        "branch3x3dbl_3": (96, 96, 3, 3),
        "branch_pool": (pool, inputs, 1, 1),
    }


def _block_b() -> dict[str, tuple[int, ...]]:
    return {
        "branch3x3": (384, 288, 3, 3),
        "branch3x3dbl_1": (64, 288, 1, 1),
        "branch3x3dbl_2": (96, 64, 3, 3),
        "branch3x3dbl_3": (96, 96, 3, 3),
    }


def _block_c(width: int) -> dict[str, tuple[int, ...]]:
    return {
        "branch1x1": (192, 768, 1, 1),
        "branch7x7_1": (width, 768, 1, 1),
        "branch7x7_2": (width, width, 1, 7),
        "branch7x7_3": (192, width, 7, 1),
        "branch7x7dbl_1": (width, 768, 1, 1),
        "branch7x7dbl_2": (width, width, 7, 1),
        "branch7x7dbl_3": (width, width, 1, 7),
        "branch7x7dbl_4": (width, width, 7, 1),
        "branch7x7dbl_5": (192, width, 1, 7),
        "branch_pool": (192, 768, 1, 1),
    }


def _block_d() -> dict[str, tuple[int, ...]]:
    return {
        "branch3x3_1": (192, 768, 1, 1),
        "branch3x3_2": (320, 192, 3, 3),
        "branch7x7x3_1": (192, 768, 1, 1),
        "branch7x7x3_2": (192, 192, 1, 7),
        "branch7x7x3_3": (192, 192, 7, 1),
        "branch7x7x3_4": (192, 192, 3, 3),
    }


def _block_e(inputs: int) -> dict[str, tuple[int, ...]]:
    return {
        "branch1x1": (320, inputs, 1, 1),
        "branch3x3_1": (384, inputs, 1, 1),
        "branch3x3_2a": (384, 384, 1, 3),
        "branch3x3_2b": (384, 384, 3, 1),
        "branch3x3dbl_1": (448, inputs, 1, 1),
        "branch3x3dbl_2": (384, 448, 3, 3),
        "branch3x3dbl_3a": (384, 384, 1, 3),
        "branch3x3dbl_3b": (384, 384, 3, 1),
        "branch_pool": (192, inputs, 1, 1),
    }


_STEM = {
    "Conv2d_1a_3x3": (32, 3, 3, 3),
    "Conv2d_2a_3x3": (32, 32, 3, 3),
    "Conv2d_2b_3x3": (64, 32, 3, 3),
    "Conv2d_3b_1x1": (80, 64, 1, 1),
    "Conv2d_4a_3x3": (192, 80, 3, 3),
}
_BLOCKS = {
    "Mixed_5b": _block_a(192, 32),
    "Mixed_5c": _block_a(256, 64),
    "Mixed_5d": _block_a(288, 64),
    "Mixed_6a": _block_b(),
    "Mixed_6b": _block_c(128),
    "Mixed_6c": _block_c(160),
    "Mixed_6d": _block_c(160),
    "Mixed_6e": _block_c(192),
    "Mixed_7a": _block_d(),
    "Mixed_7b": _block_e(1280),
    "Mixed_7c": _block_e(2048),
}
# The 94 convolutions: name -> shape [out, in, height, width].
CONVOLUTIONS: dict[str, tuple[int, ...]] = _STEM | {
    f"{block}.{branch}": shape for block, branches in _BLOCKS.items() for branch, shape in branches.items()
}


def manifest() -> dict[str, tuple[int, ...]]:
    """Name -> shape of the 566 tensors of the public file, in its order."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in CONVOLUTIONS.items():
        shapes[f"{name}.conv.weight"] = shape
        shapes |= {f"{name}.bn.{vector}": shape[:1] for vector in _NORM}
        shapes[f"{name}.bn.num_batches_tracked"] = ()
    return shapes | {"fc.weight": (CLASSES, DIMENSION), "fc.bias": (CLASSES,)}


def random_weights(seed: int) -> dict[str, np.ndarray]:
    """Weights under the names of `manifest`, with which no activation dies or explodes.

    Convolutions N(0, 2 / fan-in) in variance, scales U(0.7, 1.3), shifts and means N(0, 0.2), variances U(0.5, 1.5),
    dense layer N(0, 1/2048) and its bias N(0, 0.2). The recorded fixtures depend on every draw and on their order.
    """
    random = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}
    for name, shape in manifest().items():
        kind = name.rpartition(".")[2]
        if kind == "num_batches_tracked":
            weights[name] = np.array(0, np.int64)
            continue
        if name == "fc.weight":
            values = random.normal(0, DIMENSION**-0.5, shape)
        elif name.endswith(".conv.weight"):
            values = random.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
        elif kind == "weight":
            values = random.uniform(0.7, 1.3, shape)
        elif kind == "running_var":
            values = random.uniform(0.5, 1.5, shape)
        else:
            values = random.normal(0, 0.2, shape)
        weights[name] = values.astype(np.float32)
    return weights


def check(weights: dict[str, np.ndarray], *, counters: bool) -> None:
    """Compares the names and shapes with `manifest`; `counters`: whether the batch counters, unused, have to be there.

    Raises:
      ValueError: for a missing, an unknown, a wrongly shaped, a non-float or a non-finite tensor, naming it.
    """
    expected = {n: s for n, s in manifest().items() if counters or not n.endswith("num_batches_tracked")}
    if missing := [name for name in expected if name not in weights]:
        raise ValueError(f"the Inception weights lack {len(missing)} of {len(expected)} tensors: {missing[:3]}")
    if unknown := [name for name in weights if name not in expected]:
        raise ValueError(f"the Inception weights hold {len(unknown)} unknown tensors: {unknown[:3]}")
    for name, shape in expected.items():
        array = weights[name]
        if array.shape != shape:
            raise ValueError(f"the Inception weight {name} must have shape {shape}, got {array.shape}")
        if name.endswith("num_batches_tracked"):
            continue
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise ValueError(f"the Inception weight {name} must be finite float32, got {array.dtype}")


def folded(
    weights: dict[str, np.ndarray], name: str
) -> tuple[Float[np.ndarray, "height width in out"], Float[np.ndarray, " out"]]:
    """(kernel, shift) of convolution `name` with its batch normalisation, equation (2)."""
    scale, shift, mean, variance = (weights[f"{name}.bn.{vector}"].astype(np.float64) for vector in _NORM)
    factor = scale / np.sqrt(variance + _EPSILON)
    kernel = weights[f"{name}.conv.weight"].transpose(2, 3, 1, 0) * factor
    return kernel.astype(np.float32), (shift - factor * mean).astype(np.float32)
