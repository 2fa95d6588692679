import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from evaluation.array_files import content_hash, save_arrays
from evaluation.base import Features
from evaluation.distances import frechet_distance_of_features
from evaluation.features import inception as inception_module
from evaluation.features import inception_network
from evaluation.features.inception import inception_from_weights, load_inception
from evaluation.features.inception_weights import random_weights
from evaluation.features.winograd import convolve

FIXTURES = Path(__file__).parent / "fixtures"
TAPS = {"64": 64, "192": 192, "768": 768, "features": 2048, "logits": 1008, "logits_biased": 1008, "spatial": 2023}
ABSOLUTE, RELATIVE = 1e-4, 5e-6  # E1: of a tap, and of its maximum
BATCH = 8


@pytest.fixture(scope="module")
def recorder():
    path = Path(__file__).parents[2] / "scripts" / "record_fixtures.py"
    spec = importlib.util.spec_from_file_location("record_fixtures", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(FIXTURES / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def inception(recorder):
    return inception_from_weights(random_weights(recorder.WEIGHTS_SEED))


@pytest.fixture
def compiled_quickly(monkeypatch):
    """The network compiles in half the time, anew, and takes three times as long to run."""
    forward = inception_module._forward.__wrapped__
    quick = jax.jit(
        lambda *arguments: forward(*arguments), static_argnums=0, compiler_options={"xla_backend_optimization_level": 0}
    )
    monkeypatch.setattr(inception_module, "_forward", quick)


@pytest.fixture(scope="module")
def extract(inception):
    """Images -> every tap, in batches of one size: the network is compiled once for most tests."""

    def run(images: np.ndarray, size: int = BATCH) -> dict[str, np.ndarray]:
        parts = [jnp.asarray(images[i : i + size]) for i in range(0, len(images), size)]
        batches = [inception.taps(inception.params, part) for part in parts]
        return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}

    return run


def test_every_tap_is_that_of_the_2015_graph(extract, recorder):
    """E1, E17: against torch-fidelity's graph in float64. The images come twice, to fill the batch."""
    recorded = load("inception_taps")
    taps = extract(np.tile(recorder.inception_images(), (2, 1, 1, 1)))
    assert {name: tap.shape for name, tap in taps.items()} == {name: (8, size) for name, size in TAPS.items()}
    for name in TAPS:
        error = np.abs(taps[name] - np.tile(recorded[name], (2, 1))).max()
        largest = np.abs(recorded[name]).max()
        assert error <= ABSOLUTE, name
        # Single positions round more than means over them: PyTorch's own float32 map is 3.5e-6 off.
        assert error <= (2 if name == "spatial" else 1) * RELATIVE * largest, name


def _padded_average(x):
    ones = jnp.ones((3, 3, 1, x.shape[-1]), x.dtype) / 9
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, ones, (1, 1), "SAME", dimension_numbers=dimensions, feature_group_count=x.shape[-1], precision="highest"
    )


def _average_in_place_of_the_last_maximum(x, stride, padding, max_pool=inception_network.max_pool):
    return inception_network.average_pool(x) if stride == 1 else max_pool(x, stride, padding)


INPUT_MUTATIONS = {
    "127.5": {"_CENTRE": 127.5, "_SCALE": 127.5},
    "half-pixel resize": {"RESIZES": {"tf1": inception_module.RESIZES["torch"]}},
}
POOL_MUTATIONS = {
    "padding counted": ("average_pool", _padded_average),
    "average in 7c": ("max_pool", _average_in_place_of_the_last_maximum),
}


@pytest.mark.parametrize("mutation", INPUT_MUTATIONS)
def test_a_mutated_input_is_seen(mutation, extract, recorder, monkeypatch):
    """E2: 100 times outside of E1's tolerance."""
    for name, value in INPUT_MUTATIONS[mutation].items():
        monkeypatch.setattr(inception_module, name, value)
    features = extract(recorder.inception_images()[[0] * BATCH])["features"][0]
    assert np.abs(features - load("inception_taps")["features"][0]).max() > 100 * ABSOLUTE


@pytest.mark.parametrize("mutation", POOL_MUTATIONS)
def test_a_mutated_pool_is_seen(mutation, extract, recorder, compiled_quickly, monkeypatch):
    """E2: 100 times outside of E1's tolerance."""
    monkeypatch.setattr(inception_network, *POOL_MUTATIONS[mutation])
    features = extract(recorder.inception_images()[:1])["features"][0]
    assert np.abs(features - load("inception_taps")["features"][0]).max() > 100 * ABSOLUTE


@pytest.fixture(scope="module")
def some_taps(extract, recorder):
    return extract(recorder.fid_images(0, BATCH))


