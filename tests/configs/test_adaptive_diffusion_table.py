"""The table of adaptive sampling: its measurements on a tiny exact problem, and the verdicts on made-up figures.

The made-up figures have the names that the measurements give for the rows' own options, and a real run gives just those
names: a claim that looks for another one is found out.
"""

import dataclasses
import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.overrides import resolve
from configs.tables import TABLES
from configs.tables.adaptive_diffusion import IMAGE_SOLVERS, PRESET_NAMES, TOY
from configs.tables.adaptive_diffusion_checks import _experiment, paired_images, toy_masks, toy_policy, wall_clock
from configs.tables.adaptive_diffusion_claims import TENTH, at_calls
from configs.tables.base import NotRunError, Values
from diffusion.random import image_keys
from evaluation.distances import frechet_distance_of_features
from samplers import SAMPLERS
from samplers.adaptive import PRESETS, Adaptive, with_preset
from training.components import make_process
from training.experiment import build_experiment

pytestmark = pytest.mark.usefixtures("quick_to_compile")

TABLE = TABLES["adaptive_diffusion"]
ROWS = {row.name: row for row in TABLE.rows if row.small}
SOLVERS = ("ddim", "euler", "2m")

# --- The names of what is measured ------------------------------------------------------------------------------------

FIXED = {"uniform_hold": 0.04, "uniform_linear": 0.02, "random_hold": 0.06, "plain": 0.03, "dpm_solver": 0.05}
FIGURES = ("calls", "error", "error_mean", "error95", "psnr", "ssim", "truth")
TOY_KINDS = {"uniform_hold": 0.04, "uniform_few_hold": 0.04, "greedy_hold": 0.03, "random_hold": 0.05,
             "uniform_linear": 0.005, "uniform_few_linear": 0.005, "greedy_linear": 0.004, "plain": 0.02}  # fmt: skip


def image_choices(options):
    """The choices of calls that have all figures; the fixed ones with their numbers."""
    known = [(kind, n) for n in options["calls"] for kind in FIXED
             if not kind == options["sampler"] == "dpm_solver"]  # fmt: skip
    return ["full", *options["policies"]], known


def image_figures(options, adaptive):
    """Made-up figures of `paired_images`.

    Args:
      adaptive: choice -> calls and error; all that are not there make 20 calls with an error of 0.01.
    """
    names, fixed = image_choices(options)
    found = {name: adaptive.get(name, (20.0, 0.01)) for name in names}
    found |= {f"{kind}_{n}": (float(n), FIXED[kind] * (20 / n) ** 2) for kind, n in fixed}
    figures = {}
    for name, (calls, error) in found.items():
        others = {"calls": calls, "psnr": 30.0, "truth": 0.05 if name.startswith("dpm_solver") else 0.2}
        others |= {"fd": 1.0, "features": error} if options["trained"] else {}
        figures |= {f"{figure}_{name}": [others.get(figure, error)] for figure in {*FIGURES, *others}}
    for reuse in ("hold", "linear"):
        for n in options["greedy"]:
            error = FIXED[f"uniform_{reuse}"] * (20 / n) ** 2
            figures |= {f"error_uniform_few_{reuse}_{n}": [error], f"error_greedy_{reuse}_{n}": [0.4 * error]}
    return figures


def toy_policy_figures(calls, error):
    return {f"{figure}_{solver}": [calls if figure == "calls" else error] for solver in SOLVERS
            for figure in ("calls", "error", "error95", "truth")}  # fmt: skip


def toy_mask_figures(options):
    figures = {f"truth_full_{solver}": [0.02] for solver in SOLVERS}
    for solver in SOLVERS:
        for n in options["calls"]:
            kinds = {kind: level for kind, level in TOY_KINDS.items() if kind != "plain" or 1000 % n == 0}
            figures |= {f"error_{kind}_{solver}_{n}": [level * (20 / n) ** 2] for kind, level in kinds.items()}
            figures |= {f"truth_plain_{solver}_{n}": [0.03]} if 1000 % n == 0 else {}
    return figures


