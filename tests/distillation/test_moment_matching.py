"""Alternating moment matching: its closed form for a Gaussian, its stops, its roles; and mistakes that must show.

The auxiliary is the best linear one at each pair (t, s), from its own loss; expectations are exact (`conftest.py`).
Numbers are of the closed form: with u = Cov(x_gen, x_t), V = Var(x_gen), kappa the slope of E[x_gen | x_s] and d that
of the teacher, L = w (kappa - d)^2 Var(x_s) / 2 and dL/da = w (kappa - d) (A m_t + B u) / 2.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion.process import GaussianProcess
from diffusion.schedules import EDM
from distillation.moment_matching import MomentMatching
from distillation.transitions import Transition
from training.ema import EMA
from training.state import create_state
from training.step import make_step

pytestmark = pytest.mark.usefixtures("quick_to_compile")

KEY = jax.random.key(0)
AXES = ("cosine", "karras")


class LargeVariance(MomentMatching):
    """The variance between s and t, (1 - r) sigma_t^2, in the place of that of the posterior."""

    def kernel(self, process, s, t, gap):
        a, b, c = super().kernel(process, s, t, gap)
        return a, b, c * process.sigma(t) / process.sigma(s)


# --- Closed form ------------------------------------------------------------------------------------------------------


def slopes(method, parts, teacher, transition, rows):
    """[pairs] of f = slope x_s, one for each `rows` rows, that minimise the auxiliary loss: it is quadratic."""
    def loss(slope):
        auxiliary = lambda x, s, label: jnp.repeat(slope, rows)[:, None] * x * jnp.array([1.0, 0.0])  # noqa: E731
        return method.auxiliary_loss(auxiliary, teacher, parts, transition, None)[0]

    zero = jnp.zeros(len(transition.s) // rows)
    at_zero = jax.grad(loss)(zero)
    return -at_zero / (jax.grad(loss)(zero + 1) - at_zero)


def gradients(method, oracle, axis, a, b):
    """Of each pair (t, s) of the method: dL/da, dL/db, L at the best auxiliary, and that auxiliary's slope."""
    process, rows = oracle.PROCESSES[axis], oracle.ROWS
    parts, teacher, count = oracle.parts(process), oracle.teacher(process), len(a)

    def losses(a, b):
        network = oracle.student(process, jnp.repeat(a, rows), jnp.repeat(b, rows))
        transition = method.draw(network, process, oracle.data(count), None, KEY)
        best = slopes(method, parts, teacher, jax.lax.stop_gradient(transition), rows)
        pairs = (Transition(*(x[rows * i : rows * (i + 1)] for x in transition)) for i in range(count))
        each = jnp.stack([method.generator_loss(oracle.linear(slope), teacher, parts, pair, None)[0]
                          for slope, pair in zip(best, pairs)])  # fmt: skip
        return each.sum(), (each, best)

    run = jax.jit(jax.value_and_grad(losses, argnums=(0, 1), has_aux=True))
    (_, (each, best)), (of_a, of_b) = run(jnp.asarray(a), jnp.asarray(b))
    return of_a, of_b, each, best


def at_table(method, oracle, axis, spread, **options):
    """`gradients` at the pairs of the table, for the student that says the mean plus `spread` of the posterior."""
    t, s = oracle.TABLE[axis][:, :2].T
    a, b = oracle.posterior_student(oracle.PROCESSES[axis], t)
    return gradients(oracle.at(method, s, t)(weight="flat", **options), oracle, axis, a, spread * b)


