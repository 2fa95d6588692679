"""Score implicit matching: gradients of the losses against closed forms of Gaussians, and what its two updates move.

The teacher is N(m, C), the generator x0 = mu + L z with S = L L', the auxiliary network the exact denoiser of N(mu, S)
with (mu, S) held constant: then the gradients that Luo et al. [2024] prove are numbers that need no network. All
expectations are Gauss-Hermite quadratures in float64. With P = S + s^2, Q = C + s^2, A = Q^-1 - P^-1 and
b = Q^-1 (mu - m), the scores of the two differ by y(x) = A (x - mu) + b.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.base import expand
from diffusion.denoiser import NetworkDenoiser, difference
from diffusion.process import GaussianProcess
from diffusion.schedules import EDM
from distillation import score_implicit_matching as module
from distillation.score_implicit_matching import DISTANCES, ScoreImplicitMatching

pytestmark = pytest.mark.usefixtures("quick_to_compile")

L2 = ScoreImplicitMatching(distance="l2")
SID = {k: ScoreImplicitMatching(distance="l2", sid_coefficient=k) for k in (0.5, 1.0, 1.2)}
KL = ScoreImplicitMatching(distance="l2", through_scores=False)
DMD = ScoreImplicitMatching(distance="l2", through_scores=False, normalizer="l1")


def huber(c, **options):
    return ScoreImplicitMatching(distance="pseudo_huber", huber_c=c, **options)


# One of each kind: what every member of the family has to satisfy.
MEMBERS = {
    "l2": L2,
    "l2_normalised": ScoreImplicitMatching(distance="l2", normalizer="l1"),
    "sid": ScoreImplicitMatching(distance="l2", normalizer="l1", sid_coefficient=1.2),
    "pseudo_huber": ScoreImplicitMatching(),
    "denominator_detached": ScoreImplicitMatching(detach_denominator=True),
    "power": ScoreImplicitMatching(distance="power", power=1.0),
    "cauchy": ScoreImplicitMatching(distance="cauchy"),
    "kl": KL,
    "dmd": DMD,
}


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


# --- Gaussians --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """Teacher N(m, C) and generator mu + L z, float64 numpy, with the gradients of the divergence E_p |y|^2 at level s.

    Every gradient is (in mu, in L): the latter is 2 G L, if G is the one in S.
    """

    m: np.ndarray
    C: np.ndarray
    mu: np.ndarray
    L: np.ndarray

    @property
    def S(self):
        return self.L @ self.L.T

    def parts(self, s):
        """P^-1, Q^-1, A, and mu - m."""
        p, q = (np.linalg.inv(covariance + s**2 * np.eye(len(self.mu))) for covariance in (self.S, self.C))
        return p, q, q - p, self.mu - self.m

    def frozen(self, s):
        """The law of the samples is held constant: score implicit matching."""
        p, q, a, gap = self.parts(s)
        return 2 * p @ q @ gap, 2 * (a @ p + p @ a) @ self.L

    def path(self, s):
        """Only the law of the samples moves."""
        _, q, a, gap = self.parts(s)
        return 2 * a @ q @ gap, 2 * (a @ a) @ self.L

    def kl(self, s):
        """Of KL(p_s, q_s)."""
        _, q, a, gap = self.parts(s)
        return q @ gap, a @ self.L

    def divergence(self, s):
        p, q, a, gap = self.parts(s)
        return np.trace(a @ np.linalg.inv(p) @ a) + np.sum((q @ gap) ** 2)


def scalar_pair(m, C, mu, L):
    return Pair(np.array([m]), np.array([[C]]), np.array([mu]), np.array([[L]]))


def random_pair(seed, dimension):
    draw = np.random.default_rng(seed)
    root = draw.normal(size=(dimension, dimension))
    C = root @ root.T / dimension + 0.3 * np.eye(dimension)
    L = draw.normal(size=(dimension, dimension)) / np.sqrt(dimension) + np.eye(dimension)
    return Pair(draw.normal(size=dimension), C, draw.normal(size=dimension), L)


GOLDEN = scalar_pair(0.3, 0.8, -0.5, 1.2)


def spectrum(mean, covariance):
    """(mean, eigenvalues, eigenvectors), what `gaussian_denoiser` takes."""
    return tuple(map(jnp.asarray, (mean, *np.linalg.eigh(np.asarray(covariance, np.float64)))))


def gaussian_denoiser(law, levels):
    """E[x0 | x_t] of a Gaussian by its `spectrum`; levels(t) -> (alpha, sigma)."""
    mean, values, vectors = law

    def denoise(x_t, t, label):
        alpha, sigma = (expand(value, x_t) for value in levels(t))
        coordinates = (x_t - alpha * mean) @ vectors
        return mean + (alpha * values / (alpha**2 * values + sigma**2) * coordinates) @ vectors.T

    return denoise


def quadrature(nodes, dimension):
    """Points [nodes^(2 d), 2 d] of standard normal noise and their probabilities."""
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    points = np.stack([axis.ravel() for axis in np.meshgrid(*[x] * dimension, indexing="ij")], axis=-1)
    weights = np.prod(np.stack(np.meshgrid(*[w / w.sum()] * dimension, indexing="ij")), axis=0).ravel()
    return points, weights


@partial(jax.jit, static_argnames="method")
def expectations(method, mu, L, laws, points, weights, s, alpha):
    """(E loss, E |delta|^2) of the production loss at the noise level s; x_t = alpha (x0 + s noise)."""
    teacher, auxiliary = (gaussian_denoiser(law, lambda t: (alpha * jnp.ones_like(t), alpha * t)) for law in laws)
    d = len(mu)
    x0 = mu + points[:, :d] @ L.T
    x_t = alpha * (x0 + s * points[:, d:])
    losses, delta = method.image_losses(teacher, auxiliary, x0, x_t, jnp.full(len(x0), s), None)
    return jnp.sum(weights * losses), jnp.sum(weights[:, None] * delta**2)


slopes_of_expectations = jax.jit(
    jax.grad(expectations, argnums=(1, 2), has_aux=True), static_argnums=0
)
slopes_of_levels = jax.jit(
    jax.vmap(jax.grad(expectations, argnums=(1, 2), has_aux=True), (None,) * 6 + (0, None)), static_argnums=0
)


def arguments(pair, nodes):
    """What the functions above take between method and s. The nodes are those of a quadrature over z and the noise."""
    laws = spectrum(pair.m, pair.C), spectrum(pair.mu, pair.S)
    return jax.tree.map(jnp.asarray, (pair.mu, pair.L, laws, *quadrature(nodes, 2 * len(pair.mu))))


def gradient(method, pair, s, nodes=12, alpha=1.0):
    """d E[loss] / d (mu, L), by automatic differentiation. Few nodes are exact for losses that are polynomials."""
    slopes, _ = slopes_of_expectations(method, *arguments(pair, nodes), s, alpha)
    return tuple(np.asarray(slope) for slope in slopes)


def flat(gradients):
    return np.concatenate([np.ravel(part) for part in gradients])


def assert_gradients(ours, expected, rtol, scale=1.0):
    for part, other in zip(ours, expected):
        np.testing.assert_allclose(part.ravel(), scale * np.ravel(other), rtol=rtol, atol=rtol * 1e-3)


# Of GOLDEN, in the units of the loss: what is differentiated, (d / d mu, d / d l) at s = 0.5 and at s = 2.
VALUES = {
    "l2": (lambda s: L2, (-0.028176951, 0.032011684), (-0.490196078, 0.173010381)),
    "sid_half": (lambda s: SID[0.5], (-0.045351475, 0.041767626), (-0.555555556, 0.184544406)),
    "pseudo_huber": (lambda s: huber(0.5 * s**2), (-0.105662397, 0.072721543), (-0.228947321, 0.073199583)),
    "kl": (lambda s: KL, (-0.190476190, 0.108199493), (-0.666666667, 0.117647059)),
    "denominator_detached": (
        lambda s: huber(0.5 * s**2, detach_denominator=True), (-0.105662397, 0.111768370), (-0.228947321, 0.077464735),
    ),
}  # fmt: skip
U_STOPPED = (-0.028176951, 0.016005842), (-0.490196078, 0.086505190)


@pytest.mark.parametrize("level", [0, 1], ids=["0.5", "2"])
@pytest.mark.parametrize("name", VALUES)
def test_gradients_of_the_losses_are_the_golden_values(name, level, double):
    """Computed once, outside of this code, from the closed forms and by finite differences of the divergence."""
    method, *values = VALUES[name]
    s = (0.5, 2.0)[level]
    ours = gradient(method(s), GOLDEN, s, nodes=200)
    np.testing.assert_allclose(flat(ours), values[level], rtol=1e-6, atol=6e-10)


@pytest.mark.parametrize("level", [0, 1], ids=["0.5", "2"])
def test_the_kernel_scale_drops_out(level, double):
    """With x_t scaled by alpha the loss in units of x0 has the same gradient, since delta and R do not change."""
    s = (0.5, 2.0)[level]
    for name in ("l2", "kl", "sid_half"):
        method, *values = VALUES[name]
        ours = flat(gradient(method(s), GOLDEN, s, alpha=0.3))
        np.testing.assert_allclose(ours, values[level], rtol=1e-6, atol=6e-10)


class StoppedU(ScoreImplicitMatching):
    """The mistake to treat u, hence delta wherever it stands in the loss, as a constant."""

    def image_losses(self, teacher, auxiliary, x0, x_t, t, label):
        def stopped(*args):
            f_phi, f_psi, delta = difference(*args)
            return f_phi, f_psi, jax.lax.stop_gradient(delta)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "difference", stopped)
            return super().image_losses(teacher, auxiliary, x0, x_t, t, label)


@pytest.mark.parametrize("level", [0, 1], ids=["0.5", "2"])
def test_a_stopped_u_halves_the_gradient_of_the_scale(level, double):
    """The mistake gives the wrong values that it must, and the test of the golden values would see it."""
    right = VALUES["l2"][1 + level]
    ours = flat(gradient(StoppedU(distance="l2"), GOLDEN, (0.5, 2.0)[level]))
    np.testing.assert_allclose(ours, U_STOPPED[level], rtol=1e-6, atol=6e-10)
    np.testing.assert_allclose(ours, np.array(right) * [1.0, 0.5], rtol=1e-7, atol=6e-10)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(ours, right, rtol=1e-6, atol=6e-10)


@pytest.mark.parametrize("where", ["x0", "x_t"])
def test_a_missing_path_of_the_gradient_is_seen(where, double):
    """Of the images, or of the noised images, held constant: both carry a part of every member but KL's."""
    class Cut(ScoreImplicitMatching):
        def image_losses(self, teacher, auxiliary, x0, x_t, t, label):
            x0, x_t = (jax.lax.stop_gradient(x) if name == where else x for name, x in (("x0", x0), ("x_t", x_t)))
            return super().image_losses(teacher, auxiliary, x0, x_t, t, label)

    with pytest.raises(AssertionError):
        np.testing.assert_allclose(flat(gradient(Cut(distance="l2"), GOLDEN, 0.5)), VALUES["l2"][1], rtol=1e-6)


