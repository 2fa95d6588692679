"""Measurements of the LCSS table that are not one training run: `measure(seed, folder, **options)` -> figures.

Imported without JAX, like all tables; each function runs in a process of its own.
"""

import sys
from pathlib import Path
from typing import Any

from configs.overrides import resolve


def _train_and_evaluate(config: Any, folder: Path, *, evaluate: bool = True) -> dict[str, float]:
    """Figures of a run, trained as far as it is not yet. Leaves the process after a stop request; the run resumes."""
    from configs.base import validate
    from training.evaluation import evaluate as evaluate_run
    from training.loop import train
    from training.trials import newest_record

    validate(config)
    for mode in (train, evaluate_run) if evaluate else (train,):
        code = mode(config, str(folder))
        if code:
            sys.exit(code)
    return newest_record(folder)["metrics"] if evaluate else {}


def same_keys(seed: int, folder: Path, *, config: str, one: str, other: str) -> dict[str, float]:
    """Two objectives with the same keys: how far the weights they end in are from each other.

    Returns:
      relative_difference: L2 norm of the difference of the parameters over the norm of `one`'s.
      <objective>_<metric>, <objective>_loss: of each run, the loss in its last window.
    """
    import jax
    import numpy as np

    from training.inference import load_run
    from training.metric_writers import read_metrics

    figures, parameters = {}, []
    for objective in (one, other):
        resolved = resolve(config, {"objective.name": objective, "seed": seed, "evaluation.ema": -1})
        metrics = _train_and_evaluate(resolved, folder / objective)
        figures |= {f"{objective}_{name}": float(value) for name, value in metrics.items()}
        figures[f"{objective}_loss"] = list(read_metrics(folder / objective)["score/loss"].values())[-1]
        leaves = jax.tree.leaves(load_run(resolved, str(folder / objective))[1])
        parameters.append(np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves]))
    difference = np.linalg.norm(parameters[1] - parameters[0]) / np.linalg.norm(parameters[0])
    return figures | {"relative_difference": float(difference)}


def step_time(seed: int, folder: Path, *, config: str, one: str, other: str, pairs: int = 201) -> dict[str, float]:
    """Whole training steps of two objectives, timed in turn on one batch in one process.

    Returns:
      seconds: of a step of `one`, the median; ratio: over those of `other`, the median of the ratios of pairs.
    """
    import jax

    from configs.base import validate
    from training.experiment import build_experiment
    from training.mesh import put_batch
    from training.timing import paired

    steps = []
    for objective in (one, other):
        resolved = resolve(config, {"objective.name": objective, "seed": seed})
        validate(resolved)
        experiment = build_experiment(resolved)
        batch = {name: rows for name, rows in experiment.pipeline.batch(0).items() if name != "index"}
        arguments = (experiment.initial_state(), {}, put_batch(batch, experiment.mesh))
        step = jax.jit(experiment.step())
        steps.append(lambda step=step, arguments=arguments: step(*arguments)[1])
    seconds, _, ratio = paired(*steps, pairs)
    return {"seconds": seconds, "ratio": ratio}


def wrong_kernel(seed: int, folder: Path, *, config: str, vp: dict[str, Any]) -> dict[str, float]:
    """DSM with the kernel of another process: its scores against the exact ones of the process without a kernel.

    Args:
      config: of the process without a kernel; its data, network and Fisher times are kept.
      vp: what makes of it DSM under a process that has a kernel.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from data.base import all_images
    from diffusion.base import expand
    from diffusion.denoiser import score
    from evaluation.exact import exact_denoiser
    from evaluation.fisher import noised, relative_fisher_error
    from training.components import make_process
    from training.inference import load_run

    right, wrong = resolve(config, {}), resolve(config, {**vp, "seed": seed, "evaluation.fisher_times": ()})
    _train_and_evaluate(wrong, folder, evaluate=False)
    experiment, params, _, _ = load_run(wrong, str(folder))
    process, exact = make_process(right), exact_denoiser(right.data.source, make_process(right))
    learnt = experiment.denoiser(params)

    def denoise(x_t: jax.Array, t: jax.Array, label: jax.Array | None = None) -> jax.Array:
        """The learnt score in the scales of the process that it is taken for."""
        return x_t + expand(process.sigma(t), x_t) ** 2 * score(learnt, experiment.process, x_t, t, label)

    x0, figures = jnp.asarray(all_images(experiment.test)), {}
    for number, time in enumerate(right.evaluation.fisher_times):
        x_t, t = noised(process, x0, time, jax.random.fold_in(jax.random.key(seed), number))
        figures[f"fisher_error_t{time:g}"] = relative_fisher_error(denoise, exact, process, x_t, t)
    return figures | {"fisher_error": float(np.mean(list(figures.values())))}


def gamma(seed: int, folder: Path, *, gamma: float, count: int = 20_000) -> dict[str, float]:
    """What a trace term weighted by gamma does to samples: its minimiser is gamma times the score.

    Exact scores of N(0, 1) under a variance-exploding SDE up to sigma = 50, times gamma; variances of `count` samples.
    With gamma = 1 both are 1.
    """
    import jax
    import jax.numpy as jnp

    from diffusion import VE
    from diffusion.exact import exact_gaussian
    from diffusion.process import GaussianProcess
    from diffusion.random import image_keys
    from samplers import SAMPLERS

    process = GaussianProcess(VE(sigma_min=0.01, sigma_max=50.0))
    exact = exact_gaussian(process, jnp.zeros(1), jnp.eye(1))

    def denoise(x_t: jax.Array, t: jax.Array, label: jax.Array | None = None) -> jax.Array:
        return x_t + gamma * (exact(x_t, t) - x_t)  # alpha = 1: x0_hat - x_t is sigma^2 times the score

    keys, figures = image_keys(seed, jnp.arange(count)), {}
    for name, sampler in {"ode": "euler", "sde": "euler_maruyama"}.items():
        sample = SAMPLERS[sampler](steps=1000).sample
        x0 = jax.jit(lambda keys, sample=sample: sample(denoise, process, keys, None, shape=(1,)).x0)(keys)
        figures[f"variance_{name}"] = float(x0.var())
    return figures
