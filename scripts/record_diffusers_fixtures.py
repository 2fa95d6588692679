"""Record what the schedulers of diffusers make of a mixture of Gaussians with its exact denoiser.

    pip install "torch==2.15.0" "diffusers==0.42.1"
    python scripts/record_diffusers_fixtures.py

Writes tests/samplers/fixtures/diffusers.npz; the tests need neither package. Recorded with diffusers 0.42.1 and torch
2.15. Of each run NAME (a key of RUNS) it holds

  NAME/levels   [calls] the index of the noise level at each call, 0 to 999, of DDPM's linear schedule
  NAME/start    [n, 2] x at the first call
  NAME/outputs  [calls, n, 2] the denoiser's output at each call
  NAME/sample   [n, 2] the last state

and once `noise` [steps, n, 2], the draw that every stochastic scheduler was given at each step.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).resolve().parent.parent / "tests" / "samplers" / "fixtures" / "diffusers.npz"
POINTS, STEPS = 8, 10

# The mixture of tests/conftest.py.
WEIGHTS = np.array([0.5, 0.3, 0.2])
MEANS = np.array([[1.0, 0.5], [-1.0, 0.2], [0.1, -1.2]])
COVARIANCES = np.array([[[0.20, 0.08], [0.08, 0.10]], [[0.15, -0.05], [-0.05, 0.25]], [[0.10, 0.0], [0.0, 0.30]]])

SA = {"predictor_order": 3, "corrector_order": 4}
# Class, its options, those of step(). Where a spacing is named it is the one with which the last step ends at the data.
RUNS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}, {}),
    "ddim_half": ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}, {"eta": 0.5}),
    "ddim_full": ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}, {"eta": 1.0}),
    "ddpm_small": ("DDPMScheduler", {"clip_sample": False, "timestep_spacing": "leading"}, {}),
    "ddpm_large": (
        "DDPMScheduler", {"clip_sample": False, "timestep_spacing": "leading", "variance_type": "fixed_large"}, {}
    ),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "linspace"}, {}),
    "heun": ("HeunDiscreteScheduler", {"timestep_spacing": "linspace"}, {}),
    "dpm_2m": ("DPMSolverMultistepScheduler", {}, {}),
    "dpm_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {}),
    "sa_ode": ("SASolverScheduler", {**SA, "tau_func": lambda t: 0}, {}),
    "sa_sde": ("SASolverScheduler", {**SA, "tau_func": lambda t: 1}, {}),
    "sa_interval": ("SASolverScheduler", {**SA, "tau_func": lambda t: 0.8 if 200 <= t <= 800 else 0}, {}),
    "sa_predictor_2": (
        "SASolverScheduler", {"predictor_order": 2, "corrector_order": 1, "tau_func": lambda t: 1}, {}
    ),
}


def denoise(x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    """E[x0 | x] of the mixture, for x = alpha x0 + sigma noise."""
    precisions = np.linalg.inv(alpha**2 * COVARIANCES + sigma**2 * np.eye(2))
    residuals = x[:, None] - alpha * MEANS
    whitened = np.einsum("kij,nkj->nki", precisions, residuals)
    log_joint = np.log(WEIGHTS) + 0.5 * np.linalg.slogdet(precisions)[1] - 0.5 * (residuals * whitened).sum(-1)
    responsibilities = np.exp(log_joint - log_joint.max(1, keepdims=True))
    responsibilities /= responsibilities.sum(1, keepdims=True)
    posterior_means = MEANS + alpha * np.einsum("kij,nkj->nki", COVARIANCES, whitened)
    return np.einsum("nk,nki->ni", responsibilities, posterior_means)


def run(name: str, start: np.ndarray, noise: np.ndarray) -> dict[str, np.ndarray]:
    """One run of RUNS with the draws `noise` [steps, n, 2] in place of the scheduler's own."""
    import diffusers
    import torch

    class_name, options, step_options = RUNS[name]
    # The betas of DDPM, named because Heun's scheduler has other defaults.
    scheduler = getattr(diffusers, class_name)(beta_start=1e-4, beta_end=0.02, **options)
    scheduler.set_timesteps(STEPS)
    if class_name == "SASolverScheduler":
        # It would end at level 0. At sigma = 0 itself it divides by 0, and 1e-8 is nothing in float32.
        scheduler.sigmas[-1] = 1e-8
    draws = iter(torch.from_numpy(noise))
    module = sys.modules[type(scheduler).__module__]
    if hasattr(module, "randn_tensor"):
        module.randn_tensor = lambda *args, **kwargs: next(draws)
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))

    # Heun's and Euler's schedulers hold x / alpha, and scale it for the network.
    state = torch.from_numpy(start) * float(scheduler.init_noise_sigma)
    levels, inputs, outputs = [], [], []
    for t in scheduler.timesteps:
        alpha, sigma = np.sqrt(abar[int(t)]), np.sqrt(1 - abar[int(t)])
        x = scheduler.scale_model_input(state, t).double().numpy()
        x0_hat = denoise(x, alpha, sigma)
        epsilon = torch.from_numpy((x - alpha * x0_hat) / sigma)
        state = scheduler.step(epsilon, t, state, **step_options).prev_sample
        levels.append(int(t))
        inputs.append(x)
        outputs.append(x0_hat)
    return {
        "levels": np.array(levels),
        "start": inputs[0],
        "outputs": np.array(outputs),
        "sample": state.double().numpy(),
    }


def main() -> None:
    random = np.random.default_rng(0)
    start, noise = random.standard_normal((POINTS, 2)), random.standard_normal((STEPS, POINTS, 2))
    recorded = {"noise": noise}
    for name in RUNS:
        recorded |= {f"{name}/{field}": array for field, array in run(name, start, noise).items()}
    FILE.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(FILE, **recorded)


if __name__ == "__main__":
    main()