def clock_figures(options):
    figures = {"seconds": [1.0]} | {f"utilisation_{name}": [0.9] for name in options["presets"]}
    for mode in ("shared", "per_sample"):
        for name in options["presets"]:
            figures |= {f"calls_{mode}_{name}": [20.0], f"error_{mode}_{name}": [0.01],
                        f"speedup_{mode}_{name}": [2.0]}  # fmt: skip
    return figures


@cache
def made_up():
    """{row: {figure: values}} of all rows, not to be changed; every claim holds."""
    adaptive = {"full": (50.0, 0.0), "paper": (24.0, 0.02), "scalar0.01_hold_c4": (20.0, 0.02)}
    toys = {"toy_default": (20.0, 0.001), "toy_n25": (11.0, 0.01), "toy_n100": (44.0, 0.01),
            "toy_guidance1": (18.0, 0.01), "toy_guidance7.5": (28.0, 0.01)}  # fmt: skip
    rows = {}
    for name, row in ROWS.items():
        if row.small.measure is paired_images:
            rows[name] = image_figures(row.small.options, adaptive)
        elif row.small.measure is toy_masks:
            rows[name] = toy_mask_figures(row.small.options)
        elif row.small.measure is toy_policy:
            rows[name] = toy_policy_figures(*toys.get(name, (22.0, 0.01)))
        else:
            rows[name] = clock_figures(row.small.options)
    return rows


def test_rows_show_what_is_measured():
    """Every figure that a row declares comes out of its measurement, and claims are about rows that run."""
    for name, figures in made_up().items():
        assert {*ROWS[name].figures} <= {*figures}, name
    assert {row for claim in TABLE.claims for row in claim.rows} <= {*ROWS}
    assert {row.small.measure for row in ROWS.values()} == {paired_images, toy_masks, toy_policy, wall_clock}


# --- A fixed choice at any number of calls ----------------------------------------------------------------------------

KNOWN = Values({"row": {"error_even_100": [0.01], "error_even_20": [0.04], "error_even_10": [0.1, 0.3],
                        "error_mean_even_10": [7.0], "error_even_more_15": [9.0], "error_odd_10": [5.0],
                        "error_even_full": [0.0]}})  # fmt: skip


@pytest.mark.parametrize("calls, expected", [
    (10.0, 0.2),  # the mean of two seeds, not of their logarithms
    (20.0, 0.04),
    (100.0, 0.01),
    (15.0, math.sqrt(0.2 * 0.04)),
    (12.0, 0.2**0.8 * 0.04**0.2),
    (60.0, 0.02),
    (40.0, 0.04**0.75 * 0.01**0.25),
])  # fmt: skip
def test_fixed_choices_between_two_numbers_of_calls(calls, expected):
    """In the logarithm of the error, linear in the calls; sorted as numbers, without choices of a similar name."""
    assert at_calls(KNOWN, "row", "even", calls) == pytest.approx(expected, rel=1e-12)


def test_fixed_choices_are_not_extrapolated():
    assert at_calls(KNOWN, "row", "odd", 10.0) == pytest.approx(5.0)
    assert at_calls(KNOWN, "row", "even", 10.0, "error_mean") == pytest.approx(7.0)
    for row, kind, calls in (("row", "even", 9.99), ("row", "even", 100.01), ("row", "odd", 10.5), ("row", "eve", 10.0),
                             ("row", "even_full", 10.0), ("other", "even", 10.0)):  # fmt: skip
        with pytest.raises(NotRunError, match=f"{row}: no error_{kind}_<calls> around {calls:.3g}"):
            at_calls(KNOWN, row, kind, calls)


# --- Claims -----------------------------------------------------------------------------------------------------------


def verdicts(rows):
    return {claim.name: claim.verdict(Values(rows))[0] for claim in TABLE.claims}


def changed(row, changes):
    """Made-up figures with some of a row in place of others, which are there."""
    rows = made_up()
    assert {*changes} <= {*rows[row]}
    lists = {name: value if isinstance(value, list) else [value] for name, value in changes.items()}
    return rows | {row: rows[row] | lists}


