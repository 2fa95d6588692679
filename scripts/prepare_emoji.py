"""Build the labelled RGB set data/emoji32.npz (or a 64-pixel one) from the npm package emoji-datasource-google.

    python scripts/prepare_emoji.py                                   # runs `npm pack`, writes data/emoji32.npz
    python scripts/prepare_emoji.py --size 64 --output emoji64.npz    # for --config.data.image_size=64
    python scripts/prepare_emoji.py --package emoji-datasource-google-16.0.0.tgz

The archive's sha256 is checked before it is opened, and its members are read in memory, never extracted.
Kept: base emoji that Google has drawn, without the category `Component` (skin tones and hair on their own);
of images that are equal at 32 pixels only the first by key, so that the sets of both sizes hold the same emoji.
The same package gives the same bytes on every run.
"""

import argparse
import hashlib
import io
import json
import os
import subprocess
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

PACKAGE = "emoji-datasource-google"
VERSION = "16.0.0"
SHA256 = "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"
NATIVE_SIZE = 64
SMALL_SIZE = 32
ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest time a zip can hold: a fixed one makes the bytes repeatable


def fetch(folder: Path) -> Path:
    """Download the package into `folder` with npm and return the archive's path."""
    subprocess.run(
        ["npm", "pack", "--silent", f"{PACKAGE}@{VERSION}"], cwd=folder, check=True, stdout=subprocess.DEVNULL
    )
    return folder / f"{PACKAGE}-{VERSION}.tgz"


def read_package(archive: Path, sha256: str = SHA256) -> tuple[list[dict], dict[str, bytes]]:
    """The package's emoji table and its 64-pixel PNG files by file name.

    Raises:
      ValueError: the archive's sha256 is not `sha256`.
    """
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != sha256:
        raise ValueError(f"{archive} has sha256 {found}; {PACKAGE} {VERSION} has {sha256}")
    table, files = None, {}
    image_folder = f"package/img/google/{NATIVE_SIZE}/"
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            if not member.isfile():
                continue
            if member.name == "package/emoji.json":
                table = json.load(tar.extractfile(member))
            elif member.name.startswith(image_folder):
                files[member.name.removeprefix(image_folder)] = tar.extractfile(member).read()
    if table is None:
        raise ValueError(f"{archive} holds no emoji.json")
    return table, files


def render(png: bytes, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """One PNG of any mode, composited on white and reduced by BOX (plain averaging) to `size` pixels."""
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    composed = Image.alpha_composite(white, image).convert("RGB")
    return np.asarray(composed.resize((size, size), Image.Resampling.BOX))


def build(table: list[dict], files: dict[str, bytes], size: int) -> dict[str, np.ndarray]:
    """The arrays of the set, in the order of the keys.

    Returns:
      images uint8 [N, size, size, 3], labels uint8 [N] (index into categories), keys [N] (the Unicode code
      points in hexadecimal), names [N] and categories [K], the last three as fixed-width unicode.
    """
    rows = sorted(
        (row for row in table if row["has_img_google"] and row["category"] != "Component"),
        key=lambda row: row["unified"],
    )
    categories = sorted({row["category"] for row in rows})
    seen, kept, images = set(), [], []
    for row in rows:
        small = render(files[row["image"]], SMALL_SIZE)
        if small.tobytes() in seen:
            continue
        seen.add(small.tobytes())
        kept.append(row)
        images.append(small if size == SMALL_SIZE else render(files[row["image"]], size))
    return {
        "images": np.stack(images),
        "labels": np.array([categories.index(row["category"]) for row in kept], np.uint8),
        "keys": np.array([row["unified"] for row in kept]),
        "names": np.array([row["short_name"] for row in kept]),
        "categories": np.array(categories),
    }


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a compressed npz atomically and with fixed time stamps (numpy.savez stamps the current time)."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as stream, zipfile.ZipFile(stream, "w") as archive:
            for name, array in arrays.items():
                member = zipfile.ZipInfo(f"{name}.npy", ZIP_EPOCH)
                member.compress_type = zipfile.ZIP_DEFLATED
                buffer = io.BytesIO()
                np.lib.format.write_array(buffer, array, allow_pickle=False)
                archive.writestr(member, buffer.getvalue(), compresslevel=9)
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, help=f"{PACKAGE}-{VERSION}.tgz, if it is already here")
    parser.add_argument("--size", type=int, choices=(SMALL_SIZE, NATIVE_SIZE), default=SMALL_SIZE)
    parser.add_argument("--output", type=Path, help="default: data/emoji<size>.npz of this checkout")
    options = parser.parse_args(arguments)
    output = options.output or Path(__file__).resolve().parent.parent / "data" / f"emoji{options.size}.npz"
    with tempfile.TemporaryDirectory() as folder:
        archive = options.package or fetch(Path(folder))
        arrays = build(*read_package(archive), options.size)
    write_npz(output, arrays)
    counts = np.bincount(arrays["labels"])
    print(f"{output}: {len(arrays['images'])} images of {options.size} pixels, {output.stat().st_size} bytes")
    for name, count in zip(arrays["categories"], counts):
        print(f"  {count:4d} {name}")


if __name__ == "__main__":
    main()
