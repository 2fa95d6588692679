"""Osada, Shing, Nishide, "Local Curvature Smoothing with Stein's Identity for Efficient Score Matching", NeurIPS 2024.

The rows that run here; `lcss_paper.py` has the paper's own rows and `lcss_claims.py` what it claims.
"""

from configs.tables.base import Check, Figure, Row, Run, Table
from configs.tables.lcss_checks import gamma, same_keys, step_time, wrong_kernel
from configs.tables.lcss_claims import CLAIMS
from configs.tables.lcss_paper import PAPER_ROWS

OBJECTIVES = ("dsm", "lcss", "ism", "ssm", "ssm_vr", "fd_ssm", "fd_ssm_vr")
# With their seeds; five of each would take more than the two hours that the table is meant to take on 2 CPU cores.
DENSITIES = {"checkerboard": 5, "swiss_roll": 3, "rings": 3, "mixture": 3}
TOY, NONAFFINE = "configs/toy2d.py:static", "configs/toy2d.py:lcss_nonaffine"
DIGITS, MNIST = "configs/digits.py:dsm", "configs/images.py:mnist5k_mlp"
TOY_STEPS, DIGITS_STEPS, MNIST_STEPS = 2000, 2000, 1000
QUIET = {"training.tensorboard": False}  # hundreds of short runs
# Time of a training step over that of DSM, about as the rows step_time_* measure it; ism has 6.7 and is given more.
COST = {"ism": 5.0, "ssm": 1.6, "ssm_vr": 1.6, "fd_ssm": 1.8, "fd_ssm_vr": 1.8}

FISHER = {"fisher_error": Figure("relative Fisher error")}
# Options of local LCSS that other objectives do not have.
_UNSET = {"objective.mode": None, "objective.local_c": None, "objective.control_variate": None}


def _densities() -> list[Row]:
    rows = [
        Row(name=f"{density}_{objective}", about=f"{density} with one noise level, {objective}", seeds=seeds,
            figures=FISHER,
            small=Run(TOY, QUIET | {"data.source": f"toy2d:{density}", "objective.name": objective,
                            "training.steps": TOY_STEPS}))
        for density, seeds in DENSITIES.items() for objective in OBJECTIVES
    ]  # fmt: skip
    rows += [
        Row(name=f"{density}_{objective}_equal_time", seeds=seeds, figures=FISHER,
            about=f"{density}, {objective}, with the steps that fit into DSM's time (1/{cost:g})",
            small=Run(TOY, QUIET | {"data.source": f"toy2d:{density}", "objective.name": objective,
                            "training.steps": round(TOY_STEPS / cost)}))
        for density, seeds in DENSITIES.items() for objective, cost in COST.items()
    ]  # fmt: skip
    clean = {"process.name": "static", "process.level": None, "evaluation.fisher_times": ()}
    rows.append(
        Row(name="checkerboard_clean_ssm_vr", about="SSM on the checkerboard itself, without noise", seeds=5,
            figures={"train_loss": Figure("training loss at the end"),
                     "train_loss_first": Figure("training loss at the beginning")},
            small=Run(TOY, QUIET | {"objective.name": "ssm_vr", "training.steps": TOY_STEPS, **clean}))
    )  # fmt: skip
    return rows


def _images() -> list[Row]:
    distances = {"fd*_test_classifier": Figure("Fréchet distance, classifier features"),
                 "kid*_test_classifier": Figure("kernel distance, the same features")}  # fmt: skip
    return [
        Row(name=f"{name}_{objective}", about=f"{about}, {objective}", seeds=seeds, figures=distances,
            small=Run(config, QUIET | {"objective.name": objective, "training.steps": steps}))
        for name, about, config, steps, seeds, objectives in (
            ("digits", "8x8 digits", DIGITS, DIGITS_STEPS, 3, ("dsm", "lcss", "ssm", "ssm_vr", "fd_ssm", "fd_ssm_vr")),
            ("mnist5k", "28x28 digits", MNIST, MNIST_STEPS, 1, ("dsm", "lcss", "ssm_vr", "fd_ssm_vr")))
        for objective in objectives
    ]  # fmt: skip


