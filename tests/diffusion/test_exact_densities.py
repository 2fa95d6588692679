"""Boxes and rings against quadrature of Bayes' rule in float64, and the checkerboard against published vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

from diffusion.denoiser import score
from diffusion.exact_densities import ExactBoxes, ExactRings
from diffusion.process import GaussianProcess
from diffusion.schedules import EDM, VPLinear

EXPLODING, PRESERVING = GaussianProcess(EDM()), GaussianProcess(VPLinear())
# The board of eight 2 x 2 squares on [-4, 4]^2 that the published vectors are of.
CORNERS = np.array([(-4, 0), (-4, -4), (-2, 2), (-2, -2), (0, 0), (0, -4), (2, 2), (2, -2)], np.float64)


def single(array):
    return jnp.asarray(array, jnp.float32)


def boxes(process, low=CORNERS, sides=(2, 2)):
    return jax.jit(ExactBoxes(process, single(low), single(sides)))


@pytest.fixture(scope="module")
def board_score():
    """(x, t) -> the score of the board, compiled once per shape."""
    return jax.jit(lambda x, t: score(boxes(EXPLODING), EXPLODING, x, t))


def times(process, ratio):
    """t of a noise level sigma / alpha, as the float32 that the denoiser gets, and alpha and sigma there."""
    t = np.asarray(single(process.time_of_logsnr(-2 * np.log(ratio))), np.float64)
    return t, process.alpha(t), process.sigma(t)


def test_checkerboard_scores_are_the_published_ones(board_score):
    x = single([(0.1, 0.1), (1, 1.9), (0.05, 1)])
    expected = {
        0.1: [(2.253527, 2.253527), (0, -2.876000), (5.091604, 0)],
        0.2: [(1.175745, 1.175745), (0, -2.545800), (3.229194, 0)],
        0.3: [(0.615009, 0.615009), (0, -1.992252), (2.312814, 0)],
    }
    for sigma, scores in expected.items():
        t = single(np.full(3, times(EXPLODING, sigma)[0]))
        np.testing.assert_allclose(board_score(x, t), scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("sigma", "information"), [(0.1, 16.6480), (0.2, 7.6160), (0.3, 4.6018)])
def test_checkerboard_has_the_published_fisher_information(board_score, sigma, information):
    """E |score|^2 on a grid that resolves sigma, under the density by normal distribution functions."""
    axis = (4 + 6 * sigma) * np.linspace(-1, 1, 201)
    x = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    inside = [ndtr((x - low) / sigma) - ndtr((x - low - 2) / sigma) for low in CORNERS]
    density = np.sum([side[:, 0] * side[:, 1] for side in inside], axis=0) / 32
    assert density.sum() * (axis[1] - axis[0]) ** 2 == pytest.approx(1, abs=1e-4)
    t = single(np.full(len(x), times(EXPLODING, sigma)[0]))
    squares = (np.asarray(board_score(single(x), t), np.float64) ** 2).sum(1)
    assert (density * squares).sum() / density.sum() == pytest.approx(information, rel=3e-4)


def box_posterior(x, alpha, sigma, low, sides):
    """E[x0 | x] by Gauss-Legendre quadrature of Bayes' rule in every box, in logarithms: no tails, no reflection."""
    nodes, weights = np.polynomial.legendre.leggauss(400)
    y = low[:, :, None] + sides[:, None] * (nodes + 1) / 2  # [K, d, nodes]
    exponent = -((x[:, None, :, None] - alpha * y) ** 2) / (2 * sigma**2)
    largest = exponent.max(-1, keepdims=True)
    mass = weights * np.exp(exponent - largest)
    log_box = (largest[..., 0] + np.log(mass.sum(-1))).sum(-1, keepdims=True)
    means = (mass * y).sum(-1) / mass.sum(-1)
    responsibility = np.exp(log_box - log_box.max(1, keepdims=True))
    return (responsibility * means).sum(1) / responsibility.sum(1)


