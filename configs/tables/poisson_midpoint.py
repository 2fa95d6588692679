"""Kandasamy & Nagaraj, "The Poisson Midpoint Method for Langevin Dynamics", NeurIPS 2024.

The rows that run here, all but the last of them without a network; `poisson_midpoint_paper.py` has the paper's own rows
and `poisson_midpoint_claims.py` what it claims.
"""

from collections.abc import Iterable
from typing import Any

from configs.tables.base import Check, Figure, Row, Table
from configs.tables.poisson_midpoint_checks import (
    diffusion_moments,
    langevin_monte_carlo,
    mixture_excess,
    respaced_moments,
    stationary_bias,
)
from configs.tables.poisson_midpoint_claims import CLAIMS
from configs.tables.poisson_midpoint_images import exact_draws, exact_images, learnt_images
from configs.tables.poisson_midpoint_paper import PAPER_ROWS

MODES = ("bernoulli", "single0", "single")
MICRO_STEPS = (2, 4, 5, 8, 10, 20, 25, 40, 50)
OVERDAMPED, UNDERDAMPED = (0.4, 0.2, 0.1, 0.05, 0.025), (0.4, 0.2, 0.1, 0.05)
SCALES = (1.0, 0.5, 0.1)
SCHEDULES = {"linear": {}, "sqrt": {"beta_min": 0.0015, "beta_max": 0.0195, "spacing": "sqrt_linear"}}

_PAPER = {"freeze": "epsilon", "spacing": 1.0}  # equal macro steps

# --- Biases and moments, exact ----------------------------------------------------------------------------------------


def _biases() -> list[Row]:
    def row(name: str, about: str, mode: str, k: int | None, friction: float | None) -> Row:
        sizes = OVERDAMPED if friction is None else UNDERDAMPED
        fit = (0.1, 0.05, 0.025) if friction is None else UNDERDAMPED
        step = "a = step size times precision" if friction is None else "step size"
        figures = {f"bias_a{a:g}": Figure(f"relative bias of the variance, {step} {a:g}") for a in sizes}
        if friction is None:
            figures["difference"] = Figure("largest difference from the closed form")
        if k != 1:
            figures |= {f"excess_a{a:g}": Figure(f"excess over the chain of all micro steps, {a:g}") for a in sizes}
        figures["slope"] = Figure("slope in a" if friction is None else "slope in the step size")
        options = {"mode": mode, "micro_steps": k, "friction": friction, "step_sizes": sizes, "fit": fit}
        return Row(name=name, about=about, figures=figures, seeds=1, small=Check(stationary_bias, options))

    rows = [row("lmc", "Langevin Monte Carlo on a Gaussian", "single", 1, None)]
    for mode in MODES:
        rows += [row(f"plmc_{mode}_k{k}", f"its midpoint form, {mode}, K = {k}", mode, k, None) for k in (4, 8, 32)]
        rows.append(row(f"plmc_{mode}_inverse", f"its midpoint form, {mode}, K = 1 / a", mode, None, None))
    rows.append(row("ulmc", "underdamped Langevin on a Gaussian, friction 2", "single", 1, 2.0))
    rows += [row(f"pulmc_{mode}_k{k}", f"its midpoint form, {mode}, K = {k}", mode, k, 2.0)
             for mode in ("bernoulli", "single") for k in (8, 32)]  # fmt: skip
    return rows