@pytest.mark.parametrize(("size", "backend"), [(1, "cpu"), (3, "cpu"), (3, "gpu")])
def test_features_do_not_depend_on_the_batch_size(
    size, backend, some_taps, extract, recorder, compiled_quickly, monkeypatch
):
    """E21, against a batch of 8: the network takes these sizes in other parts, and on accelerators as a whole."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    ours = extract(recorder.fid_images(0, 2 + size)[2:], size)
    for name in TAPS:
        tolerance = 1e-5 * np.abs(some_taps[name]).max()
        np.testing.assert_allclose(ours[name], some_taps[name][2 : 2 + size], rtol=0, atol=tolerance)


def _check_fid(extract, recorder, n: int) -> None:
    recorded = load("fid")
    sets = [extract(recorder.fid_images(which, n)) for which in range(2)]
    for name, tap in (("fid", "features"), ("sfid", "spatial")):
        first, second = (taps[tap].astype(np.float64) for taps in sets)
        if 2 * n < first.shape[1]:
            # Turning the axes changes no distance: the few dimensions that the samples span are enough, and fast.
            basis, _ = np.linalg.qr(np.concatenate([first, second]).T)
            first, second = first @ basis, second @ basis
        ours = frechet_distance_of_features(first, second)
        assert ours == pytest.approx(float(recorded[f"{name}_{n}"]), rel=1e-4), name


def test_fid_and_sfid_of_a_few_images(extract, recorder):
    """E10, E17 on 32 + 32 images, end to end."""
    _check_fid(extract, recorder, 32)


@pytest.mark.slow
def test_fid_and_sfid_end_to_end(extract, recorder):
    """E10, E17 on 256 + 256 images, against torch-fidelity's pipeline."""
    _check_fid(extract, recorder, 256)


def test_grey_images_are_repeated_and_others_refused(inception, extract):
    grey = jax.random.randint(jax.random.key(0), (BATCH, 28, 28, 1), 0, 256).astype(jnp.uint8)
    np.testing.assert_array_equal(*(extract(images)["features"] for images in (grey, grey.repeat(3, axis=3))))
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        inception.taps(inception.params, grey.repeat(2, axis=3))


def test_contract(inception):
    assert isinstance(inception, Features)
    assert inception.dimension == TAPS["features"] and inception.name == "inception"
    facts = inception.provenance
    assert facts["detector"] == "inception-2015-12-05" and facts["resize"] == "tf1"
    assert facts["input"] == "(x-128)/128" and len(facts["weights_sha256"]) == 64


def test_without_weights_the_error_says_where_to_get_them(monkeypatch, tmp_path):
    for name in ("INCEPTION_WEIGHTS", "INCEPTION_WEIGHTS_SHA256"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="no file of Inception weights") as error:
        load_inception()
    for part in ("pt_inception-2015-12-05-6726825d.pth", "mseitzer/pytorch-fid", "scripts/convert_inception.py",
                 "INCEPTION_WEIGHTS_SHA256"):  # fmt: skip
        assert part in str(error.value)
    with pytest.raises(ValueError, match="no sha256 of Inception weights"):
        load_inception(tmp_path / "some.npz")


def test_files_that_are_not_the_named_weights_are_refused(monkeypatch, tmp_path):
    path, arrays = tmp_path / "weights.npz", {"fc.bias": np.zeros(1008, np.float32)}
    save_arrays(path, arrays, {})
    found = content_hash(arrays, {})
    with pytest.raises(ValueError, match=f"{found}, but {'0' * 64} was asked for"):
        load_inception(path, "0" * 64)
    monkeypatch.setenv("INCEPTION_WEIGHTS", str(path))
    monkeypatch.setenv("INCEPTION_WEIGHTS_SHA256", found)
    with pytest.raises(ValueError, match="lack 471 of 472 tensors"):
        load_inception()
    with pytest.raises(ValueError, match="unknown resize 'lanczos': choose from tf1, torch, clean"):
        inception_from_weights({}, "lanczos")
    with pytest.raises(FileNotFoundError):
        load_inception(tmp_path / "absent.npz", found)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("size", [(6, 8), (7, 5)])
def test_winograd_is_the_convolution(size, padding):
    """Against scipy in float64: even and odd sizes, with and without padding."""
    random = np.random.default_rng(0)
    x, kernel = random.normal(size=(2, *size, 3)), random.normal(size=(3, 3, 3, 4))
    expected = [
        [sum(signal.correlate2d(image[..., i], kernel[..., i, o], padding.lower()) for i in range(3)) for o in range(4)]
        for image in x
    ]
    ours = jax.jit(convolve, static_argnums=2)(*(jnp.asarray(a, jnp.float32) for a in (x, kernel)), padding)
    np.testing.assert_allclose(ours, np.moveaxis(expected, 1, -1), rtol=0, atol=1e-5)