@pytest.mark.parametrize(("dimension", "seed"), [(1, 0), (1, 1), (2, 2), (2, 3)])
def test_closed_forms_of_the_squared_distance(dimension, seed, double):
    """Of random Gaussians, full covariances: L2, SiD by its coefficient k, and KL."""
    pair, s = random_pair(seed, dimension), 0.7
    frozen, path = pair.frozen(s), pair.path(s)
    for k, method in SID.items():
        expected = [f + 2 * (1 - k) * p for f, p in zip(frozen, path)]
        assert_gradients(gradient(method, pair, s, nodes=6), expected, 1e-10, scale=s**4 / 2)
    assert_gradients(gradient(L2, pair, s, nodes=6), frozen, 1e-10, scale=s**4 / 2)
    assert_gradients(gradient(KL, pair, s, nodes=6), pair.kl(s), 1e-10, scale=s**2)
    with pytest.raises(AssertionError):
        assert_gradients(gradient(L2, pair, s, nodes=6), pair.frozen(1.01 * s), 1e-6, scale=s**4 / 2)


def test_sid_at_one_half_is_the_gradient_with_the_law_moving(double):
    """By finite differences of the divergence in mu and L together, an oracle of its own."""
    pair, s, step = random_pair(4, 2), 0.7, 1e-5
    ours = gradient(SID[0.5], pair, s, nodes=6)

    def moved(name, index, by):
        value = getattr(pair, name).copy()
        value[index] += by
        return Pair(**{**vars(pair), name: value}).divergence(s)

    for name, part in zip(("mu", "L"), ours):
        for index in np.ndindex(part.shape):
            slope = (moved(name, index, step) - moved(name, index, -step)) / (2 * step)
            assert part[index] == pytest.approx(slope * s**4 / 2, rel=1e-6, abs=1e-9)


