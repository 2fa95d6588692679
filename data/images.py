"""Images between bytes and floats, and image files.

    float = byte / 127.5 - 1                                  (1)  bytes 0..255 onto [-1, 1]
    byte  = floor(clip(float * 127.5 + 128, 0, 255))          (2)  Karras et al. 2022 (EDM), image output

(2) rounds (1)'s inverse to the nearest byte, so bytes survive the round trip exactly. Every image that is
saved or measured passes (2).
"""

import io
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

WHITE = (255, 255, 255, 255)
FORMATS = ("PNG", "JPEG", "WEBP")  # the only decoders that untrusted files may reach


def from_uint8(images: UInt8[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Bytes to float32 in [-1, 1], equation (1)."""
    return images.astype(np.float32) * np.float32(1 / 127.5) - np.float32(1)


def to_uint8(images: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Floats, nominally in [-1, 1], to bytes, equation (2). Values outside are clipped.

    Raises:
      ValueError: a value is NaN, which has no byte.
    """
    if np.isnan(images).any():
        raise ValueError("the images contain NaN, which cannot be written as bytes")
    return np.clip(images * 127.5 + 128, 0, 255).astype(np.uint8)


def resize(image: UInt8[np.ndarray, "h w c"], image_size: int) -> UInt8[np.ndarray, "size size c"]:
    """Cut out the centre square and resize it with BOX (averaging over a pixel's area, so nothing aliases)."""
    from PIL import Image

    height, width, channels = image.shape
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    pixels = image[top : top + side, left : left + side]
    if side == image_size:
        return pixels
    picture = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
    resized = picture.resize((image_size, image_size), Image.Resampling.BOX)
    return np.asarray(resized).reshape(image_size, image_size, channels)


def decode_image(content: bytes) -> UInt8[np.ndarray, "h w c"]:
    """Decode a PNG, JPEG or WebP file: gray files to one channel, all others to RGB, transparency on white.

    Raises:
      OSError, Image.DecompressionBombError: the content is not an image that Pillow can read.
    """
    from PIL import Image

    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        if image.mode in ("L", "1"):
            return np.asarray(image.convert("L"))[:, :, None]
        rgba = image.convert("RGBA")
        return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, WHITE), rgba).convert("RGB"))


def read_image(path: Path, image_size: int = 0) -> UInt8[np.ndarray, "h w c"]:
    """`decode_image` of a file, then `resize` if an `image_size` is given.

    Raises:
      ValueError: the file cannot be read as an image; the message names it.
    """
    from PIL import Image

    try:
        image = decode_image(path.read_bytes())
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read {path} as an image: {error}") from error
    return resize(image, image_size) if image_size else image
