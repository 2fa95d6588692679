"""What each objective learns: linear fields on Gaussian data, where the loss is a parabola whose bottom is known.

s(x) = -k x on N(0, a^2 I), a = 1.3; b = 0.5 is the deviation of x' or of the noise. Three points of it give k.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import SubVP
from diffusion.kernel_free import Static
from diffusion.process import GaussianProcess

pytestmark = pytest.mark.usefixtures("quick_to_compile")

A2, B = 1.69, 0.5
COUNT, DIMENSION = 200_000, 4  # plain SSM's k is then within 0.3 % (standard error)


@pytest.fixture(scope="module")
def x0():
    """Gaussian data whose coordinates have the covariance a^2 I of the sample, not only of the law."""
    draw = np.random.default_rng(0).normal(size=(COUNT, DIMENSION))
    draw = (draw - draw.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(draw.T, bias=True))).T
    return jnp.asarray(np.sqrt(A2) * draw, jnp.float32)


@pytest.fixture(scope="module")
def bottom(represent):
    """(objective, process, x0) -> (k, loss there)."""

    def find(objective, process, x0):
        def loss(k):
            return float(objective(represent(process, lambda x: -k * x), process, x0, None, jax.random.key(1))[0])

        low, middle, high = loss(0.0), loss(0.5), loss(1.0)
        curvature = (low - 2 * middle + high) / 0.25
        slope = (high - low) / 1.0
        k = 0.5 - slope / curvature
        return k, middle - 0.5 * slope**2 / curvature

    return find


def local(**options):
    return {"mode": "local", "local_c": B / 2, **options}  # sigma is 2 where it is used


SMOOTH, SHARP = 1 / (A2 + B**2), 1 / A2


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("ism", {}, SHARP),
        ("ssm", {}, SHARP),
        ("ssm", {"probe": "sphere"}, SHARP),
        ("ssm_vr", {}, SHARP),
        ("ssm_vr", {"probe": "gaussian", "num_probes": 2}, SHARP),
        ("fd_ssm", {}, SHARP),
        ("fd_ssm_vr", {"difference": 0.3}, SHARP),
        ("lcss", local(), SMOOTH),
        ("lcss", local(control_variate="center"), SMOOTH),
        ("lcss", local(control_variate="antithetic"), SMOOTH),
        ("lcss", local(gamma=2.0), 2 * SMOOTH),
        ("lcss", local(norm_at="x"), SHARP),
        ("lcss", local(norm_at="x", control_variate="center"), SHARP),
    ],
    ids=str,
)
def test_static_data(name, options, expected, x0, bottom, create):
    """To 1 %; the minimum, -d k / 2 times the weight of T, too."""
    k, minimum = bottom(create(name, **options), Static(scale=2.0), x0)
    assert k == pytest.approx(expected, rel=0.01)
    assert minimum == pytest.approx(-0.5 * DIMENSION * expected * options.get("gamma", 1.0), rel=0.02)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 0.515464),
        ({"gamma": 0.5}, 0.257732),
        ({"gamma": 2.0}, 1.030928),
        ({"gamma": 10.0}, 5.154639),
        ({"num_probes": 2}, 0.515464),
        # At one level x_t has the variance a^2 + b^2 already.
        ({"mode": "local", "local_c": 0.6}, 1 / (A2 + 1.36 * B**2)),
        ({"mode": "local", "local_c": 0.6, "norm_at": "x"}, 0.515464),
    ],
    ids=str,
)
def test_lcss_at_one_level(options, expected, x0, bottom, create, one_level):
    k, minimum = bottom(create("lcss", **options), one_level(B), x0)
    assert k == pytest.approx(expected, rel=0.01)
    assert minimum == pytest.approx(-0.5 * DIMENSION * expected * options.get("gamma", 1.0), rel=0.02)


@pytest.mark.parametrize("name", ["dsm", "ism", "ssm_vr", "fd_ssm"])
def test_noised_data(name, x0, bottom, create, one_level):
    """Every objective learns the score of the noised data; DSM's minimum lies d / (2 b^2) higher."""
    k, minimum = bottom(create(name), one_level(B), x0)
    assert k == pytest.approx(SMOOTH, rel=0.01)
    offset = DIMENSION / (2 * B**2) if name == "dsm" else 0
    assert minimum == pytest.approx(offset - 0.5 * DIMENSION * SMOOTH, rel=0.02)


