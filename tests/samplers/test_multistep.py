"""DPM-Solver++(2M) and SA-Solver: orders of convergence, identities with one-step samplers, variances in closed form.

Most runs are op by op with a float64 numpy denoiser, so that nothing has to be compiled; the last ones are compiled.
`test_diffusers_fixtures.py` compares whole runs with another code.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp

from diffusion.kernel_free import DoubleWell
from diffusion.process import GaussianProcess
from diffusion.random import image_keys
from diffusion.schedules import EDM, Constant, Cosine, RectifiedFlow, VPLinear
from samplers import multistep, sa_solver
from samplers.ancestral import Ancestral
from samplers.ddim import DDIM
from samplers.dpm_solver import DPMSolver
from samplers.sa_solver import SASolver, adams_weights

pytestmark = pytest.mark.usefixtures("quick_to_compile")

VP, EDM_PROCESS = GaussianProcess(VPLinear()), GaussianProcess(EDM())
PROCESSES = {
    "vp_linear": VP,
    "edm": EDM_PROCESS,
    "cosine": GaussianProcess(Cosine()),
    "rectified_flow": GaussianProcess(RectifiedFlow()),
}
ALL = {"tau_low": 0.0, "tau_high": np.inf}
SOLVERS = {"dpm_solver": DPMSolver, "sa_solver": SASolver}


def adams(predictor, corrector, **options):
    return lambda **common: SASolver(predictor_order=predictor, corrector_order=corrector, **options, **common)


def sde_2m(**common):
    return DPMSolver(stochastic=True, **common)


def python_loop(body, carry, rows):
    # To numpy and back, since slices of device arrays would be compiled.
    rows, outputs = {name: np.asarray(table) for name, table in rows.items()}, []
    for i in range(len(rows["t"])):
        carry, output = body(carry, {name: jnp.asarray(table[i]) for name, table in rows.items()})
        outputs.append(output)
    return carry, (None if outputs[0] is None else jnp.stack(outputs))


@pytest.fixture
def op_by_op(monkeypatch):
    monkeypatch.setattr(jax.lax, "scan", python_loop)


def in_numpy(process, denoise):
    """A denoiser of float64 arrays and scalars alpha and sigma, as the samplers want it."""

    def call(x, t, label):
        time = np.float64(t[0])
        return jnp.asarray(denoise(np.asarray(x, np.float64), process.alpha(time), process.sigma(time)), jnp.float32)

    return call


def draw(sampler, process, denoise, count, **options):
    keys = image_keys(0, jnp.arange(count))
    samples = sampler.sample(denoise, process, keys, None, shape=(2,), **options)
    return samples._replace(x0=np.asarray(samples.x0, np.float64))


def slope(steps, errors):
    return -np.polyfit(np.log(steps), np.log(np.abs(errors)), 1)[0]


# --- Order of convergence to the probability-flow ODE -----------------------------------------------------------------

STEPS, COUNT = (24, 48), 64


@pytest.fixture(scope="module")
def flow(mixture):
    """Where the ODE takes COUNT draws of the prior of VP, in float64, and one last denoising."""
    time = np.array([1.0, VP.time_min])
    alpha, (high, low) = float(VP.alpha(time)[0]), np.exp(-0.5 * VP.logsnr(time))
    start = np.asarray(VP.prior(image_keys(0, jnp.arange(COUNT)), (2,)), np.float64) / alpha

    def velocity(log_u, xbar):
        u = np.exp(log_u)
        return (-(u**2) * mixture.score(xbar.reshape(-1, 2), 1.0, u)).ravel()

    path = solve_ivp(velocity, (np.log(high), np.log(low)), start.ravel(), method="DOP853", rtol=1e-9, atol=1e-9)
    return mixture.denoise(path.y[:, -1].reshape(-1, 2), 1.0, low)


def order(make, mixture, reference):
    denoise = in_numpy(VP, mixture.denoise)
    runs = [draw(make(steps=steps, grid="logsnr"), VP, denoise, COUNT).x0 for steps in STEPS]
    return slope(STEPS, [np.sqrt(np.mean((x0 - reference) ** 2)) for x0 in runs])


@pytest.mark.parametrize(
    "make, low, high",
    [
        (DPMSolver, 1.9, 2.2),
        (adams(1, 0, tau=0.0), 0.95, 1.1),
        (adams(2, 0, tau=0.0), 1.9, 2.3),
        (adams(3, 0, tau=0.0), 2.7, 3.2),
        (adams(1, 2, tau=0.0), 1.9, 2.1),
        (adams(2, 3, tau=0.0), 2.85, 3.2),
        (adams(3, 4, tau=0.0), 3.6, 4.4),
    ],
    ids=["2M", "predictor 1", "predictor 2", "predictor 3", "corrector 2", "corrector 3", "corrector 4"],
)
def test_order(flow, mixture, op_by_op, make, low, high):
    assert low < order(make, mixture, flow) < high


def test_order_sees_a_wrong_sign(flow, mixture, op_by_op, monkeypatch):
    """Negative control: extrapolation in the wrong direction is of order 1."""
    right = DPMSolver.tables

    def wrong(solver, process):
        tables = right(solver, process)
        second = tables.weights[:, 1:]
        return tables._replace(weights=tables.weights + np.concatenate([2 * second, -2 * second], axis=1))

    monkeypatch.setattr(DPMSolver, "tables", wrong)
    assert order(DPMSolver, mixture, flow) < 1.2


def test_order_sees_wrong_nodes(flow, mixture, op_by_op, monkeypatch):
    """Negative control: nodes further apart than they are, whatever their number, are of order 1."""

    def wrong(nodes, rate):
        return adams_weights(nodes[0] + 1.3 * (nodes - nodes[0]), rate)

    monkeypatch.setattr(sa_solver, "adams_weights", wrong)
    assert order(adams(3, 0, tau=0.0), mixture, flow) < 1.2


# --- Weights and identities -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1e-4, 0.3, 5.0, 80.0])
def test_weights_integrate_polynomials(rate):
    """Against quadrature, for every order and irregular nodes; a node that is off is seen."""
    for nodes in ([1.0], [0.0, 1.0], [1.0, 1.7, 3.1], [0.0, 1.0, 1.2, 2.5]):
        nodes = np.array(nodes)
        weights = adams_weights(nodes, rate)
        for degree in range(len(nodes)):
            def integrand(v, degree=degree):
                return rate * np.exp(-rate * v) * (v - 0.4) ** degree

            expected = quad(integrand, 0, 1, points=[min(0.9, 5 / rate)], epsabs=1e-14, epsrel=1e-13)[0]
            np.testing.assert_allclose(weights @ (nodes - 0.4) ** degree, expected, rtol=1e-9, atol=1e-11)
        assert len(nodes) == 1 or abs(weights @ (nodes + 0.1) - weights @ nodes) > 1e-6


@pytest.mark.parametrize("name", PROCESSES)
def test_first_order_is_ddim_and_ancestral(mixture, op_by_op, name):
    """Pathwise, with the same keys; with two steps 2M has nothing to extrapolate. More steps or orders differ."""
    process = PROCESSES[name]
    denoise = in_numpy(process, mixture.denoise)

    def ends(make, steps, **options):
        return draw(make(steps=steps, grid="logsnr", **options), process, denoise, 8).x0

    ddim, ancestral = ends(DDIM, 6), ends(Ancestral, 6)
    np.testing.assert_allclose(ends(adams(1, 0, tau=0.0), 6), ddim, atol=2e-5)
    np.testing.assert_allclose(ends(adams(1, 0, **ALL), 6), ancestral, atol=2e-5)
    np.testing.assert_allclose(ends(DPMSolver, 2), ends(DDIM, 2), atol=2e-5)
    np.testing.assert_allclose(ends(sde_2m, 2), ends(Ancestral, 2), atol=2e-5)
    for other, first in ((DPMSolver, ddim), (sde_2m, ancestral), (adams(2, 0, tau=0.0), ddim)):
        assert np.abs(ends(other, 6) - first).max() > 1e-3


# --- Variance, exactly ------------------------------------------------------------------------------------------------

DATA_VARIANCE = 0.25


PROBES = 65  # more than any number of steps here, so that all have the same shapes


def variance(make, steps, monkeypatch, loudness=1.0):
    """The variance of samples of N(0, DATA_VARIANCE) under its exact denoiser, by probing.

    Every sample is linear in the start and in the draws: image 0 starts at 1 without noise, image j at 0 with a unit of
    noise in step j, and the squares of the results add up.
    """
    process = EDM_PROCESS
    start = np.zeros((PROBES, 2), np.float32)
    start[0] = 80.0
    draws = loudness * np.eye(PROBES, dtype=np.float32)[:, :, None] * np.ones(2, np.float32)
    monkeypatch.setattr(GaussianProcess, "prior", lambda process, keys, shape: jnp.asarray(start))
    monkeypatch.setattr(multistep, "image_noise", lambda keys, index, shape: jnp.asarray(draws[index]))

    def denoise(x, alpha, sigma):
        return x * alpha * DATA_VARIANCE / (alpha**2 * DATA_VARIANCE + sigma**2)

    ends = draw(make(steps=steps, grid="logsnr"), process, in_numpy(process, denoise), PROBES).x0
    return float((ends[:, 0] ** 2).sum())


# Of the denoised state at the lowest level, 0.002.
TRUE_VARIANCE = DATA_VARIANCE**2 / (DATA_VARIANCE + 0.002**2)


@pytest.mark.parametrize(
    "make, low, high, share",
    [(adams(1, 0, **ALL), 0.75, 1.0, 1.0), (sde_2m, 1.8, 2.15, 0.15), (adams(3, 4, **ALL), 1.9, 2.6, 0.1)],
    ids=["ancestral", "SDE 2M", "SA"],
)
def test_variance_of_a_gaussian(monkeypatch, op_by_op, make, low, high, share):
    """Its error falls with the order named in the modules, below `share` of ancestral sampling's at 64 steps, 0.038."""
    steps = (32, 64)
    errors = [variance(make, count, monkeypatch) - TRUE_VARIANCE for count in steps]
    assert low < slope(steps, errors) < high and abs(errors[1]) < 0.04 * share