def _moments() -> list[Row]:
    def labels(samplers: Iterable[str], scales: tuple[float, ...]) -> dict[str, Figure]:
        return {f"excess_{label}_s{s:g}": Figure(f"excess of the deviation over DDPM-1000, {label}, data of {s:g}")
                for s in scales for label in samplers}  # fmt: skip

    rows = []
    for mode in ("bernoulli", "single"):
        samplers = {f"K{k}": {"schedule": "linear", "steps": 1000 // k, "mode": mode, **_PAPER} for k in MICRO_STEPS}
        rows.append(Row(
            name=f"moments_{mode}", about=f"N(0, s^2) under DDPM's levels, exact denoiser, {mode}", seeds=1,
            figures=labels(samplers, SCALES),
            small=Check(diffusion_moments,
                        {"samplers": samplers, "scales": SCALES, "schedules": SCHEDULES})))  # fmt: skip
    cases = {f"{schedule}_{freeze}_p{p}": {"schedule": schedule, "steps": 20, "freeze": freeze, "spacing": float(p)}
             for schedule, p in (("linear", 1), ("linear", 2), ("sqrt", 1), ("sqrt", 3))
             for freeze in ("epsilon", "x0", "v")}  # fmt: skip
    cases["linear_x0_logsnr"] = {"schedule": "linear", "freeze": "x0", "logsnr_steps": 20}
    respaced = {f"std_error_{name}_nfe{calls}_s{s:g}": Figure(f"error of the deviation, {name}, {calls}, data of {s:g}")
                for name in ("ddpm", "ddim") for calls in (100, 50, 40) for s in SCALES}  # fmt: skip
    rows += [
        Row(name="moments_respaced", about="the same for DDPM and DDIM on fewer of the levels", figures=respaced,
            seeds=1, small=Check(respaced_moments, {"calls": (100, 50, 40), "scales": SCALES})),
        Row(name="moments_grids", about="20 macro steps: what is frozen, exponent of their ends, schedule", seeds=1,
            figures=labels(cases, (0.05, 0.1, 0.5, 1.0)),
            small=Check(diffusion_moments,
                        {"samplers": cases, "scales": (0.05, 0.1, 0.5, 1.0), "schedules": SCHEDULES})),
    ]  # fmt: skip
    return rows


def _chains() -> list[Row]:
    steps = (0.8, 0.4, 0.2, 0.1)
    off = {f"off_{mode}": Figure(f"difference from the closed form in standard errors, {mode}") for mode in MODES}
    excess = {f"excess_{name}_a{h:g}": Figure(f"excess of E x^2, {name}, step size {h:g}")
              for name in ("lmc", *MODES) for h in steps}  # fmt: skip
    options = {"step_size": 0.4, "micro_steps": 8, "chains": 100_000, "steps": 40}
    rows = [Row(name="plmc_monte_carlo", about="the bias on a Gaussian from samples, a = 0.4, K = 8", figures=off,
                seeds=1, small=Check(langevin_monte_carlo, options))]  # fmt: skip
    rows += [
        Row(name=f"mixture_m{m:g}", about=f"two Gaussians at -{m:g} and {m:g}, against the chain of 16 micro steps",
            figures=excess, seeds=1,
            small=Check(mixture_excess, {"separation": m, "step_sizes": steps, "micro_steps": 16, "chains": 60_000,
                                         "begin": 15.0, "end": 40.0})) for m in (0.9, 1.5)
    ]  # fmt: skip
    return rows


# --- Samplers of images -----------------------------------------------------------------------------------------------

# Label -> name, options, and steps as a function of the calls that it may make.
SAMPLER_RUNS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "ddpm": ("ddpm", {"grid": "uniform"}, lambda calls: calls),
    "ddim": ("ddim", {"grid": "uniform"}, lambda calls: calls),
    "heun": ("heun", {"grid": "karras"}, lambda calls: calls // 2),
    "dpm_solver": ("dpm_solver", {"grid": "logsnr"}, lambda calls: calls),
    "sde_dpm_solver": ("dpm_solver", {"grid": "logsnr", "stochastic": True}, lambda calls: calls),
    "sa_solver": ("sa_solver", {"grid": "logsnr"}, lambda calls: calls),
    "randomized_midpoint": ("randomized_midpoint", {"grid": "logsnr"}, lambda calls: calls // 2),
    "predictor_corrector": ("predictor_corrector", {"grid": "uniform"}, lambda calls: calls // 2),
    "pmm_single": ("poisson_midpoint", {**_PAPER, "mode": "single"}, lambda calls: calls // 2),
    "pmm_bernoulli": ("poisson_midpoint", {**_PAPER, "mode": "bernoulli"}, lambda calls: calls // 2),
    "pmm_x0": ("poisson_midpoint", {"freeze": "x0", "spacing": 2.0}, lambda calls: calls // 2),
    "pmm_v": ("poisson_midpoint", {"freeze": "v", "spacing": 2.0}, lambda calls: calls // 2),
    "lmc": ("lmc", {"grid": "logsnr", "steps_per_level": 5}, lambda calls: max(calls // 5, 2)),
}
CALLS = (10, 20, 40, 80, 200)
DISCRETE = {"process.name": "discrete"}  # DDPM's levels, whose thousand steps are to be matched
# Name -> about, config, calls, samples, seeds.
EXACT = {
    "digits_empirical": ("the training digits", "configs/exact.py:digits", CALLS, 500, 2),
    "digits_gaussians": ("a Gaussian per class of digits", "configs/exact.py:gaussians_digits", CALLS, 2000, 3),
    "mnist5k_gaussians": ("a Gaussian per class of MNIST", "configs/exact.py:gaussians_mnist5k", CALLS[:-1], 250, 2),
}


def steps_of(label: str, calls: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """(calls, steps of the sampler) pairs, with a thousand of DDPM's."""
    counts = (*calls, 1000) if label == "ddpm" else tuple(calls)
    return tuple((count, SAMPLER_RUNS[label][2](count)) for count in counts)


def _exact() -> list[Row]:
    distances = {"sliced_wasserstein": "sliced Wasserstein distance", "energy_distance": "energy distance",
                 "kid_pixels": "kernel distance of pixels"}  # fmt: skip
    rows = []
    for target, (about, config, calls, count, seeds) in EXACT.items():
        options = {"config": config, "overrides": DISCRETE, "count": count}
        floor = {name: Figure(f"{label}, exact draws") for name, label in distances.items()}
        rows.append(Row(name=f"{target}_draws", about=f"{about}, exact: draws", figures=floor, seeds=seeds,
                        small=Check(exact_draws, options)))  # fmt: skip
        for label, (sampler, fixed, _) in SAMPLER_RUNS.items():
            steps = steps_of(label, calls)
            if target == "mnist5k_gaussians":
                steps = steps[: len(calls)]  # a thousand calls take too long
            # The ledger has all distances at all numbers of calls.
            figures = {f"sliced_wasserstein_nfe{n}": Figure(f"sliced Wasserstein distance, {n} calls")
                       for n, _ in steps}  # fmt: skip
            figures |= {f"{name}_nfe40": Figure(f"{title}, 40 calls") for name, title in distances.items()}
            more = {"sampler": sampler, "options": fixed, "steps": steps}
            rows.append(Row(name=f"{target}_{label}", about=f"{about}, exact denoiser: {label}", figures=figures,
                            seeds=seeds, small=Check(exact_images, options | more)))  # fmt: skip
    return rows


def _learnt() -> list[Row]:
    rows = []
    for name, about, config, steps, calls, seeds in (
        ("digits_learnt", "8x8 digits, a network", "configs/digits.py:dsm", 2000, CALLS, 3),
        ("mnist5k_learnt", "28x28 digits, a network", "configs/images.py:mnist5k_mlp", 3000, CALLS[:-1], 1),
    ):
        overrides = DISCRETE | {"process.sigma_min": None, "process.sigma_max": None, "training.steps": steps,
                                "training.tensorboard": False}  # fmt: skip
        samplers = {label: (sampler, options, steps_of(label, calls))
                    for label, (sampler, options, _) in SAMPLER_RUNS.items()}  # fmt: skip
        figures = {"fd_data": Figure("Fréchet distance, classifier features, of training images")}
        figures |= {f"fd_{label}_nfe{n}": Figure(f"Fréchet distance, {label}, {n} calls")
                    for label, (_, _, points) in samplers.items() for n, _ in points}  # fmt: skip
        options = {"config": config, "overrides": overrides, "samplers": samplers}
        rows.append(Row(name=name, about=f"{about} trained once, many samplers", figures=figures, seeds=seeds,
                        small=Check(learnt_images, options)))  # fmt: skip
    return rows


POISSON_MIDPOINT = Table(
    name="poisson_midpoint",
    title="The Poisson midpoint method (Kandasamy and Nagaraj, NeurIPS 2024)",
    rows=(*_biases(), *_moments(), *_chains(), *_exact(), *_learnt(), *PAPER_ROWS),
    claims=CLAIMS,
)