def test_the_same_draw_twice_is_found_out(x0, bottom, create, one_level, monkeypatch):
    """Negative control: mode local with the noise of x_t used again for x' learns something else."""
    draw = jax.random.normal(jax.random.key(5), x0.shape)
    monkeypatch.setattr(jax.random, "normal", lambda key, shape=(), dtype=None: draw)
    expected = 1 / (A2 + 1.36 * B**2)
    k, _ = bottom(create("lcss", mode="local", local_c=0.6), one_level(B), x0)
    assert abs(k / expected - 1) > 1


@pytest.mark.parametrize("time", [0.2, 0.5])
@pytest.mark.parametrize("sigma", ["std", "g"])
@pytest.mark.parametrize("center", ["mean", "x0"])
def test_center_and_sigma_on_sub_vp(center, sigma, time, x0, bottom, create, one_time):
    """1 / (alpha^2 v + std^2) is the score of p_t; with the centre x0 alpha is missing, with g std is another."""
    integral = 0.1 * time + 9.95 * time**2
    alpha, std = np.exp(-integral / 2), -np.expm1(-integral)
    g = np.sqrt((0.1 + 19.9 * time) * -np.expm1(-2 * integral))
    width = std if sigma == "std" else g
    expected = 1 / ((alpha**2 if center == "mean" else 1) * A2 + width**2)
    objective = create("lcss", center=center, sigma=sigma, time_sampler=one_time(time))
    k, _ = bottom(objective, GaussianProcess(SubVP()), x0)
    assert k == pytest.approx(expected, rel=0.01)


def test_norm_at_x_in_one_dimension(create, of_draw, represent):
    """No linear field: the minimiser of form `x` is (grad p_b) / p. There the loss is stationary in every direction.

    Directions exp(-(x - x_i)^2 / 2 h^2) probe it point by point: the derivative of the loss along one of them, by
    quadrature over data and draws, is zero at the golden field and not at the true score.
    """
    a, c = 1.3, 0.1
    points = {0.5: -0.37938668, 1.0: -0.76159583, 2.0: -1.54598214}  # by x / a
    b = c * a
    nodes, weights = np.polynomial.hermite_e.hermegauss(48)
    weights = weights / weights.sum()

    def minimiser(x):
        spread = a**2 + b**2
        return -x / spread * (1 + c**2) ** -0.5 * jnp.exp(0.5 * x**2 * (1 / a**2 - 1 / spread))

    for factor, value in points.items():
        assert float(minimiser(factor * a)) == pytest.approx(value, rel=1e-5)
    with jax.enable_x64(True):
        process = Static(scale=1.0)
        objective = create("lcss", mode="local", local_c=b, norm_at="x")
        x, z = (jnp.asarray(grid.ravel())[:, None] for grid in np.meshgrid(a * nodes, nodes, indexing="ij"))
        weight = np.outer(weights, weights).ravel()

        def derivative(field, place):
            def loss(x, z, size):
                def moved(y):
                    return field(y) + size * jnp.exp(-0.5 * ((y - place) / 0.5) ** 2)

                return of_draw(objective, represent(process, moved), process, x)(z)["loss"]

            return weight @ np.asarray(jax.vmap(lambda x, z: jax.grad(loss, 2)(x, z, 0.0))(x, z))

        for place in (0.7, 1.3, 2.6):
            assert 20 * abs(derivative(minimiser, place)) < abs(derivative(lambda x: -x / a**2, place))
