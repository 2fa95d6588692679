"""The measurements of the Poisson midpoint table on known numbers, and the verdicts on made-up ones."""

import math
import os
import re

import numpy as np
import pytest

from configs.tables import TABLES
from configs.tables.base import Check, Values
from configs.tables.poisson_midpoint import CALLS, SAMPLER_RUNS, SCHEDULES, steps_of
from configs.tables.poisson_midpoint_checks import (
    diffusion_moments,
    langevin_monte_carlo,
    mixture_excess,
    respaced_moments,
    slope_with_interval,
    stationary_bias,
)
from configs.tables.poisson_midpoint_images import exact_draws, exact_images, learnt_images, pixel_distances

TABLE = TABLES["poisson_midpoint"]

# --- Measurements -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "known"), [("bernoulli", 3.722e-2), ("single", 2.610e-2)])
def test_bias_of_langevin_chains(tmp_path, mode, known):
    """K = 4, a = 0.2, in known numbers and in closed form."""
    figures = stationary_bias(0, tmp_path, mode=mode, micro_steps=4, friction=None, step_sizes=(0.2,), fit=(0.2,))
    assert figures["bias_a0.2"] == pytest.approx(known, rel=1e-3) and figures["difference"] < 1e-12
    assert figures["excess_a0.2"] == pytest.approx(figures["bias_a0.2"] - (1 / (1 - 0.025) - 1), rel=1e-9)


def test_bias_of_underdamped_chains(tmp_path):
    """Mode single, K = 8, friction 2, at two steps; the slope between them."""
    figures = stationary_bias(0, tmp_path, mode="single", micro_steps=8, friction=2.0, step_sizes=(0.4, 0.2),
                              fit=(0.4, 0.2))  # fmt: skip
    excess = [figures["excess_a0.4"], figures["excess_a0.2"]]
    np.testing.assert_allclose(excess, (4.642e-5, 1.647e-6), rtol=1e-3)
    assert figures["slope"] == pytest.approx(math.log2(excess[0] / excess[1])) and "difference" not in figures


def test_a_chain_that_is_not_stable_is_named(tmp_path):
    with pytest.raises(ValueError, match="not stable"):
        stationary_bias(0, tmp_path, mode="single", micro_steps=1, friction=None, step_sizes=(2.5,), fit=())


@pytest.mark.slow
def test_moments_of_diffusion_samplers(tmp_path):
    """Excess over DDPM-1000 for data of 0.5, in known numbers."""
    paper = {"freeze": "epsilon", "spacing": 1.0}
    samplers = {"single": paper, "bernoulli": paper | {"mode": "bernoulli"}, "v_p2": {"freeze": "v", "spacing": 2.0}}
    samplers = {name: options | {"schedule": "linear", "steps": 20} for name, options in samplers.items()}
    figures = diffusion_moments(0, tmp_path, samplers=samplers, scales=(0.5,), schedules=SCHEDULES)
    known = {"excess_single_s0.5": 1.950e-2, "excess_bernoulli_s0.5": 7.309e-2, "excess_v_p2_s0.5": 1.245e-3,
             "std_error_linear_fine_s0.5": -7.78e-3, "calls_single": 40, "calls_bernoulli": 39.6}  # fmt: skip
    for name, value in known.items():
        assert figures[name] == pytest.approx(value, rel=1e-3), name


def test_moments_of_respaced_samplers(tmp_path):
    """40 calls of DDPM and of DDIM, for data of 1 and of 0.5."""
    figures = respaced_moments(0, tmp_path, calls=(40,), scales=(1.0, 0.5))
    for name, value in {"ddpm": (-0.0896, -0.133), "ddim": (-0.0453, -0.0710)}.items():
        got = [figures[f"std_error_{name}_nfe40_s{s}"] for s in ("1", "0.5")]
        np.testing.assert_allclose(got, value, rtol=5e-3)


@pytest.mark.slow
def test_chains_agree_with_what_is_exact(tmp_path):
    """Within four standard errors; and the noise of the mixture's chains is shared, or the errors were far larger."""
    figures = langevin_monte_carlo(0, tmp_path, step_size=0.4, micro_steps=8, chains=3000, steps=25)
    for mode in ("bernoulli", "single0", "single"):
        assert abs(figures[f"off_{mode}"]) < 4
    # Two thousand independent chains would have standard errors of 0.02.
    figures = mixture_excess(0, tmp_path, separation=0.9, step_sizes=(0.4,), micro_steps=16, chains=2000, begin=10.0,
                             end=30.0)  # fmt: skip
    for name, known in {"lmc": 0.16812, "bernoulli": 0.03404, "single": -0.00317}.items():
        error = figures[f"error_{name}_a0.4"]
        assert abs(figures[f"excess_{name}_a0.4"] - known) < 4 * error < 0.03, name