def general_gradient(pair, s, direction, nodes=60):
    """For any distance: -s^2 P^-1 E[u] and -s^2 sym(P^-1 E[u (x - mu)'] P^-1), with u of delta and x ~ N(mu, P)."""
    p, q, a, gap = pair.parts(s)
    points, weights = quadrature(nodes, len(pair.mu))
    x = points @ np.linalg.cholesky(np.linalg.inv(p)).T
    u = direction(-(s**2) * (x @ a.T + q @ gap))
    outer = -(s**2) * p @ np.einsum("n,ni,nj->ij", weights, u, x) @ p
    return -(s**2) * p @ (weights @ u), (outer + outer.T) @ pair.L


C = 1.5
# u = d'(r) of a vector, from the distances d: the derivative in r, times the unit vector.
DIRECTIONS = {
    "l2": (L2, lambda r: r),
    "pseudo_huber": (huber(C), lambda r: r / np.sqrt(np.sum(r**2, -1, keepdims=True) + C**2)),
    "power": (
        ScoreImplicitMatching(distance="power", huber_c=C, power=1.5),
        lambda r: r / (np.sum(r**2, -1, keepdims=True) + C**2) ** 0.25,
    ),
    "cauchy": (
        ScoreImplicitMatching(distance="cauchy", huber_c=C),
        lambda r: r * C**2 / (C**2 + np.sum(r**2, -1, keepdims=True)),
    ),
}