@pytest.mark.parametrize("tau, tolerance", [(0.5, 2e-4), (1.5, 4e-3)])
def test_every_tau_has_the_same_marginals(monkeypatch, op_by_op, tau, tolerance):
    """Whatever the noise and where it is added, the variance is that of the data; noise a tenth too loud is seen."""
    make = adams(3, 4, tau=tau)
    assert abs(variance(make, 64, monkeypatch) - TRUE_VARIANCE) < tolerance
    assert variance(make, 64, monkeypatch, loudness=1.1) - TRUE_VARIANCE > 3 * tolerance


# --- What both promise ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [sde_2m, SASolver], ids=["sde", "sa"])
def test_calls_and_last_step(make, monkeypatch):
    """`steps` calls, the last of which is the sample, bit for bit; compiled as op by op and in another batch."""
    sampler = make(steps=5)

    def sample(keys):
        return sampler.sample(lambda x, t, label: jnp.tanh(x), VP, keys, None, shape=(2, 2, 1), keep_steps=True)

    keys = image_keys(0, jnp.arange(6))
    samples = jax.jit(sample)(keys)
    np.testing.assert_array_equal(samples.nfe, np.full(6, 5))
    assert samples.x0_steps.shape == (5, 6, 2, 2, 1)
    np.testing.assert_array_equal(samples.x0, samples.x0_steps[-1])
    monkeypatch.setattr(jax.lax, "scan", python_loop)
    np.testing.assert_allclose(sample(keys[4:]).x0, samples.x0[4:], atol=1e-5)
    assert np.abs(samples.x0[:2] - samples.x0[4:]).max() > 0.01