def test_slope_with_interval():
    rng = np.random.default_rng(0)
    steps = (0.4, 0.2, 0.1, 0.05)
    square = np.square(steps)
    assert slope_with_interval(steps, list(3 * square)) == pytest.approx({"slope": 2, "slope_low": 2, "slope_high": 2})
    # The interval holds the true slope in 95 of 100 cases, within 4 standard errors.
    inside = 0
    for _ in range(100):
        found = slope_with_interval(steps, list(square * np.exp(0.1 * rng.standard_normal(4))))
        inside += found["slope_low"] < 2 < found["slope_high"]
    assert abs(inside / 100 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 100)


@pytest.mark.slow
def test_samplers_with_an_exact_denoiser(tmp_path):
    """Few steps are far off, more are near to what exact draws have; calls are counted."""
    options = {"config": "configs/exact.py:gaussians_digits", "overrides": {"process.name": "discrete"}, "count": 200}
    floor = exact_draws(0, tmp_path, **options)["sliced_wasserstein"]
    figures = exact_images(0, tmp_path, sampler="ddim", options={}, steps=((2, 2), (20, 20)), **options)
    few, many = (figures[f"sliced_wasserstein_nfe{calls}"] for calls in (2, 20))
    assert many < 1.6 * floor and few > 1.6 * many and figures["calls_nfe20"] == 20
    assert set(pixel_distances(np.full((3, 2), np.nan), np.zeros((3, 2))).values()) == {math.inf}


@pytest.mark.slow
def test_samplers_with_a_network(tmp_path):
    overrides = {"process.name": "discrete", "process.sigma_min": None, "process.sigma_max": None,
                 "training.steps": 300, "training.tensorboard": False, "evaluation.num_samples": 256}  # fmt: skip
    samplers = {"few": ("ddim", {}, ((2, 2),)), "more": ("dpm_solver", {}, ((20, 20),))}
    figures = learnt_images(0, tmp_path / "0", config="configs/digits.py:dsm", overrides=overrides, samplers=samplers)
    assert figures["fd_data"] < figures["fd_more_nfe20"] < figures["fd_few_nfe2"] and figures["calls_few_nfe2"] == 2


# --- Rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_samplers_make_about_the_calls_they_go_by():
    """Of the steps that the rows give them, by each sampler's own count; the paper's divide the thousand."""
    import jax
    import jax.numpy as jnp

    from diffusion.discrete import Discrete
    from diffusion.process import GaussianProcess
    from diffusion.random import image_keys
    from samplers import SAMPLERS

    process, keys = GaussianProcess(Discrete()), image_keys(0, jnp.arange(1))
    for label, (name, options, steps) in SAMPLER_RUNS.items():
        for calls in CALLS:  # all can be made
            SAMPLERS[name](steps=steps(calls), **options)
        sample = SAMPLERS[name](steps=steps(10), **options).sample
        made = jax.jit(lambda keys, sample=sample: sample(
            lambda x, t, label: 0 * x, process, keys, None, shape=(2,)).nfe)(keys)  # fmt: skip
        assert abs(float(made[0]) - 10) <= (4 if label == "pmm_bernoulli" else 1), label
    assert steps_of("ddpm", CALLS)[-1] == (1000, 1000)


def test_the_papers_rows_are_complete():
    """Four data sets, every table of the paper, no value invented."""
    paper = [row for row in TABLE.rows if row.small is None]
    assert {row.name.split("_")[0] for row in paper} == {"celebahq", "churches", "bedrooms", "ffhq"}
    figures = [figure for row in paper for figure in row.figures.values()]
    tables = {number for figure in figures for number in re.findall(r"table (\d)", figure.paper.source)}
    assert tables == {*"234567"} and all(figure.paper.value is None for figure in figures)


def test_small_rows_have_identities_of_their_own():
    identities = [row.small.identity(0) for row in TABLE.rows if row.small]
    assert len(set(identities)) == len(identities) > 60
    assert all(isinstance(row.small, Check) for row in TABLE.rows if row.small)


# --- Claims -----------------------------------------------------------------------------------------------------------

# Sliced Wasserstein or Fréchet distance by sampler: at 10, 20, 40, 80, 200, 1000 calls.
_GOOD = {"ddpm": (9, 7, 5, 3, 1.4, 1), "ddim": (6, 4, 2.5, 2, 1.5), "dpm_solver": (2, 1.9, 1.8, 1.8, 1.8),
         "pmm_single": (90, 6, 1.4, 0.98, 1.0), "pmm_v": (3, 1.2, 1.05, 0.9, 1), "sa_solver": (3, 2, 1.2, 1.1, 1),
         "sde_dpm_solver": (3, 2, 1.2, 1.1, 1), "randomized_midpoint": (3, 2, 1.2, 1.1, 1)}  # fmt: skip


