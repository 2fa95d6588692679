"""Closed forms of a Gaussian, for the moment-matching and the DDIM distillations.

Data N(0, c), c = 1/4, on one coordinate; a process in units where it preserves the variance,

    x_t = alpha x0 + sigma noise,  m_t = alpha^2 c + sigma^2,  exact denoiser d_t x_t,  d_t = alpha c / m_t;
    student a x_t + b xi,  xi ~ N(0, 1);  a* = d_t, b*^2 = c sigma^2 / m_t draw from the posterior.

xi is the second coordinate of x_t, which has no data in it, so that the student is a function of (x_t, t) like any.
Everything is quadratic in the draws: eight rows with second moments exactly those of independent normals, the columns
of a Hadamard matrix, give expectations without sampling. The process may have alpha = 1: `scale` converts.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import hadamard

from diffusion.exact import exact_gaussian
from diffusion.process import GaussianProcess
from diffusion.schedules import EDM, Cosine
from distillation.base import Parts

VARIANCE = 0.25
ROWS = 8
COLUMNS = hadamard(ROWS).astype(np.float64)[:, 1:]
# In double precision the first is alpha = cos(pi t / 2), sigma = sin(pi t / 2) to 2e-9.
PROCESSES = {"cosine": GaussianProcess(Cosine(logsnr_limit=40.0)), "karras": GaussianProcess(EDM())}
# t, s; A, B, C^2; m_t, m_s, d_s; a*, b*.
TABLE = {
    "cosine": np.array([
        (1.00, 0.50, 0.000000, 0.707107, 0.500000, 1.000000, 0.625000, 0.282843, 0.000000, 0.500000),
        (0.75, 0.50, 0.317025, 0.585786, 0.414214, 0.890165, 0.625000, 0.282843, 0.107475, 0.489610),
        (0.50, 0.25, 0.224171, 0.765367, 0.121320, 0.625000, 0.359835, 0.641877, 0.282843, 0.447214),
        (0.25, 0.05, 0.038955, 0.960928, 0.005934, 0.359835, 0.254617, 0.978841, 0.641877, 0.318976),
    ]),
    "karras": np.array([
        (1.00, 0.50, 0.000000, 0.369451, 0.863506, 1.000000, 0.897629, 0.102896, 0.000000, 0.500000),
        (0.75, 0.50, 0.133563, 0.361843, 0.845725, 0.997567, 0.897629, 0.102896, 0.014275, 0.499797),
        (0.50, 0.25, 0.012155, 0.981405, 0.027881, 0.897629, 0.271007, 0.909476, 0.102896, 0.490404),
        (0.25, 0.05, 0.001382, 0.998618, 0.000039, 0.271007, 0.250029, 0.999863, 0.909476, 0.160741),
    ]),
}  # fmt: skip
# For the same (t, s) and the student that says the mean, weight 1, with the best auxiliary: dL/da and L.
AT_THE_MEAN = {
    "cosine": np.array([(0.0, 0.020000), (-0.036507, 0.012645), (-0.044187, 0.012494), (-0.004265, 0.000105)]),
    "karras": np.array([(0.0, 0.004571), (-0.006962, 0.004378), (-0.032704, 0.008166), (-0.000022, 0.000000)]),
}


@pytest.fixture
def double():
    """float64 in JAX."""
    with jax.enable_x64(True):
        yield


def scale(process, t):
    """x * scale is in the units of a process that preserves the variance."""
    return 1 / np.sqrt(process.alpha(t) ** 2 + process.sigma(t) ** 2)


def posterior_student(process, t):
    """(a*, b*) of the student that draws from the posterior, in the units of the table; nothing of x_t at time_max."""
    t = np.asarray(t, np.float64)
    alpha, sigma = process.alpha(t) * scale(process, t), process.sigma(t) * scale(process, t)
    alpha, sigma = np.where(t >= process.time_max, 0.0, alpha), np.where(t >= process.time_max, 1.0, sigma)
    m = alpha**2 * VARIANCE + sigma**2
    return alpha * VARIANCE / m, np.sqrt(VARIANCE * sigma**2 / m)


def first(values):
    """[B] -> [B, 2], nothing on the second coordinate."""
    return jnp.stack([values, jnp.zeros_like(values)], axis=-1)


def student(process, a, b):
    """The denoiser a x_t + b xi; a and b are numbers, arrays of a row each, or functions of t."""
    def denoise(x_t, t, label=None):
        slope, spread = (value(t) if callable(value) else value for value in (a, b))
        unit = 1 / jnp.sqrt(process.alpha(t) ** 2 + process.sigma(t) ** 2)
        return first(slope * unit * x_t[:, 0] + spread * x_t[:, 1] / process.sigma(t))

    return denoise


def teacher(process):
    """The exact denoiser of N(0, diag(c, 0))."""
    return exact_gaussian(process, jnp.zeros(2), jnp.diag(jnp.array([VARIANCE, 0.0])))


def linear(slope):
    """The denoiser slope x, one slope or one for each row."""
    return lambda x_t, t, label=None: first(slope * x_t[:, 0])


def data(copies=1):
    """[8 copies, 2] of x0."""
    return first(jnp.asarray(np.tile(np.sqrt(VARIANCE) * COLUMNS[:, 0], copies)))


def at(method, s, t):
    """A subclass of `method` whose times are these, for eight rows each."""
    s, t = (np.repeat(np.asarray(value, np.float64), ROWS) for value in (s, t))

    class AtTimes(method):
        def draw_times(self, process, key, count):
            assert count == len(s)
            return jnp.asarray(s), jnp.asarray(t), jnp.asarray(t - s)

    return AtTimes


def parts(process, network=linear, teacher_network=None, guide=None, num_classes=0):
    """`Parts` whose denoisers are functions of their parameters alone."""
    return Parts(network=lambda params, key: network(params), teacher=teacher_network or network,
                 guide=guide or (lambda denoise: denoise), process=process,
                 objective=lambda *arguments: None, num_classes=num_classes)  # fmt: skip


@pytest.fixture
def exact_draws(monkeypatch):
    """While it is on, normal draws [8 n, 2] are columns of the Hadamard matrix, other ones at each call."""
    calls = []

    def normal(key, shape=(), dtype=None):
        calls.append(shape)
        pair = COLUMNS[:, 2:4] if len(calls) % 2 else COLUMNS[:, 4:6]
        return jnp.asarray(np.tile(pair, (shape[0] // ROWS, 1)))

    monkeypatch.setattr(jax.random, "normal", normal)
    return calls


@pytest.fixture(scope="session")
def oracle():
    """The functions and numbers of this file."""
    names = ("VARIANCE", "ROWS", "COLUMNS", "PROCESSES", "TABLE", "AT_THE_MEAN", "scale", "posterior_student", "first",
             "student", "teacher", "linear", "data", "at", "parts")  # fmt: skip
    return SimpleNamespace(**{name: globals()[name] for name in names})
