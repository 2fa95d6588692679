import hashlib
import importlib.util
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from evaluation.features.inception import inception_from_weights, load_inception
from evaluation.features.inception_weights import CONVOLUTIONS, folded, manifest, random_weights


@pytest.fixture(scope="module")
def script():
    path = Path(__file__).parents[2] / "scripts" / "convert_inception.py"
    spec = importlib.util.spec_from_file_location("convert_inception", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def state():
    return random_weights(3)


def test_manifest():
    """E3: the counts are the published ones; the shapes were copied by hand from the public definition."""
    shapes = manifest()
    assert len(shapes) == 566 and len(CONVOLUTIONS) == 94
    assert sum(int(np.prod(shape)) for name, shape in shapes.items() if shape) == 23_885_392
    expected = {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Conv2d_4a_3x3.bn.running_var": (192,),
        "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_5b.branch_pool.conv.weight": (32, 192, 1, 1),
        "Mixed_6a.branch3x3.conv.weight": (384, 288, 3, 3),
        "Mixed_6b.branch7x7_2.conv.weight": (128, 128, 1, 7),
        "Mixed_6b.branch7x7dbl_2.conv.weight": (128, 128, 7, 1),
        "Mixed_6e.branch7x7dbl_5.conv.weight": (192, 192, 1, 7),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7b.branch3x3_2a.conv.weight": (384, 384, 1, 3),
        "Mixed_7c.branch3x3dbl_1.conv.weight": (448, 2048, 1, 1),
        "Mixed_7c.branch_pool.bn.num_batches_tracked": (),
        "fc.weight": (1008, 2048),
        "fc.bias": (1008,),
    }
    assert {name: shapes.get(name) for name in expected} == expected


def test_random_weights_do_not_change(state):
    """The recorded fixtures are of these draws."""
    digest = hashlib.sha256()
    for array in random_weights(0).values():
        digest.update(array.tobytes())
    assert digest.hexdigest() == "f8b555cc4d0a32b8a95d4d016c17d0d8dcf086516efa0a0d0df81d24e15151ca"
    assert {name: array.shape for name, array in state.items()} == manifest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Mixed_6c.branch1x1.bn.bias": None}, "lack 1 of 566 tensors.*Mixed_6c.branch1x1.bn.bias"),
        ({"Mixed_6c.branch1x1.bn.num_batches_tracked": None}, "lack 1 .*num_batches_tracked"),
        ({"AuxLogits.fc.bias": np.zeros(1000, np.float32)}, "1 unknown tensors.*AuxLogits.fc.bias"),
        ({"fc.bias": np.zeros(1000, np.float32)}, r"fc.bias must have shape \(1008,\), got \(1000,\)"),
        ({"fc.bias": np.zeros(1008)}, "fc.bias must be finite float32, got float64"),
        ({"fc.bias": np.full(1008, np.nan, np.float32)}, "fc.bias must be finite"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(script, state, change, message):
    changed = {name: array for name, array in (state | change).items() if array is not None}
    with pytest.raises(ValueError, match=message):
        script.convert(changed)


def test_folding_is_batch_normalisation(state):
    """Against the unfolded formula in float64, at one position of a 1x7 convolution."""
    name = "Mixed_6b.branch7x7_2"
    kernel, shift = folded(state, name)
    patch = np.random.default_rng(0).normal(size=(1, 7, 128))
    convolved = np.einsum("hwi,oihw->o", patch, state[f"{name}.conv.weight"].astype(np.float64))
    scale, offset, mean, variance = (
        state[f"{name}.bn.{key}"].astype(np.float64) for key in ("weight", "bias", "running_mean", "running_var")
    )
    expected = scale * (convolved - mean) / np.sqrt(variance + 0.001) + offset
    np.testing.assert_allclose(np.einsum("hwi,hwio->o", patch, kernel) + shift, expected, rtol=0, atol=2e-6)


def run(script, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["convert_inception.py", *map(str, arguments)])
    return script.main()


def test_round_trip(script, state, tmp_path, monkeypatch, capsys):
    """From the script's own output to the network: through the printed lines, to equal parameters."""
    source, output = tmp_path / "some.pth", tmp_path / "inception.npz"
    source.write_bytes(b"other weights")
    monkeypatch.setattr(script, "read_torch_file", lambda path, sha256: dict(state))
    assert run(script, monkeypatch, source, output) == 2
    assert re.match("error: .*begins with 6726825d", capsys.readouterr().err) and not output.exists()
    assert run(script, monkeypatch, "--allow_other_weights", source, output) == 0
    lines = dict(line.removeprefix("export ").split("=") for line in capsys.readouterr().out.splitlines()[1:])
    assert lines["INCEPTION_WEIGHTS"] == str(output)
    for name, value in lines.items():
        monkeypatch.setenv(name, value)
    loaded, direct = load_inception(), inception_from_weights(state)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, direct.params)
    assert loaded.provenance["weights_sha256"] == lines["INCEPTION_WEIGHTS_SHA256"]
    assert loaded.provenance["source_sha256"] == hashlib.sha256(b"other weights").hexdigest()
    assert loaded.provenance["official"] is False
    known = inception_from_weights(state, provenance={"source_sha256": "6726825d" + 56 * "0"})
    assert known.provenance["official"] is True


def test_the_known_file_passes_by_its_hash_and_a_missing_one_is_named(script, tmp_path, monkeypatch, capsys):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"x")
    monkeypatch.setattr(script, "OFFICIAL_SHA256", hashlib.sha256(b"x").hexdigest()[:8])
    assert script.source_hash(path, any_weights=False) == hashlib.sha256(b"x").hexdigest()
    assert run(script, monkeypatch, tmp_path / "absent.pth", tmp_path / "out.npz") == 2
    assert "absent.pth" in capsys.readouterr().err