DIGITS, EXACT = ([f"{target}_{solver}_n50" for solver in SOLVERS] for target in ("digits", "digits_gaussians"))
GUIDED = ["mnist_ddim_n50", "mnist_ddim_n50_w3", "mnist_ddim_n50_w7.5"]
OF_DEFAULT = {"default_beats_fixed": [EXACT[0], DIGITS[0]], "default_beats_fixed_euler": [*DIGITS[1:], *EXACT[1:]],
              "default_beats_fixed_guided": GUIDED}  # fmt: skip
OF_SCALAR = ("better_than_random", "better_than_uniform", "better_than_fewer_steps")
SCALAR = "error_scalar0.01_hold_c4"

# Row, what is changed in it, and the claims that then fail.
CHANGES = [
    *[(row, {"calls_paper": calls}, fails) for row in DIGITS
      for calls, fails in ((25.0, ()), (25.1, ("twice_as_fast",)), ([24.0, 26.0], ()),
                           ([24.0, 27.0], ("twice_as_fast",)))],
    *[(row, {"fd_paper": distance}, fails) for row in DIGITS
      for distance, fails in ((0.5, ()), (1.049, ()), (1.051, ("nearly_lossless",)), (math.inf, ("nearly_lossless",)))],
    # As good as a fixed choice is not better, nor is what is better by less than a tenth.
    *[(row, {SCALAR: error}, OF_SCALAR[:many]) for row in DIGITS[:2]
      for error, many in ((0.06, 3), (0.9 * 0.06 + 1e-4, 3), (math.inf, 3), ([0.02, math.inf], 3))],
    *[(row, {SCALAR: error}, OF_SCALAR[1:]) for row in DIGITS[:2] for error in (0.04, 0.9 * 0.04 + 1e-4)],
    *[(row, {SCALAR: error}, OF_SCALAR[2:]) for row in DIGITS[:2] for error in (0.03, 0.9 * 0.03 + 1e-4)],
    *[(row, {SCALAR: 0.9 * 0.03 - 1e-4}, ()) for row in DIGITS[:2]],
    (DIGITS[2], {SCALAR: 1.0}, ()),  # more calls than any fixed choice has
    *[(DIGITS[1], {f"error_{kind}_20": 0.02}, (name,))
      for kind, name in (("random_hold", "better_than_random"), ("uniform_hold", "better_than_uniform"))],
    (DIGITS[1], {"error_plain_20": 0.02}, ("better_than_fewer_steps",)),
    (DIGITS[1], {"error_uniform_hold_20": math.inf}, ()),
    (EXACT[1], {SCALAR: 1.0}, ()),  # of no claim
    # The preset default, worse than one of the fixed choices in one row.
    *[(row, {"error_default": error}, fails) for name, of_name in OF_DEFAULT.items() for row in of_name
      for error, fails in ((0.02, (name,)), (0.9 * 0.02 + 1e-4, (name,)), (0.9 * 0.02 - 1e-4, ()),
                           ([0.01, math.inf], (name,)))],
    *[(row, {f"error_{kind}_20": 0.01}, (name, *(OF_SCALAR[2:] if kind == "plain" and row in DIGITS[:2] else ())))
      for name, of_name in OF_DEFAULT.items() for row in of_name for kind in ("uniform_linear", "plain", "dpm_solver")
      if kind != "dpm_solver" or "_2m_" not in row],
    *[(row, {"error_uniform_linear_20": math.inf, "error_plain_20": math.inf}, ()) for row in (*EXACT, *GUIDED)],
    *[(row, {"error_default": 0.02}, ())  # of no claim
      for row in ("digits_empirical_ddim_n50", "mnist_euler_n50", "digits_ddim_n25")],
    ("digits_empirical_ddim_n50", {"error_mean_default": 0.02}, ("default_beats_fixed_empirical",)),
    ("digits_empirical_ddim_n50", {"error_mean_plain_20": 0.01}, ("default_beats_fixed_empirical",)),
    # Fewer calls than it is compared at would be a better error.
    (DIGITS[0], {"calls_default": 28.0}, ("default_beats_fixed",)),
    *[("toy_scalar", {f"error_{solver}": error}, fails) for solver in SOLVERS[:2]
      for error, fails in ((0.02, ()), (0.033, ("toy_better_than_uniform",)), (0.2, ("toy_better_than_uniform",)))],
    ("toy_scalar", {"error_2m": 0.2}, ()),
    *[("toy_default", {f"error_{solver}": error}, fails) for solver in SOLVERS
      for error, fails in ((0.0044, ()), (0.005, ("toy_default",)), (0.0046, ("toy_default",)))],
    ("toy_guidance1", {"calls_ddim": 22.5}, ("more_guidance_more_calls",)),
    ("toy_guidance7.5", {"calls_ddim": 21.5}, ("more_guidance_more_calls",)),
    ("toy_guidance7.5", {"calls_euler": 1.0}, ()),
    *[("toy_n100", {f"calls_{solver}": calls}, fails) for solver in SOLVERS
      for calls, fails in ((48.0, ()), (49.0, ("delta_transfers",)), (41.0, ()), (39.0, ("delta_transfers",)))],
    ("toy_n25", {"calls_2m": 13.0}, ("delta_transfers",)),
    *[("mnist_wall_clock", {f"speedup_{mode}_default": speed}, fails) for mode in ("shared", "per_sample")
      for speed, fails in ((1.9, ("wall_clock",)), (2.0, ()), ([1.8, 2.3], ()), (3.0, ()))],
    ("mnist_wall_clock", {"speedup_shared_safe": 0.5}, ()),
    *[("toy_masks", {f"error_uniform_linear_{solver}_20": error}, fails) for solver in SOLVERS
      for error, fails in ((0.01, ("linear_reuse",)), (0.0099, ()), (0.05, ("linear_reuse",)))],
    *[(row, {"truth_dpm_solver_20": error}, fails) for row in (EXACT[0], DIGITS[0])
      for error, fails in ((0.2, ("fidelity_is_not_truth",)), (0.19, ()), (0.3, ("fidelity_is_not_truth",)))],
    (DIGITS[0], {"truth_full": math.inf}, ("fidelity_is_not_truth",)),
    *[(row, {f"error_greedy_{reuse}_20": share * FIXED[f"uniform_{reuse}"]}, fails) for row in (EXACT[0], DIGITS[0])
      for reuse in ("hold", "linear") for share, fails in ((0.5, ("headroom",)), (0.49, ()), (1.0, ("headroom",)))],
]  # fmt: skip


