"""Networks: one call signature, zero at the start, no dead parameters, and structure against independent oracles."""

import functools

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion.networks import NETWORKS, dit, initialise, split
from diffusion.networks.embeddings import ConditioningEmbedding, sinusoidal_features
from diffusion.networks.layers import dropout, scan_blocks
from diffusion.networks.unet import GroupNorm

BATCH, CLASSES = 4, 3
# These programs run for microseconds and compile for seconds.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
OPTIONS = {
    "mlp": {"shape": (2,), "num_classes": CLASSES, "width": 16, "depth": 2, "dropout": 0.5},
    "energy": {"shape": (2,), "num_classes": CLASSES, "width": 16, "depth": 2, "dropout": 0.5},
    "unet": {
        "shape": (4, 4, 1),
        "num_classes": CLASSES,
        "width": 8,
        "channel_multipliers": (1, 2),
        "blocks_per_level": 1,
        "attention_resolutions": (4,),
        "num_heads": 2,
        "dropout": 0.5,
    },
    "dit": {
        "shape": (4, 4, 1),
        "num_classes": CLASSES,
        "width": 16,
        "depth": 2,
        "num_heads": 2,
        "patch_size": 2,
        "dropout": 0.5,
    },
}


def perturb(params, scale=0.3):
    """Moves every parameter, those that start at zero too."""
    leaves, tree = jax.tree.flatten(params)
    draws = np.random.default_rng(0)
    moved = [leaf + np.float32(scale) * draws.standard_normal(leaf.shape, np.float32) for leaf in leaves]
    return jax.tree.unflatten(tree, moved)


def batch(shape, size=BATCH):
    draws = np.random.default_rng(1)
    x = jnp.asarray(draws.standard_normal((size, *shape)), jnp.float32)
    return x, jnp.linspace(-1.5, 1.5, size), jnp.arange(size) % (CLASSES + 1)


class Case:
    """A network with its jitted apply, initial and perturbed parameters, and a batch with every label."""

    def __init__(self, name):
        self.name, self.options = name, OPTIONS[name]
        self.apply, self.initial = initialise(name, jax.random.key(0), **self.options)
        self.call, self.params = jit(self.apply), perturb(self.initial)
        self.x, self.noise_level, self.label = batch(self.options["shape"])


@pytest.fixture(scope="module", params=list(NETWORKS))
def case(request):
    return Case(request.param)


