"""What a config becomes: the same objects every time, a denoiser with a known closed form, the right average."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from training.experiment import build_experiment, sampling_params
from training.manifest import state_hash


@pytest.fixture(scope="module")
def experiment(tiny_config):
    return build_experiment(tiny_config())


def test_the_same_config_gives_the_same_state_and_another_seed_another(experiment, tiny_config):
    state = experiment.initial_state()
    assert state_hash(build_experiment(tiny_config()).initial_state()) == state_hash(state)
    other = build_experiment(tiny_config({"seed": 1}))
    assert state_hash(other.params) != state_hash(experiment.params)
    assert not np.array_equal(other.pipeline.indices(0), experiment.pipeline.indices(0))
    for averages in state.ema.values():
        assert set(averages) == {"100", "1000"}
        assert all(state_hash(average) == state_hash(state.params["score"]) for average in averages.values())
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((state.params, state.ema)))


def test_a_fresh_network_is_the_best_linear_denoiser(experiment):
    """It returns 0, and then EDM's denoiser is c_skip x = d^2 / (sigma^2 + d^2) x, Wiener's filter for variance d^2."""
    d, x = 0.7, jax.random.normal(jax.random.key(0), (5, 8, 8, 1))
    t = jnp.linspace(0.1, 1.0, 5)
    sigma = np.asarray(experiment.process.sigma(t), np.float64)[:, None, None, None]
    denoised = experiment.denoiser(experiment.params["score"])(x, t, jnp.arange(5))
    np.testing.assert_allclose(denoised, d**2 / (sigma**2 + d**2) * x, rtol=1e-4, atol=1e-7)




def perturbed(params):
    draw = np.random.default_rng(1)
    return jax.tree.map(lambda p: p + 0.3 * draw.normal(size=p.shape).astype(np.float32), params)


def test_dropout_is_on_with_a_key_and_only_then(experiment):
    params = perturbed(experiment.params["score"])
    arguments = jax.random.normal(jax.random.key(0), (4, 8, 8, 1)), jnp.full(4, 0.5), jnp.arange(4)

    @jax.jit
    def denoise(key=None):
        return experiment.denoiser(params, key)(*arguments)

    assert np.array_equal(denoise(), denoise())
    drawn = [denoise(jax.random.key(seed)) for seed in (0, 0, 1)]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], denoise()) and not np.array_equal(drawn[0], drawn[2])


def test_training_drops_units_and_labels_as_the_config_says(experiment, tiny_config):
    """Same parameters, batch and key: the loss depends on either rate, so both are on in training."""
    params, key = perturbed(experiment.params["score"]), jax.random.key(2)
    batch = {name: jnp.asarray(value) for name, value in experiment.pipeline.batch(0).items()}

    def loss(changes):
        config = tiny_config({"network.dropout": 0.0, "objective.label_dropout": 0.0} | changes)
        (update,) = build_experiment(config).updates
        return float(jax.jit(update.loss)(params, {}, batch, key)[0])

    plain = loss({})
    assert abs(loss({"network.dropout": 0.5}) - plain) > 1e-3
    assert abs(loss({"objective.label_dropout": 0.5}) - plain) > 1e-3
    assert loss({}) == plain


def test_guidance_is_that_of_the_config(experiment, tiny_config):
    """unlabelled + w (labelled - unlabelled), with "no class" the label after the last."""
    params = perturbed(experiment.params["score"])
    x, t, label = jax.random.normal(jax.random.key(0), (4, 8, 8, 1)), jnp.full(4, 0.5), jnp.arange(4)
    plain = jax.jit(experiment.denoiser(params))
    labelled, unlabelled = plain(x, t, label), plain(x, t, jnp.full(4, 10))
    assert float(jnp.abs(labelled - unlabelled).max()) > 1e-2
    for scale in (1.0, 2.5):
        guided = dataclasses.replace(experiment, config=tiny_config({"sampler.guidance": scale}))
        expected = unlabelled + scale * (labelled - unlabelled)
        denoised = jax.jit(guided.sampling_denoiser(params))(x, t, label)
        np.testing.assert_allclose(denoised, expected, rtol=1e-4, atol=1e-5)


def test_the_chosen_average_is_sampled_from(experiment, tiny_config):
    state = experiment.initial_state()
    marked = {name: jax.tree.map(lambda p, i=i: jnp.full_like(p, i), state.params["score"])
              for i, name in enumerate(("100", "1000"), start=7)}  # fmt: skip
    state = dataclasses.replace(state, ema={"score": marked})
    for index, value in ((0, 7), (1, 8)):
        chosen = sampling_params(dataclasses.replace(experiment, config=tiny_config({"evaluation.ema": index})), state)
        assert all((leaf == value).all() for leaf in jax.tree.leaves(chosen))
    live = sampling_params(dataclasses.replace(experiment, config=tiny_config({"evaluation.ema": -1})), state)
    assert live is state.params["score"]


def test_the_image_shape_is_that_of_the_padded_batch(tiny_config):
    experiment = build_experiment(tiny_config({"data.pad_to": 12, "data.shift": 1, "data.flip": True}))
    assert experiment.image_shape == (12, 12, 1) == experiment.pipeline.batch(0)["image"].shape[1:]
    assert experiment.train.image_shape == (8, 8, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.batch_size": 2000}, "config.data.batch_size = 2000 must lie in 1..1438, the size of the data set"),
        ({"data.source": "toy2d", "sampler.guidance": 2.0}, "config.sampler.guidance = 2.0 needs labelled data, and "
                                                            "config.data.source = 'toy2d' has no classes"),
        ({"data.source": "nonsense"}, "config.data.source = 'nonsense'"),
        ({"data.source": "toy2d:square"}, "'toy2d:square' is not known; choose from checkerboard"),
        ({"data.image_size": 16}, "config.data.image_size = 16"),
        ({"data.pad_to": 4}, "config.data.pad_to = 4 is smaller than the images"),
        ({"data.source": "toy2d", "data.flip": True}, "config.data: flip, shift"),
        ({"data.pad_to": 9, "network.name": "unet", "network.depth": None}, "9 is not divisible by 2"),
        ({"seed": -1}, r"config.seed = -1 must lie in \[0, 2\^64\)"),
        ({"mesh.fsdp": 3}, "config.mesh.fsdp = 3 must divide the number of devices, 1"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_in_one_line(tiny_config, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        build_experiment(tiny_config(changes))
    assert "\n" not in str(caught.value)


def npz(folder, **arrays):
    np.savez(folder / "images.npz", **arrays)
    return f"npz:{folder / 'images.npz'}"


def images(count, side=8):
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 1), np.uint8)


def test_bad_files_are_named(tiny_config, tmp_path):
    def error(source):
        with pytest.raises((ValueError, OSError)) as caught:
            build_experiment(tiny_config({"data.source": source}))
        return str(caught.value)

    labels = np.arange(100) % 3
    assert "images.npz: labels lie in -1..2, outside 0..2" in error(npz(tmp_path, images=images(100), labels=labels - (
        np.arange(100) == 5) * (labels[5] + 1)))  # fmt: skip
    test = {"images_test": images(20), "labels_test": np.full(20, 3)}
    message = error(npz(tmp_path, images=images(100), labels=labels, **test))
    assert "images.npz: labels_test lie in 3..3, outside 0..2" in message
    (tmp_path / "images.npz").write_bytes((tmp_path / "images.npz").read_bytes()[:500])
    assert f"cannot read {tmp_path / 'images.npz'} as an npz file" in error(f"npz:{tmp_path / 'images.npz'}")
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'} holds no images (.png" in error(f"folder:{tmp_path / 'empty'}")
    assert "there is no such folder" in error(f"folder:{tmp_path / 'missing'}")
    assert f"{tmp_path / 'missing.npz'} does not exist" in error(f"npz:{tmp_path / 'missing.npz'}")