def test_all_claims_hold_on_the_made_up_figures():
    assert {*verdicts(made_up()).values()} == {"holds"}


@pytest.mark.parametrize("row, changes, fails", CHANGES)
def test_what_turns_a_verdict(row, changes, fails):
    """And no other claim's."""
    found = verdicts(changed(row, changes))
    assert {name: verdict for name, verdict in found.items() if verdict != "holds"} == dict.fromkeys(fails, "fails")


def test_every_claim_can_fail():
    assert {name for _, _, fails in CHANGES for name in fails} == {claim.name for claim in TABLE.claims}
    assert TENTH == 0.9


@pytest.mark.parametrize("claim", TABLE.claims, ids=lambda claim: claim.name)
def test_a_claim_needs_its_rows_and_no_others(claim):
    """Without one of them it says that it was not run and which is missing; without any other it holds."""
    rows = made_up()
    assert claim.verdict(Values({name: rows[name] for name in claim.rows}))[0] == "holds"
    for missing in claim.rows:
        verdict, text = claim.verdict(Values({name: rows[name] for name in rows if name != missing}))
        assert verdict == "not run" and text.startswith(f"{missing}: no "), missing


def test_a_claim_is_not_run_where_nothing_is_known_of_so_many_calls():
    """More or fewer than the fixed choices made: nothing is guessed."""
    for calls in (12.0, 33.0):
        found = verdicts(changed(DIGITS[0], {"calls_default": calls}))
        assert {name for name, verdict in found.items() if verdict == "not run"} == {"default_beats_fixed"}


def test_seeds_are_averaged():
    """Two seeds that are far off on both sides, with the same mean; one more that is bad."""
    name = "error_default"
    for values, holds in (([0.005, 0.015], True), ([0.005, 0.015, 0.05], False)):
        assert (verdicts(changed(DIGITS[0], {name: values}))["default_beats_fixed"] == "holds") == holds


# --- Rows -------------------------------------------------------------------------------------------------------------