@pytest.mark.parametrize("axis", AXES)
def test_draws_from_the_posterior_are_a_fixed_point(axis, oracle, exact_draws, double):
    """Both gradients are zero at every pair, and so is the loss: f says what the teacher says."""
    of_a, of_b, value, best = at_table(MomentMatching, oracle, axis, 1.0)
    unit = oracle.scale(oracle.PROCESSES[axis], oracle.TABLE[axis][:, 1])
    np.testing.assert_allclose(best / unit, oracle.TABLE[axis][:, 7], atol=1e-6)
    for zero in (of_a, of_b, value):
        np.testing.assert_allclose(zero, 0, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_fixed_point_at_any_noise_of_the_kernel(eta, oracle, exact_draws, double):
    """Draws from the posterior are right for every kernel with the marginals of the process."""
    of_a, of_b, value, _ = at_table(MomentMatching, oracle, "cosine", 1.0, kernel_eta=eta)
    for zero in (of_a, of_b, value):
        np.testing.assert_allclose(zero, 0, atol=1e-9)  # alpha at time_max is 2e-9


@pytest.mark.parametrize("axis", AXES)
def test_gradient_where_the_student_says_the_mean(axis, oracle, exact_draws, double):
    """Nothing pulls at t = 1, a saddle; below, the slope shall grow. The loss is half of the weighted mismatch."""
    of_a, of_b, value, _ = at_table(MomentMatching, oracle, axis, 0.0)
    np.testing.assert_allclose(of_a, oracle.AT_THE_MEAN[axis][:, 0], atol=2e-6)
    np.testing.assert_allclose(of_b, 0, atol=1e-12)  # proportional to b
    np.testing.assert_allclose(value, oracle.AT_THE_MEAN[axis][:, 1], atol=1e-6)


@pytest.mark.parametrize("q", [0.0, 3.0])
def test_weight_of_the_teacher_in_the_auxiliary_scales_the_signal(q, oracle, exact_draws, double):
    """f - T is 1 / (1 + q) of E[x_gen | x_s] - T: from q = 1, gradient and loss by 2 / (1 + q)."""
    of_a, _, value, _ = at_table(MomentMatching, oracle, "cosine", 0.0, auxiliary_teacher_weight=q)
    np.testing.assert_allclose(of_a, oracle.AT_THE_MEAN["cosine"][:, 0] * 2 / (1 + q), atol=4e-6)
    np.testing.assert_allclose(value, oracle.AT_THE_MEAN["cosine"][:, 1] * 2 / (1 + q), atol=2e-6)


def test_another_variance_has_another_fixed_point(oracle, exact_draws, double):
    """Negative control: with (1 - r) sigma_t^2 posterior draws are wrong at every pair, by the closed form's slopes."""
    wrong = at_table(LargeVariance, oracle, "cosine", 1.0)
    slope_error = 2 * (wrong[3] - oracle.TABLE["cosine"][:, 7])  # f is the mean of what it sees and the teacher
    np.testing.assert_allclose(slope_error, [-0.12571, -0.09025, -0.28802, -0.33953], atol=1e-5)
    assert (slope_error < -0.08).all()
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(wrong[1], 0, atol=1e-3)


def test_variance_of_x_s_with_another_variance(oracle, exact_draws, double):
    """Negative control, seen in x_s itself: 1.8, 1.469, 1.814 and 1.531 times that of noised data."""
    process, table = oracle.PROCESSES["cosine"], oracle.TABLE["cosine"]
    t, s = table[:, 0], table[:, 1]
    a, b = (np.repeat(value, oracle.ROWS) for value in oracle.posterior_student(process, t))
    for method, ratio in ((LargeVariance, [1.8, 1.469, 1.814, 1.531]), (MomentMatching, [1, 1, 1, 1])):
        network = oracle.student(process, jnp.asarray(a), jnp.asarray(b))
        x_s = oracle.at(method, s, t)().draw(network, process, oracle.data(4), None, KEY).x_s
        got = (np.asarray(x_s)[:, 0].reshape(4, -1) ** 2).mean(axis=1) / table[:, 6]
        np.testing.assert_allclose(got, ratio, atol=5e-4)


# --- Gradient flow ----------------------------------------------------------------------------------------------------

NODES = 64  # midpoints of s in (t - 1 / k, t)
FLOWS = [(2, 0.5), (4, 0.75), (4, 0.5), (4, 0.25)]
# Where it ends from b = 0.3 (draws from the posterior) and, from b = 0, which stays.
ENDS = {0.3: [(0.282843, 0.447214), (0.107475, 0.489610), (0.282843, 0.447214), (0.641877, 0.318976)],
        0.0: [(0.511182, 0.0), (0.224000, 0.0), (0.449177, 0.0), (0.781579, 0.0)]}  # fmt: skip


def flow(oracle, k, t, b, steps=20_000, rate=0.5):
    """Gradient descent on (a, b) of the student at one time of the grid; the auxiliary is the best at each s."""
    process = oracle.PROCESSES["cosine"]
    s = t - (np.arange(NODES) + 0.5) / NODES / k
    method, one = oracle.at(MomentMatching, s, np.full(NODES, t))(weight="flat", pairs="grid"), jnp.ones(NODES)
    parts, teacher, x0 = oracle.parts(process), oracle.teacher(process), oracle.data(NODES)

    def step(_, point):
        def loss(point):
            transition = method.draw(oracle.student(process, *point), process, x0, None, KEY)
            best = slopes(method, parts, teacher, jax.lax.stop_gradient(transition), oracle.ROWS)
            auxiliary = oracle.linear(jnp.repeat(best * one, oracle.ROWS))
            return method.generator_loss(auxiliary, teacher, parts, transition, None)[0]

        return point - rate * jax.grad(loss)(point)

    start = jnp.array([oracle.posterior_student(process, t)[0] + 1e-3, b])
    return jax.jit(lambda start: jax.lax.fori_loop(0, steps, step, start))(start)


@pytest.mark.parametrize("b", ENDS)
@pytest.mark.parametrize("case", range(4), ids=[f"k = {k}, t = {t}" for k, t in FLOWS])
def test_training_ends_at_draws_from_the_posterior(case, b, oracle, exact_draws, double):
    """With noise in the student; without any, the variance that is asked for pulls the slope above that of the mean."""
    end = flow(oracle, *FLOWS[case], b)
    np.testing.assert_allclose(end, ENDS[b][case], atol=1e-4)


@pytest.mark.parametrize("weight, ratio", [("flat", 0.15573), ("edm", 0.79804)])
def test_terminal_signal_pulls_a_student_without_noise_to_the_mean(weight, ratio, oracle, exact_draws, double):
    """One step, t = 1 on the Karras axis: Var / c where its gradient is zero, with what sigma_max = 80 leaves of x0.

    With x_1 as noise alone only the variance is asked for, and Var / c = 1 (below).
    """
    process, nodes = GaussianProcess(EDM()), 1024
    s = (np.arange(nodes) + 0.5) / nodes
    parts, teacher, x0 = oracle.parts(process), oracle.teacher(process), oracle.data(nodes)

    def of_slope(method, a):
        """dL/da of the student a x_t at the best auxiliary of each pair."""
        def loss(a):
            transition = method.draw(oracle.student(process, a, 0.0), process, x0, None, KEY)
            best = slopes(method, parts, teacher, jax.lax.stop_gradient(transition), oracle.ROWS)
            auxiliary = oracle.linear(jnp.repeat(best, oracle.ROWS))
            return method.generator_loss(auxiliary, teacher, parts, transition, None)[0]

        return jax.grad(loss)(a)

    for zero, expected, variance in ((False, ratio, (oracle.VARIANCE + 6400) / 6401), (True, 1.0, 6400 / 6401)):
        options = {"weight": weight, "num_steps": 1, "zero_terminal_snr": zero}
        method = oracle.at(MomentMatching, s, np.ones(nodes))(**options)
        gradient = jax.jit(lambda a, method=method: of_slope(method, a))
        below, above = (float(gradient(np.sqrt((expected + shift) * oracle.VARIANCE / variance)))
                        for shift in (-1e-3, 1e-3))  # fmt: skip
        assert below < 0 < above


# --- Stops ------------------------------------------------------------------------------------------------------------


def perceptron(params):
    """A denoiser of [B, 3] with one hidden layer that sees the noise level."""
    def denoise(x, t, label=None):
        seen = jnp.concatenate([x, t[:, None]], axis=-1)
        return 0.5 * x + jnp.tanh(seen @ params["in"]) @ params["out"]

    return denoise


def make_params(seed):
    draw = np.random.default_rng(seed)
    return {"in": jnp.asarray(draw.normal(size=(4, 16))), "out": jnp.asarray(0.5 * draw.normal(size=(16, 3)))}


@pytest.fixture
def networks(oracle, double):
    """(method, parts, auxiliary, teacher, student's parameters, loss of the updates' second) for points [32, 3]."""
    process = oracle.PROCESSES["cosine"]
    parts = oracle.parts(process, perceptron)
    method = MomentMatching(num_steps=4, pairs="grid", clip_teacher=False, weight="adaptive")
    x0 = jnp.asarray(np.random.default_rng(3).normal(size=(32, 3)))
    return method, parts, perceptron(make_params(1)), perceptron(make_params(2)), make_params(0), x0


def gradient(networks):
    """Of the generator's loss by the student's parameters, flat."""
    method, parts, auxiliary, teacher, params, x0 = networks

    def loss(params):
        transition = method.draw(perceptron(params), parts.process, x0, None, jax.random.key(7))
        return method.generator_loss(auxiliary, teacher, parts, transition, None)[0]

    return flat(jax.jit(jax.grad(loss))(params))


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def from_data(networks, centred):
    """The same gradient with x_s, f and T as numbers: d/d params of w (x_gen - T) (f - T), or of w x_gen (f - T)."""
    method, parts, auxiliary, teacher, params, x0 = networks
    seen = []

    def network(x_t, t, label):
        seen.append((x_t, t))
        return perceptron(params)(x_t, t)

    s, x_gen, x_s = method.draw(network, parts.process, x0, None, jax.random.key(7))
    value, delta = teacher(x_s, s), auxiliary(x_s, s) - teacher(x_s, s)
    weight = 1 / np.abs(x_gen - value).mean(axis=1, keepdims=True)

    def loss(params):
        return (weight * (perceptron(params)(*seen[0]) - centred * value) * delta).sum(axis=1).mean()

    return flat(jax.jit(jax.grad(loss))(params))


@pytest.mark.parametrize("centred", [True, False])
def test_gradient_goes_through_x_gen_alone(centred, networks):
    """x_s, f, T and the weight are data for it, and with or without T subtracted from x_gen it is the same."""
    right = from_data(networks, centred)
    assert np.linalg.norm(gradient(networks) - right) < 1e-6 * np.linalg.norm(right)


def test_gradient_without_its_stops_is_another(networks, monkeypatch):
    """Negative control: if nothing is held constant, the gradient moves by more than 5 %."""
    right = gradient(networks)
    monkeypatch.setattr(jax.lax, "stop_gradient", lambda x: x)
    wrong = gradient(networks)
    assert np.linalg.norm(wrong - right) > 0.05 * np.linalg.norm(right)


def test_auxiliary_learns_from_data_alone(networks):
    """Its loss has no gradient by the student's or by the teacher's parameters."""
    method, parts, auxiliary, _, params, x0 = networks

    def loss(params, teacher):
        transition = method.draw(perceptron(params), parts.process, x0, None, jax.random.key(7))
        return method.auxiliary_loss(auxiliary, perceptron(teacher), parts, transition, None)[0]

    of_student, of_teacher = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, make_params(2))
    assert (flat(of_student) == 0).all() and (flat(of_teacher) == 0).all()


