"""What the LCSS paper claims, and whether the small rows agree.

DSM's loss is LCSS's plus a term without parameters, |z|^2 / (2 sigma^2) (scoring/lcss.py). So every claim that the two
differ, in either direction, should fail.
"""

import numpy as np

from configs.tables.base import Claim, Values, compare, mean_and_spread

SURE = 2.0  # standard errors
_SAME = ("LCSS as printed is DSM minus a term that has no parameters: same gradients, same cost, same minimum. Any "
         "difference comes from something else.")  # fmt: skip
_RIVALS = ("ssm", "ssm_vr", "fd_ssm", "fd_ssm_vr")
_IMAGE_RIVALS = ("ssm_vr", "fd_ssm_vr")


def _less(figure: str, pairs: list[tuple[str, str]]):
    """Holds where the first of each pair lies below the second by `SURE` standard errors."""
    def predicate(values: Values) -> tuple[bool, str]:
        compared = [compare(values, figure, *pair) for pair in pairs]
        text = "; ".join(f"{text}: {errors:+.1f} s.e." for errors, text in compared)
        return all(errors < -SURE for errors, _ in compared), text

    return predicate


def _slower(objectives: tuple[str, ...]):
    """Holds where a step of each takes longer than LCSS's, by a hundredth and beyond `SURE` standard errors."""
    def predicate(values: Values) -> tuple[bool, str]:
        low, texts = [], []
        for name in objectives:
            ratios = values.get(f"step_time_{name}", "ratio")
            mean, spread = mean_and_spread(ratios)
            low.append(mean - SURE * spread / len(ratios) ** 0.5)
            texts.append(f"{name} / lcss {mean:.3g} ± {spread:.2g} (n={len(ratios)})")
        return min(low) > 1.01, "; ".join(texts)

    return predicate


def _differ(values: Values) -> tuple[bool, str]:
    """By more than training makes of rounding errors: a tenth of the error that is left."""
    difference = values.get("same_keys_dsm_lcss", "relative_difference")
    errors = [values.get("same_keys_dsm_lcss", f"{name}_fisher_error") for name in ("dsm", "lcss")]
    gap = float(np.abs(errors[0] - errors[1]).max())
    text = (f"weights differ by {difference.max():.2g} of their norm at most (n={len(difference)}), Fisher errors by "
            f"{gap:.2g} around {errors[0].mean():.3g}")  # fmt: skip
    return bool(gap > 0.1 * errors[0].mean()), text


def _close(values: Values) -> tuple[bool, str]:
    errors, text = compare(values, "fisher_error", "checkerboard_lcss", "checkerboard_dsm")
    return abs(errors) <= SURE, f"{text}: {errors:+.1f} s.e."


def _runs_away(values: Values) -> tuple[bool, str]:
    first, last = (values.get("checkerboard_clean_ssm_vr", name) for name in ("train_loss_first", "train_loss"))
    text = f"loss {first.mean():.3g} -> {last.mean():.3g} (n={len(last)})"
    return bool(not np.isfinite(last).all() or (last < 3 * np.minimum(first, -1.0)).all()), text


def _collapses(values: Values) -> tuple[bool, str]:
    """A factor of two is far less than black images are."""
    ours, dsm = (values.get(f"digits_{name}", "fd*_test_classifier") for name in ("ssm_vr", "dsm"))
    return bool(not np.isfinite(ours).all() or (ours > 2 * dsm.max()).all()), (
        f"FD {ours.mean():.3g} (n={len(ours)}), DSM's {dsm.mean():.3g} (n={len(dsm)})")


def _nonaffine(values: Values) -> tuple[bool, str]:
    lcss, wrong = (values.get(f"nonaffine_{name}", "fisher_error") for name in ("lcss_c0.2_center", "dsm_wrong_kernel"))
    text = f"Fisher error {lcss.mean():.3g} (n={len(lcss)}); of DSM with a Gaussian kernel {wrong.mean():.3g}"
    return bool(lcss.max() < 0.05 and wrong.min() > 0.3), text


def _gamma(values: Values) -> tuple[bool, str]:
    low, one, high = (values.get(f"gamma_{g}", "variance_sde").mean() for g in ("0.5", "1", "10"))
    text = f"variance of SDE samples {low:.3g}, {one:.3g}, {high:.3g} for gamma 0.5, 1, 10"
    return bool(low > 2 * one and high < 0.5 * one and abs(one - 1) < 0.1), text