def test_presets_of_the_table_are_the_samplers():
    """Also those of the toy study, which has their options written out."""
    assert {*PRESET_NAMES} == {*PRESETS} and PRESET_NAMES[0] == "default"
    ours = {name: Adaptive(solver=SAMPLERS["ddim"](steps=50), **TOY[name][1]) for name in ("default", "accurate",
                                                                                          "fast", "paper")}  # fmt: skip
    for name, adaptive in ours.items():
        preset = Adaptive(solver=SAMPLERS["ddim"](steps=50), **with_preset(name, {}))
        assert preset.skipping() == adaptive.skipping() and preset.limits() == adaptive.limits(), name


@pytest.mark.parametrize("row", ["digits_ddim_n50", "toy_scalar", "toy_masks", "mnist_wall_clock"])
def test_a_changed_option_is_another_measurement(row):
    check = ROWS[row].small
    seen = [check.identity(0), check.identity(1)]
    for name, value in check.options.items():
        for other in (None, {} if isinstance(value, dict) else {"more": value}) if name != "config" else (
            "configs/exact.py:gaussians_mnist5k",):  # fmt: skip
            seen.append(dataclasses.replace(check, options={**check.options, name: other}).identity(0))
    if row == "digits_ddim_n50":
        policies = check.options["policies"]
        less = policies["scalar0.01_hold_c4"] | {"delta": 0.011}
        options = {**check.options, "policies": policies | {"scalar0.01_hold_c4": less}}
        seen.append(dataclasses.replace(check, options=options).identity(0))
    assert len(set(seen)) == len(seen) > 3
    assert dataclasses.replace(check, options=dict(reversed(check.options.items()))).identity(0) == seen[0]


def test_every_row_has_an_identity_and_options_that_can_be_made():
    """Its solver, its adaptive choices, and its fixed ones, by what they say themselves."""
    identities = [row.small.identity(0) for row in ROWS.values()]
    assert len(set(identities)) == len(identities)
    for name, row in ROWS.items():
        options = row.small.options
        if row.small.measure is not paired_images:
            continue
        solver = SAMPLERS[options["sampler"]](steps=options["steps"], **options["options"])
        for given in options["policies"].values():
            Adaptive(solver=solver, **with_preset(given.get("preset"), {k: v for k, v in given.items()
                                                                         if k != "preset"}))  # fmt: skip
        assert options["count"] >= 8 and (options["guidance"] == 1 or options["trained"]), name
        assert {*options["greedy"]} <= {*options["calls"]} and max(options["calls"]) < options["steps"]
    assert {row.rsplit("_n", 1)[0].rsplit("_", 1)[1] for row in DIGITS} == {*IMAGE_SOLVERS}


@pytest.fixture(scope="module")
def experiment():
    return build_experiment(resolve("configs/exact.py:gaussians_digits", {"process.name": "vp_linear"}))


LEARNT = sorted({(row.small.options["config"], row.small.options["process"]) for row in ROWS.values()
                 if row.small.measure is wall_clock or row.small.options.get("trained")})  # fmt: skip


@pytest.mark.parametrize("config, process", LEARNT)
def test_a_network_can_be_used_on_the_process_of_its_rows(tmp_path, monkeypatch, experiment, config, process):
    """Without training it: it is that of the seed, with the row's guidance, and only the process is another one."""
    asked = {}

    def load_run(config, workdir):
        run = dataclasses.replace(experiment, config=config, process=make_process(config))
        asked.update(config=config, workdir=workdir, run=run)
        return run, "weights", 7, "hash"

    monkeypatch.setattr("configs.tables.adaptive_diffusion_checks.trained_run",
                        lambda config, overrides, seed, folder: (None, folder / f"{config}-{seed}"))  # fmt: skip
    monkeypatch.setattr("training.inference.load_run", load_run)
    found, params = _experiment(config, process, 3.0, 5, tmp_path)
    assert asked["workdir"] == str(tmp_path / f"{config}-5") and params == "weights"
    assert (asked["config"].seed, asked["config"].sampler.guidance) == (5, 3.0)
    assert type(found.process.schedule).__name__.lower() == process.replace("_", "")
    if process == asked["config"].process.name:  # with the noise levels that it was trained with
        assert found.process == asked["run"].process
    assert dataclasses.replace(found, process=asked["run"].process).__dict__ == asked["run"].__dict__


