"""Features of the networks, for a head on top of them: where in the network they are taken, and in which units."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import expit

from diffusion.denoiser import NetworkDenoiser
from diffusion.networks import NETWORKS, initialise
from diffusion.process import GaussianProcess
from diffusion.schedules import EDM, Cosine

BATCH, CLASSES = 4, 3
# These programs run for microseconds and compile for seconds.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
SMALL = {"num_classes": CLASSES, "width": 8, "dropout": 0.5}
OPTIONS = {
    "mlp": SMALL | {"shape": (3,), "depth": 2},
    "energy": SMALL | {"shape": (3,), "depth": 2},
    "unet": SMALL | {"shape": (4, 4, 1), "channel_multipliers": (1, 3), "blocks_per_level": 1, "num_heads": 2,
                     "attention_resolutions": (2,)},
    "dit": SMALL | {"shape": (4, 4, 1), "depth": 2, "num_heads": 2, "patch_size": 2},
}  # fmt: skip
# What the output is made with after the features, by the beginning of a parameter's name.
AFTER = {
    "mlp": ("outputs",),
    "energy": ("mlp/outputs",),
    "unet": ("blocks/decoder", "norm/", "outputs"),
    "dit": ("modulation", "outputs"),
}
SHAPES = {"mlp": (8,), "energy": (8,), "unet": (2, 2, 24), "dit": (4, 8)}  # the coarsest side; one token per patch


def moved(leaf, seed, by=0.3):
    return leaf + np.float32(by) * np.random.default_rng(seed).standard_normal(leaf.shape, np.float32)


class Case:
    """A network all of whose parameters are non-zero, its initial ones, and a batch with every label."""

    def __init__(self, name):
        self.name = name
        self.apply, self.initial = initialise(name, jax.random.key(0), **OPTIONS[name])
        leaves, self.tree = jax.tree_util.tree_flatten_with_path(self.initial)
        self.names = ["/".join(str(step.key) for step in path) for path, _ in leaves]
        self.leaves = [moved(leaf, seed) for seed, (_, leaf) in enumerate(leaves)]
        self.params = jax.tree.unflatten(self.tree, self.leaves)
        self.features, self.output = jit(self.apply.features), jit(self.apply)
        draw = np.random.default_rng(1)
        self.x = jnp.asarray(draw.normal(size=(BATCH, *OPTIONS[name]["shape"])), jnp.float32)
        self.noise_level, self.label = jnp.linspace(-1.5, 1.5, BATCH), jnp.arange(BATCH) % (CLASSES + 1)
        self.batch = self.x, self.noise_level, self.label

    def with_another(self, number):
        """The parameters, one of them changed."""
        leaves = list(self.leaves)
        leaves[number] = moved(leaves[number], 1000 + number)
        return jax.tree.unflatten(self.tree, leaves)

    def is_after(self, name):
        return name.startswith(AFTER[self.name])


of_network = functools.cache(Case)  # compiled once for all tests


@pytest.fixture(params=list(NETWORKS))
def case(request):
    return of_network(request.param)


def test_every_network_is_tested():
    assert set(OPTIONS) == set(AFTER) == set(SHAPES) == set(NETWORKS)


def test_features_see_the_parameters_before_them_and_no_other(case):
    """To the bit, parameter by parameter. The output sees all of them, so that none is idle."""
    base, output = (np.asarray(call(case.params, *case.batch)) for call in (case.features, case.output))
    assert base.shape == (BATCH, *SHAPES[case.name])
    assert any(map(case.is_after, case.names)) and not all(map(case.is_after, case.names))
    for number, name in enumerate(case.names):
        params = case.with_another(number)
        same = np.array_equal(case.features(params, *case.batch), base)
        assert same == case.is_after(name), name
        assert np.abs(np.asarray(case.output(params, *case.batch)) - output).max() > 1e-6, name


def test_features_of_an_image_are_those_of_its_pixels_noise_level_and_label(case):
    """Image 0 gets another noise level, image 1 another label, image 2 other pixels: only theirs change."""
    base = np.asarray(case.features(case.params, *case.batch))
    changes = {
        0: (case.x, case.noise_level.at[0].add(0.05), case.label),
        1: (case.x, case.noise_level, case.label.at[1].add(1)),
        2: (case.x.at[2].multiply(-1.0), case.noise_level, case.label),
    }
    for image, batch in changes.items():
        gap = np.abs(np.asarray(case.features(case.params, *batch)) - base).reshape(BATCH, -1).max(axis=1)
        assert gap[image] > 1e-3 and np.delete(gap, image).max() < 1e-6, image


def test_features_of_a_fresh_network_know_neither_noise_level_nor_label(case):
    """Whatever modulates is closed at the start; the pixels are seen, or no head could learn."""
    base = np.asarray(case.features(case.initial, *case.batch))
    blind = case.features(case.initial, case.x, case.noise_level + 0.3, case.label[::-1])
    np.testing.assert_allclose(blind, base, atol=1e-6)
    assert np.abs(np.asarray(case.features(case.initial, -case.x, *case.batch[1:])) - base).max() > 0.1


def test_dropout_is_in_the_features_where_a_key_is_given(case):
    """The same key drops the same, and no key drops nothing."""
    one, again, other = (case.features(case.params, *case.batch, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    none = case.features(case.params, *case.batch)
    assert min(np.abs(one - other).max(), np.abs(one - none).max()) > 1e-3


# --- from the features to the output ---------------------------------------------------------------------------------


def normalised(h):
    """Mean 0 and variance 1 over the last axis; the epsilon is flax's."""
    return (h - h.mean(-1, keepdims=True)) / (h.var(-1, keepdims=True) + 1e-6) ** 0.5