@pytest.mark.parametrize("make", [DPMSolver, sde_2m, SASolver], ids=["dpm", "sde", "sa"])
def test_one_step_is_one_denoising_of_the_prior(mixture, op_by_op, make):
    sample = draw(make(steps=1), EDM_PROCESS, in_numpy(EDM_PROCESS, mixture.denoise), 4)
    prior = np.asarray(EDM_PROCESS.prior(image_keys(0, jnp.arange(4)), (2,)), np.float64)
    np.testing.assert_allclose(sample.x0, mixture.denoise(prior, 1.0, 80.0), atol=1e-5)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: DPMSolver(steps=0), "steps = 0 must be at least 1"),
        (lambda: DPMSolver(grid="sigma"), "grid = 'sigma' is not known; choose from"),
        (lambda: SASolver(steps=0), "steps = 0 must be at least 1"),
        (lambda: SASolver(predictor_order=0), "predictor_order = 0 must be 1, 2 or 3"),
        (lambda: SASolver(corrector_order=5), r"corrector_order = 5 must be 0 \(none\), 1, 2, 3 or 4"),
        (lambda: SASolver(tau=-0.5), "tau = -0.5 must be at least 0"),
        (lambda: SASolver(tau=np.inf), "tau = inf must be at least 0, and finite"),
        (lambda: SASolver(tau_low=2.0), "tau_low = 2.0, tau_high = 1.0: need 0 <= tau_low <= tau_high"),
    ],
)
def test_bad_fields_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("make", SOLVERS.values(), ids=SOLVERS)
def test_unsuitable_processes_are_refused(make):
    for process, message in (
        (DoubleWell(), "needs a process with a closed-form .*, and DoubleWell has none"),
        (GaussianProcess(Constant()), "a noise level that falls at every step; that of .*Constant.* stands still"),
    ):
        with pytest.raises(ValueError, match=message):
            make(grid="uniform").sample(lambda x, t, label: x, process, image_keys(0, jnp.arange(2)), None, shape=(2,))
