"""Record what the tests of evaluation/ compare with, from PyTorch and torch-fidelity, in tests/evaluation/fixtures/.

    pip install "torch==2.13.0" "torch-fidelity==0.4.0"
    python scripts/record_fixtures.py                        # all files, about 10 minutes on 2 cores
    python scripts/record_fixtures.py torch_fidelity_metrics # or only some

The tests need neither package: they make the inputs again with the functions of this file that need numpy alone, and
compare with the recorded outputs. Changing a seed or one of these functions means recording again. The fixtures of
weight files and of DINOv2 come from scripts/record_torch_fixtures.py.
"""

import argparse
import importlib
import importlib.metadata
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from evaluation.features.inception_weights import random_weights

FOLDER = ROOT / "tests" / "evaluation" / "fixtures"
# Ours: torch-fidelity's.
TAPS = {name: name for name in ("64", "192", "768")} | {
    "features": "2048", "logits": "logits_unbiased", "logits_biased": "logits",
}  # fmt: skip
WEIGHTS_SEED = 0
RESIZED = 299
RESIZE_SIZES = (32, 64, 256, 512, 1024)
FID_COUNTS = (32, 256)


# --- inputs, in numpy alone -------------------------------------------------------------------------------------------


def inception_images() -> np.ndarray:
    """[4, 64, 64, 3] uint8: noise, a gradient along all three axes, all 255, all 0."""
    images = np.zeros((4, 64, 64, 3), np.uint8)
    images[0] = np.random.default_rng(1).integers(0, 256, (64, 64, 3))
    row, column, channel = np.indices((64, 64, 3))
    images[1] = (2 * row + column + 30 * channel) % 256
    images[2] = 255
    return images


def resize_image(size: int) -> np.ndarray:
    """[size, size, 3] float32 of whole grey levels 0..255: smooth waves on the left, white noise on the right."""
    random = np.random.default_rng(size)
    row, column = np.indices((size, size)) / size
    periods = np.array([1.0, 3.0, 7.0]) * row[..., None] + np.array([2.0, 1.0, 5.0]) * column[..., None]
    image = 127.5 + 127.5 * np.sin(2 * np.pi * periods)
    image[:, size // 2 :] = random.uniform(0, 255, (size, size - size // 2, 3))
    return np.round(image).astype(np.float32)


def resize_sample() -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) of the 600 output pixels that are recorded; the corners and the last rows are among them."""
    random = np.random.default_rng(3)
    rows, columns = random.integers(0, RESIZED, (2, 600))
    edge = [0, 1, RESIZED - 2, RESIZED - 1]
    rows[:16], columns[:16] = np.repeat(edge, 4), np.tile(edge, 4)
    rows[16:60] = RESIZED - 1
    columns[60:104] = RESIZED - 1
    return rows, columns


def fid_images(which: int, count: int) -> np.ndarray:
    """The first `count` of 256 images [32, 32, 3] uint8: coarse colour patches and noise, of other contrasts in set 1
    than in set 0."""
    random = np.random.default_rng([4, which])
    total = max(FID_COUNTS)
    patches = random.normal(0, (60, 45)[which], (total, 4, 4, 3)).repeat(8, axis=1).repeat(8, axis=2)
    noise = random.normal(0, (8, 25)[which], (total, 32, 32, 3))
    return np.clip(np.round(120 + patches + noise), 0, 255).astype(np.uint8)[:count]


def metric_inputs() -> dict[str, np.ndarray]:
    """x [1500, 64] (generated) and y [1200, 64] (real) features, logits [1000, 37]; all float32."""
    random = np.random.default_rng(0)
    return {
        "x": random.gamma(1.0, 0.5, (1500, 64)).astype(np.float32),
        "y": random.gamma(1.1, 0.5, (1200, 64)).astype(np.float32),
        "logits": (3 * random.normal(size=(1000, 37))).astype(np.float32),
    }


# --- recording --------------------------------------------------------------------------------------------------------


def torch_fidelity_module(name: str) -> Any:
    """One file of torch-fidelity, without its package's __init__, which needs torchvision; so does its utils, of which
    nothing is called here."""
    if "torch_fidelity" not in sys.modules:
        folder = importlib.util.find_spec("torch_fidelity").submodule_search_locations[0]
        package = types.ModuleType("torch_fidelity")
        package.__path__ = [folder]
        utils = types.ModuleType("torch_fidelity.utils")
        utils.__getattr__ = lambda attribute: None
        sys.modules |= {"torch_fidelity": package, "torch_fidelity.utils": utils}
    return importlib.import_module(f"torch_fidelity.{name}")


def torch_fidelity_inception(features: list[str], weights: dict[str, np.ndarray]) -> Any:
    """torch-fidelity's extractor of the named features, on CPU, with these weights."""
    import torch

    module = torch_fidelity_module("feature_extractor_inceptionv3")
    state = {name: torch.from_numpy(array) for name, array in weights.items()}
    # It can only load its weights from a file or a URL; both ways pass this name.
    module.load_state_dict_from_url = lambda *_, **__: state
    return module.FeatureExtractorInceptionV3("inception-v3-compat", features).eval()