def linear(params, h):
    kernel, bias = (np.asarray(params[name], np.float64) for name in ("kernel", "bias"))
    return h @ kernel + bias


def mlp_output(params, h):
    """W_out silu(LN(h)) + b_out, float64."""
    u = normalised(h)
    return linear(params["outputs"], u * expit(u))


def test_the_output_of_the_mlp_is_read_from_its_features():
    case = of_network("mlp")
    h = np.asarray(case.features(case.params, *case.batch), np.float64)
    output = case.output(case.params, *case.batch)
    np.testing.assert_allclose(mlp_output(case.params, h), output, rtol=1e-4, atol=1e-5)
    with pytest.raises(AssertionError):  # from those of the blocks before the last
        fewer = case.params | {"blocks": jax.tree.map(lambda leaf: leaf[:1], case.params["blocks"])}
        h = np.asarray(case.features(fewer, *case.batch), np.float64)
        np.testing.assert_allclose(mlp_output(case.params, h), output, rtol=1e-2, atol=1e-2)


def test_the_energy_is_read_from_the_features():
    """Its gradient by differences in float64: d <x, M(x)> / dx along a direction is the output's projection on it."""
    case = of_network("energy")
    direction, step = np.float32(np.random.default_rng(2).normal(size=case.x.shape)), 1e-2

    def energy(x):
        h = np.asarray(case.features(case.params, x, *case.batch[1:]), np.float64)
        return np.sum(np.asarray(x, np.float64) * mlp_output(case.params["mlp"], h), axis=-1)

    slope = (energy(case.x + step * direction) - energy(case.x - step * direction)) / (2 * step)
    output = np.asarray(case.output(case.params, *case.batch))
    np.testing.assert_allclose(np.sum(output * direction, axis=-1), slope, rtol=2e-3, atol=2e-3)


def test_the_output_of_the_transformer_is_read_from_its_tokens():
    """Patch by patch in row-major order, with the last modulation of the conditioning."""
    case = of_network("dit")
    h = np.asarray(case.features(case.params, *case.batch), np.float64)
    embedding = nnx.merge(case.apply.graphdef, case.params).embedding
    conditioning = np.asarray(embedding(case.noise_level, case.label), np.float64)
    scale, shift = np.split(linear(case.params["modulation"], conditioning)[:, None], 2, axis=-1)
    tokens = linear(case.params["outputs"], normalised(h) * (1 + scale) + shift)
    image = np.block([[tokens[:, 2 * row + column].reshape(BATCH, 2, 2) for column in (0, 1)] for row in (0, 1)])
    output = case.output(case.params, *case.batch)[..., 0]
    np.testing.assert_allclose(image, output, rtol=1e-4, atol=1e-4)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(image.swapaxes(1, 2), output, rtol=1e-2, atol=1e-2)