@pytest.mark.parametrize("name", DIRECTIONS)
def test_every_distance_in_two_dimensions(name, double):
    """The gradient theorem, the norm being that of the whole sample; the u of another distance gives other numbers."""
    pair, s = random_pair(5, 2), 1.0
    method, direction = DIRECTIONS[name]
    ours = gradient(method, pair, s, nodes=18)
    assert_gradients(ours, general_gradient(pair, s, direction), 1e-6)
    with pytest.raises(AssertionError):
        wrong = np.abs if name == "l2" else lambda r: r / np.sqrt(r**2 + C**2)  # coordinate by coordinate
        assert_gradients(ours, general_gradient(pair, s, wrong), 1e-2)


# d(r) as the papers write them.
DISTANCE_VALUES = {
    "l2": lambda r: r**2 / 2,
    "pseudo_huber": lambda r: np.sqrt(r**2 + C**2) - C,
    "power": lambda r: (r**2 + C**2) ** 0.75 / 1.5,
    "cauchy": lambda r: C**2 / 2 * np.log(1 + r**2 / C**2),
}


@pytest.mark.parametrize("name", DISTANCE_VALUES)
def test_the_loss_has_the_gradient_of_the_divergence_with_its_law_frozen(name, double):
    """Finite differences of E d(delta) in the parameters of the score alone: the theorem itself [Luo et al. 2024]."""
    s, step, nodes = 0.8, 1e-4, 200
    points, weights = quadrature(nodes, 1)
    x = GOLDEN.mu[0] + np.sqrt(GOLDEN.S[0, 0] + s**2) * points[:, 0]
    teacher = 0.3 + 0.8 / (0.8 + s**2) * (x - 0.3)

    def divergence(mu, scale):
        delta = teacher - (mu + scale**2 / (scale**2 + s**2) * (x - mu))
        return weights @ DISTANCE_VALUES[name](delta)

    slopes = [(divergence(-0.5 + a, 1.2 + b) - divergence(-0.5 - a, 1.2 - b)) / (2 * step)
              for a, b in ((step, 0.0), (0.0, step))]  # fmt: skip
    ours = flat(gradient(DIRECTIONS[name][0], GOLDEN, s, nodes=nodes))
    np.testing.assert_allclose(ours, slopes, rtol=1e-6)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(-ours, slopes, rtol=1e-6)


def test_pseudo_huber_is_the_squared_distance_for_large_c(double):
    """c times its gradient tends to that of the squared distance; at c = 1 it is another loss."""
    for pair, s in ((GOLDEN, 0.5), (random_pair(6, 2), 0.7)):
        expected = [s**4 / 2 * part for part in pair.frozen(s)]
        assert_gradients([1e4 * part for part in gradient(huber(1e4), pair, s, nodes=6)], expected, 1e-6)
        with pytest.raises(AssertionError):
            assert_gradients(gradient(huber(1.0), pair, s, nodes=6), expected, 1e-3)


