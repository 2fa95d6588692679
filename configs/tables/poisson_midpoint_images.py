"""Samples of the Poisson midpoint table: `measure(seed, folder, **options)` -> figures at several numbers of calls.

Imported without JAX, like all tables; each function runs in a process of its own. A sampler that leaves the finite
numbers has infinite figures.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.overrides import resolve


def _draws(experiment: Any, key: Any, count: int) -> np.ndarray:
    """[N, d] exact draws from what an exact denoiser is of: images of the data, or of the fitted mixture."""
    import jax

    if hasattr(experiment.exact, "sample"):
        return np.asarray(experiment.exact.sample(key, count)[0])
    data = np.asarray(experiment.exact.data)
    chosen = np.asarray(jax.random.randint(key, (count,), 0, len(data)))
    return data.reshape(len(data), -1)[chosen]


def _reference(experiment: Any, seed: int, count: int) -> np.ndarray:
    """[N, d] what samples are compared with: all the data themselves, or fresh draws."""
    import jax

    if hasattr(experiment.exact, "sample"):
        return _draws(experiment, jax.random.fold_in(jax.random.key(seed), 1), count)
    data = np.asarray(experiment.exact.data)
    return data.reshape(len(data), -1)


def pixel_distances(x: np.ndarray, reference: np.ndarray, directions: int = 256) -> dict[str, float]:
    """{"sliced_wasserstein", "energy_distance", "kid_pixels"} of two sets of vectors."""
    from evaluation.distances import kernel_distance
    from evaluation.sample_distances import energy_distance, sliced_wasserstein

    x = np.asarray(x, np.float64).reshape(len(x), -1)
    if not np.isfinite(x).all():
        return dict.fromkeys(("sliced_wasserstein", "energy_distance", "kid_pixels"), math.inf)
    return {
        "sliced_wasserstein": sliced_wasserstein(x, reference, directions=directions),
        "energy_distance": energy_distance(x, reference),
        "kid_pixels": kernel_distance(x, reference, subset_size=max(len(x), len(reference)))[0],
    }


def exact_draws(
    seed: int, folder: Path, *, config: str, overrides: Mapping[str, Any], count: int
) -> dict[str, float]:
    """The floor: exact draws in the place of a sampler's."""
    import jax

    from training.experiment import build_experiment

    experiment = build_experiment(resolve(config, dict(overrides)))
    x = _draws(experiment, jax.random.fold_in(jax.random.key(seed), 2), count)
    return pixel_distances(x, _reference(experiment, seed, count))


def exact_images(
    seed: int, folder: Path, *, config: str, overrides: Mapping[str, Any], sampler: str, options: Mapping[str, Any],
    steps: Sequence[tuple[int, int]], count: int,
) -> dict[str, float]:
    """One sampler with the exact denoiser of images, at several numbers of calls.

    Args:
      config, overrides: with config.network.name = "exact".
      sampler, options: name and options of the sampler.
      steps: (calls for which it goes by, steps of the sampler).
      count: of samples, labels left out.

    Returns:
      <distance>_nfe<calls>, and calls_nfe<calls>, those that it really made.
    """
    import jax
    import jax.numpy as jnp

    from diffusion.random import image_keys
    from samplers import SAMPLERS
    from training.experiment import build_experiment

    experiment = build_experiment(resolve(config, dict(overrides)))
    params, keys = experiment.params["score"], image_keys(seed, jnp.arange(count))
    reference, figures = _reference(experiment, seed, count), {}
    for calls, number in steps:
        solver = SAMPLERS[sampler](steps=number, **options)
        run = jax.jit(lambda params, keys, solver=solver: solver.sample(
            experiment.denoiser(params), experiment.process, keys, None, shape=experiment.image_shape)[:2])  # fmt: skip
        x0, nfe = run(params, keys)
        found = pixel_distances(np.asarray(x0), reference) | {"calls": float(nfe.mean())}
        figures |= {f"{name}_nfe{calls}": value for name, value in found.items()}
    return figures


def learnt_images(
    seed: int, folder: Path, *, config: str, overrides: Mapping[str, Any],
    samplers: Mapping[str, tuple[str, Mapping[str, Any], Sequence[tuple[int, int]]]],
) -> dict[str, float]:
    """One network, trained once, and many samplers: distances in the features of a classifier of the same data.

    Args:
      samplers: label -> (name, options, steps as in `exact_images`).

    Returns:
      fd_<label>_nfe<calls>, kid_<...> to the test images; calls_<...>; fd_data, kid_data: of as many training images.
    """
    import jax
    import jax.numpy as jnp

    from configs.base import validate
    from data.base import all_images
    from data.images import to_uint8
    from diffusion.random import image_keys
    from evaluation.distances import frechet_distance_of_features, kernel_distance
    from evaluation.generate import labels_of
    from evaluation.one_pass import feature_rows
    from samplers import SAMPLERS
    from training.evaluation import make_features
    from training.inference import load_run
    from training.loop import train

    resolved = resolve(config, {**overrides, "seed": seed})
    validate(resolved)
    code = train(resolved, str(folder / "run"))
    if code:  # a stop request; the run resumes
        sys.exit(code)
    experiment, params, _, _ = load_run(resolved, str(folder / "run"))
    # The same for all seeds.
    features = make_features(resolved, "classifier", experiment.train, experiment.test, folder.parent / "features")
    real = feature_rows(features, all_images(experiment.test)).astype(np.float64)
    count = resolved.evaluation.num_samples

    def distances(images: np.ndarray) -> dict[str, float]:
        rows = feature_rows(features, images).astype(np.float64)
        return {"fd": frechet_distance_of_features(rows, real), "kid": kernel_distance(rows, real, subsets=20)[0]}

    # A seeded choice, since a data set may be sorted by class.
    chosen = np.sort(np.random.default_rng(0).permutation(len(experiment.train))[:count])
    figures = {f"{name}_data": value for name, value in distances(all_images(experiment.train)[chosen]).items()}
    keys, labels = image_keys(seed, jnp.arange(count)), labels_of(np.arange(count), experiment.train.num_classes)
    for label, (sampler, options, steps) in samplers.items():
        for calls, number in steps:
            solver = SAMPLERS[sampler](steps=number, **options)
            run = jax.jit(lambda params, keys, labels, solver=solver: solver.sample(
                experiment.sampling_denoiser(params), experiment.process, keys, labels,
                shape=experiment.image_shape)[:2])  # fmt: skip
            x0, nfe = jax.device_get(run(params, keys, jnp.asarray(labels)))
            found = distances(to_uint8(x0)) if np.isfinite(x0).all() else {"fd": math.inf, "kid": math.inf}
            found["calls"] = float(nfe.mean())
            figures |= {f"{name}_{label}_nfe{calls}": value for name, value in found.items()}
    return figures