def test_auxiliary_loss_in_numpy(networks):
    """w (|x_gen - f|^2 + q |T - f|^2), mean over the batch, the squares summed over coordinates."""
    method, parts, auxiliary, teacher, params, x0 = networks
    method = MomentMatching(num_steps=4, weight="adaptive", auxiliary_teacher_weight=0.3)
    transition = method.draw(perceptron(params), parts.process, x0, None, jax.random.key(7))
    s, x_gen, x_s = transition
    f, value = (np.asarray(network(x_s, s)) for network in (auxiliary, teacher))
    weight = 1 / np.abs(np.asarray(x_gen) - value).mean(axis=1)
    expected = (weight * (((x_gen - f) ** 2).sum(1) + 0.3 * ((value - f) ** 2).sum(1))).mean()
    loss, metrics = method.auxiliary_loss(auxiliary, teacher, parts, transition, None)
    assert float(loss) == pytest.approx(float(expected), rel=1e-12) and metrics["loss"] == loss


def test_metrics_of_the_generator_in_numpy(networks):
    method, parts, auxiliary, teacher, params, x0 = networks
    transition = method.draw(perceptron(params), parts.process, x0, None, jax.random.key(7))
    s, x_gen, x_s = transition
    delta = np.asarray(auxiliary(x_s, s) - teacher(x_s, s))
    weight = 1 / np.abs(np.asarray(x_gen - teacher(x_s, s))).mean(axis=1)
    metrics = method.generator_loss(auxiliary, teacher, parts, transition, None)[1]
    assert float(metrics["delta"]) == pytest.approx(np.sqrt((delta**2).mean()), rel=1e-12)
    assert float(metrics["pull"]) == pytest.approx((weight * np.linalg.norm(delta, axis=1)).mean(), rel=1e-12)


