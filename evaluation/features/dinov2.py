"""Features from DINOv2 ViT-L/14 without registers (Oquab et al. 2023), with weights that the user supplies.

    x0 = (resize(image, 224) / 255 - mean) / std          bicubic with antialiasing; mean, std of ImageNet's RGB     (1)
    z = [class token, 14x14 patches of x0 times W + b] + positions                                                 (2)
    z <- z + g1 * attention(norm(z)),   z <- z + g2 * mlp(norm(z)),   24 times; g: LayerScale; exact GELU           (3)
    features = norm(z)[class token]                                                                                (4)

The 37x37 table of positions was trained for 518 pixels. As the original does for 224, it is brought to 16x16 by bicubic
interpolation (a = -3/4, no antialias) at the positions

    s_i = (i + 1/2) 37 / 16.1 - 1/2                                                                                (5)

where 16.1 for 16 was meant to stop a rounding error, and is now part of the model.

Distances in these features are FD-DINOv2 (Stein et al. 2023; Karras et al. 2024, EDM2).
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, UInt8

from evaluation.resize import RESIZES
from evaluation.torch_files import read_torch_file

SIZE, _PATCH, _TRAINED_GRID = 224, 14, 37
_GRID = SIZE // _PATCH
_MEAN, _STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
_EPSILON = 1e-6
_OFFSET = 0.1
_PRECISION = jax.lax.Precision.HIGHEST
_Params = dict[str, Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """Width, number of blocks and number of attention heads."""

    width: int = 1024
    depth: int = 24
    heads: int = 16


def shapes(size: Size) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in the public file: 343 for ViT-L/14."""
    w = size.width
    norm = {"weight": (w,), "bias": (w,)}
    block = {
        **{f"{n}.{k}": s for n in ("norm1", "norm2") for k, s in norm.items()},
        **{f"{n}.gamma": (w,) for n in ("ls1", "ls2")},
    }
    for name, rows, columns in (
        ("attn.qkv", 3 * w, w), ("attn.proj", w, w), ("mlp.fc1", 4 * w, w), ("mlp.fc2", w, 4 * w)
    ):  # fmt: skip
        block |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    return {
        "cls_token": (1, 1, w),
        "pos_embed": (1, 1 + _TRAINED_GRID**2, w),
        "mask_token": (1, w),  # of the training; not used here
        "patch_embed.proj.weight": (w, 3, _PATCH, _PATCH),
        "patch_embed.proj.bias": (w,),
        **{f"blocks.{i}.{name}": shape for i in range(size.depth) for name, shape in block.items()},
        **{f"norm.{k}": s for k, s in norm.items()},
    }


def _interpolation() -> Float[np.ndarray, "16 37"]:
    """The weights of the trained positions along one axis, equation (5); beyond the edge its last one counts again."""
    a = -0.75
    centres = (np.arange(_GRID) + 0.5) * _TRAINED_GRID / (_GRID + _OFFSET) - 0.5
    weights = np.zeros((_GRID, _TRAINED_GRID))
    for shift in (-1, 0, 1, 2):
        neighbour = np.floor(centres) + shift
        d = np.abs(centres - neighbour)
        near = ((a + 2) * d - (a + 3)) * d**2 + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        columns = np.clip(neighbour, 0, _TRAINED_GRID - 1).astype(int)
        weights[np.arange(_GRID), columns] += np.where(d <= 1, near, far)
    return weights


def _positions(table: Float[np.ndarray, "1 1370 w"]) -> Float[np.ndarray, "257 w"]:
    grid = table[0, 1:].astype(np.float64).reshape(_TRAINED_GRID, _TRAINED_GRID, -1)
    weights = _interpolation()
    grid = np.einsum("ip,jq,pqw->ijw", weights, weights, grid, optimize=True)
    return np.concatenate([table[0, :1], grid.reshape(_GRID**2, -1)]).astype(np.float32)


def _dense(params: _Params, name: str, x: Float[Array, "n t c"]) -> Float[Array, "n t d"]:
    return jnp.matmul(x, params[f"{name}.weight"].T, precision=_PRECISION) + params[f"{name}.bias"]


def _norm(params: _Params, name: str, x: Float[Array, "n t c"]) -> Float[Array, "n t c"]:
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return centred / jnp.sqrt(variance + _EPSILON) * params[f"{name}.weight"] + params[f"{name}.bias"]