def _nonaffine() -> list[Row]:
    figures = FISHER | {"wasserstein*": Figure("Wasserstein distance of samples"),
                        "mass_error": Figure("largest error of a mode's mass")}  # fmt: skip
    main = ("last_increment", "lcss_c0.2", "lcss_c0.2_center")
    variants = {
        "ism": {"objective.name": "ism", **_UNSET},
        "ssm_vr": {"objective.name": "ssm_vr", **_UNSET},
        "last_increment": {"objective.name": "last_increment", **_UNSET},
        "last_increment_16_steps": {"objective.name": "last_increment", **_UNSET, "objective.simulation_steps": 16},
        **{f"lcss_c{c:g}": {"objective.local_c": c, "objective.control_variate": None} for c in (0.03, 0.2, 0.5)},
        **{f"lcss_c{c:g}_center": {"objective.local_c": c} for c in (0.03, 0.2, 0.5)},
        "lcss_c0.2_norm_x": {"objective.norm_at": "x"},
    }
    rows = [
        Row(name=f"nonaffine_{name}", about=f"double well without a kernel, {name}", figures=figures,
            small=Run(NONAFFINE, QUIET | overrides), seeds=3 if name in main else 1)
        for name, overrides in variants.items()
    ]  # fmt: skip
    # The same rates of noise and the same data; the drift towards 0 in place of the wells.
    vp = {"process.name": "vp_linear", "sigma_data": 1.0, "process.beta_min": 0.1, "process.beta_max": 40.0,
          "objective.name": "dsm", "sampler.name": "euler", "sampler.steps": 100,
          "objective.simulation_steps": None, **_UNSET}  # fmt: skip
    rows.append(
        Row(name="nonaffine_dsm_wrong_kernel", figures=FISHER,
            about="the same data, DSM with a Gaussian kernel as if it were the process's",
            small=Check(wrong_kernel, {"config": NONAFFINE, "vp": vp}))
    )  # fmt: skip
    return rows


def _checks() -> list[Row]:
    same = {"relative_difference": Figure("difference of the weights / weights"),
            "dsm_loss": Figure("DSM's loss at the end"),
            "lcss_loss": Figure("LCSS's loss at the end"),
            "dsm_fisher_error": Figure("DSM's Fisher error"),
            "lcss_fisher_error": Figure("LCSS's Fisher error")}  # fmt: skip
    variances = {"variance_ode": Figure("variance of ODE samples; 1 is right"),
                 "variance_sde": Figure("variance of SDE samples; 1 is right")}  # fmt: skip
    return [
        Row(name="same_keys_dsm_lcss", about="checkerboard, DSM and LCSS with the same seed and keys", figures=same,
            small=Check(same_keys, {"config": TOY, "one": "dsm", "other": "lcss"})),
        *(Row(name=f"step_time_{objective}", about=f"checkerboard, a training step of {objective} against one of lcss",
              figures={"ratio": Figure("time of a step / LCSS's")}, seeds=3,
              small=Check(step_time, {"config": TOY, "one": objective, "other": "lcss"}))
          for objective in OBJECTIVES if objective != "lcss"),
        *(Row(name=f"gamma_{g:g}", about=f"exact score of a Gaussian times gamma = {g:g}, without training", seeds=1,
              figures=variances, small=Check(gamma, {"gamma": g})) for g in (0.5, 0.8, 1.0, 1.2, 2.0, 10.0)),
    ]  # fmt: skip


LCSS = Table(
    name="lcss",
    title="Local curvature smoothing with Stein's identity (Osada et al., NeurIPS 2024)",
    rows=(*_densities(), *_images(), *_nonaffine(), *_checks(), *PAPER_ROWS),
    claims=CLAIMS,
)
