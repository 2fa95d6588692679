"""The lattice field against its energy summed bond by bond, autodiff, plane waves and quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.base import expand
from diffusion.denoiser import NetworkDenoiser
from diffusion.phi4 import Phi4, laplacian
from diffusion.random import image_keys
from samplers.euler_maruyama import EulerMaruyama

FIELD = np.random.default_rng(0).normal(size=(4, 5))


def log_pi(field, kappa):
    """Site by site and bond by bond on a torus."""
    height, width = field.shape
    total = 0.0
    for i in range(height):
        for j in range(width):
            total += field[i, j] ** 2 / 2 - field[i, j] ** 4 / 4
            for neighbour in (field[(i + 1) % height, j], field[i, (j + 1) % width]):
                total -= kappa / 2 * (field[i, j] - neighbour) ** 2
    return total


def differences(field, kappa, step=1e-5):
    """The gradient of log_pi by central differences."""
    gradient = np.zeros_like(field)
    for index in np.ndindex(field.shape):
        moved = np.zeros_like(field)
        moved[index] = step
        gradient[index] = (log_pi(field + moved, kappa) - log_pi(field - moved, kappa)) / (2 * step)
    return gradient


def test_drift_is_half_the_gradient_of_the_energy():
    """Times beta(t), each channel a lattice of its own."""
    process = Phi4(kappa=0.7)
    expected = differences(FIELD, 0.7)
    with jax.enable_x64(True):
        x = jnp.asarray(np.stack([FIELD, 2 * FIELD, -FIELD], axis=-1))[None]
        drift = np.asarray(process.drift(x, jnp.ones(1)))[0]
    np.testing.assert_allclose(drift[..., 0], 20 * expected, rtol=1e-7)
    np.testing.assert_allclose(drift[..., 2], -20 * expected, rtol=1e-7)
    np.testing.assert_allclose(drift[..., 1], 20 * differences(2 * FIELD, 0.7), rtol=1e-7)
    assert np.abs(expected - differences(FIELD, 0.6)).max() > 0.1  # negative control


@pytest.mark.parametrize("waves", [(0, 0), (1, 0), (0, 2), (3, 1)])
def test_laplacian_of_plane_waves(waves):
    """Eigenvalue -(2 - 2 cos k) for each axis; a flat field has none of it."""
    rows, columns = np.meshgrid(np.arange(8), np.arange(6), indexing="ij")
    k = 2 * np.pi * np.array(waves) / (8, 6)
    wave = np.cos(k[0] * rows + k[1] * columns)
    eigenvalue = -np.sum(2 - 2 * np.cos(k))
    got = laplacian(jnp.asarray(wave[None, :, :, None], jnp.float32))
    np.testing.assert_allclose(got[0, :, :, 0], eigenvalue * wave, atol=1e-5)


def test_a_flat_vector_is_a_ring():
    """Neighbours of 0 are 1 and the last."""
    got = laplacian(jnp.array([[1.0, 2.0, 4.0, 8.0]]))
    np.testing.assert_allclose(got, [[2 + 8 - 2, 1 + 4 - 4, 2 + 8 - 8, 4 + 1 - 16]])


def test_following_the_force_raises_the_density():
    """The Laplacian's sign: with the other one, a rough field gets rougher."""
    def path(sign):
        field, values = FIELD, []
        for _ in range(20):
            x = jnp.asarray(field[None, :, :, None], jnp.float32)
            field = field + 0.05 * np.asarray(sign * 2 * laplacian(x) + x - x**3, np.float64)[0, :, :, 0]
            values.append(log_pi(field, 2.0))
        return np.diff(values)

    process, x = Phi4(kappa=2.0), jnp.asarray(FIELD[None, :, :, None], jnp.float32)
    np.testing.assert_allclose(process.force(x), 2 * laplacian(x) + x - x**3, rtol=1e-5)
    assert (path(1.0) > 0).all() and (path(-1.0)[:3] < 0).any()


def moments(kappa):
    """E[x^2], E[x^4] and E[x y] of a ring of two, by quadrature of exp(sum x^2/2 - x^4/4 - kappa (x - y)^2).

    Two sites are neighbours twice over, to the left and to the right.
    """
    x = np.linspace(-6, 6, 601)
    one, two = np.meshgrid(x, x)
    weight = np.exp(one**2 / 2 - one**4 / 4 + two**2 / 2 - two**4 / 4 - kappa * (one - two) ** 2)
    return np.array([np.sum(weight * value) for value in (one**2, one**4, one * two)]) / np.sum(weight)


@pytest.mark.parametrize("kappa", [0.0, 0.5])
def test_prior_is_the_stationary_density(kappa):
    """20,000 sites; taming biases the moments by the order of its step, 1 %."""
    x = np.asarray(Phi4(kappa=kappa).prior(image_keys(0, jnp.arange(10_000)), (2,)), np.float64)
    got = np.array([np.mean(x**2), np.mean(x**4), np.mean(x[:, 0] * x[:, 1])])
    np.testing.assert_allclose(got, moments(kappa), rtol=0.04, atol=0.04)
    assert np.abs(got - moments(0.25)).max() > 0.1  # negative control: another stiffness


def test_simulation_is_tamed():
    """From far outside, with steps so long that Euler's method would be at infinity."""
    process, x0 = Phi4(), jnp.full((2, 4, 4, 1), 15.0)
    path = process.simulate(x0, jnp.full(2, 0.5), jax.random.key(0), 64)
    assert np.abs(path.x).max() < 15
    np.testing.assert_allclose(path.step, 0.5 / 64, rtol=1e-6)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"kappa = -0.1"):
        Phi4(kappa=-0.1)
    with pytest.raises(ValueError, match="time_min"):
        Phi4(time_min=0.0)
    with pytest.raises(ValueError, match=r"needs images .* not shape \(2, 3, 4\)"):
        Phi4().drift(jnp.zeros((2, 3, 4)), jnp.ones(2))


class Strayed(Phi4):
    """Every path of the reverse process starts at 4."""

    def prior(self, keys, shape):
        return jnp.full((len(keys), *shape), 4.0)


def test_the_reverse_process_holds_a_pixel_that_has_strayed():
    """A network that knows nothing, from 4 instead of +-1: the cubic term brings it back; without it all is lost."""
    process = Strayed()
    blank = NetworkDenoiser(lambda x, level, label: 0 * x, process, prediction="edm", sigma_data=0.3)
    ends = []
    for denoise in (blank, lambda x, t, label: blank(x, t, label) + expand(process.sigma(t), x) ** 2 * x**3):
        samples = EulerMaruyama(steps=400).sample(denoise, process, jax.random.split(jax.random.key(0), 8), None,
                                                  shape=(4, 4, 1))  # fmt: skip
        ends.append(np.asarray(samples.x0))
    assert np.isfinite(ends[0]).all() and np.abs(ends[0]).max() < 3
    assert not np.isfinite(ends[1]).all()
