"""Hand-made files of each kind, as numpy writes them; damaged, hostile and half-written ones."""

import io
import json
import zipfile

import numpy as np
import pytest

from evaluation.array_files import save_arrays
from evaluation.distances import frechet_distance
from evaluation.moments import Moments, moments
from evaluation.references import Reference, check_comparable, read_reference, write_reference

COUNT, D, D_SPATIAL = 60, 6, 4


def rows(seed=0, dimension=D):
    return np.random.default_rng(seed).gamma(1.0, 1.0, (COUNT, dimension)).astype(np.float32)


def statistics(seed=0, dimension=D):
    x = rows(seed, dimension).astype(np.float64)
    return x.mean(axis=0), np.cov(x.T)


IMAGES = np.random.default_rng(1).integers(0, 256, (5, 8, 9, 3), np.uint8)
(MU, SIGMA), (MU_S, SIGMA_S) = statistics(), statistics(2, D_SPATIAL)
SPATIAL = {"mu_s": MU_S, "sigma_s": SIGMA_S}
FILES = {
    "statistics": {"mu": MU, "sigma": SIGMA},
    "adm": {"arr_0": IMAGES, "arr_1": np.arange(5), "mu": MU, "sigma": SIGMA, **SPATIAL},
    "score_sde": {"pool_3": rows(), "logits": np.zeros((COUNT, 3), np.float32)},
    "clean_fid_kid": {"feats": rows()},
}
PROVENANCE = {"features": "inception", "weights_sha256": "ab", "resize": "tf1", "image_shape": [8, 9, 3], "ddof": 1,
              "dataset": "noise", "split": "train"}  # fmt: skip
OURS = Reference(moments={"features": moments(rows()), "spatial": Moments(COUNT, MU_S, SIGMA_S)},
                 rows={"features": rows()}, images=None, provenance=PROVENANCE | {"remark": "made"})  # fmt: skip


@pytest.fixture(params=[*FILES, "ours"])
def any_kind(request, tmp_path):
    """(kind, its file)."""
    path = tmp_path / f"{request.param}.npz"
    if request.param == "ours":
        write_reference(path, OURS)
    else:
        np.savez(path, **FILES[request.param])
    return request.param, path


def test_every_kind_gives_the_same_distance(any_kind):
    kind, path = any_kind
    reference = read_reference(path)
    assert reference.provenance["kind"] == kind and reference.provenance["path"] == str(path)
    assert reference.moments["features"].covariance.dtype == np.float64
    other = moments(rows(7))
    expected = frechet_distance(Moments(COUNT, MU, SIGMA), other)
    assert frechet_distance(reference.moments["features"], other) == pytest.approx(expected, rel=1e-9)
    assert expected > 0.1
    known = kind in ("score_sde", "clean_fid_kid", "ours")
    assert reference.moments["features"].count == reference.provenance["num_images"] == (COUNT if known else None)
    assert ("features" in reference.rows) == known
    for found in reference.rows.values():
        assert np.array_equal(found, rows())


def test_adm_files(tmp_path):
    """Statistics of the whole set beside some images of it; and mere images, as samples are stored."""
    for name in ("adm", "samples"):
        arrays = FILES["adm"] if name == "adm" else {"arr_0": IMAGES}
        np.savez(tmp_path / f"{name}.npz", **arrays)
        reference = read_reference(tmp_path / f"{name}.npz")
        assert np.array_equal(reference.images, IMAGES) and reference.provenance["image_shape"] == [8, 9, 3]
        assert reference.moments.keys() == ({"features", "spatial"} if name == "adm" else set())
        assert reference.provenance["num_images"] is None
    spatial = read_reference(tmp_path / "adm.npz").moments["spatial"]
    assert np.array_equal(spatial.mean, MU_S) and np.array_equal(spatial.covariance, SIGMA_S)


def test_ours_is_read_back_and_by_others(tmp_path):
    path = tmp_path / "new" / "reference.npz"
    write_reference(path, OURS)
    found = read_reference(path)
    for tap in ("features", "spatial"):
        assert np.array_equal(found.moments[tap].mean, OURS.moments[tap].mean)
        assert np.array_equal(found.moments[tap].covariance, OURS.moments[tap].covariance)
        assert found.moments[tap].count == COUNT
    assert OURS.provenance.items() <= found.provenance.items() and found.provenance["num_images"] == COUNT
    assert len(found.provenance["file_sha256"]) == 64
    with np.load(path, allow_pickle=False) as others:
        assert np.array_equal(others["mu"], OURS.moments["features"].mean) and others["sigma"].shape == (D, D)
        assert np.array_equal(others["feats"], rows()) and others["mu_s"].shape == (D_SPATIAL,)
        assert json.loads(str(others["__description__"]))["resize"] == "tf1"
    assert [file.name for file in path.parent.iterdir()] == ["reference.npz"]


