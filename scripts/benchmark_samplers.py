"""The suite `samplers` of scripts/benchmark.py: what a sampler costs beyond its network calls.

On a U-Net for 32x32 images, batch 16: seconds of a compiled sampler over those of as many compiled forwards, one after
another, as it made calls. And seconds of compilation with few and with many steps, which should be the same.
"""

import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from diffusion.process import GaussianProcess
from diffusion.schedules import VPLinear
from samplers import SAMPLERS
from scripts.measuring import Figure, figure, image_experiment
from training.timing import paired

BATCH = 16
# Label -> name, options: about seven calls each.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("ddpm", {"steps": 7}),
    "ddim": ("ddim", {"steps": 7}),
    "euler": ("euler", {"steps": 7}),
    "euler_maruyama": ("euler_maruyama", {"steps": 7}),
    "heun": ("heun", {"steps": 4}),
    "heun, churn": ("heun", {"steps": 4, "churn": 4.0}),
    "dpm_solver": ("dpm_solver", {"steps": 7}),
    "dpm_solver, stochastic": ("dpm_solver", {"steps": 7, "stochastic": True}),
    "sa_solver": ("sa_solver", {"steps": 7}),
    "randomized_midpoint": ("randomized_midpoint", {"steps": 4}),
    "predictor_corrector": ("predictor_corrector", {"steps": 4}),
    "poisson_midpoint, single": ("poisson_midpoint", {"steps": 4}),
    "poisson_midpoint, bernoulli, plan of the batch": (
        "poisson_midpoint", {"steps": 4, "fine_steps": 20, "spacing": 1.0, "mode": "bernoulli", "plan": "batch"}),
    "poisson_midpoint, bernoulli, plan of each image": (
        "poisson_midpoint", {"steps": 4, "fine_steps": 20, "spacing": 1.0, "mode": "bernoulli"}),
    "lmc": ("lmc", {"steps": 3, "steps_per_level": 2}),
    "ulmc": ("ulmc", {"steps": 3, "steps_per_level": 2}),
}  # fmt: skip
QUICK_CASES = ("ddim", "poisson_midpoint, single", "poisson_midpoint, bernoulli, plan of the batch")
# Sampler -> few steps, many.
COMPILED = {"ddpm": (10, 1000), "poisson_midpoint": (5, 50)}


def samplers_suite(quick: bool) -> Iterator[Figure]:
    """Every sampler against its network calls, each one compiled forward of the denoiser's network."""
    experiment, case = image_experiment(quick)
    case, n = f"{case.split(' batch')[0]} batch {BATCH}", 15 if quick else 7
    params, shape, process = experiment.params["score"], experiment.image_shape, GaussianProcess(VPLinear())
    keys = jax.random.split(jax.random.key(0), BATCH)
    labels = jnp.arange(BATCH) % experiment.train.num_classes
    x, level = jax.random.normal(keys[0], (BATCH, *shape)), jnp.zeros(BATCH)
    forward = jax.jit(experiment.apply)

    def compile_sampler(name: str, options: dict[str, Any]) -> tuple[Any, float]:
        sampler = SAMPLERS[name](**options)
        sample = jax.jit(lambda params, keys, labels: sampler.sample(
            experiment.denoiser(params), process, keys, labels, shape=shape))  # fmt: skip
        lowered = sample.lower(params, keys, labels)
        begin = time.perf_counter()
        return lowered.compile(), time.perf_counter() - begin

    for label in QUICK_CASES if quick else CASES:
        sample, _ = compile_sampler(*CASES[label])
        nfe = sample(params, keys, labels).nfe
        mean = float(nfe.mean())
        calls = round(mean)

        def run_forwards(calls: int = calls) -> Any:
            # One after another, as a sampler has to.
            for _ in range(calls):
                result = jax.block_until_ready(forward(params, x, level, labels))
            return result

        seconds, _, ratio = paired(lambda sample=sample: sample(params, keys, labels), run_forwards, n)
        yield figure("samplers", case, f"{label}: NFE, mean", mean, 1)
        yield figure("samplers", case, f"{label}: NFE, largest", int(nfe.max()), 1)
        yield figure("samplers", case, f"{label}: seconds", seconds, n)
        yield figure("samplers", case, f"{label}: seconds / forwards of the mean NFE", ratio * calls / mean, n)
        if nfe.max() > mean:  # images with plans of their own: the batch goes on for as long as the longest of them
            yield figure("samplers", case, f"{label}: seconds / forwards of the largest NFE",
                         ratio * calls / float(nfe.max()), n)  # fmt: skip
    for name, steps in COMPILED.items():
        for count in steps:
            _, seconds = compile_sampler(name, {"steps": count})
            yield figure("samplers", case, f"{name}, {count} steps: seconds to compile", seconds, 1)