def channels_first(images: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def inception_taps() -> dict[str, np.ndarray]:
    """Every tap of the four images, and "spatial" [4, 2023]: channels 0..6 of Mixed_6d's 1x1 branch.

    Computed in float64, so that the rounding of one program alone is in a comparison, and stored as float32.
    """
    import torch

    extractor = torch_fidelity_inception(list(TAPS.values()), random_weights(WEIGHTS_SEED)).double()
    extractor.feature_extractor_internal_dtype = torch.float64
    maps = []
    extractor.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: maps.append(output[:, :7]))
    with torch.no_grad():
        outputs = extractor.convert_features_tuple_to_dict(extractor(channels_first(inception_images())))
    taps = {ours: outputs[theirs].numpy() for ours, theirs in TAPS.items()}
    # TensorFlow's map is [n, h, w, c]: channels vary fastest in the flattened vector.
    return taps | {"spatial": maps[0].permute(0, 2, 3, 1).flatten(1).float().numpy()}


def resizes() -> dict[str, np.ndarray]:
    """Of each size "tf1_<size>" and "torch_<size>" [600, 3]: the sampled pixels of `resize_image(size)` at 299x299."""
    from torch.nn import functional

    tf1 = torch_fidelity_module("interpolate_compat_tensorflow").interpolate_bilinear_2d_like_tensorflow1x
    rows, columns = resize_sample()
    recorded = {}
    for size in RESIZE_SIZES:
        image, to = channels_first(resize_image(size)[None]), (RESIZED, RESIZED)
        outputs = {
            "tf1": tf1(image, size=to, align_corners=False),
            "torch": functional.interpolate(image, size=to, mode="bilinear", align_corners=False, antialias=False),
        }
        for rule, output in outputs.items():
            recorded[f"{rule}_{size}"] = output[0].permute(1, 2, 0).numpy()[rows, columns]
    return recorded


def fid() -> dict[str, np.ndarray]:
    """Of n + n images, with random weights: "fid_<n>", and "sfid_<n>" by the same formula of the spatial features."""
    import torch

    metric = torch_fidelity_module("metric_fid")
    extractor = torch_fidelity_inception(["2048"], random_weights(WEIGHTS_SEED))
    maps: list[Any] = []
    extractor.Mixed_6d.branch1x1.register_forward_hook(
        lambda module, inputs, output: maps.append(output[:, :7].permute(0, 2, 3, 1).flatten(1))
    )
    pooled, spatial = [], []
    for which in range(2):
        images, maps[:] = fid_images(which, max(FID_COUNTS)), []
        with torch.no_grad():
            batches = [extractor(channels_first(images[i : i + 16]))[0] for i in range(0, len(images), 16)]
        pooled.append(torch.cat(batches))
        spatial.append(torch.cat(maps))
    recorded = {}
    for name, sets in (("fid", pooled), ("sfid", spatial)):
        for n in FID_COUNTS:
            statistics = [metric.fid_features_to_statistics(features[:n]) for features in sets]
            recorded[f"{name}_{n}"] = metric.fid_statistics_to_metric(*statistics, False)[metric.KEY_METRIC_FID]
    return recorded


def torch_fidelity_metrics() -> dict[str, np.ndarray]:
    """Of `metric_inputs()`: kid_mean and kid_std (50 subsets of 500, seed 2020), isc_mean and isc_std (10 splits,
    shuffled with seed 2020), precision and recall (x generated, y real, k = 3), fid of x and y.

    The features go in as float64, since float32 costs torch-fidelity's KID its fifth digit.
    """
    import torch

    inputs = metric_inputs()
    x, y = (torch.from_numpy(inputs[name].astype(np.float64)) for name in ("x", "y"))
    kid, isc, prc = (torch_fidelity_module(f"metric_{name}") for name in ("kid", "isc", "prc"))
    fid = torch_fidelity_module("metric_fid")
    kids = kid.kid_features_to_metric(x, y, kid_subsets=50, kid_subset_size=500, rng_seed=2020, verbose=False)
    scores = isc.isc_features_to_metric(torch.from_numpy(inputs["logits"]), splits=10, shuffle=True, rng_seed=2020)
    areas = prc.prc_features_to_metric(x, y, prc_neighborhood=3, verbose=False)
    statistics = [fid.fid_features_to_statistics(features) for features in (x, y)]
    return {
        "kid_mean": kids[kid.KEY_METRIC_KID_MEAN],
        "kid_std": kids[kid.KEY_METRIC_KID_STD],
        "isc_mean": scores[isc.KEY_METRIC_ISC_MEAN],
        "isc_std": scores[isc.KEY_METRIC_ISC_STD],
        "precision": areas[prc.KEY_METRIC_PRECISION],
        "recall": areas[prc.KEY_METRIC_RECALL],
        "fid": fid.fid_statistics_to_metric(*statistics, False)[fid.KEY_METRIC_FID],
    }


RECORDINGS = {
    "inception_taps": inception_taps,
    "resizes": resizes,
    "fid": fid,
    "torch_fidelity_metrics": torch_fidelity_metrics,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(RECORDINGS)}; all if none is given")
    names = parser.parse_args().names or list(RECORDINGS)
    if unknown := set(names) - set(RECORDINGS):
        raise SystemExit(f"unknown fixture {sorted(unknown)}: choose from {', '.join(RECORDINGS)}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    versions = " ".join(f"{name}={importlib.metadata.version(name)}" for name in ("numpy", "torch", "torch-fidelity"))
    for name in names:
        path = FOLDER / f"{name}.npz"
        np.savez_compressed(path, **RECORDINGS[name](), versions=np.array(versions))
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