# --- Roles ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def training(oracle):
    """(updates, state, frozen, batch, run): run(updates) makes one step of training with these updates."""
    single = lambda seed: jax.tree.map(lambda x: x.astype(jnp.float32), make_params(seed))  # noqa: E731
    parts = oracle.parts(GaussianProcess(EDM()), perceptron)
    updates = MomentMatching(num_steps=4).updates(parts)
    optimizers = {role: optax.sgd(1e-2) for role in ("generator", "auxiliary")}
    state = create_state({"generator": single(0), "auxiliary": single(1)}, optimizers, EMA(half_lives=(10,)), ())
    frozen = {"teacher": single(2)}
    batch = {"image": jnp.asarray(np.random.default_rng(3).normal(size=(16, 3)), jnp.float32)}

    def run(updates, batch=batch):
        step = make_step(updates, optimizers, EMA(half_lives=(10,)), seed=0, batch_size=16)
        return jax.jit(step)(state, frozen, batch)

    return updates, state, frozen, batch, run


def same(one, other):
    return all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other)))


def test_each_update_moves_its_role_alone(training):
    """To the bit, parameters and optimiser; the teacher never moves, and the auxiliary goes first."""
    updates, state, frozen, _, run = training
    teacher = jax.tree.map(np.array, frozen["teacher"])
    assert [update.role for update in updates] == ["auxiliary", "generator"]
    for update in updates:
        after = run((update,))[0]
        for role in ("auxiliary", "generator"):
            assert same(after.params[role], state.params[role]) == (role != update.role)
            assert same(after.opt_state[role], state.opt_state[role])  # plain SGD has none to move
    both = run(updates)[0]
    assert not same(both.params["generator"], state.params["generator"])
    assert same(both.params["auxiliary"], run(updates[:1])[0].params["auxiliary"])
    assert same(frozen["teacher"], teacher)
    # The generator meets the auxiliary that was updated a moment ago.
    assert not same(both.params["generator"], run(updates[1:])[0].params["generator"])


