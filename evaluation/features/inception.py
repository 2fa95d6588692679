"""Features of the Inception graph of 2015-12-05: the ones that FID, sFID, KID and the Inception Score are defined by.

    x0 = (resize(image, 299) - 128) / 128,    image in 0..255                                                     (1)
"""

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PyTree, UInt8

from evaluation.array_files import content_hash, load_arrays
from evaluation.features.inception_network import SIZE, InceptionNetwork
from evaluation.features.inception_weights import DIMENSION, check
from evaluation.resize import RESIZES

# Not 127.5, as others have it: that moves features by 0.009 on average.
_CENTRE, _SCALE = 128.0, 128.0

# The first digits of the public weights' file, which carries them in its name.
OFFICIAL_SHA256 = "6726825d"
PATH_VARIABLE, HASH_VARIABLE = "INCEPTION_WEIGHTS", "INCEPTION_WEIGHTS_SHA256"
HOW_TO_GET_WEIGHTS = f"""FID, sFID and the Inception Score need the weights of the Inception graph of 2015-12-05,
which are not shipped.
  1. Download pt_inception-2015-12-05-6726825d.pth (95 MB; TTUR's frozen TensorFlow graph, converted) from
     https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights
  2. python scripts/convert_inception.py pt_inception-2015-12-05-6726825d.pth inception.npz
  3. Set {PATH_VARIABLE} and {HASH_VARIABLE}, or the fields of the config, to what it prints."""


@functools.partial(jax.jit, static_argnums=0)
def _forward(graphdef: nnx.GraphDef, params: PyTree, x: Array) -> dict[str, Array]:
    return nnx.merge(graphdef, params)(x)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Inception:
    """The frozen network, a `Features`. Made by `load_inception` or `inception_from_weights`.

    Attributes:
      provenance: name, official (whether the weights are the public ones), detector, weights_sha256, resize, input,
        and source_sha256 where the weights are a file's.
      resize: a name in RESIZES.
    """

    graphdef: nnx.GraphDef
    params: PyTree
    provenance: dict[str, Any]
    resize: str = "tf1"
    name: str = "inception"
    dimension: int = DIMENSION

    def taps(self, params: PyTree, images: UInt8[Array, "n h w c"]) -> dict[str, Float[Array, "n _d"]]:
        """The taps of images of 0..255, [N, H, W, 1 or 3] (grey ones are repeated): "features" [N, 2048], "64" [N, 64],
        "192" [N, 192] and "768" [N, 768] (means over positions), "logits" [N, 1008] without bias, of which the
        Inception Score is made, "logits_biased" and "spatial" [N, 2023], of which sFID is made.

        Raises:
          ValueError: for images of neither 1 nor 3 channels.
        """
        channels = images.shape[-1]
        if channels not in (1, 3):
            raise ValueError(f"the Inception network takes images of 1 or 3 channels, got {channels}")
        x = RESIZES[self.resize](jnp.asarray(images, jnp.float32), SIZE)
        x = (x - _CENTRE) / _SCALE  # (1)
        return _forward(self.graphdef, params, jnp.broadcast_to(x, (*x.shape[:3], 3)))


def inception_from_weights(
    weights: dict[str, np.ndarray], resize: str = "tf1", provenance: dict[str, Any] | None = None
) -> Inception:
    """The network with weights of the names and shapes of `inception_weights.manifest`, with or without the counters.

    Args:
      resize: how images are brought to 299x299: "tf1", which FID is defined by, "torch" or "clean".
      provenance: further entries.

    Raises:
      ValueError: for an unknown resize; or a missing, unknown or wrongly shaped tensor.
    """
    _check_resize(resize)
    weights = {name: array for name, array in weights.items() if not name.endswith("num_batches_tracked")}
    check(weights, counters=False)
    graphdef, params = nnx.split(InceptionNetwork(weights))
    provenance = provenance or {}
    facts = {
        "name": "inception",
        "official": str(provenance.get("source_sha256")).startswith(OFFICIAL_SHA256),
        "detector": "inception-2015-12-05",
        "weights_sha256": content_hash(weights, {}),
        "resize": resize,
        "input": "(x-128)/128",
    }
    return Inception(
        graphdef=graphdef, params=nnx.to_pure_dict(params), provenance=facts | provenance, resize=resize
    )


def _check_resize(resize: str) -> None:
    if resize not in RESIZES:
        raise ValueError(f"unknown resize {resize!r}: choose from {', '.join(RESIZES)}")


def load_inception(path: str | Path | None = None, sha256: str | None = None, resize: str = "tf1") -> Inception:
    """The network with the weights of a file that scripts/convert_inception.py has written.

    Args:
      path: of the file; None or "": the environment variable INCEPTION_WEIGHTS.
      sha256: of its content, as the script prints it; None or "": the environment variable INCEPTION_WEIGHTS_SHA256.
      resize: as in `inception_from_weights`.

    Raises:
      ValueError: if no file or no hash is given, saying where the weights come from; if the file holds other weights
        than the hash says, is damaged, or does not fit the network; or for an unknown resize.
      FileNotFoundError: if there is no such file.
    """
    _check_resize(resize)
    path, sha256 = path or os.environ.get(PATH_VARIABLE), sha256 or os.environ.get(HASH_VARIABLE)
    if not path or not sha256:
        absent = "file" if not path else "sha256"
        raise ValueError(f"no {absent} of Inception weights is given.\n{HOW_TO_GET_WEIGHTS}")
    arrays, description = load_arrays(Path(path))
    found = content_hash(arrays, {})
    if found != sha256.lower():
        raise ValueError(f"the content of {path} has sha256 {found}, but {sha256} was asked for")
    return inception_from_weights(arrays, resize, {"source_sha256": description.get("source_sha256")})