# --- The measurements on a tiny problem -------------------------------------------------------------------------------

TINY = {"config": "configs/exact.py:gaussians_digits", "process": "vp_linear", "trained": False, "guidance": 1.0,
        "sampler": "ddim", "options": {"grid": "uniform"}, "steps": 10, "count": 9,
        "policies": {"all": {"criterion": "scalar", "delta": -1.0},
                     "some": {"criterion": "slope", "reuse": "linear", "delta": 1e9, "c_max": 1, "warmup": 2}},
        "calls": (7,), "greedy": (8,)}  # fmt: skip
EVERY = np.arange(10)
SEVEN = np.array([0, 1, 3, 4, 6, 7, 9])  # evenly spread, two first


@pytest.fixture(scope="module")
def figures(tmp_path_factory, quick_to_compile):
    return paired_images(0, tmp_path_factory.mktemp("run"), **TINY)


def plain_ddim(experiment, times, calls, count=9, label=None):
    """Images [count, pixels] from DDIM in float64 numpy that knows no other times than those of its calls.

    Holding the noise until the next call is one longer step of DDIM.
    """
    process, denoise = experiment.process, jax.jit(experiment.sampling_denoiser(experiment.params["score"]))
    x = np.asarray(process.prior(image_keys(0, jnp.arange(count)), experiment.image_shape), np.float64)
    for now, then in zip(times[calls], [*times[calls][1:], None]):
        said = denoise(jnp.asarray(x, jnp.float32), jnp.full(count, now, jnp.float32), label)
        x0 = np.asarray(said, np.float64)
        noise = (x - process.alpha(now) * x0) / process.sigma(now)
        x = x0 if then is None else process.alpha(then) * x0 + process.sigma(then) * noise
    return x.reshape(count, -1)


def uniform_times(process, steps):
    return np.linspace(process.time_max, process.time_min, steps)


def apart(x, y):
    """Relative distances."""
    return np.linalg.norm(x - y, axis=1) / np.linalg.norm(y, axis=1)


def test_all_figures_are_measured(figures):
    """Those that the made-up rows have, and no others."""
    assert {*figures} == {*image_figures(TINY, {})}
    assert np.isfinite([value for name, value in figures.items() if name not in ("psnr_full", "psnr_all")]).all()


def test_adaptive_choices(figures):
    """One that never skips is the solver itself; one that always wants to skips every second step after the second."""
    assert figures["calls_all"] == figures["calls_full"] == 10
    for name in ("all", "full"):
        assert figures[f"error_{name}"] == figures[f"error_mean_{name}"] == figures[f"error95_{name}"] == 0
        assert figures[f"psnr_{name}"] == math.inf and figures[f"ssim_{name}"] == pytest.approx(1.0)
    assert figures["truth_all"] == figures["truth_full"]
    assert figures["calls_some"] == 2 + 8 // 2
    assert 0.01 < figures["error_some"] < figures["error95_some"] < 1 and figures["ssim_some"] < 1


def test_fixed_choices_against_plain_numpy(experiment, figures):
    """Seven calls with held outputs, and seven steps; error, its mean and its percentile."""
    times = uniform_times(experiment.process, 10)
    reference, held = (plain_ddim(experiment, times, calls) for calls in (EVERY, SEVEN))
    fewer = plain_ddim(experiment, uniform_times(experiment.process, 7), np.arange(7))
    for name, x in (("uniform_hold_7", held), ("plain_7", fewer)):
        errors = apart(x, reference)
        expected = np.median(errors), np.mean(errors), np.percentile(errors, 95)
        found = [figures[f"{figure}_{name}"] for figure in ("error", "error_mean", "error95")]
        np.testing.assert_allclose(found, expected, rtol=1e-3)
    first = apart(held[:8], reference[:8])
    assert figures["calls_uniform_hold_7"] == 7 and np.median(first) != np.median(apart(held, reference))