def _attention(params: _Params, name: str, x: Float[Array, "n t c"], heads: int) -> Float[Array, "n t c"]:
    n, t, c = x.shape
    q, k, v = jnp.moveaxis(_dense(params, f"{name}.qkv", x).reshape(n, t, 3, heads, c // heads), 2, 0)
    scores = jnp.einsum("nihd,njhd->nhij", q, k, precision=_PRECISION) / np.sqrt(c // heads).astype(np.float32)
    mixed = jnp.einsum("nhij,njhd->nihd", jax.nn.softmax(scores), v, precision=_PRECISION)
    return _dense(params, f"{name}.proj", mixed.reshape(n, t, c))


def _gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jax.nn.gelu(x, approximate=False)


def _block(params: _Params, name: str, z: Float[Array, "n t c"], heads: int) -> Float[Array, "n t c"]:
    """Equation (3)."""
    y = _attention(params, f"{name}.attn", _norm(params, f"{name}.norm1", z), heads)
    z = z + params[f"{name}.ls1.gamma"] * y
    y = _dense(params, f"{name}.mlp.fc1", _norm(params, f"{name}.norm2", z))
    return z + params[f"{name}.ls2.gamma"] * _dense(params, f"{name}.mlp.fc2", _gelu(y))


def _patches(x: Float[Array, "n 224 224 3"]) -> Float[Array, "n 256 588"]:
    """Each patch as PyTorch's convolution orders it: channel, row, column."""
    x = x.reshape(len(x), _GRID, _PATCH, _GRID, _PATCH, 3)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(len(x), _GRID**2, -1)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DinoV2:
    """DINOv2's normalised class token as `Features`, of dimension 1024 for ViT-L/14.

    Attributes:
      params: the tensors by the names of the public file, with "positions" [257, width] in place of its "pos_embed".
      provenance: name, weights_sha256, resize, input.
    """

    params: PyTree
    provenance: dict[str, Any]
    size: Size
    name: str = "dinov2"

    @property
    def dimension(self) -> int:
        return self.size.width

    def taps(self, params: PyTree, images: UInt8[Array, "n h w c"]) -> dict[str, Float[Array, "n _d"]]:
        """{"features": [N, 1024]} of grey or RGB images of 0..255 of any size.

        Raises:
          ValueError: if the images have neither 1 nor 3 channels.
        """
        if images.shape[3] not in (1, 3):
            raise ValueError(f"the features {self.name} take images of 1 or 3 channels, got {images.shape[3]}")
        x = (RESIZES["clean"](images.astype(jnp.float32), SIZE) / 255.0 - _MEAN) / _STD  # (1)
        z = _dense(params, "patch_embed.proj", _patches(x))
        token = jnp.broadcast_to(params["cls_token"], (len(z), 1, self.size.width))
        z = jnp.concatenate([token, z], axis=1) + params["positions"]  # (2)
        for number in range(self.size.depth):
            z = _block(params, f"blocks.{number}", z, self.size.heads)
        return {"features": _norm(params, "norm", z[:, :1])[:, 0]}  # (4)


def _converted(arrays: dict[str, np.ndarray], size: Size, path: Path) -> _Params:
    expected, found = shapes(size), {name: array.shape for name, array in arrays.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{path} does not hold DINOv2 ViT-L/14: {len(wrong)} tensors differ, among them {name} with shape "
            f"{found.get(name, '(missing)')} where {expected.get(name, 'none')} is expected"
        )
    params = {n: jnp.asarray(a, jnp.float32) for n, a in arrays.items() if n not in ("pos_embed", "mask_token")}
    params["patch_embed.proj.weight"] = params["patch_embed.proj.weight"].reshape(size.width, -1)
    return params | {"positions": jnp.asarray(_positions(arrays["pos_embed"]))}


def load_dinov2(path: str | Path = "", sha256: str = "", *, size: Size | None = None) -> DinoV2:
    """The extractor with the weights of a local file, `dinov2_vitl14_pretrain.pth` as published.

    Args:
      path: "": the environment's DINOV2_WEIGHTS.
      sha256: of the file; "": the environment's DINOV2_WEIGHTS_SHA256. It names the features, so there is no way
        around it.
      size: of another network of this kind; None: ViT-L/14.

    Raises:
      ValueError: if no path or no hash is given, or the file is not the one of the hash or not of this network.
      FileNotFoundError: if there is no such file.
    """
    path, sha256 = path or os.environ.get("DINOV2_WEIGHTS", ""), sha256 or os.environ.get("DINOV2_WEIGHTS_SHA256", "")
    if not path or not sha256:
        raise ValueError(
            "the features dinov2 need weights, which no package ships: get dinov2_vitl14_pretrain.pth (the ViT-L/14 "
            "backbone without registers) from https://github.com/facebookresearch/dinov2, and set DINOV2_WEIGHTS to "
            "its path and DINOV2_WEIGHTS_SHA256 to what `sha256sum` prints for it"
        )
    size = size or Size()
    return DinoV2(
        params=_converted(read_torch_file(Path(path), sha256), size, Path(path)),
        provenance={
            "name": "dinov2",
            "weights_sha256": sha256.lower(),
            "resize": f"clean to {SIZE}",
            "input": "(x / 255 - mean) / std of ImageNet, RGB",
        },
        size=size,
    )