def test_a_reference_that_was_read_can_be_written(any_kind, tmp_path):
    reference = read_reference(any_kind[1])
    write_reference(tmp_path / "again.npz", reference)
    again = read_reference(tmp_path / "again.npz")
    assert again.provenance["kind"] == "ours" and again.rows.keys() == reference.rows.keys()
    assert (again.images is None) == (reference.images is None)
    assert np.array_equal(again.moments["features"].covariance, reference.moments["features"].covariance)


def asymmetric():
    sigma = SIGMA.copy()
    sigma[1, 2] += 1e-5 * np.abs(SIGMA).max()
    return sigma


def negative():
    sigma = SIGMA.copy()
    sigma[3, 3] = -1e-3
    return sigma


MALFORMED = [
    ({"sigma": SIGMA}, r"needs mu and sigma, pool_3, feats or arr_0, but holds sigma"),
    ({"mu": MU, "sigma": SIGMA, "mu_s": MU_S}, "has mu_s but no sigma_s"),
    ({"arr_0": IMAGES, "sigma": SIGMA}, "has sigma but no mu"),
    ({"mu": MU, "sigma": asymmetric()}, "sigma is not symmetric"),
    ({"mu": MU, "sigma": negative()}, "sigma has a negative variance"),
    ({"mu": MU[:-1], "sigma": SIGMA}, r"sigma has shape \(6, 6\), which does not fit"),
    ({"mu": MU, "sigma": SIGMA[:-1]}, r"sigma has shape \(5, 6\)"),
    ({"mu": MU[None], "sigma": SIGMA}, r"mu is float64 \(1, 6\); it must be float32 or float64 \[D\]"),
    ({"mu": MU, "sigma": MU}, r"sigma is float64 \(6,\); .* \[D, D\]"),
    ({"mu": MU.astype(np.float16), "sigma": SIGMA}, "mu is float16"),
    ({"mu": MU, "sigma": SIGMA.astype(complex)}, "sigma is complex128"),
    ({"mu": MU.astype(object), "sigma": SIGMA}, "mu.npy holds Python objects"),
    ({"mu": np.where(np.arange(D) == 2, np.nan, MU), "sigma": SIGMA}, "mu holds 1 numbers that are not finite"),
    ({"mu": MU, "sigma": np.full((D, D), np.inf)}, "sigma holds 36 numbers that are not finite"),
    ({"mu": MU, "sigma": SIGMA, "mu_s": MU_S, "sigma_s": -SIGMA_S}, "sigma_s has a negative variance"),
    ({"pool_3": rows()[:1]}, "features must hold at least 2 samples"),
    ({"pool_3": rows()[0]}, r"pool_3 is float32 \(6,\); .* \[N, D\]"),
    ({"feats": np.full((4, 3), np.nan)}, "feats holds 12 numbers that are not finite"),
    ({"feats": rows(dimension=5), "mu": MU, "sigma": SIGMA}, r"feats has shape \(60, 5\)"),
    ({"arr_0": IMAGES.astype(np.float32)}, "arr_0 is float32"),
    ({"arr_0": IMAGES[0]}, r"arr_0 is uint8 \(8, 9, 3\)"),
]


@pytest.mark.parametrize(("arrays", "message"), MALFORMED)
def test_malformed_files_are_refused_with_the_reason(arrays, message, tmp_path):
    path = tmp_path / "reference.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message) as refused:
        read_reference(path)
    assert str(path) in str(refused.value)


def test_rounding_in_a_file_of_float32_is_no_asymmetry(tmp_path):
    sigma = asymmetric() * 1e-2 + SIGMA * 0.99  # 1e-7 of the largest
    np.savez(tmp_path / "single.npz", mu=MU.astype(np.float32), sigma=sigma.astype(np.float32))
    assert read_reference(tmp_path / "single.npz").moments["features"].covariance.dtype == np.float64


def test_nothing_is_allocated_on_trust(tmp_path):
    """An npz of some hundred bytes, whose header claims 65536 x 65536 numbers: 32 GiB."""
    path = tmp_path / "large.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, shape in (("mu", (65536,)), ("sigma", (65536, 65536))):
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": shape})
            archive.writestr(f"{name}.npy", header.getvalue())
    assert path.stat().st_size < 1000
    with pytest.raises(ValueError, match=r"large.npz .* mu.npy claims shape \(65536,\)"):
        read_reference(path)


