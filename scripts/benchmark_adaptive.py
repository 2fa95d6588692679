"""The suite `adaptive` of scripts/benchmark.py: whether skipped calls save the time that they promise.

On a U-Net for 32x32 images, 16 at a time, with random parameters:

  shared      half of 20 steps call: its seconds over those of the same solver with all its calls
  per_sample  96 images in 16 slots, each with decisions of its own: the share of the rows of all calls in use, and its
              seconds over those of as many compiled forwards of 16 images as it made calls, one after another
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from diffusion.process import GaussianProcess
from diffusion.schedules import VPLinear
from samplers.adaptive import Adaptive
from samplers.ddim import DDIM
from scripts.measuring import Figure, figure, image_experiment
from training.timing import paired

SLOTS, REQUESTS, STEPS = 16, 96, 20
# Skips whenever it may: 5 calls, and of the other 15 steps every third.
HALF = {"criterion": "slope", "delta": 1e9, "reuse": "linear", "c_max": 2, "warmup": 2, "start": 0.25}
MIXED = {"criterion": "scalar", "delta": 0.02, "c_max": 3, "warmup": 3}


def adaptive_suite(quick: bool) -> Iterator[Figure]:
    """Both modes on DDIM."""
    experiment, case = image_experiment(quick)
    case, n = f"{case.split(' batch')[0]} batch {SLOTS}", 3 if quick else 5
    requests = 2 * SLOTS if quick else REQUESTS
    process, shape, solver = GaussianProcess(VPLinear()), experiment.image_shape, DDIM(steps=STEPS)
    # A network begins with an output of zero, of which all images think alike.
    leaves, tree = jax.tree.flatten(experiment.params["score"])
    noise = jax.random.split(jax.random.key(1), len(leaves))
    params = jax.tree.unflatten(tree, [leaf + 0.05 * jax.random.normal(key, leaf.shape, leaf.dtype)
                                       for leaf, key in zip(leaves, noise)])  # fmt: skip
    keys = jax.random.split(jax.random.key(0), requests)
    labels = jnp.arange(requests) % experiment.train.num_classes

    def compiled(sample: Any, count: int) -> Any:
        run = jax.jit(lambda params, keys, labels: sample(
            experiment.denoiser(params), process, keys, labels, shape=shape))  # fmt: skip
        return lambda: run(params, keys[:count], labels[:count])

    half = compiled(Adaptive(solver=solver, **HALF).sample_with_report, SLOTS)
    seconds, full_seconds, ratio = paired(half, compiled(solver.sample, SLOTS), n)
    yield figure("adaptive", case, f"shared: calls of {STEPS} steps", int(half()[1].dense_calls), 1)
    yield figure("adaptive", case, "shared: seconds", seconds, n)
    yield figure("adaptive", case, "shared: seconds of all calls", full_seconds, n)
    yield figure("adaptive", case, "shared: seconds / seconds of all calls", ratio, n)

    queue = compiled(Adaptive(solver=solver, mode="per_sample", slots=SLOTS, **MIXED).sample_with_report, requests)
    report = queue()[1]
    turns, forward = int(report.dense_calls), jax.jit(experiment.apply)
    x, level = jax.random.normal(keys[0], (SLOTS, *shape)), jnp.linspace(-1.0, 1.0, SLOTS)

    def forwards() -> Any:
        for _ in range(turns):
            result = jax.block_until_ready(forward(params, x, level, labels[:SLOTS]))
        return result

    seconds, _, ratio = paired(queue, forwards, n)
    mixed = f"per_sample, {requests} images in {SLOTS} slots"
    yield figure("adaptive", case, f"{mixed}: calls of an image, mean", float(report.calls.mean()), 1)
    yield figure("adaptive", case, f"{mixed}: calls of an image, fewest", int(report.calls.min()), 1)
    yield figure("adaptive", case, f"{mixed}: calls of an image, most", int(report.calls.max()), 1)
    yield figure("adaptive", case, f"{mixed}: utilisation", float(report.utilisation), 1)
    yield figure("adaptive", case, f"{mixed}: seconds", seconds, n)
    yield figure("adaptive", case, f"{mixed}: seconds / forwards of its calls", ratio, n)