CLAIMS = (
    Claim(name="faster_than_ssm", text="LCSS trains faster than SSM and FD-SSM.", source="table 2",
          rows=tuple(f"step_time_{name}" for name in _RIVALS), predicate=_slower(_RIVALS),
          explanation="One forward and backward pass against two, or against a derivative of a derivative."),
    Claim(name="faster_than_dsm", text="LCSS trains faster than DSM.", source="table 2",
          rows=("step_time_dsm",), predicate=_slower(("dsm",)), explanation=_SAME),
    Claim(name="clearer_than_ssm", text="LCSS learns the checkerboard more clearly than SSM and FD-SSM.",
          source="table 1, section 4.2.1", rows=tuple(f"checkerboard_{name}" for name in ("lcss", *_RIVALS)),
          predicate=_less("fisher_error", [("checkerboard_lcss", f"checkerboard_{r}") for r in _RIVALS]),
          explanation="At equal steps and the same noise level. All learn the same score; SSM only adds the variance "
                      "of a probe, little in two dimensions. Without it (ism) the error is that of LCSS."),
    Claim(name="clearer_in_equal_time", text="The same, with as much time for each.", source="table 1, section 4.2.1",
          rows=("checkerboard_lcss", *(f"checkerboard_{r}_equal_time" for r in _RIVALS)),
          predicate=_less("fisher_error", [("checkerboard_lcss", f"checkerboard_{r}_equal_time") for r in _RIVALS]),
          explanation="SSM gets 1/1.6 of the steps and FD-SSM 1/1.8, as their gradients cost."),
    Claim(name="close_to_dsm", text="On the checkerboard LCSS is close to DSM.", source="section 4.2.1",
          rows=("checkerboard_lcss", "checkerboard_dsm"), predicate=_close, explanation=_SAME),
    Claim(name="differs_from_dsm", text="LCSS is another objective than DSM and learns another model.",
          source="sections 2.4, 4.2.3", rows=("same_keys_dsm_lcss",), predicate=_differ, explanation=_SAME),
    Claim(name="better_than_dsm", text="On images LCSS gives better samples than DSM.",
          source="figures 5 and 6, table 4", rows=("digits_lcss", "digits_dsm"),
          predicate=_less("fd*_test_classifier", [("digits_lcss", "digits_dsm")]), explanation=_SAME),
    Claim(name="worse_fid_than_dsm", text="The FID of LCSS tends to be worse than DSM's.",
          source="table 3, section 4.2.3", rows=("digits_lcss", "digits_dsm"),
          predicate=_less("fd*_test_classifier", [("digits_dsm", "digits_lcss")]), explanation=_SAME),
    Claim(name="better_images_than_ssm", text="On images LCSS gives better samples than SSM and FD-SSM.",
          source="figures 2 to 4", rows=tuple(f"digits_{name}" for name in ("lcss", *_IMAGE_RIVALS)),
          predicate=_less("fd*_test_classifier", [("digits_lcss", f"digits_{r}") for r in _IMAGE_RIVALS])),
    Claim(name="ssm_collapses", text="On images SSM collapses during training.", source="section 4.2.3",
          rows=("digits_ssm_vr", "digits_dsm"), predicate=_collapses),
    Claim(name="ssm_runs_away", text="SSM is unstable; here, on data without noise, its loss has no minimum.",
          source="section 4.2.3 (collapse)", rows=("checkerboard_clean_ssm_vr",), predicate=_runs_away,
          explanation="Data of compact support have no score to match at their edge, and the loss falls without end."),
    Claim(name="nonaffine", text="LCSS does not need an affine SDE.", source="section 2.4",
          rows=("nonaffine_lcss_c0.2_center", "nonaffine_dsm_wrong_kernel"), predicate=_nonaffine,
          explanation="Not as printed, with the noise around the clean sample, which needs a Gaussian kernel; but in "
                      "mode local, around a simulated x_t."),
    Claim(name="gamma_ablation", text="gamma = 0.5 leaves only noise, gamma = 10 contours without texture.",
          source="section 4.4, figure 7", rows=("gamma_0.5", "gamma_1", "gamma_10"), predicate=_gamma,
          explanation="The minimum is gamma times the score: no training is needed to see what that does to samples."),
)  # fmt: skip
