"""Skipped calls, measured: `measure(seed, folder, **options)` -> figures. Imported without JAX, like all tables.

All of a row begin with the same noise. Errors of images x are |x - y| / |y|, the median over them: `error` to what the
solver makes with all its calls, `truth` to an ODE solution with many more. What is measured of a choice of calls:

  calls   of each image, the mean (a guided call counts as one)
  error, error95, truth, psnr, ssim   `evaluation/paired.py`
  features, fd                        of networks only: distance to the full run's images and to test images

A choice is an adaptive one ("scalar0.01_hold_c4"), or has its number of calls in its name: "uniform_linear_20",
"random_hold_20", "greedy_hold_20" (on 8 images, and there the uniform one, too), and with the solver's own steps
"plain_20" and "dpm_solver_20".
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.overrides import resolve
from configs.tables.trained_runs import features_of, trained_run

GREEDY_IMAGES = 8


# --- The toy study ----------------------------------------------------------------------------------------------------


def toy_policy(seed: int, folder: Path, **options: Any) -> dict[str, float]:
    """calls_<solver>, error_<solver>, error95_<solver>, truth_<solver> of `evaluation.skip_study.adaptive`."""
    import jax

    from evaluation.skip_study import SOLVERS, adaptive, errors, full, truth

    with jax.enable_x64(True):
        results, calls = adaptive(**options)
        problem = {name: options[name] for name in ("steps", "guidance") if name in options}
        found, true = errors(results, full(**problem)), errors(results, truth(**problem))
    figures = {}
    for i, name in enumerate(SOLVERS):
        figures |= {f"calls_{name}": float(calls[i].mean()), f"error_{name}": float(found[i, 0]),
                    f"error95_{name}": float(found[i, 1]), f"truth_{name}": float(true[i, 0])}  # fmt: skip
    return figures


def toy_masks(seed: int, folder: Path, *, calls: Sequence[int], steps: int) -> dict[str, float]:
    """error_<kind>_<reuse>_<solver>_<calls> of the fixed choices, and of plain runs; truth_full_<solver>, ..."""
    import jax

    from evaluation.skip_study import SOLVERS, errors, full, masked, truth
    from samplers.masks import greedy_masks, random_masks, uniform_mask

    figures = {}
    with jax.enable_x64(True):
        reference, few = full(steps=steps), full(GREEDY_IMAGES, steps=steps)
        true = errors(reference, truth(steps=steps))
        figures |= {f"truth_full_{name}": float(e[0]) for name, e in zip(SOLVERS, true)}

        def note(kind: str, count: int, results: np.ndarray) -> None:
            found = errors(results, reference if results.shape[1] > GREEDY_IMAGES else few)
            figures.update({f"error_{kind}_{name}_{count}": float(e[0]) for name, e in zip(SOLVERS, found)})

        for reuse in ("hold", "linear"):
            for count in calls:
                mask = uniform_mask(steps, count)
                note(f"uniform_{reuse}", count, masked(mask, reuse))
                note(f"uniform_few_{reuse}", count, masked(mask, reuse, GREEDY_IMAGES))
            for i, name in enumerate(SOLVERS):
                def cost(masks: np.ndarray, i: int = i, name: str = name, reuse: str = reuse) -> np.ndarray:
                    rows = np.repeat(masks, GREEDY_IMAGES, axis=0)
                    got = masked(rows, reuse, len(rows), repeat=GREEDY_IMAGES, solvers=(name,))[0]
                    got = got.reshape(len(masks), GREEDY_IMAGES, -1)
                    return np.median(np.linalg.norm(got - few[i], axis=2) / np.linalg.norm(few[i], axis=1), axis=1)

                for count, mask in greedy_masks(cost, steps, calls).items():
                    figures[f"error_greedy_{reuse}_{name}_{count}"] = float(cost(mask[None])[0])
        for count in calls:
            masks = random_masks(np.random.default_rng(seed), len(reference[0]), steps, count, c_max=4)
            note("random_hold", count, masked(masks, "hold"))
            if 1000 % count == 0:  # grids of whole strides; they begin a little later than that of 50 steps
                plain = full(steps=count)
                note("plain", count, plain)
                figures |= {f"truth_plain_{name}_{count}": float(e[0])
                            for name, e in zip(SOLVERS, errors(plain, truth(steps=steps)))}  # fmt: skip
    return figures


# --- Images -----------------------------------------------------------------------------------------------------------


def _experiment(config: str, process: str, guidance: float, seed: int, folder: Path | None) -> tuple[Any, Any]:
    """(experiment, parameters) for sampling on a process: of a network that is trained once, or exact for no folder.

    A network is told the noise level, and may be used on another process than its own.
    """
    from training import components
    from training.experiment import build_experiment
    from training.inference import load_run

    if folder is None:
        experiment = build_experiment(resolve(config, {"process.name": process}))
        return experiment, experiment.params["score"]
    _, workdir = trained_run(config, {}, seed, folder)
    guided = {"seed": seed, "training.tensorboard": False, "sampler.guidance": guidance}
    experiment, params, _, _ = load_run(resolve(config, guided), str(workdir))
    if experiment.config.process.name == process:
        return experiment, params
    levels = {"process.sigma_min": None, "process.sigma_max": None}  # another process has its own
    moved = components.make_process(resolve(config, {"process.name": process, **levels}))
    return dataclasses.replace(experiment, process=moved), params


def paired_images(
    seed: int, folder: Path, *, config: str, process: str, trained: bool, guidance: float, sampler: str,
    options: Mapping[str, Any], steps: int, count: int, policies: Mapping[str, Mapping[str, Any]],
    calls: Sequence[int], greedy: Sequence[int],
) -> dict[str, float]:
    """<figure>_<choice> as above, of one solver with `steps` steps.

    Args:
      config: of a network that is trained, or of an exact denoiser.
      process: on which is sampled.
      guidance: its scale, of a network.
      sampler, options: of the solver, without its steps.
      policies: adaptive choices, name -> options of `Adaptive`, or "preset".
      calls: of the fixed choices; greedy: of those of the greedy one.
    """
    import jax
    import jax.numpy as jnp

    from data.base import all_images
    from data.images import to_uint8
    from diffusion.random import image_keys
    from evaluation.distances import frechet_distance_of_features
    from evaluation.generate import labels_of
    from evaluation.one_pass import feature_rows
    from evaluation.paired import feature_distance, paired_fidelity, relative_l2
    from samplers import SAMPLERS
    from samplers.adaptive import Adaptive, run_in_step, solver_steps, with_preset
    from samplers.masks import greedy_masks, random_masks, sample_with_mask, uniform_mask
    from samplers.skipping import device_tables

    experiment, params = _experiment(config, process, guidance, seed, folder if trained else None)
    labels = None
    if trained:
        features = features_of(experiment.config, experiment, folder)
        real = feature_rows(features, all_images(experiment.test)).astype(np.float64)
        labels = jnp.asarray(labels_of(np.arange(count), experiment.train.num_classes))
    shape, way, keys = experiment.image_shape, experiment.process, image_keys(seed, jnp.arange(count))
    solver = SAMPLERS[sampler](steps=steps, **options)

    def plain(solver: Any) -> np.ndarray:
        run = jax.jit(lambda params: solver.sample(
            experiment.sampling_denoiser(params), way, keys, labels, shape=shape).x0)  # fmt: skip
        return np.asarray(run(params))

    @dataclasses.dataclass(frozen=True)
    class Masked:
        reuse: str

        def __call__(self, params: Any, mask: Any, keys: Any, labels: Any) -> Any:
            return sample_with_mask(solver, mask, experiment.sampling_denoiser(params), way, keys, labels, shape=shape,
                                    reuse=self.reuse)[0].x0  # fmt: skip

    runs = {reuse: jax.jit(Masked(reuse)) for reuse in ("hold", "linear")}

    def masked(mask: np.ndarray, reuse: str) -> np.ndarray:
        rows = np.broadcast_to(mask, (count, steps))
        return np.asarray(runs[reuse](params, jnp.asarray(rows), keys, labels))

    reference, fine = masked(np.ones(steps, bool), "hold"), plain(SAMPLERS["dpm_solver"](steps=500, grid="logsnr"))
    figures: dict[str, float] = {}
    if greedy and count < GREEDY_IMAGES:
        raise ValueError(f"count = {count} must be at least {GREEDY_IMAGES}, the images of the greedy search")

    def rows_of(x: np.ndarray) -> np.ndarray:
        return feature_rows(features, to_uint8(x)).astype(np.float64)

    def note(name: str, x: np.ndarray, made: float) -> None:
        pairs = paired_fidelity(x, reference)
        found = {"calls": made, "error": pairs["relative_l2"], "error_mean": pairs["relative_l2_mean"],
                 "error95": pairs["relative_l2_p95"], "psnr": pairs["psnr"], "ssim": pairs["ssim"],
                 "truth": float(np.median(relative_l2(x, fine))) if np.isfinite(x).all() else math.inf}  # fmt: skip
        if trained:
            finite = np.isfinite(x).all()
            rows = rows_of(x) if finite else None
            found["features"] = feature_distance(rows, reference_rows) if finite else math.inf
            found["fd"] = frechet_distance_of_features(rows, real) if finite else math.inf
        figures.update({f"{figure}_{name}": value for figure, value in found.items()})

    reference_rows = rows_of(reference) if trained else None
    note("full", reference, float(steps))
    decide: dict[Any, Any] = {}
    for name, chosen in policies.items():
        given = dict(chosen)
        adaptive = Adaptive(solver=solver, mode="per_sample", **with_preset(given.pop("preset", None), given))
        skipping = adaptive.skipping()
        if skipping not in decide:  # limits are arguments, so that a criterion is compiled once
            def run(params: Any, limits: Any, skipping: Any = skipping) -> Any:
                denoise = experiment.sampling_denoiser(params)
                tables = solver_steps(solver, way, denoise)
                samples, report = run_in_step(skipping, denoise, way.prior(keys, shape), keys, labels,
                                              device_tables([tables]), limits, stochastic=False)  # fmt: skip
                return samples.x0, report.calls

            decide[skipping] = jax.jit(run)
        x, made = decide[skipping](params, adaptive.limits((count,)))
        note(name, np.asarray(x), float(made.mean()))
    for number in calls:
        for reuse in ("hold", "linear"):
            note(f"uniform_{reuse}_{number}", masked(uniform_mask(steps, number), reuse), float(number))
        masks = random_masks(np.random.default_rng(seed), count, steps, number, c_max=4)
        note(f"random_hold_{number}", masked(masks, "hold"), float(number))
        note(f"plain_{number}", plain(SAMPLERS[sampler](steps=number, **options)), float(number))
        if sampler != "dpm_solver":
            note(f"dpm_solver_{number}", plain(SAMPLERS["dpm_solver"](steps=number, grid="logsnr")), float(number))
    few = GREEDY_IMAGES
    for reuse in ("hold", "linear") if greedy else ():
        def cost(masks: np.ndarray, reuse: str = reuse) -> np.ndarray:
            """Medians over the first images."""
            again = np.tile(np.arange(few), len(masks))
            x = np.asarray(runs[reuse](params, jnp.asarray(np.repeat(masks, few, axis=0)), keys[again],
                                       None if labels is None else labels[again]))  # fmt: skip
            errors = relative_l2(x, reference[again])
            return np.median(errors.reshape(len(masks), few), axis=1)

        found = greedy_masks(cost, steps, greedy)
        for kind, masks in (("greedy", found), ("uniform_few", {n: uniform_mask(steps, n) for n in greedy})):
            figures |= {f"error_{kind}_{reuse}_{n}": float(cost(mask[None])[0]) for n, mask in masks.items()}
    return figures


def wall_clock(
    seed: int, folder: Path, *, config: str, process: str, guidance: float, sampler: str, options: Mapping[str, Any],
    steps: int, slots: int, requests: int, presets: Sequence[str], repeats: int,
) -> dict[str, float]:
    """Seconds of presets in both modes, against the solver with all its calls on the same images, `slots` at a time.

    Shared decisions are of `slots` images each; per_sample, one queue of all the requests.

    Args:
      repeats: pairs of runs, one of each, whose ratio's median counts.

    Returns:
      seconds, of all calls; speedup_<mode>_<preset>, calls_<...>, error_<...> (median of relative errors); and
      utilisation_<preset>.
    """
    import jax
    import jax.numpy as jnp

    from diffusion.random import image_keys
    from evaluation.generate import labels_of
    from evaluation.paired import relative_l2
    from samplers import SAMPLERS
    from samplers.adaptive import Adaptive, with_preset
    from training.timing import paired

    experiment, params = _experiment(config, process, guidance, seed, folder)
    solver, keys = SAMPLERS[sampler](steps=steps, **options), image_keys(seed, jnp.arange(requests))
    labels = jnp.asarray(labels_of(np.arange(requests), experiment.train.num_classes))
    figures: dict[str, float] = {}

    def compiled(sample: Any, *, at_a_time: int) -> Any:
        """All requests, so many at a time, in one program."""
        def run(params: Any, keys: Any, labels: Any) -> Any:
            return sample(experiment.sampling_denoiser(params), experiment.process, keys, labels,
                          shape=experiment.image_shape)  # fmt: skip

        groups = jax.tree.map(lambda values: values.reshape(-1, at_a_time), (keys, labels))
        function = jax.jit(lambda params: jax.lax.map(lambda group: run(params, *group), groups))
        return lambda: function(params)

    full = compiled(lambda *given, **more: solver.sample(*given, **more).x0, at_a_time=slots)
    reference = np.asarray(full()).reshape(requests, -1)
    for name in presets:
        for mode, at_a_time in (("shared", slots), ("per_sample", requests)):
            adaptive = Adaptive(solver=solver, mode=mode, slots=slots, **with_preset(name, {}))

            def sample(*given: Any, adaptive: Any = adaptive, **more: Any) -> Any:
                samples, report = adaptive.sample_with_report(*given, **more)
                return samples.x0, report.calls, report.utilisation

            run = compiled(sample, at_a_time=at_a_time)
            seconds, _, ratio = paired(full, run, repeats)
            x, calls, utilisation = run()
            errors = relative_l2(np.asarray(x).reshape(requests, -1), reference)
            figures |= {"seconds": seconds, f"speedup_{mode}_{name}": ratio,
                        f"calls_{mode}_{name}": float(calls.mean()),
                        f"error_{mode}_{name}": float(np.median(errors))}  # fmt: skip
        figures[f"utilisation_{name}"] = float(utilisation.mean())  # of the queue
    return figures