@pytest.mark.parametrize("name", MEMBERS)
def test_no_gradient_where_the_auxiliary_network_is_the_teacher(name):
    """Exactly none, hence no NaN: what training begins with. Also for two networks with equal parameters."""
    draw = np.random.default_rng(0)
    x0, noise = (jnp.asarray(draw.normal(size=(6, 2, 2, 3)), jnp.float32) for _ in range(2))
    t = jnp.linspace(0.1, 0.8, 6)
    process = GaussianProcess(EDM())
    for prediction in ("edm", "epsilon"):
        networks = [NetworkDenoiser(lambda x, c, label: jnp.tanh(2 * x) - 0.1, process, prediction, 0.5)
                    for _ in range(2)]  # fmt: skip

        def loss(x0, networks=networks):
            return jnp.sum(MEMBERS[name].image_losses(*networks, x0, process.corrupt(x0, noise, t), t, None)[0])

        np.testing.assert_array_equal(jax.grad(loss)(x0), np.zeros(x0.shape))


@pytest.mark.parametrize("name", MEMBERS)
def test_every_member_has_a_gradient_where_they_differ(name):
    """The control of the test above."""
    draw = np.random.default_rng(0)
    x0, noise = (jnp.asarray(draw.normal(size=(6, 2, 2, 3)), jnp.float32) for _ in range(2))
    t, process = jnp.linspace(0.1, 0.8, 6), GaussianProcess(EDM())
    networks = [NetworkDenoiser(lambda x, c, label, a=a: jnp.tanh(a * x), process, "edm", 0.5) for a in (2.0, 1.9)]

    def loss(x0):
        return jnp.sum(MEMBERS[name].image_losses(*networks, x0, process.corrupt(x0, noise, t), t, None)[0])

    assert np.abs(jax.grad(loss)(x0)).reshape(6, -1).max(axis=1).min() > 1e-6


# --- over all noise levels --------------------------------------------------------------------------------------------


def legendre_levels(count=64, upper=0.8):
    """Noise levels of EDM [Karras et al. 2022, eq. 5] at Gauss-Legendre nodes of [0, upper], and their weights."""
    x, w = np.polynomial.legendre.leggauss(count)
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    return (low + (high - low) * 0.5 * upper * (1 + x)) ** 7, w / 2


def level_gradients(method, levels):
    """`gradient` of GOLDEN at each level, [levels, 2], and E |delta|^2, [levels], of the delta that is returned."""
    slopes, square = slopes_of_levels(method, *arguments(GOLDEN, 6), jnp.asarray(levels), 1.0)
    return np.concatenate([np.asarray(slope).reshape(len(levels), 1) for slope in slopes], axis=1), np.asarray(square)


# Of GOLDEN, mean over t ~ U[0, 0.8] of sigma^4 E |y|^2, and its gradients with the law frozen and moving.
INTEGRATED = 0.296224244
INTEGRATED_GRADIENT = {1.0: (-0.672739920, 0.084766763), 0.5: (-0.706650265, 0.093248899)}


def test_divergence_integrated_over_the_noise_levels(double):
    levels, weights = legendre_levels()
    for k, expected in INTEGRATED_GRADIENT.items():
        slopes, square = level_gradients(SID[k], levels)
        assert weights @ square == pytest.approx(INTEGRATED, rel=1e-6)
        np.testing.assert_allclose(2 * weights @ slopes, expected, rtol=1e-6)
        assert 1.01 * weights @ square != pytest.approx(INTEGRATED, rel=1e-6)
        with pytest.raises(AssertionError):
            np.testing.assert_allclose(2 * weights @ slopes, INTEGRATED_GRADIENT[1.5 - k], rtol=1e-3)


def test_generator_loss_is_the_integrated_one(double):
    """Drawn times and noise: over draws, the gradient and |delta|^2 have these means, to four standard errors.

    Other times give other means.
    """
    process, expected = GaussianProcess(EDM()), [*INTEGRATED_GRADIENT[1.0], INTEGRATED]
    laws = (spectrum(GOLDEN.m, GOLDEN.C), spectrum(GOLDEN.mu, GOLDEN.S))
    teacher, auxiliary = (gaussian_denoiser(law, lambda t: (jnp.ones_like(t), process.sigma(t))) for law in laws)

    def distance(method):
        def loss(theta, key):
            key_z, key_time, key_noise = jax.random.split(key, 3)
            x0 = theta[0] + theta[1] * jax.random.normal(key_z, (4096, 1))
            return method.generator_loss(teacher, auxiliary, process, x0, None, key_time, key_noise)

        def draw(key):
            slopes, metrics = jax.grad(loss, has_aux=True)(jnp.array([-0.5, 1.2]), key)
            return jnp.append(2 * slopes, metrics["delta"] ** 2)

        draws = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 64)))
        return np.abs(draws.mean(0) - expected) / (draws.std(0) / np.sqrt(len(draws)))

    assert (distance(L2) < 4).all()
    assert (distance(ScoreImplicitMatching(distance="l2", time_upper=0.7))[[0, 2]] > 6).all()