def test_truth_against_plain_numpy(experiment, figures):
    """Errors to 1000 steps of DDIM, whose own error is a hundredth of that of ten."""
    fine = plain_ddim(experiment, uniform_times(experiment.process, 1000), np.arange(1000))
    ten = plain_ddim(experiment, uniform_times(experiment.process, 10), EVERY)
    assert figures["truth_full"] == pytest.approx(np.median(apart(ten, fine)), rel=0.05)
    assert 0 < figures["truth_full"] < figures["truth_plain_7"]
    assert figures["truth_dpm_solver_7"] < figures["truth_plain_7"]


def test_greedy_choices_are_no_worse_than_even_ones(experiment, figures):
    """On the first eight images, and there the even one is what plain numpy makes of it."""
    for reuse in ("hold", "linear"):
        assert 0 < figures[f"error_greedy_{reuse}_8"] <= figures[f"error_uniform_few_{reuse}_8"]
    times, eight = uniform_times(experiment.process, 10), np.array([0, 1, 2, 4, 5, 6, 8, 9])
    reference, held = (plain_ddim(experiment, times, calls)[:8] for calls in (EVERY, eight))
    assert figures["error_uniform_few_hold_8"] == pytest.approx(np.median(apart(held, reference)), rel=1e-3)


class Pixels:
    """Features: the pixels."""

    name, dimension, provenance, params = "pixels", 64, {}, {}

    def taps(self, params, images):
        return {"features": images.reshape(len(images), -1) / 127.5}


@pytest.mark.slow
def test_figures_of_a_guided_network(tmp_path, monkeypatch):
    """An exact denoiser in its place: labels by turns, guidance, and distances of features."""
    given = {"process.name": "vp_linear", "sampler.guidance": 3.0}
    guided = build_experiment(resolve(TINY["config"], given))
    asked = []
    checks = "configs.tables.adaptive_diffusion_checks"

    def made(*options):
        asked.append(options)
        return guided, guided.params["score"]

    monkeypatch.setattr(f"{checks}._experiment", made)
    monkeypatch.setattr(f"{checks}.features_of", lambda config, experiment, folder: Pixels())
    options = TINY | {"trained": True, "greedy": (), "guidance": 3.0}
    figures = paired_images(0, tmp_path, **options)
    assert asked == [(TINY["config"], "vp_linear", 3.0, 0, tmp_path)]
    assert {*figures} == {*image_figures(options, {})}
    times, label = uniform_times(guided.process, 10), jnp.arange(9) % 10
    reference, held = (plain_ddim(guided, times, calls, label=label) for calls in (EVERY, SEVEN))
    assert figures["error_uniform_hold_7"] == pytest.approx(np.median(apart(held, reference)), rel=1e-3)
    assert figures["features_all"] == 0 and figures["fd_all"] == figures["fd_full"]
    # Pixels of 0..255 in units of the range.
    rows = [np.round(127.5 * (np.clip(x, -1, 1) + 1)) / 127.5 for x in (held, reference)]
    between = np.square(rows[1] - np.roll(rows[1], 1, axis=0)).sum(1).mean()
    expected = math.sqrt(np.square(rows[0] - rows[1]).sum(1).mean() / between)
    assert figures["features_uniform_hold_7"] == pytest.approx(expected, rel=1e-2)
    from data.base import all_images

    real = all_images(guided.test).reshape(-1, 64) / 127.5
    assert figures["fd_uniform_hold_7"] == pytest.approx(frechet_distance_of_features(rows[0], real), rel=1e-2)


@pytest.mark.slow
def test_toy_policies(tmp_path):
    """Half of ten steps after the first two; and without skips all calls with no error, whatever the guidance is."""
    some = {"criterion": "slope", "delta": 1e9, "c_max": 1, "reuse": "linear", "warmup": 2, "steps": 10}
    figures = toy_policy(0, tmp_path, **some)
    assert {*figures} == {*toy_policy_figures(0, 0)}
    for solver in SOLVERS:
        assert figures[f"calls_{solver}"] == 6
        assert 1e-3 < figures[f"error_{solver}"] < figures[f"error95_{solver}"] < figures[f"truth_{solver}"] * 2 < 1