def test_the_bottleneck_has_seen_the_whole_image():
    """A pixel in a corner changes every position of it, the last attention being on the way."""
    case = of_network("unet")
    base = np.asarray(case.features(case.params, *case.batch))
    changed = np.asarray(case.features(case.params, case.x.at[:, 0, 0].add(1.0), *case.batch[1:]))
    assert np.abs(changed - base).max(axis=-1).min() > 1e-4


# --- the denoiser's features -----------------------------------------------------------------------------------------


def denoiser(case, process, *, prediction="edm", sigma_data=0.5):
    return NetworkDenoiser(functools.partial(case.output, case.params), process, prediction, sigma_data,
                           hidden=functools.partial(case.features, case.params))  # fmt: skip


def test_features_are_of_the_noise_level_and_not_of_the_units_of_the_process():
    """x_t of the same x0 and noise at the same sigma / alpha, in the units of EDM and of a cosine schedule.

    What the output means is another matter; the deviation of the data is not.
    """
    case, edm, cosine = of_network("mlp"), GaussianProcess(EDM()), GaussianProcess(Cosine())
    levels = np.array([0.05, 0.3, 1.0, 6.0])
    times = [jnp.asarray(process.time_of_logsnr(-2 * np.log(levels)), jnp.float32) for process in (edm, cosine)]
    noise = jnp.asarray(np.random.default_rng(3).normal(size=case.x.shape), jnp.float32)
    x_t = [process.corrupt(case.x, noise, t) for process, t in zip((edm, cosine), times)]
    assert np.abs(x_t[0] - x_t[1]).max() > 1
    one = denoiser(case, edm).features(x_t[0], times[0], case.label)
    for prediction in ("edm", "epsilon"):
        other = denoiser(case, cosine, prediction=prediction).features(x_t[1], times[1], case.label)
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-3)
    for wrong in (denoiser(case, cosine).features(x_t[0], times[1], case.label),
                  denoiser(case, cosine, sigma_data=1.0).features(x_t[1], times[1], case.label)):  # fmt: skip
        assert np.abs(one - wrong).max() > 0.1


@pytest.mark.parametrize("schedule", [EDM(), Cosine()], ids=lambda schedule: type(schedule).__name__)
def test_the_network_sees_unit_variance_on_its_way_to_the_features(schedule):
    """alpha^2 d^2 of the data and sigma^2 of the noise add up to 1, through a network that shows its input."""
    process, t = GaussianProcess(schedule), jnp.linspace(0.02, 0.98, 9)
    show = NetworkDenoiser(lambda x, c, label: x, process, "edm", 0.7, hidden=lambda x, c, label: x)
    data, noise = (show.features(size[:, None], t, None) for size in (0.7 * process.alpha(t) * jnp.ones(9),
                                                                     process.sigma(t)))  # fmt: skip
    np.testing.assert_allclose(data**2 + noise**2, 1.0, rtol=1e-5)
    assert data.max() > 0.9 and noise.max() > 0.9  # neither makes it up alone


def test_features_of_a_bfloat16_network_are_float32():
    """What is rounded is the body; the head must not inherit its dtype."""
    apply, params = initialise("mlp", jax.random.key(0), **OPTIONS["mlp"] | {"dtype": "bfloat16"})
    case = of_network("mlp")
    params = jax.tree.map(lambda _, leaf: leaf, params, case.params)
    half = NetworkDenoiser(functools.partial(apply, params), GaussianProcess(EDM()), "edm", 0.5,
                           hidden=functools.partial(apply.features, params))  # fmt: skip
    t = jnp.linspace(0.1, 0.9, BATCH)
    ours, full = (d.features(case.x, t, case.label) for d in (half, denoiser(case, half.process)))
    assert half.hidden(case.x, t, case.label).dtype == jnp.bfloat16 and ours.dtype == jnp.float32
    assert 1e-5 < np.abs(ours - full).max() < 0.05 * np.abs(full).max()
