import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from evaluation.resize import RESIZES

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="module")
def recorder():
    path = Path(__file__).parents[2] / "scripts" / "record_fixtures.py"
    spec = importlib.util.spec_from_file_location("record_fixtures", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def recorded():
    with np.load(FIXTURES / "resizes.npz", allow_pickle=False) as file:
        return dict(file)


def resized(rule: str, image: np.ndarray, size: int = 299) -> np.ndarray:
    return np.asarray(jax.jit(RESIZES[rule], static_argnums=1)(image[None], size)[0])


@pytest.mark.parametrize("size", [32, 64, 256, 512, 1024])
@pytest.mark.parametrize("rule", ["tf1", "torch"])
def test_bilinear_rules_as_recorded(rule, size, recorder, recorded):
    """E4, E5: torch-fidelity's and PyTorch's resize, both up and down; neither rule passes for the other."""
    rows, columns = recorder.resize_sample()
    ours = resized(rule, recorder.resize_image(size))[rows, columns]
    np.testing.assert_allclose(ours, recorded[f"{rule}_{size}"], rtol=0, atol=1e-3)
    other = {"tf1": "torch", "torch": "tf1"}[rule]
    assert np.abs(ours - recorded[f"{other}_{size}"]).max() > 10


@pytest.mark.parametrize("size", [32, 64, 256, 512])
def test_clean_rule_is_pillows_bicubic_in_float(size, recorder):
    """E5; the image's waves and noise overshoot, so that the clipping is under test."""
    image = recorder.resize_image(size)
    channels = [Image.fromarray(image[..., i]).resize((299, 299), Image.Resampling.BICUBIC) for i in range(3)]
    expected = np.stack([np.asarray(channel) for channel in channels], axis=-1)
    assert expected.min() < -1 or expected.max() > 256
    ours = resized("clean", image)
    np.testing.assert_allclose(ours, np.clip(expected, 0, 255), rtol=0, atol=5e-3)
    # Without antialiasing, or as bilinear, it would be another image.
    assert np.abs(resized("torch", image) - ours).max() > 10


@pytest.mark.parametrize("rule", sorted(RESIZES))
def test_a_resize_to_the_same_size_changes_nothing(rule):
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 2)).astype(np.float32)
    np.testing.assert_allclose(resized(rule, image, 9), image, rtol=0, atol=1e-4)


@pytest.mark.parametrize("rule", sorted(RESIZES))
def test_axes_are_treated_alike_and_images_apart(rule):
    images = jax.random.uniform(jax.random.key(1), (2, 5, 13, 3), maxval=255.0)
    both = np.asarray(RESIZES[rule](images, 7))
    np.testing.assert_allclose(both[1], resized(rule, images[1].transpose(1, 0, 2), 7).transpose(1, 0, 2), atol=1e-3)
    np.testing.assert_array_equal(both[0], np.asarray(RESIZES[rule](images[:1], 7))[0])


def test_tf1_by_hand():
    """2 -> 4 pixels: positions 0, 0.5, 1, 1.5; the last one has no right neighbour but itself."""
    row = np.array([10.0, 20.0], np.float32)
    ours = resized("tf1", np.stack([row, row])[..., None], 4)
    np.testing.assert_array_equal(ours[..., 0], [[10, 15, 20, 20]] * 4)
