"""DINOv2 against transformers' Dinov2Model: a tiny network with random weights, in the public file's format."""

import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import evaluation.features.dinov2 as module
from evaluation.base import Features
from evaluation.features.dinov2 import Size, load_dinov2, shapes
from evaluation.torch_files import read_torch_file

WEIGHTS = Path(__file__).parent / "fixtures" / "dinov2_tiny.pth"
SHA256 = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
TINY = Size(width=16, depth=2, heads=2)


@pytest.fixture(scope="module")
def recorded():
    with np.load(WEIGHTS.with_suffix(".npz"), allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def extractor():
    return load_dinov2(WEIGHTS, SHA256, size=TINY)


@pytest.fixture(scope="module")
def taps(extractor):
    return jax.jit(extractor.taps)


def errors(found, recorded):
    """(greatest absolute difference from the recorded features, the same relative to the greatest of them)."""
    expected = recorded["features"]
    assert found["features"].shape == expected.shape == (4, 16)
    difference = np.abs(np.asarray(found["features"]) - expected).max()
    return difference, difference / np.abs(expected).max()


def mutated_errors(recorded):
    """`errors` of an extractor loaded and compiled afresh."""
    extractor = load_dinov2(WEIGHTS, SHA256, size=TINY)
    return errors(
        jax.jit(lambda *arguments: extractor.taps(*arguments))(extractor.params, recorded["images"]), recorded
    )


def test_features_are_those_of_the_reference(taps, extractor, recorded):
    absolute, relative = errors(taps(extractor.params, recorded["images"]), recorded)
    assert absolute < 1e-4 and relative < 5e-6


def test_positions_are_those_of_the_reference(extractor, recorded):
    np.testing.assert_allclose(extractor.params["positions"], recorded["positions"], atol=2e-5)


@pytest.mark.parametrize(
    "mutation",
    [
        {"_gelu": lambda x: jax.nn.gelu(x, approximate=True)},
        {"_OFFSET": 0.0},
        {"_EPSILON": 1e-3},
        {"_MEAN": np.float32([0.5, 0.5, 0.5]), "_STD": np.float32([0.5, 0.5, 0.5])},
    ],
    ids=["tanh GELU", "no 0.1 in the positions", "other epsilon", "other mean and std"],
)
def test_a_wrong_network_is_noticed(recorded, mutation, monkeypatch):
    for name, value in mutation.items():
        monkeypatch.setattr(module, name, value)
    absolute, relative = mutated_errors(recorded)
    assert absolute > 2e-4 and relative > 1e-4


def test_wrong_weights_are_noticed(taps, extractor, recorded):
    arrays = read_torch_file(WEIGHTS, SHA256)
    ones = jnp.ones(16)
    table = arrays["pos_embed"][0]
    corner = np.concatenate([table[:1], table[1:].reshape(37, 37, 16)[:16, :16].reshape(256, 16)])
    smooth = jax.image.resize(table[1:].reshape(37, 37, 16), (16, 16, 16), "cubic").reshape(256, 16)
    for params in (
        {"blocks.0.ls1.gamma": ones, "blocks.0.ls2.gamma": ones},  # no LayerScale
        {"positions": corner},  # positions cut out, not interpolated
        {"positions": np.concatenate([table[:1], smooth])},  # with antialias, a = -1/2
        {"norm.weight": ones, "norm.bias": 0 * ones},
        {"cls_token": jnp.zeros((1, 1, 16))},
    ):
        absolute, relative = errors(taps(extractor.params | params, recorded["images"]), recorded)
        assert absolute > 1e-2 and relative > 1e-3


def test_without_the_final_norm_nothing_fits(recorded, monkeypatch):
    norm = module._norm
    monkeypatch.setattr(module, "_norm", lambda params, name, x: x if name == "norm" else norm(params, name, x))
    assert mutated_errors(recorded)[0] > 0.1


def test_it_satisfies_the_contract(extractor, taps, recorded):
    assert isinstance(extractor, Features)
    assert extractor.name == "dinov2" and extractor.dimension == 16
    assert extractor.provenance["weights_sha256"] == SHA256 and extractor.provenance["resize"] == "clean to 224"
    grey = recorded["images"][:, :, :, :1]
    found, expected = (taps(extractor.params, images)["features"] for images in (grey, grey.repeat(3, axis=3)))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        extractor.taps(extractor.params, jnp.zeros((1, 8, 8, 2), jnp.uint8))


def test_the_public_file_has_the_known_tensors():
    """343 tensors and 304,368,640 numbers, counted in transformers' Dinov2Model of ViT-L/14."""
    large = shapes(Size())
    assert len(large) == 343
    assert sum(np.prod(shape) for shape in large.values()) == 304_368_640
    assert large["blocks.23.attn.qkv.weight"] == (3072, 1024) and large["pos_embed"] == (1, 1370, 1024)
    assert {name: array.shape for name, array in read_torch_file(WEIGHTS).items()} == shapes(TINY)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda arrays: arrays.pop("norm.bias"), r"1 tensors differ, among them norm.bias with shape \(missing\)"),
        (lambda arrays: arrays.update(register_tokens=np.zeros((1, 4, 16))), "register_tokens .* where none is"),
        (lambda arrays: arrays.update(cls_token=np.zeros((1, 16))), r"cls_token with shape \(1, 16\)"),
    ],
)
def test_another_network_is_refused(change, reason, monkeypatch):
    arrays = read_torch_file(WEIGHTS)
    change(arrays)
    monkeypatch.setattr(module, "read_torch_file", lambda path, sha256: arrays)
    with pytest.raises(ValueError, match=reason):
        load_dinov2(WEIGHTS, SHA256, size=TINY)


def test_the_environment_names_the_weights(monkeypatch, tmp_path):
    for name in ("DINOV2_WEIGHTS", "DINOV2_WEIGHTS_SHA256"):
        monkeypatch.delenv(name, raising=False)
    for arguments in ((), (WEIGHTS,), ("", SHA256)):
        with pytest.raises(ValueError, match=r"dinov2_vitl14_pretrain\.pth .* DINOV2_WEIGHTS_SHA256"):
            load_dinov2(*arguments)
    monkeypatch.setenv("DINOV2_WEIGHTS", str(WEIGHTS))
    monkeypatch.setenv("DINOV2_WEIGHTS_SHA256", SHA256)
    assert load_dinov2(size=TINY).provenance["weights_sha256"] == SHA256
    with pytest.raises(ValueError, match="does not hold DINOv2 ViT-L/14"):
        load_dinov2()
    with pytest.raises(ValueError, match="has the sha256"):
        load_dinov2(sha256="0" * 64)
    with pytest.raises(FileNotFoundError):
        load_dinov2(tmp_path / "absent.pth")