@pytest.mark.slow
def test_toy_policies_with_other_guidance(tmp_path):
    """Their errors are to all calls with the same guidance."""
    none = {"criterion": "scalar", "delta": -1.0, "c_max": 4, "reuse": "hold", "steps": 10}
    truths = []
    for guidance in (1.0, 3.0, 7.5):
        figures = toy_policy(0, tmp_path, guidance=guidance, **none)
        assert {figures[f"calls_{solver}"] for solver in SOLVERS} == {10}
        assert max(figures[f"error95_{solver}"] for solver in SOLVERS) < 1e-12
        truths.append(figures["truth_ddim"])
    assert truths[0] > 0 and truths == sorted(set(truths))


@pytest.mark.slow
def test_toy_masks(tmp_path):
    """Eight of ten calls: all figures; a greedy choice is no worse than the even one on the same images."""
    figures = toy_masks(0, tmp_path, calls=(8,), steps=10)
    assert {*figures} == {*toy_mask_figures({"calls": (8,)})}
    for solver in SOLVERS:
        for reuse in ("hold", "linear"):
            best, even = (figures[f"error_{kind}_{reuse}_{solver}_8"] for kind in ("greedy", "uniform_few"))
            assert 0 < best <= even
            assert even != figures[f"error_uniform_{reuse}_{solver}_8"]
        assert 0 < figures[f"truth_full_{solver}"] < figures[f"truth_plain_{solver}_8"]
    # The even ones by the study itself, and plain runs of eight steps.
    with jax.enable_x64(True):
        from evaluation.skip_study import errors, full, masked

        mask = np.isin(np.arange(10), [0, 1, 2, 4, 5, 6, 8, 9])
        even, plain = (errors(x, full(steps=10))[:, 0] for x in (masked(mask, "hold"), full(steps=8)))
    np.testing.assert_allclose([figures[f"error_uniform_hold_{solver}_8"] for solver in SOLVERS], even, rtol=1e-9)
    np.testing.assert_allclose([figures[f"error_plain_{solver}_8"] for solver in SOLVERS], plain, rtol=1e-9)


@pytest.mark.slow
def test_seconds_of_presets(tmp_path, monkeypatch, experiment):
    """Calls, errors and utilisation are those of the sampler itself on the same images and labels."""
    params = experiment.params["score"]
    monkeypatch.setattr("configs.tables.adaptive_diffusion_checks._experiment", lambda *given: (experiment, params))
    options = {name: TINY[name] for name in ("config", "process", "guidance", "sampler", "options", "steps")}
    options |= {"slots": 4, "requests": 8, "presets": ("default", "paper"), "repeats": 1}
    figures = wall_clock(0, tmp_path, **options)
    assert {*figures} == {*clock_figures(options)} and min(figures.values()) > 0
    keys, labels = image_keys(0, jnp.arange(8)), jnp.arange(8)

    def direct(name, mode, *some):
        """Images [8, pixels], calls [8] and utilisation, of some of the images at a time."""
        adaptive = Adaptive(solver=SAMPLERS["ddim"](steps=10), mode=mode, slots=4, **with_preset(name, {}))
        run = jax.jit(lambda keys, labels: adaptive.sample_with_report(
            experiment.sampling_denoiser(params), experiment.process, keys, labels, shape=experiment.image_shape
        ))  # fmt: skip
        found = [run(keys[part], labels[part]) for part in some]
        return (np.concatenate([samples.x0 for samples, _ in found]).reshape(8, -1),
                np.concatenate([report.calls for _, report in found]), float(found[0][1].utilisation))  # fmt: skip

    reference = plain_ddim(experiment, uniform_times(experiment.process, 10), EVERY, 8, labels)
    shared_calls = []
    for name in options["presets"]:
        for mode, parts in (("shared", (slice(0, 4), slice(4, 8))), ("per_sample", (slice(None),))):
            images, calls, utilisation = direct(name, mode, *parts)
            assert figures[f"calls_{mode}_{name}"] == pytest.approx(calls.mean())
            error = figures[f"error_{mode}_{name}"]
            assert error == pytest.approx(np.median(apart(images, reference)), rel=1e-3) and 0 < error < 0.3
            shared_calls += [calls] if mode == "shared" else []
        assert figures[f"utilisation_{name}"] == pytest.approx(utilisation) and 0 < utilisation <= 1
    assert shared_calls[0].max() < 10 and len({*shared_calls[1]}) == 2  # four images do not decide as the others