def made_up(quality, bernoulli_slope=2.0, mixture=0.2, excess=0.01, narrow=1.3):
    rng, rows = np.random.default_rng(0), {"digits_learnt": {}}
    near = lambda value: list(value * (1 + 0.002 * rng.standard_normal(3)))  # noqa: E731
    for sampler, values in quality.items():
        pairs = list(zip((*CALLS, 1000), values))
        rows["digits_learnt"] |= {f"fd_{sampler}_nfe{calls}": near(value) for calls, value in pairs}
        for target in ("digits_empirical", "digits_gaussians"):
            rows[f"{target}_{sampler}"] = {f"sliced_wasserstein_nfe{calls}": near(value) for calls, value in pairs}
    slopes = {"lmc": 1.05, "ulmc": 1.04, "plmc_bernoulli_inverse": bernoulli_slope, "plmc_bernoulli_k32": 2.1,
              "pulmc_bernoulli_k32": 2.9, "plmc_single_k32": 3.05, "pulmc_single_k32": 4.9}  # fmt: skip
    biases = {f"bias_a{a:g}": [a / 2] for a in (0.4, 0.2, 0.1, 0.05)}
    for row, slope in slopes.items():
        rows[row] = {"slope": [slope]} | (biases if row == "lmc" else {name: [v[0] / 4] for name, v in biases.items()})
    for row in ("mixture_m0.9", "mixture_m1.5"):
        rows[row] = {f"excess_lmc_a{h:g}": [h] for h in (0.4, 0.2, 0.1)}
        rows[row] |= {f"excess_bernoulli_a{h:g}": [h**2] for h in (0.4, 0.2, 0.1)}
        rows[row] |= {f"excess_single_a{h:g}": [-mixture * h**2] for h in (0.4, 0.2, 0.1)}
    rows["moments_bernoulli"] = {f"excess_K{k}_s{s}": [1e-4 * k**2] for k in (4, 5, 25) for s in ("1", "0.5")}
    rows["moments_single"] = {f"excess_K{k}_s{s}": [1e-5 * k**2] for k in (4, 5, 25) for s in ("1", "0.5")}
    rows["moments_single"] |= {f"std_error_K25_s{s}": [excess] for s in ("1", "0.5")}
    rows["moments_respaced"] = {f"std_error_{name}_nfe100_s{s}": [-0.05] for name in ("ddpm", "ddim")
                                for s in ("1", "0.5")}  # fmt: skip
    excesses = {"epsilon_p1": narrow, "epsilon_p2": 0.03, "x0_p2": -0.02, "v_p2": 0.03}
    rows["moments_grids"] = {f"excess_linear_{name}_s0.1": [value] for name, value in excesses.items()}
    return Values(rows)


def test_verdicts():
    """Each on made-up figures, and the other way round when they say the opposite."""
    first = {claim.name: claim.verdict(made_up(_GOOD))[0] for claim in TABLE.claims}
    assert {name for name, verdict in first.items() if verdict != "holds"} == {"which_mode"}
    assert first["which_mode"] == "fails"
    bad = _GOOD | {"ddpm": (1, 1, 0.9, 0.9, 0.8, 0.5), "ddim": (1, 1, 0.9, 0.9, 0.9), "dpm_solver": (5, 2, 1, 1, 1),
                   "pmm_single": (9, 4, 3.5, 3.4, 3), "pmm_v": (9, 4, 3.5, 3.4, 3)}  # fmt: skip
    second = {claim.name: claim.verdict(made_up(bad, 1.1, mixture=0.9, excess=0.1, narrow=0.5))[0]
              for claim in TABLE.claims}  # fmt: skip
    assert {name for name, verdict in second.items() if verdict == "holds"} == {"single_cancels",
                                                                                "better_at_equal_calls"}
    assert {*second.values()} == {"holds", "fails"}


@pytest.mark.slow
def test_pictures_come_from_the_ledger_alone(tmp_path):
    """From a made-up ledger of all rows; without a row it says which is missing."""
    import importlib.util
    import json
    import sys

    from configs.overrides import ROOT

    spec = importlib.util.spec_from_file_location("pictures", ROOT / "scripts" / "poisson_midpoint_pictures.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    lines = [{"row": row.name, "seed": seed, "size": "small", "config_sha256": row.small.identity(seed),
              "figures": figures_of(row, seed)} for row in TABLE.rows if row.small for seed in range(2)]  # fmt: skip
    ledger, whole = tmp_path / "ledger.jsonl", sys.argv
    try:
        for text, missing in ((lines, False), ([line for line in lines if line["row"] != "ulmc"], True)):
            ledger.write_text("".join(json.dumps(line) + os.linesep for line in text))
            sys.argv = ["pictures", f"--ledger={ledger}", f"--out={tmp_path}"]
            if missing:
                with pytest.raises(SystemExit, match="ulmc: no bias_a"):
                    script.main()
            else:
                script.main()
    finally:
        sys.argv = whole
    assert len(list(tmp_path.glob("poisson_midpoint_*.png"))) == 4


def figures_of(row, seed):
    """Plausible numbers for everything that a row declares, and the calls of every sampler."""
    figures = dict.fromkeys(row.figures, 0.1 + 0.01 * seed)
    figures |= {f"calls_{name.split('_', 1)[1]}": float(name.rsplit("nfe")[1])
                for name in row.figures if name.startswith("fd_") and "nfe" in name}  # fmt: skip
    return figures | {f"calls_{name.rsplit('_', 1)[1]}": float(name.rsplit("nfe")[1])
                      for name in row.figures if name.startswith("sliced") and "nfe" in name}  # fmt: skip