def test_integral_over_all_levels_is_the_divergence_of_the_clean_laws(double):
    """De Bruijn: the integral of s E |y|^2 ds is KL(p_0, q_0), and SiD at k = 1/2, weighted so, has its gradient."""
    log_s = np.linspace(-9, 9, 721)
    s = np.exp(log_s)
    weights = np.full(len(s), log_s[1] - log_s[0]) * s**-2  # s ds = s^2 dlog s, and y = -delta / s^2
    kl, slopes_of_kl = 0.5 * (np.log(0.8 / 1.44) + 1.44 / 0.8 + 0.64 / 0.8 - 1), [-0.8 / 0.8, 1.2 / 0.8 - 1 / 1.2]
    assert kl == pytest.approx(0.506106668, abs=1e-8)
    slopes, square = level_gradients(SID[0.5], s)
    assert weights @ square == pytest.approx(kl, abs=1e-6)
    assert 2 * weights @ square != pytest.approx(kl, abs=1e-2)
    np.testing.assert_allclose(2 * weights @ slopes, slopes_of_kl, atol=1e-6)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(2 * weights @ level_gradients(L2, s)[0], slopes_of_kl, atol=1e-3)


# --- normaliser, and the size of an image -----------------------------------------------------------------------------


@pytest.fixture
def images():
    """Images [5, 2, 2, 3], noised to levels of their own, and two denoisers that differ."""
    draw = np.random.default_rng(3)
    x0, noise = (jnp.asarray(draw.normal(size=(5, 2, 2, 3)), jnp.float32) for _ in range(2))
    t = jnp.linspace(0.3, 2.0, 5)
    return x0, x0 + expand(t, x0) * noise, t, *(lambda x, t, label, a=a: a * jnp.tanh(x) for a in (0.7, 0.9))


def image_gradient(method, images):
    """d loss / d x0 of each image, x_t held constant."""
    x0, x_t, t, *networks = images
    return np.asarray(jax.grad(lambda x: jnp.sum(method.image_losses(*networks, x, x_t, t, None)[0]))(x0), np.float64)