def test_files_that_are_no_archives_are_refused(tmp_path):
    for name, reason in (("edm2.pkl", "a pickle, which can run any code"), ("text.npz", "as an npz file")):
        path = tmp_path / name
        path.write_bytes(b"\x80\x04K\x01.")
        with pytest.raises(ValueError, match=reason):
            read_reference(path)
    with pytest.raises(FileNotFoundError, match=r"missing.npz does not exist"):
        read_reference(tmp_path / "missing.npz")


def test_half_written_and_damaged_files_are_refused(any_kind):
    """Cut anywhere: never read. One bit flipped: refused, or in a place that holds none of the numbers."""
    path = any_kind[1]
    content, whole = path.read_bytes(), read_reference(path)
    for length in range(0, len(content), max(1, len(content) // 40)):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=path.name):
            read_reference(path)
    refused = 0
    for position in range(7, len(content), max(1, len(content) // 60)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        try:
            found = read_reference(path)
        except ValueError as error:
            assert path.name in str(error)
            refused += 1
        else:
            assert np.array_equal(found.moments["features"].covariance, whole.moments["features"].covariance)
    assert refused > 20


def test_a_file_of_ours_is_refused_when_its_numbers_were_changed(tmp_path):
    """A valid npz, whose hash no longer fits; and a file of another purpose."""
    path = tmp_path / "reference.npz"
    write_reference(path, OURS)
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **arrays | {"mu": arrays["mu"] + 1e-9})
    with pytest.raises(ValueError, match="its sha256 differs"):
        read_reference(path)
    save_arrays(path, {"mu": MU, "sigma": SIGMA}, {"what": "images"})
    with pytest.raises(ValueError, match="not one of reference statistics"):
        read_reference(path)


def test_what_cannot_be_read_back_is_not_written(tmp_path):
    path = tmp_path / "reference.npz"
    other = {"logits": OURS.moments["features"]}
    for moments_of, rows_of in (({}, {}), (OURS.moments, {"logits": rows()}), (OURS.moments | other, {}), (other, {})):
        with pytest.raises(ValueError, match="a reference file holds moments of features"):
            write_reference(path, Reference(moments=moments_of, rows=rows_of, images=None, provenance={}))
    broken = {"features": Moments(COUNT, MU * np.nan, SIGMA)}
    with pytest.raises(ValueError, match="mu holds 6 numbers that are not finite"):
        write_reference(path, Reference(moments=broken, rows={}, images=None, provenance={}))
    assert list(tmp_path.iterdir()) == []


SAMPLES = {"features": "inception", "weights_sha256": "ab", "resize": "tf1", "image_shape": (8, 9, 3), "dimension": D}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("features", "dinov2", "features is dinov2 of the samples, but inception of"),
        ("weights_sha256", "cd", "weights_sha256 is cd of the samples, but ab of"),
        ("resize", "clean", "resize is clean of the samples, but tf1 of"),
        ("image_shape", (16, 9, 3), r"image_shape is \[16, 9, 3\] of the samples, but \[8, 9, 3\] of"),
        ("dimension", 7, "dimension is 7 of the samples, but 6 of"),
    ],
)
def test_samples_that_were_measured_otherwise_are_refused(field, value, message, tmp_path):
    write_reference(tmp_path / "reference.npz", OURS)
    reference = read_reference(tmp_path / "reference.npz")
    assert check_comparable(SAMPLES, reference) == []
    with pytest.raises(ValueError, match=message + ".*reference.npz"):
        check_comparable(SAMPLES | {field: value}, reference)
    unknown = check_comparable(SAMPLES | {field: None}, reference)
    assert unknown == ([] if field == "dimension" else [field])


def test_what_a_foreign_file_does_not_say_is_reported(any_kind):
    kind, path = any_kind
    unverified = check_comparable(SAMPLES, read_reference(path))
    expected = {"ours": [], "adm": ["features", "weights_sha256", "resize"]}
    assert unverified == expected.get(kind, ["features", "weights_sha256", "resize", "image_shape"])
    with pytest.raises(ValueError, match="dimension is 5"):
        check_comparable(SAMPLES | {"dimension": 5}, read_reference(path))


def test_features_that_know_no_resize(tmp_path):
    """In a file of ours, that there is none is known."""
    facts = {"features": "classifier", "weights_sha256": "ab", "resize": None, "image_shape": [8, 9, 3]}
    reference = Reference(moments=OURS.moments, rows={}, images=None, provenance=facts | {"kind": "ours"})
    assert check_comparable(facts, reference) == []
    assert check_comparable(facts | {"resize": "tf1"}, reference) == ["resize"]
    foreign = Reference(moments=OURS.moments, rows={}, images=None, provenance=facts | {"kind": "statistics"})
    assert check_comparable(facts, foreign) == ["resize"]
