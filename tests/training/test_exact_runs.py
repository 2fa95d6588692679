"""Runs whose denoiser is that of the data in closed form: samples have the right moments, and nothing is trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import validate
from configs.overrides import resolve
from data.sources import open_source, toy2d
from diffusion import EDM
from diffusion.exact import fitted_gaussians
from diffusion.process import GaussianProcess
from training import components, evaluation, inference, loop
from training.exact_target import GREY_LEVEL
from training.experiment import build_experiment
from training.workdir import read_config, read_json_lines

pytestmark = pytest.mark.usefixtures("no_tensorboard")
DIGITS, MIXTURE = "configs/exact.py:gaussians_digits", "configs/exact.py:mixture"


@pytest.fixture(scope="module")
def drawn():
    """Bytes of two classes of correlated 2 x 2 images, far from 0 and 255; the last pixel is always 90."""
    generator = np.random.default_rng(0)
    labels = np.arange(300) % 3 % 2  # 200 of class 0, 100 of class 1
    factors = 20 * np.stack([np.eye(4) + 0.5 * np.tri(4), np.eye(4) - 0.4 * np.tri(4, k=-1)])
    flat = np.einsum("nij,nj->ni", factors[labels], generator.normal(size=(300, 4)))
    flat += np.array([110, 150])[labels, None]
    flat[:, 3] = 90
    return np.clip(np.round(flat), 0, 255).astype(np.uint8).reshape(-1, 2, 2, 1), labels


@pytest.fixture(scope="module")
def source(drawn, tmp_path_factory):
    """The same as a data set."""
    path = tmp_path_factory.mktemp("exact") / "images.npz"
    np.savez(path, images=drawn[0], labels=drawn[1])
    return f"npz:{path}"


def fit(images, labels):
    """Of each class present: mean, maximum-likelihood covariance with one squared grey level on the diagonal."""
    flat = images.reshape(len(images), -1) / 127.5 - 1.0
    groups = [flat[labels == name] for name in np.unique(labels)]
    covariances = [np.cov(group, rowvar=False, ddof=0) + np.eye(flat.shape[1]) * (2 / 255) ** 2 for group in groups]
    return np.array([len(group) for group in groups]), np.array([group.mean(0) for group in groups]), covariances


def small(source, changes=None):
    fields = {"data.source": source, "data.batch_size": 16, "sampler.steps": 40, "evaluation.num_samples": 2000,
              "evaluation.batch_size": 1000}  # fmt: skip
    config = resolve(DIGITS, fields | (changes or {}))
    validate(config)
    return config


def samples_of(workdir, labels="arr_1"):
    (path,) = workdir.glob("generated/*/samples.npz")
    with np.load(path) as file:
        return file["arr_0"], file[labels]


# --- the fit ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labelled", [True, False])
def test_fitted_gaussians_are_those_of_numpy(drawn, mixture, labelled):
    """The posterior mean by matrix inverses, of the whole mixture and of each class alone."""
    images, labels = drawn
    weights, means, covariances = fit(images, labels if labelled else np.zeros(len(labels)))
    process, t = GaussianProcess(EDM()), 0.5
    exact = fitted_gaussians(process, images / 127.5 - 1.0, labels if labelled else None, floor=GREY_LEVEL**2)
    x = np.random.default_rng(1).normal(size=(6, 2, 2, 1)) * 0.5
    level = process.sigma(t)
    times, at = jnp.full(6, t), jnp.asarray(x, jnp.float32)
    flat, count = x.reshape(6, 4), len(weights)
    denoise = jax.jit(exact)
    whole = type(mixture)(weights / weights.sum(), means, np.array(covariances))
    np.testing.assert_allclose(denoise(at, times).reshape(6, 4), whole.denoise(flat, 1.0, level), atol=1e-5)
    if labelled:
        names = np.arange(6) % count
        got = denoise(at, times, jnp.asarray(names)).reshape(6, 4)
        for name in range(count):
            alone = type(mixture)(np.ones(1), means[name : name + 1], np.array(covariances[name : name + 1]))
            expected = alone.denoise(flat[names == name], 1.0, level)
            np.testing.assert_allclose(got[names == name], expected, atol=1e-5)


def test_pixels_that_never_change_have_the_variance_of_the_floor():
    """To five digits, beside directions with a million times as much; in single precision it would be lost."""
    generator = np.random.default_rng(2)
    data = np.concatenate([8 * generator.normal(size=(50, 20)), np.ones((50, 20))], axis=1) @ np.linalg.qr(
        generator.normal(size=(40, 40)))[0]  # fmt: skip
    values = fitted_gaussians(GaussianProcess(EDM()), data, floor=GREY_LEVEL**2).eigenvalues[0]
    np.testing.assert_allclose(values[:20], GREY_LEVEL**2, rtol=1e-5)
    assert values[20] > 1


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sampled(source, tmp_path_factory):
    """The workdir of an exact run, with samples."""
    workdir = tmp_path_factory.mktemp("sampled") / "run"
    assert inference.sample(small(source), str(workdir)) == 0
    return workdir


def test_samples_of_fitted_gaussians_have_their_moments(source, sampled):
    """4 standard errors. Rounding to bytes adds 1/12 squared grey levels."""
    train = build_experiment(small(source)).train
    _, means, covariances = fit(train.images, train.labels)
    images, labels = samples_of(sampled)
    for name in (0, 1):
        flat = images[labels == name].reshape(-1, 4) / 127.5 - 1
        expected = covariances[name] + np.eye(4) * GREY_LEVEL**2 / 12
        variances = np.diag(expected)
        errors = np.sqrt((np.outer(variances, variances) + expected**2) / len(flat))
        assert len(flat) == 1000
        assert (np.abs(flat.mean(0) - means[name]) < 4 * np.sqrt(variances / len(flat))).all()
        assert (np.abs(np.cov(flat, rowvar=False) - expected) < 4 * errors).all()
        other = covariances[1 - name]  # the negative control: the other class is told apart
        assert (np.abs(np.cov(flat, rowvar=False) - other) > 4 * errors).any()


def test_a_second_run_uses_what_is_there_and_another_target_is_refused(source, sampled):
    files = sorted(sampled.glob("generated/*/0*.npz"))
    times = [path.stat().st_mtime_ns for path in files]
    assert len(files) == 2 and inference.sample(small(source), str(sampled)) == 0
    assert sorted(sampled.glob("generated/*/0*.npz")) == files
    assert [path.stat().st_mtime_ns for path in files] == times
    assert read_config(sampled)["network"]["name"] == "exact"
    with pytest.raises(ValueError, match=r'another experiment:\n  network.target: "gaussians" \(stored\) != "empiric'):
        inference.sample(small(source, {"network.target": "empirical"}), str(sampled))


def test_samples_of_the_empirical_target_are_training_images(source, tmp_path):
    changes = {"network.target": "empirical", "evaluation.num_samples": 50, "evaluation.batch_size": 50}
    config = small(source, changes)
    assert inference.sample(config, str(tmp_path)) == 0
    train = build_experiment(config).train
    known = {(label, image.tobytes()) for label, image in zip(train.labels.tolist(), train.images)}
    images, labels = samples_of(tmp_path)
    found = {(label, image.tobytes()) for label, image in zip(labels.tolist(), images)}
    assert found <= known and len(found) > 30


def test_evaluation_of_a_known_density(tmp_path):
    """The mixture: every point lies where its class is; the line of results says that nothing was trained."""
    config = resolve(MIXTURE, {"sampler": "ddim", "sampler.grid": "logsnr", "evaluation.num_samples": 400,
                               "evaluation.batch_size": 400, "evaluation.memorisation": False,
                               "evaluation.metrics": ("fd",)})  # fmt: skip
    assert evaluation.evaluate(config, str(tmp_path)) == 0
    (record,) = read_json_lines(tmp_path / "results.jsonl")
    expected = {"experiment": "exact_mixture", "step": 0, "ema_half_life": None, "nfe": 50.0, "num_samples": 400}
    assert {name: record[name] for name in expected} == expected
    assert record["metrics"]["fd400_test_points"] < 0.01 and len(record["parameters_sha256"]) == 64
    (path,) = tmp_path.glob("generated/*/0*.npz")
    points = np.load(path)["image"].reshape(50, 8, 2) - toy2d.MIXTURE_MEANS
    assert np.abs(points).max() < 5 * toy2d.MIXTURE_STD
    # 800 numbers: a standard error of 2.5 %, and the 50 steps cost less than that.
    assert np.sqrt((points**2).mean()) == pytest.approx(toy2d.MIXTURE_STD, rel=0.1)


def test_the_hash_is_of_data_target_and_process(source):
    def sha256(changes):
        config = resolve(DIGITS, {"data.source": source, "data.batch_size": 16} | changes)
        train = open_source(config.data.source, "train", path="", image_size=0)
        return components.make_exact(config).sha256(config, train)

    changes = [{}, {"network.target": "empirical"}, {"process.sigma_max": 20.0}, {"data.source": "digits"},
               {"data.source": "toy2d:rings"}, {"data.source": "toy2d:mixture"}]  # fmt: skip
    assert len({sha256(change) for change in changes}) == len(changes)
    assert sha256({}) == sha256({"sampler.steps": 3, "evaluation.num_samples": 7})
    assert sha256({"network.target": None}) == sha256({"network.target": "empirical"})


@pytest.mark.parametrize("name", ["digits", "toy2d:checkerboard", "toy2d:rings"])
def test_arrays_are_handed_on_as_parameters(name):
    """No program holds them, and what is handed on is what is used."""
    target = "empirical" if name == "digits" else None
    experiment = build_experiment(resolve(DIGITS, {"data.source": name, "network.target": target}))
    params = experiment.params["score"]
    x, t = jnp.full((1, *experiment.image_shape), 0.3), jnp.full(1, 0.5)

    def held(function, *arguments):
        """Whether one of the arrays of the closed form is a constant of the traced function."""
        constants = [np.asarray(value) for value in jax.make_jaxpr(function)(*arguments).consts]
        wanted = [np.asarray(value) for value in params.values() if value.size > 2]
        return any(np.array_equal(one, other) for one in constants for other in wanted)

    assert params and not held(lambda params: experiment.denoiser(params)(x, t, None), params)
    assert held(lambda x: experiment.exact(x, t, None), x)  # the negative control
    marked = experiment.denoiser({key: value + 1 for key, value in params.items()})
    assert all(np.array_equal(getattr(marked, key), value + 1) for key, value in params.items())


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network.target": "magic"}, "config.network.target = 'magic' is not known; choose from empirical, gaussians"),
        ({"data.flip": True}, "config.data.flip = True does not go with config.network.name = 'exact'"),
        ({"data.pad_to": 16}, "config.data.pad_to = 16 does not go with config.network.name = 'exact'"),
        ({"process.name": "double_well"}, "needs a process with a Gaussian kernel for images, and config.process.name"),
        ({"data.source": "toy2d"}, "config.network.target = 'gaussians' is for images, and config.data.source = "),
        ({"data.source": "toy2d:magic", "network.target": None}, "nobody knows the denoiser of config.data.source = "
         "'toy2d:magic' under config.process.name = 'edm'. It is known of toy2d:checkerboard"),
    ],
)  # fmt: skip
def test_what_has_no_closed_form(changes, message):
    config = resolve(DIGITS, changes)
    with pytest.raises(ValueError) as caught:
        components.make_exact(config).check(config, components.make_process(config))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.flip": True}, r"config\.data\.flip = True does not go"),
        ({"network.width": 8}, r"config\.network\.width = 8 has no meaning for .* 'exact', whose options are target$"),
        ({"network.name": "mlp"}, r"config\.network\.target = gaussians has no meaning for .* 'mlp'"),
    ],
)
def test_it_is_refused_before_anything_is_built(changes, message):
    with pytest.raises(ValueError, match=message):
        validate(resolve(DIGITS, changes))


@pytest.mark.parametrize("target", ["gaussians", "empirical", None])
def test_what_is_too_big_is_not_begun(target, tmp_path):
    config = resolve(DIGITS, {"network.target": target, "evaluation.batch_size": 10**6})
    with pytest.raises(ValueError, match=f"target = '{target or 'empirical'}' would hold .* GB, more than 2.1, for the "
                                         r"1438 images \(8, 8, 1\) of config.data.source = 'digits' in 10 classes"):
        inference.sample(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_there_is_nothing_to_train(tmp_path):
    with pytest.raises(ValueError, match=r"config\.network\.name = 'exact': there is nothing to train; use"):
        loop.train(resolve(DIGITS, {}), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
