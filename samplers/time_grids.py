"""Where a sampler evaluates the network: `steps` decreasing times, then the end point x0.

  uniform   t_i linear in t from time_max to time_min. With the EDM schedule this is Karras' grid.
  trailing  t_i = 1 - i / steps of the way from time_min to time_max: `steps` equal intervals, of which the last ends at
            the data; the grid of few-step students [Salimans et al. 2024, algorithm 1].
  karras    (sigma/alpha)^(1/rho) linear, rho = 7 [Karras et al. 2022, eq. 5], between the noise levels at both ends.
  logsnr    log-SNR linear [Lu et al. 2022].

The last two need a noise level that determines the time: not the constant schedule, nor a process without a kernel.
Grids are float64 numpy. The state after the last network call is x0 itself: alpha = 1, sigma = 0.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from diffusion.base import Process

KARRAS_RHO = 7.0


class Grid(NamedTuple):
    """Host tables of a grid with N network times.

    Attributes:
      t: [N] decreasing, from time_max.
      alpha, sigma: [N + 1], the last entries being 1 and 0.
    """

    t: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray

    @property
    def level(self) -> np.ndarray:
        """[N + 1] EDM's noise level sigma / alpha, 0 at the end."""
        return self.sigma / self.alpha


def uniform(process: Process, steps: int) -> np.ndarray:
    """[steps] times, linear in t."""
    return np.linspace(process.time_max, process.time_min, steps)


def trailing(process: Process, steps: int) -> np.ndarray:
    """[steps] times, the upper ends of equal intervals."""
    return np.linspace(process.time_max, process.time_min, steps + 1)[:-1]


def karras(process: Process, steps: int) -> np.ndarray:
    """[steps] times, linear in (sigma / alpha)^(1 / 7)."""
    high, low = _end_logsnrs(process)
    level = np.linspace(np.exp(-0.5 * high / KARRAS_RHO), np.exp(-0.5 * low / KARRAS_RHO), steps) ** KARRAS_RHO
    return _times(process, -2 * np.log(level))


def logsnr(process: Process, steps: int) -> np.ndarray:
    """[steps] times, linear in log-SNR."""
    return _times(process, np.linspace(*_end_logsnrs(process), steps))


TIME_GRIDS: dict[str, Callable[[Process, int], np.ndarray]] = {
    "uniform": uniform,
    "trailing": trailing,
    "karras": karras,
    "logsnr": logsnr,
}


def check_grid(name: str, steps: int) -> None:
    """Raises ValueError unless `name` is a grid and there is at least one step."""
    if name not in TIME_GRIDS:
        raise ValueError(f"grid = '{name}' is not known; choose from {', '.join(TIME_GRIDS)}")
    if steps < 1:
        raise ValueError(f"steps = {steps} must be at least 1")


def make_grid(process: Process, name: str, steps: int) -> Grid:
    """The grid `name` of TIME_GRIDS with `steps` network times on `process`.

    Raises:
      ValueError: for a grid of noise levels on a process whose noise level does not determine the time.
    """
    t = TIME_GRIDS[name](process, steps)
    return Grid(t, np.append(process.alpha(t), 1.0), np.append(process.sigma(t), 0.0))


def _end_logsnrs(process: Process) -> tuple[float, float]:
    ends = process.logsnr(np.array([process.time_max, process.time_min], np.float64))
    return float(ends[0]), float(ends[1])


def _times(process: Process, logsnrs: np.ndarray) -> np.ndarray:
    # Rounding may leave the interval by an ulp, where a schedule need not be defined.
    return np.clip(process.time_of_logsnr(logsnrs), process.time_min, process.time_max)