def sizes(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def equations(jaxpr):
    """All equations of a jaxpr, those inside calls and loops too."""
    for equation in jaxpr.eqns:
        yield equation
        for sub in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(sub)


def forward_equations(name, **options):
    """The equations of one forward pass."""
    apply, params = initialise(name, jax.random.key(0), **options)
    x, noise_level, _ = batch(options["shape"])
    return list(equations(jax.make_jaxpr(apply)(params, x, noise_level).jaxpr))


# --- the contract ----------------------------------------------------------------------------------------------------


def test_output_is_zero_at_the_start_and_float32(case):
    output = case.call(case.initial, case.x, case.noise_level, case.label)
    assert output.shape == case.x.shape and output.dtype == jnp.float32
    np.testing.assert_array_equal(output, 0.0)
    assert np.all(np.asarray(case.call(case.params, case.x, case.noise_level, case.label)) != 0.0)


def test_no_label_is_the_class_after_the_last(case):
    none = case.call(case.params, case.x, case.noise_level, None)
    outputs = [
        np.asarray(case.call(case.params, case.x, case.noise_level, jnp.full(BATCH, label)))
        for label in range(CLASSES + 1)
    ]
    np.testing.assert_allclose(none, outputs[CLASSES], rtol=1e-5, atol=1e-5)
    for first in range(CLASSES + 1):
        for second in range(first):
            assert np.all(np.abs(outputs[first] - outputs[second]).max(axis=tuple(range(1, case.x.ndim))) > 1e-3)


def test_every_input_matters_and_images_do_not_mix(case):
    base = np.asarray(case.call(case.params, case.x, case.noise_level, case.label))
    # Image 0 alone gets another noise level, image 1 alone another input: only those two outputs change.
    other_level = case.noise_level.at[0].add(0.05)
    other_x = case.x.at[1].multiply(-1.0)
    changed = np.asarray(case.call(case.params, other_x, other_level, case.label))
    difference = np.abs(changed - base).reshape(BATCH, -1).max(axis=1)
    assert np.all(difference[:2] > 1e-3)
    np.testing.assert_allclose(changed[2:], base[2:], rtol=1e-4, atol=1e-4)
    order = jnp.array([2, 0, 3, 1])
    permuted = case.call(case.params, case.x[order], case.noise_level[order], case.label[order])
    np.testing.assert_allclose(permuted, base[order], rtol=1e-4, atol=1e-4)


def test_dropout_is_a_function_of_the_key(case):
    arguments = case.params, case.x, case.noise_level, case.label
    without = case.call(*arguments)
    first, again, other = (np.asarray(case.call(*arguments, jax.random.key(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(case.call(*arguments), without)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3 and np.abs(first - without).max() > 1e-3


def test_parameters_are_a_plain_float32_dict_and_none_is_dead(case):
    paths = jax.tree_util.tree_flatten_with_path(case.initial)[0]
    assert type(case.initial) is dict
    for path, leaf in paths:
        assert all(isinstance(entry, jax.tree_util.DictKey) and isinstance(entry.key, str) for entry in path)
        assert isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32
    weights = jnp.asarray(np.random.default_rng(2).standard_normal(case.x.shape), jnp.float32)

    def loss(params):
        return (case.apply(params, case.x, case.noise_level, case.label) * weights).sum()

    gradients = jax.tree_util.tree_flatten_with_path(jit(jax.grad(loss))(case.params))[0]
    for path, gradient in gradients:
        name = jax.tree_util.keystr(path)
        assert np.all(np.isfinite(gradient)), name
        # Relative to the largest entry of the leaf, so that rounding noise around zero does not pass for a gradient.
        assert np.mean(np.abs(gradient) > 1e-6 * np.abs(gradient).max()) > 0.95, name
        assert np.abs(gradient).max() > 1e-4, name


def test_bfloat16_body_is_close_and_keeps_float32_parameters(case):
    apply, initial = initialise(case.name, jax.random.key(0), **case.options, dtype="bfloat16")
    jax.tree.map(np.testing.assert_array_equal, initial, case.initial)
    assert {leaf.dtype for leaf in jax.tree.leaves(initial)} == {jnp.dtype("float32")}
    exact = np.asarray(case.call(case.params, case.x, case.noise_level, case.label))
    rounded = jit(apply)(case.params, case.x, case.noise_level, case.label)
    assert rounded.dtype == jnp.float32
    error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 0.05  # the lower bound: the body did run in bfloat16


def test_parameters_follow_the_key_and_the_fan_in(case):
    def kernel(params, *path):
        for name in path:
            params = params.get("mlp", params)[name]  # the energy's are those of its perceptron
        return np.asarray(params["kernel"])

    again = initialise(case.name, jax.random.key(0), **case.options)[1]
    other = initialise(case.name, jax.random.key(1), **case.options)[1]
    jax.tree.map(np.testing.assert_array_equal, again, case.initial)
    assert np.all(kernel(other, "inputs") != kernel(case.initial, "inputs"))
    hidden = kernel(case.initial, "embedding", "hidden")  # 64 inputs
    assert hidden.std() == pytest.approx(1 / 8, rel=0.1)
    drawn = [leaf.ravel()[:4].tobytes() for leaf in map(np.asarray, jax.tree.leaves(case.initial)) if leaf.std() > 0]
    assert len(set(drawn)) == len(drawn)  # no two layers share their draws


# --- embeddings ------------------------------------------------------------------------------------------------------


def test_noise_level_features_tell_near_levels_apart_and_do_not_wrap():
    levels = np.linspace(-3, 3, 601, dtype=np.float32)
    features = np.asarray(sinusoidal_features(jnp.asarray(levels)))
    distance = np.linalg.norm(features[:, None] - features[None], axis=-1)
    apart = np.abs(levels[:, None] - levels[None])
    assert distance[(apart > 0.009) & (apart < 0.011)].min() > 0.5
    assert distance[apart > 0.05].min() > 1.5
    np.testing.assert_allclose((features**2).sum(axis=1), features.shape[1] / 2, rtol=1e-5)


def test_without_classes_a_label_is_refused_and_a_label_out_of_range_is_nan():
    plain = ConditioningEmbedding(num_classes=0, width=8, rngs=nnx.Rngs(0))
    assert not hasattr(plain, "labels")
    assert plain(jnp.zeros(2), None).shape == (2, 8)
    with pytest.raises(ValueError, match="num_classes=0"):
        plain(jnp.zeros(2), jnp.zeros(2, jnp.int32))
    labelled = ConditioningEmbedding(num_classes=CLASSES, width=8, rngs=nnx.Rngs(0))
    embedded = np.asarray(labelled(jnp.zeros(4), jnp.array([-1, 0, CLASSES, CLASSES + 1])))
    np.testing.assert_array_equal(np.isnan(embedded).all(axis=1), [True, False, False, True])
    with pytest.raises(ValueError, match="num_classes is -1"):
        ConditioningEmbedding(num_classes=-1, width=8, rngs=nnx.Rngs(0))


def test_dropout_keeps_the_expectation():
    x = jnp.full(100_000, 2.0)
    dropped = np.asarray(dropout(x, 0.3, jax.random.key(0)))
    assert set(np.round(np.unique(dropped), 4)) == {0.0, np.float32(2.8571)}
    # Standard error of the mean: 2 sqrt(0.3 / 0.7 / n) = 0.0041.
    assert abs(dropped.mean() - 2.0) < 4 * 0.0041
    np.testing.assert_array_equal(dropout(x, 0.3, None), x)


# --- multilayer perceptron -------------------------------------------------------------------------------------------


def test_mlp_is_its_equation_in_numpy():
    options = {"shape": (2,), "num_classes": CLASSES, "width": 8, "depth": 3}
    apply, params = initialise("mlp", jax.random.key(0), **options)
    params = perturb(params)
    x, noise_level, label = batch((2,))
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def linear(layer, h):
        return h @ layer["kernel"] + layer["bias"]

    def silu(h):
        return h / (1 + np.exp(-h))

    def normed(h):
        return (h - h.mean(axis=1, keepdims=True)) / np.sqrt(h.var(axis=1, keepdims=True) + 1e-6)

    features = np.asarray(sinusoidal_features(noise_level), np.float64)
    embedding = linear(p["embedding"]["out"], silu(linear(p["embedding"]["hidden"], features)))
    c = silu(embedding + p["embedding"]["labels"]["embedding"][np.asarray(label)])
    h = linear(p["inputs"], np.asarray(x, np.float64))
    for k in range(3):
        block = jax.tree.map(lambda leaf, k=k: leaf[k], p["blocks"])
        film = linear(block["modulation"], c)
        inner = silu(linear(block["hidden"], normed(h) * (1 + film[:, :8]) + film[:, 8:]))
        h = h + linear(block["out"], inner)
    expected = linear(p["outputs"], silu(normed(h)))
    np.testing.assert_allclose(apply(params, x, noise_level, label), expected, rtol=2e-4, atol=2e-4)


def test_mlp_parameter_count():
    params = initialise("mlp", jax.random.key(0), shape=(8, 8, 1), num_classes=10, width=256, depth=4)[1]
    embedding = (64 * 256 + 256) + (256 * 256 + 256) + 11 * 256
    block = (256 * 512 + 512) + 2 * (256 * 256 + 256)
    assert sizes(params) == embedding + (64 * 256 + 256) + 4 * block + (256 * 64 + 64)


# --- transformer -----------------------------------------------------------------------------------------------------


def test_dit_scan_is_the_loop_over_its_layers():
    network = NETWORKS["dit"](**{**OPTIONS["dit"], "depth": 3}, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(network.blocks)
    params = perturb(nnx.to_pure_dict(params))
    draws = np.random.default_rng(3)
    h = jnp.asarray(draws.standard_normal((BATCH, 4, 16)), jnp.float32)
    conditioning = jnp.asarray(draws.standard_normal((BATCH, 16)), jnp.float32)

    def loop(order, key):
        out = h
        for index in order:
            layer = jax.tree.map(lambda leaf, index=index: leaf[index], params)
            out = nnx.merge(graphdef, layer)(out, conditioning, jax.random.fold_in(key, index))
        return out

    key = jax.random.key(5)
    scanned = scan_blocks(nnx.merge(graphdef, params), h, conditioning, key)
    np.testing.assert_allclose(scanned, loop((0, 1, 2), key), rtol=1e-4, atol=1e-4)
    assert np.abs(scanned - loop((2, 1, 0), key)).max() > 1e-2


@pytest.mark.parametrize("name", ["mlp", "dit"])
def test_program_does_not_grow_with_depth(name):
    shallow, deep = (forward_equations(name, **{**OPTIONS[name], "depth": depth}) for depth in (2, 8))
    assert len(shallow) == len(deep) > 30
    assert [e.params["length"] for e in deep if e.primitive.name == "scan"] == [8]


def test_dit_without_positions_commutes_with_patch_permutations(monkeypatch):
    options = {"shape": (6, 6, 2), "width": 16, "depth": 2, "num_heads": 2, "patch_size": 2}
    apply, params = initialise("dit", jax.random.key(0), **options)
    params = perturb(params)
    x, noise_level, _ = batch((6, 6, 2))
    order = np.random.default_rng(4).permutation(9)

    def shuffled(image):
        """Patch order[k] of the argument, in row-major order, becomes patch k."""
        result = np.zeros_like(image)
        for to, source in enumerate(order):
            i, j, k, m = 2 * (to // 3), 2 * (to % 3), 2 * (source // 3), 2 * (source % 3)
            result[:, i : i + 2, j : j + 2] = image[:, k : k + 2, m : m + 2]
        return result

    def mismatch():
        direct, moved = jit(lambda *a: (apply(*a), apply(a[0], jnp.asarray(shuffled(np.asarray(x))), a[2])))(
            params, x, noise_level
        )
        return np.abs(shuffled(np.asarray(direct)) - np.asarray(moved)).max()

    assert mismatch() > 1e-2
    monkeypatch.setattr(dit, "position_embedding", lambda side, width: np.zeros((side * side, width), np.float32))
    assert mismatch() < 1e-3


def test_dit_positions_depend_on_row_and_column_apart():
    table = dit.position_embedding(4, 16).reshape(4, 4, 16)
    np.testing.assert_array_equal(table[2, :, :8], np.broadcast_to(table[2, 0, :8], (4, 8)))
    np.testing.assert_array_equal(table[:, 1, 8:], np.broadcast_to(table[0, 1, 8:], (4, 8)))
    # Inner products depend on the offset alone: sin a sin b + cos a cos b = cos(a - b).
    lines = table[:, 0, :8] @ table[:, 0, :8].T
    assert lines[0, 1] == pytest.approx(lines[2, 3], abs=1e-5) and lines[0, 0] == pytest.approx(4.0)
    assert len({row.tobytes() for row in table.reshape(16, 16)}) == 16


def test_dit_parameter_count():
    params = initialise(
        "dit", jax.random.key(0), shape=(8, 8, 3), num_classes=5, width=32, depth=3, num_heads=2, patch_size=4
    )[1]
    embedding = (64 * 32 + 32) + (32 * 32 + 32) + 6 * 32
    attention = 32 * 96 + (32 * 32 + 32)
    block = (32 * 192 + 192) + attention + (32 * 128 + 128) + (128 * 32 + 32)
    final = (32 * 64 + 64) + (32 * 48 + 48)
    assert sizes(params) == embedding + (48 * 32 + 32) + 3 * block + final


# --- U-Net -----------------------------------------------------------------------------------------------------------


def test_group_norm_is_that_of_flax():
    h = jnp.asarray(3 + 2 * np.random.default_rng(5).standard_normal((2, 4, 4, 24)), jnp.float32)
    ours = GroupNorm(24, affine=True)
    theirs = nnx.GroupNorm(24, num_groups=6, epsilon=1e-5, use_fast_variance=False, rngs=nnx.Rngs(0))
    scale, bias = jnp.linspace(0.5, 2, 24), jnp.linspace(-1, 1, 24)
    ours.scale[...], ours.bias[...], theirs.scale[...], theirs.bias[...] = scale, bias, scale, bias
    np.testing.assert_allclose(ours(h), theirs(h), rtol=1e-4, atol=1e-5)
    given = GroupNorm(24, affine=False)(h, jnp.stack([scale - 1, 0 * scale]), jnp.stack([bias, 0 * bias]))
    np.testing.assert_allclose(given[0], theirs(h)[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.asarray(given[1]).reshape(16, 6, 4).std(axis=(0, 2)), 1.0, rtol=1e-4)
    assert [GroupNorm(c, affine=True).groups for c in (3, 8, 24, 64, 320, 6)] == [1, 2, 6, 16, 32, 1]


@pytest.mark.parametrize("chosen", [(), (8,), (16, 4)])
def test_unet_attends_at_the_chosen_resolutions(chosen):
    options = {"shape": (16, 16, 1), "width": 8, "channel_multipliers": (1, 2, 2), "blocks_per_level": 2}
    found = forward_equations("unet", **options, attention_resolutions=chosen, num_heads=2)
    # The exponentials of a forward pass are the softmaxes: one [..., length, length] each.
    weights = [e.outvars[0].aval.shape for e in found if e.primitive.name == "exp"]
    assert all(shape[-1] == shape[-2] for shape in weights)
    lengths = sorted(shape[-1] for shape in weights)
    # Two blocks on the way down, three on the way up, and two in the middle at the coarsest of the three sides.
    expected = {16: [256] * 5, 8: [64] * 5, 4: [16] * 7}
    assert lengths == sorted(length for side in chosen for length in expected[side])


def test_unet_parameter_count():
    options = {"shape": (8, 8, 2), "num_classes": 0, "width": 8, "channel_multipliers": (1, 2), "blocks_per_level": 1}
    params = initialise("unet", jax.random.key(0), **options, attention_resolutions=(4,))[1]

    def block(inputs, outputs, attention=False):
        count = 2 * inputs + (9 * inputs * outputs + outputs) + (32 * 2 * outputs + 2 * outputs)
        count += 9 * outputs * outputs + outputs
        count += inputs * outputs + outputs if inputs != outputs else 0
        return count + (2 * outputs + 3 * outputs**2 + outputs**2 + outputs if attention else 0)

    down = block(8, 8) + block(8, 8) + block(8, 16, True)
    middle = 2 * block(16, 16, True)
    # Skips in reverse: 16 (side 4), 8 (after the downsampling), 8 (side 8), 8 (conv_in).
    up = block(16 + 16, 16, True) + block(16 + 8, 16, True) + block(16, 16) + block(16 + 8, 8) + block(8 + 8, 8)
    embedding = (64 * 32 + 32) + (32 * 32 + 32)
    ends = (9 * 2 * 8 + 8) + 2 * 8 + (9 * 8 * 2 + 2)
    assert sizes(params) == embedding + down + middle + up + ends


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("unet", {"shape": (6, 6, 1), "channel_multipliers": (1, 2, 2)}, r"unet.*6.*divisible by 4.*config\.network\."
         r"channel_multipliers.*config\.data\.pad_to"),
        ("unet", {"channel_multipliers": ()}, "channel_multipliers"),
        ("unet", {"attention_resolutions": (3,)}, "attention_resolutions has 3.*the sides are 4, 2"),
        ("unet", {"num_heads": 3}, "8 channels at side 4.*num_heads = 3"),
        ("unet", {"shape": (4, 6, 1)}, r"unet.*\(4, 6, 1\)"),
        ("dit", {"shape": (2,)}, r"dit.*\(2,\).*'mlp'"),
        ("dit", {"patch_size": 3}, r"dit: image side 4 is not divisible by 3.*patch_size.*pad_to"),
        ("dit", {"num_heads": 3}, "width is 16.*num_heads = 3"),
        ("dit", {"depth": 0}, "dit.*depth is 0"),
        ("mlp", {"width": -1}, "mlp.*width is -1"),
        ("mlp", {"dropout": 1.0}, r"dropout is 1.0.*\[0, 1\)"),
        ("mlp", {"dtype": "float16"}, "'float16'.*float32, bfloat16"),
        ("resnet", {}, "'resnet'.*mlp, energy, unet, dit"),
    ],
)  # fmt: skip
def test_bad_options_are_refused_by_name(name, change, words):
    with pytest.raises(ValueError, match=words):
        initialise(name, jax.random.key(0), **{**OPTIONS.get(name, {}), **change})


def test_creation_under_jit_and_hidden_state_are_refused():
    with pytest.raises(ValueError, match=r"outside jax\.jit"):
        jax.jit(lambda key: initialise("mlp", key, **OPTIONS["mlp"])[1])(jax.random.key(0))
    network = NETWORKS["mlp"](**OPTIONS["mlp"], rngs=nnx.Rngs(0))
    network.counter = nnx.BatchStat(jnp.zeros(1))
    with pytest.raises(ValueError, match="MLP holds state that is not a parameter: counter"):
        split(network)
