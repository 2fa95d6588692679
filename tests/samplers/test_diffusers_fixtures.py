"""Samplers against the schedulers of diffusers 0.42.1, step by step: same mixture, same levels, same noise.

`scripts/record_diffusers_fixtures.py` recorded the runs, in which diffusers computes in float32 for the most part. Our
side is float32 too; no output differs by more than 2e-5.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.discrete import Discrete
from diffusion.process import GaussianProcess
from diffusion.random import image_keys
from samplers import ancestral, ddim, multistep, sa_solver
from samplers.ancestral import Ancestral
from samplers.ddim import DDIM
from samplers.dpm_solver import DPMSolver
from samplers.heun import Heun
from samplers.sa_solver import SASolver
from samplers.time_grids import TIME_GRIDS

pytestmark = pytest.mark.usefixtures("quick_to_compile")

PROCESS = GaussianProcess(Discrete())
RECORDED = dict(np.load(Path(__file__).parent / "fixtures" / "diffusers.npz"))


def between(low, high):
    """A little below and above the noise levels of indices low and high."""
    levels = np.exp(-0.5 * PROCESS.logsnr((np.array([low, high]) + 1) / 1000))
    return {"tau_low": 0.99 * levels[0], "tau_high": 1.01 * levels[1]}


ALL = {"tau_low": 0.0, "tau_high": np.inf}
RUNS = {
    "ddim": (DDIM, {}),
    "ddim_half": (DDIM, {"eta": 0.5}),
    "ddim_full": (DDIM, {"eta": 1.0}),
    "ddpm_small": (Ancestral, {}),
    "ddpm_large": (Ancestral, {"variance": "large"}),
    "euler_ancestral": (Ancestral, {}),
    "heun": (Heun, {}),
    "dpm_2m": (DPMSolver, {}),
    "dpm_2m_sde": (DPMSolver, {"stochastic": True}),
    "sa_ode": (SASolver, {"tau": 0.0}),
    "sa_sde": (SASolver, {"tau": 1.0, **ALL}),
    "sa_interval": (SASolver, {"tau": 0.8, **between(200, 800)}),
    "sa_predictor_2": (SASolver, {"predictor_order": 2, "corrector_order": 1, **ALL}),
}


def python_loop(body, carry, rows):
    """What lax.scan means, run op by op: the denoiser is numpy, and every run would take a compilation."""
    # To numpy and back, since slices of device arrays would be compiled.
    rows, outputs = {name: np.asarray(table) for name, table in rows.items()}, []
    for i in range(len(rows["t"])):
        carry, output = body(carry, {name: jnp.asarray(table[i]) for name, table in rows.items()})
        outputs.append(output)
    return carry, jnp.stack(outputs)


@pytest.fixture
def replay(monkeypatch, mixture):
    """run(name, **changed options) -> all outputs and the sample of our sampler, with the noise of diffusers."""
    monkeypatch.setattr(jax.lax, "scan", python_loop)
    noise = jnp.asarray(RECORDED["noise"], jnp.float32)
    for module in (ancestral, ddim, multistep):
        monkeypatch.setattr(module, "image_noise", lambda keys, index, shape: noise[index - 1])

    def denoise(x, t, label):
        time = np.float64(t[0])
        x0_hat = mixture.denoise(np.asarray(x, np.float64), PROCESS.alpha(time), PROCESS.sigma(time))
        return jnp.asarray(x0_hat, jnp.float32)

    def run(name, **changes):
        start = jnp.asarray(RECORDED[f"{name}/start"], jnp.float32)
        levels = np.unique(RECORDED[f"{name}/levels"])[::-1]
        monkeypatch.setitem(TIME_GRIDS, "recorded", lambda process, steps: (levels + 1) / 1000)
        monkeypatch.setattr(GaussianProcess, "prior", lambda process, keys, shape: start)
        sampler_class, options = RUNS[name]
        sampler = sampler_class(**{"steps": len(levels), "grid": "recorded", **options, **changes})
        samples = sampler.sample(
            denoise, PROCESS, image_keys(0, jnp.arange(len(start))), None, shape=(2,), keep_steps=True
        )
        return np.concatenate([samples.x0_steps, samples.x0[None]])

    return run


@pytest.fixture
def second_order_of_diffusers(monkeypatch):
    """Their weights of two outputs: the integral of the linear term to leading order in the step (`sa_solver.py`)."""
    exact = sa_solver.adams_weights

    def adams_weights(nodes, rate):
        weights = exact(nodes, rate)
        if len(nodes) == 2:
            linear = weights @ nodes - (-np.expm1(-rate) - 0.5 * rate)
            weights = weights + np.array([1.0, -1.0]) * linear / (nodes[1] - nodes[0])
        return weights

    monkeypatch.setattr(sa_solver, "adams_weights", adams_weights)


def recorded(name):
    return np.concatenate([RECORDED[f"{name}/outputs"], RECORDED[f"{name}/sample"][None]])


@pytest.mark.parametrize("name", RUNS)
def test_run_is_that_of_diffusers(replay, second_order_of_diffusers, name):
    np.testing.assert_allclose(replay(name), recorded(name), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "name, change",
    [
        ("ddim_half", {"eta": 0.45}),
        ("ddpm_small", {"variance": "large"}),
        ("dpm_2m", {"stochastic": True}),
        ("dpm_2m_sde", {"stochastic": False}),
        ("sa_sde", {"tau": 0.95}),
        ("sa_sde", {"predictor_order": 2}),
        ("sa_sde", {"corrector_order": 3}),
        ("sa_interval", between(250, 800)),
        ("sa_interval", between(200, 650)),
        ("sa_predictor_2", {"corrector_order": 0}),
    ],
)
def test_another_option_is_another_run(replay, second_order_of_diffusers, name, change):
    """Negative controls: the runs tell the options apart."""
    assert np.abs(replay(name, **change) - recorded(name)).max() > 1e-3


def test_second_order_weights_differ(replay):
    """SA-Solver as published is another run than that of diffusers, after the first predictor of order 2."""
    difference = np.abs(replay("sa_predictor_2") - recorded("sa_predictor_2")).max(axis=(1, 2))
    assert difference[:2].max() < 2e-5 and difference[-1] > 1e-3