def test_updates_see_different_halves_of_the_batch(training):
    """Even rows are the auxiliary's, odd rows the generator's."""
    updates, state, frozen, batch, _ = training
    for number, update in enumerate(updates):
        loss = jax.jit(lambda batch, update=update: update.loss(state.params[update.role], frozen | state.params, batch,
                                                                KEY)[0])  # fmt: skip
        other = [{"image": batch["image"].at[half::2].add(1.0)} for half in (0, 1)]
        assert loss(other[1 - number]) == loss(batch) != loss(other[number])


def test_labels_go_to_every_network_and_guidance_to_the_teacher_alone(oracle):
    """Each half keeps its own labels; the guided teacher is asked, clipped, and the others are not guided."""
    asked = {"network": [], "teacher": []}

    def denoiser(name):
        def make(params):
            def denoise(x, t, label):
                asked[name].append(np.asarray(label))
                return params * x

            return denoise

        return make

    def guide(denoise):
        return lambda x, t, label: 1000 + denoise(x, t, label)

    parts = oracle.parts(GaussianProcess(EDM()), denoiser("network"), denoiser("teacher"), guide, num_classes=4)
    auxiliary, generator = MomentMatching(weight="flat").updates(parts)
    batch = {"image": jnp.ones((4, 2)), "label": jnp.array([0, 1, 2, 3])}
    others = {"teacher": jnp.float32(0.1), "generator": jnp.float32(0.0), "auxiliary": jnp.float32(1.0)}
    for update, labels in ((auxiliary, [0, 2]), (generator, [1, 3])):
        for list_ in asked.values():
            list_.clear()
        update.loss(others[update.role], others, batch, KEY)
        assert len(asked["network"]) == 2 and len(asked["teacher"]) >= 1
        for label in asked["network"] + asked["teacher"]:
            np.testing.assert_array_equal(label, labels)
    # x_gen = 0, f = 0, and T is clipped to 1 on both coordinates: |0 - 0|^2 + |1 - 0|^2.
    others["auxiliary"] = jnp.float32(0.0)
    assert float(auxiliary.loss(jnp.float32(0.0), others, batch, KEY)[0]) == pytest.approx(2.0, rel=1e-4)


@pytest.mark.parametrize("q", [-1.0, -1e-9])
def test_negative_weight_of_the_teacher_is_refused(q):
    with pytest.raises(ValueError, match=f"auxiliary_teacher_weight = {q} must be at least 0"):
        MomentMatching(auxiliary_teacher_weight=q)


def test_an_odd_batch_is_refused(training):
    updates, _, _, batch, run = training
    with pytest.raises(ValueError, match=r"config.data.batch_size: 15 images cannot be split into two batches"):
        run(updates, {"image": batch["image"][:15]})
