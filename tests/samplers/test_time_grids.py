"""Time grids against the formulas of their papers."""

import numpy as np
import pytest

from diffusion.process import GaussianProcess
from diffusion.schedules import EDM, Cosine, RectifiedFlow, VPLinear
from samplers.time_grids import TIME_GRIDS, make_grid

PROCESSES = {
    "vp_linear": GaussianProcess(VPLinear()),
    "cosine": GaussianProcess(Cosine()),
    "edm": GaussianProcess(EDM()),
    "rectified_flow": GaussianProcess(RectifiedFlow()),
}


@pytest.fixture(params=PROCESSES, ids=str)
def process(request):
    return PROCESSES[request.param]


def karras_levels(low, high, count, rho=7.0):
    """sigma_i of Karras et al. 2022, eq. 5, for i = 0 .. N - 1."""
    i = np.arange(count)
    return (high ** (1 / rho) + i / (count - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho


@pytest.mark.parametrize("name", ["karras", "uniform"])
def test_karras_golden(name):
    """EDM's 18 levels from 80 to 0.002. On EDM's own schedule the uniform grid is the same one."""
    level = make_grid(PROCESSES["edm"], name, 18).level
    np.testing.assert_allclose(level[:-1], karras_levels(0.002, 80.0, 18), rtol=1e-9)
    np.testing.assert_allclose(level[[0, 1, 17]], [80.0, 57.585966, 0.002], rtol=1e-6)
    assert level[18] == 0


def test_karras_on_any_schedule(process):
    """The same levels, between those of the process's own ends."""
    ends = np.array([process.time_min, process.time_max])
    low, high = process.sigma(ends) / process.alpha(ends)
    level = make_grid(process, "karras", 9).level[:-1]
    np.testing.assert_allclose(level, karras_levels(low, high, 9), rtol=1e-8)
    assert np.abs(level / karras_levels(low, high, 9, rho=6.0) - 1).max() > 0.01  # another rho is another grid


def test_logsnr_is_evenly_spaced(process):
    grid = make_grid(process, "logsnr", 11)
    logsnr = 2 * np.log(grid.alpha[:-1] / grid.sigma[:-1])
    np.testing.assert_allclose(np.diff(logsnr), (logsnr[-1] - logsnr[0]) / 10, rtol=1e-7)


def test_uniform_is_evenly_spaced(process):
    t = make_grid(process, "uniform", 11).t
    np.testing.assert_allclose(np.diff(t), (process.time_min - process.time_max) / 10, rtol=1e-12)


@pytest.mark.parametrize("name", TIME_GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 50])
def test_every_grid_goes_from_noise_to_data(process, name, steps):
    """Decreasing from time_max to time_min within the interval, then the clean end alpha = 1, sigma = 0.

    The grid of students has as long an interval before its clean end as between its times.
    """
    grid = make_grid(process, name, steps)
    assert grid.t.shape == (steps,) and grid.alpha.shape == grid.sigma.shape == (steps + 1,)
    assert grid.t.dtype == grid.alpha.dtype == np.float64
    assert ((grid.t >= process.time_min) & (grid.t <= process.time_max)).all() and (np.diff(grid.t) < 0).all()
    np.testing.assert_allclose(grid.t[0], process.time_max, atol=1e-10)
    if steps > 1:
        last = (process.time_max - process.time_min) / steps if name == "trailing" else 0.0
        np.testing.assert_allclose(grid.t[-1], process.time_min + last, atol=1e-10)
    assert grid.alpha[-1] == 1 and grid.sigma[-1] == 0
    np.testing.assert_array_equal(grid.alpha[:-1], process.alpha(grid.t))
    np.testing.assert_array_equal(grid.sigma[:-1], process.sigma(grid.t))
