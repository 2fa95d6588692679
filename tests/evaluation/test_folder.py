"""Anybody's images against a reference: equal numbers from a folder and from arrays; what does not fit is refused."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from PIL import Image

from evaluation import features as extractors
from evaluation.folder import evaluate_folder
from evaluation.metrics import make_reference
from evaluation.references import write_reference

SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluate.py"
COUNT = 30


class Toy:
    name, dimension, params = "toy", 6, ()

    def __init__(self):
        self.provenance = {"name": "toy", "weights_sha256": "0", "resize": None}

    def taps(self, params, images):
        return {"features": images.reshape(len(images), 6, -1).astype(jnp.float32).mean(axis=2)}


TOY = Toy()


def images_of(seed, count=COUNT, size=6):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def save(folder, images, suffix="png"):
    folder.mkdir(exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03d}.{suffix}")
    return folder


@pytest.fixture(scope="module")
def options():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    return {"num_samples": COUNT, "reference_name": "real", "batch_size": 8, "mesh": mesh}


@pytest.fixture
def real(tmp_path):
    np.savez(tmp_path / "real.npz", images=images_of(1))
    return tmp_path / "real.npz"


def test_folders_arrays_and_statistics_give_the_same_numbers(tmp_path, real, options):
    folder = save(tmp_path / "samples", images_of(0))
    np.savez(tmp_path / "samples.npz", arr_0=images_of(0))
    data = images_of(1)
    statistics = make_reference(lambda start, stop: data[start:stop], COUNT, TOY, ["fd", "kid"], facts={},
                                batch_size=8, mesh=options["mesh"])  # fmt: skip
    write_reference(tmp_path / "statistics.npz", statistics)
    save(tmp_path / "real", data)
    records = [
        evaluate_folder(samples, reference, TOY, ["fd", "kid"], **options)
        for samples in (folder, tmp_path / "samples.npz")
        for reference in (real, tmp_path / "real", tmp_path / "statistics.npz")
    ]
    assert records[0]["metrics"].keys() == {"fd30_real_toy", "kid30_real_toy"}
    for record in records[1:]:
        assert record["metrics"] == pytest.approx(records[0]["metrics"], rel=1e-9)
    x, y = (images.reshape(COUNT, 6, -1).mean(axis=2) for images in (images_of(0), images_of(1)))
    means = ((x.mean(0) - y.mean(0)) ** 2).sum()
    assert records[0]["metrics"]["fd30_real_toy"] > means > 0
    assert records[0]["data"]["count"] == COUNT and json.dumps(records[0])


@pytest.mark.parametrize("extra", [-1, 1])
def test_another_number_of_images_is_refused(tmp_path, real, options, extra):
    """Samples that an older run has left are not averaged in."""
    folder = save(tmp_path / "samples", images_of(0, COUNT + extra))
    with pytest.raises(ValueError, match=f"holds {COUNT + extra} images, not {COUNT}"):
        evaluate_folder(folder, real, TOY, ["fd"], **options)


def test_sets_that_are_mixed_are_refused(tmp_path, real, options):
    folder = save(tmp_path / "samples", images_of(0, COUNT - 1))
    save(folder, images_of(0, 1, size=7), "jpg")
    with pytest.raises(ValueError, match="holds JPEG and PNG images"):
        evaluate_folder(folder, real, TOY, ["fd"], **options)
    (folder / "000.jpg").unlink()
    Image.fromarray(images_of(0, 1, size=7)[0]).save(folder / "999.png")
    with pytest.raises(ValueError, match=r"999\.png has 7x7 pixels, but 000\.png has 6x6"):
        evaluate_folder(folder, real, TOY, ["fd"], **options)
    (folder / "999.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"cannot read .*999\.png as an image"):
        evaluate_folder(folder, real, TOY, ["fd"], **options)


def test_a_reference_of_another_kind_is_refused(tmp_path, real, options):
    lossy = save(tmp_path / "lossy", images_of(1), "jpg")
    folder = save(tmp_path / "samples", images_of(0))
    with pytest.raises(ValueError, match="the images are PNG and the reference is JPEG"):
        evaluate_folder(folder, lossy, TOY, ["fd"], **options)
    large = save(tmp_path / "large", images_of(1, size=12))
    with pytest.raises(ValueError, match=r"shape \(6, 6, 3\) and those of the reference \(12, 12, 3\)"):
        evaluate_folder(folder, large, TOY, ["fd"], **options)
    for missing in (tmp_path / "nowhere", tmp_path / "nowhere.npz"):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            evaluate_folder(folder, missing, TOY, ["fd"], **options)
        with pytest.raises(FileNotFoundError, match="nowhere"):
            evaluate_folder(missing, real, TOY, ["fd"], **options)


def test_a_cache_is_of_one_set(tmp_path, real, options):
    """The second evaluation reads what the first has measured, and other images are measured anew."""
    folder, cache = save(tmp_path / "samples", images_of(0)), tmp_path / "cache"
    first = evaluate_folder(folder, real, TOY, ["fd"], **options, cache=cache)
    told = []
    again = evaluate_folder(folder, real, TOY, ["fd"], **options, cache=cache, progress=lambda *a: told.append(a))
    assert again["metrics"] == first["metrics"] and told == []
    Image.fromarray(images_of(5, 1)[0] // 2).save(folder / "007.png")
    changed = evaluate_folder(folder, real, TOY, ["fd"], **options, cache=cache)
    assert changed["metrics"] == evaluate_folder(folder, real, TOY, ["fd"], **options)["metrics"] != first["metrics"]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("evaluate", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_prints_and_records(script, tmp_path, real, options, monkeypatch, capsys):
    monkeypatch.setitem(extractors.PRETRAINED, "efflite0", lambda: TOY)
    folder, output = save(tmp_path / "samples", images_of(0)), tmp_path / "results" / "out.jsonl"
    command = ["evaluate.py", str(folder), f"--reference={real}", "--num_samples=30", f"--output={output}"]
    assert script.main(command) == 0 and script.main(command) == 0
    expected = evaluate_folder(folder, real, TOY, ["fd", "kid"], **options | {"reference_name": "real"})
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [record["metrics"] for record in records] == [pytest.approx(expected["metrics"])] * 2
    assert {"environment", "git_revision", "time", "data", "details"} <= records[0].keys()
    assert f"fd30_real_toy = {expected['metrics']['fd30_real_toy']:.6g}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--features=inception_v3"], "--features = 'inception_v3' is not known; choose from efflite0, inception, din"),
        (["--metrics=fid"], "metric 'fid' needs the features 'inception'"),
        (["--metrics=fvd"], "metric 'fvd' is not known; choose from"),
        (["--resize=clean"], "--resize has no meaning for --features=efflite0"),
        (["--features=inception", "--resize=area"], "area"),
        (["--batch_size=0"], "--batch_size = 0 must be at least 1"),
        (["--num_samples=3"], "holds 30 images, not 3"),
    ],
)
def test_the_command_refuses_in_one_message(script, tmp_path, real, monkeypatch, capsys, change, message):
    monkeypatch.setitem(extractors.PRETRAINED, "efflite0", lambda: TOY)
    np.savez(tmp_path / "samples.npz", images=images_of(0))
    command = ["evaluate.py", str(tmp_path / "samples.npz"), f"--reference={real}", "--num_samples=30", *change]
    assert script.main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and "Traceback" not in error