@pytest.mark.parametrize("process", [EXPLODING, PRESERVING], ids=["exploding", "preserving"])
def test_boxes_are_bayes_rule_at_all_noise_levels_and_far_outside(process):
    """From 1/100 of a side to 30 sides; at low noise also hundreds of standard deviations from every box."""
    rng = np.random.default_rng(0)
    low, sides = np.array([(-1, 0), (-0.5, -1), (0.3, 0.2)]), np.array([0.5, 0.7])
    denoise, worst = boxes(process, low, sides), 0
    for ratio in np.geomspace(0.005, 15, 15):
        t, alpha, sigma = times(process, ratio)
        near = rng.uniform(-1.5, 1.5, (20, 2)) * alpha + sigma * rng.normal(size=(20, 2))
        x = np.concatenate([near, 3 * near, alpha * (low + sides / 2)])
        x = np.asarray(single(x), np.float64)
        expected = box_posterior(x, alpha, sigma, low, sides)
        got = np.asarray(denoise(single(x), single(np.full(len(x), t)), None), np.float64)
        np.testing.assert_allclose(got, expected, atol=1e-5 + 3e-5 * ratio)
        # The score, relative to itself where it is not nearly 0, as in the middle of a box.
        error, size = (np.linalg.norm(v, axis=1) / sigma for v in (alpha * (got - expected), alpha * expected - x))
        assert (error < 1e-3 * np.maximum(size, 0.03)).all()
        other = box_posterior(x, alpha, 1.05 * sigma, low, sides)
        worst = max(worst, np.abs(got - other).max())
    assert worst > 0.02  # negative control: the posterior mean at another noise level


def ring_posterior(x, alpha, sigma, radii, spread):
    """E[x0 | x] by Gauss-Legendre quadrature over the radius and the trapezoidal rule over the angle."""
    nodes, weights = np.polynomial.legendre.leggauss(80)
    angle = 2 * np.pi * np.arange(1024) / 1024
    r = radii[:, None] + 12 * spread * nodes
    y = r[..., None, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
    prior = np.log(weights) - 72 * nodes**2
    log_joint = prior[:, None] - ((x - alpha * y) ** 2).sum(-1) / (2 * sigma**2)
    mass = np.exp(log_joint - log_joint.max())
    return (mass[..., None] * y).sum((0, 1, 2)) / mass.sum()


@pytest.mark.parametrize("process", [EXPLODING, PRESERVING], ids=["exploding", "preserving"])
def test_rings_are_bayes_rule(process):
    radii, rng = np.array([0.25, 0.5, 1.0]), np.random.default_rng(1)
    denoise, worst = jax.jit(ExactRings(process, single(radii), 0.02)), 0
    for ratio in (0.02, 0.1, 1.0):
        t, alpha, sigma = times(process, ratio)
        angle, radius = rng.uniform(0, 2 * np.pi, 5), np.array([0.02, 0.2, 0.4, 0.6, 1.1])
        x = alpha * (radius * np.stack([np.cos(angle), np.sin(angle)])).T
        x = np.asarray(single(x), np.float64)
        got = {label: denoise(single(x), single(np.full(5, t)), None if label is None else jnp.full(5, label))
               for label in (None, 1, 3)}  # fmt: skip
        expected = np.stack([ring_posterior(point, alpha, sigma, radii, 0.02) for point in x])
        one = np.stack([ring_posterior(point, alpha, sigma, radii[1:2], 0.02) for point in x])
        np.testing.assert_allclose(got[None], expected, atol=3e-5)
        np.testing.assert_allclose(got[1][2:4], one[2:4], atol=3e-5)  # those near enough for the quadrature
        np.testing.assert_array_equal(got[3], got[None])  # no such ring: all of them
        worst = max(worst, np.abs(got[None] - one).max())
    assert worst > 0.1


@pytest.mark.parametrize("ratio", [0.002, 0.01, 1.0, 80.0])
def test_there_is_no_hole_where_functions_underflow(ratio):
    """On a fine line from inside to 50 sides outside, the posterior mean stays in the hull of the boxes."""
    line = np.linspace(0, 25, 4001)
    x = single(np.stack([line, 0.37 * line], axis=1))
    t = single(np.full(len(x), times(EXPLODING, ratio)[0]))
    x0 = np.asarray(boxes(EXPLODING, CORNERS / 4, (0.5, 0.5))(x, t, None))
    assert np.isfinite(x0).all() and np.abs(x0).max() < 1 + 1e-5
    x0 = np.asarray(jax.jit(ExactRings(EXPLODING, single([0.25, 1.0]), 0.02))(x, t, None))
    assert (np.linalg.norm(x0, axis=1) <= np.linalg.norm(np.asarray(x), axis=1) + 1.2).all()