def test_kl_and_dmd_move_images_by_the_difference_of_the_denoisers(images):
    """f_psi - f_phi, for DMD divided by mean |x0 - f_phi| of each image [Yin et al. 2024]; numpy float64."""
    x0, x_t = (np.asarray(x, np.float64) for x in images[:2])
    f_phi, f_psi = 0.7 * np.tanh(x_t), 0.9 * np.tanh(x_t)
    omega = np.abs(x0 - f_phi).mean(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(image_gradient(KL, images), f_psi - f_phi, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(image_gradient(DMD, images), (f_psi - f_phi) / omega, rtol=1e-5, atol=1e-6)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(image_gradient(DMD, images), (f_psi - f_phi) / omega.mean(), rtol=1e-5, atol=1e-6)


def test_kl_has_no_gradient_through_the_networks(images):
    """With x0 held constant, nothing is left; for score implicit matching there is."""
    x0, x_t, t, *networks = images

    def of_x_t(method):
        return np.abs(jax.grad(lambda x: jnp.sum(method.image_losses(*networks, x0, x, t, None)[0]))(x_t)).max()

    assert of_x_t(KL) == 0 == of_x_t(DMD) and of_x_t(L2) > 0.01


@pytest.mark.parametrize("k", SID)
def test_normaliser_divides_each_loss_and_is_a_constant(k, images):
    """mean |x0 - f_phi| of each image carries no gradient [Zhou et al. 2024]."""
    x0, x_t, t, *networks = images
    normalised = ScoreImplicitMatching(distance="l2", normalizer="l1", sid_coefficient=k)
    omega = np.abs(np.asarray(x0 - networks[0](x_t, t, None), np.float64)).mean(axis=(1, 2, 3))
    plain, divided = (
        np.asarray(method.image_losses(*networks, x0, x_t, t, None)[0], np.float64) for method in (SID[k], normalised)
    )
    np.testing.assert_allclose(divided, plain / omega, rtol=1e-5)
    expected = image_gradient(SID[k], images) / omega[:, None, None, None]
    np.testing.assert_allclose(image_gradient(normalised, images), expected, rtol=1e-5, atol=1e-6)


def test_normaliser_has_a_floor():
    """Where the teacher gives the image back, nothing is divided by less than 1e-5."""
    x0 = jnp.ones((2, 3))
    networks = (lambda x, t, label: x, lambda x, t, label: x + 1e-3)
    slope = jax.grad(lambda x: jnp.sum(DMD.image_losses(*networks, x, x0, jnp.ones(2), None)[0]))(x0)
    np.testing.assert_allclose(slope, np.full((2, 3), 1e-3 / 1e-5), rtol=1e-3)


@pytest.mark.parametrize("shape", [(32, 32, 3), (2, 2, 3)], ids=str)
def test_default_c_grows_as_the_root_of_the_number_of_coordinates(shape):
    """0.03 at 3072. For a delta as long as c should be the loss is delta'R / (sqrt(2) c); other lengths give others."""
    d = np.prod(shape)
    gap = 0.03 / np.sqrt(3072)  # of each coordinate: |delta| = gap sqrt(d), and delta'R = gap d
    networks = (lambda x, t, label: x + gap, lambda x, t, label: x)

    def loss(**options):
        images = jnp.zeros((1, *shape)), jnp.ones((1, *shape)), jnp.ones(1)
        return ScoreImplicitMatching(**options).image_losses(*networks, *images, None)[0]

    expected = gap * d / (np.sqrt(2) * gap * np.sqrt(d))
    np.testing.assert_allclose(loss(), expected, rtol=1e-3)
    np.testing.assert_allclose(loss(huber_c=0.03 * np.sqrt(d / 3072)), expected, rtol=1e-3)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(loss(huber_c=2 * gap * np.sqrt(d)), expected, rtol=1e-3)


@pytest.mark.parametrize("name", MEMBERS)
def test_images_are_flat_vectors_in_another_shape(name, images):
    x0, x_t, t, *networks = images
    vectors = [x.reshape(5, 12) for x in (x0, x_t)]
    losses, delta = MEMBERS[name].image_losses(*networks, x0, x_t, t, None)
    flat_losses, flat_delta = MEMBERS[name].image_losses(*networks, *vectors, t, None)
    np.testing.assert_allclose(losses, flat_losses, rtol=1e-5)
    np.testing.assert_allclose(delta.reshape(5, 12), flat_delta, rtol=1e-5)
    assert losses.shape == (5,)


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distance": "l3"}, r"distance = 'l3' is not known; choose from l2, pseudo_huber"),
        ({"normalizer": "l2"}, r"normalizer = 'l2' is not known; choose from none, l1"),
        ({"huber_c": 0.0}, r"huber_c = 0\.0"),
        ({"huber_c": -1.0}, r"huber_c = -1\.0"),
        ({"huber_c": float("nan")}, r"huber_c = nan"),
        ({"power": 0.0}, r"power = 0\.0"),
        ({"power": 2.5}, r"power = 2\.5"),
        ({"time_upper": 0.0}, r"upper = 0\.0"),
        ({"time_upper": 1.5}, r"upper = 1\.5"),
        ({"level": 0.0}, r"level = 0\.0"),
        ({"level": -2.5}, r"level = -2\.5"),
        ({"auxiliary_updates": 0}, r"auxiliary_updates = 0"),
        ({"auxiliary_warmup": -1}, r"auxiliary_warmup = -1"),
        ({"distance": "pseudo_huber", "sid_coefficient": 1.2}, r"sid_coefficient = 1\.2 .* 'pseudo_huber'"),
        ({"distance": "cauchy", "normalizer": "l1"}, r"normalizer = 'l1' .* 'cauchy'"),
    ],
)
def test_bad_options_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        ScoreImplicitMatching(**options)


def test_every_distance_is_tested():
    assert set(DISTANCES) == set(DIRECTIONS) == set(DISTANCE_VALUES)
    assert {method.distance for method in MEMBERS.values()} == set(DISTANCES)
