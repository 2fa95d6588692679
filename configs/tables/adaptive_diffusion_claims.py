"""What the paper of AdaptiveDiffusion claims, and what this project does of its own preset; and whether it holds here.

A fixed choice is compared with an adaptive one at as many calls as that made in the mean, between two numbers of calls
by interpolating the logarithm of its error. Errors are to the images of the same solver with all its calls.
"""

from collections.abc import Callable, Iterable

import numpy as np

from configs.tables.base import Claim, NotRunError, Values

Predicate = Callable[[Values], tuple[bool, str]]

TENTH = 0.9
_PAPER_SOLVERS = ("ddim", "euler", "2m")
_DIGITS = tuple(f"digits_{solver}_n50" for solver in _PAPER_SOLVERS)
_COMPARED = _DIGITS[:2]
_WITHOUT_2M = "With DPM-Solver++ more steps call than any fixed choice was measured with."
_EXACT = tuple(f"digits_gaussians_{solver}_n50" for solver in _PAPER_SOLVERS)
_DEFAULT_ROWS = ("digits_gaussians_ddim_n50", "digits_ddim_n50")
_FIXED = ("uniform_linear", "plain", "dpm_solver")
_NOT_IN_PAPER = "not in the paper"


def at_calls(values: Values, row: str, kind: str, calls: float, figure: str = "error") -> float:
    """A figure of a fixed choice with so many calls, the mean over seeds, interpolated in its logarithm.

    Raises:
      NotRunError: the row has not this choice on both sides of `calls`.
    """
    start = f"{figure}_{kind}_"
    known = sorted(int(name.removeprefix(start)) for name in values.rows.get(row, {})
                   if name.startswith(start) and name.removeprefix(start).isdigit())  # fmt: skip
    if not known or not known[0] <= calls <= known[-1]:
        raise NotRunError(f"{row}: no {start}<calls> around {calls:.3g}")
    with np.errstate(divide="ignore"):  # no error at all
        logs = [np.log(values.get(row, f"{start}{n}").mean()) for n in known]
    return float(np.exp(np.interp(calls, known, logs)))


def against(values: Values, row: str, choice: str, kind: str, figure: str = "error") -> tuple[float, str]:
    """The error of an adaptive choice over that of a fixed one with as many calls, and the figures."""
    calls, error = (float(values.get(row, f"{name}_{choice}").mean()) for name in ("calls", figure))
    other = at_calls(values, row, kind, calls, figure)
    quotient = error / other if other else np.inf  # nothing is better than no error
    return quotient, f"{row}, {calls:.3g} calls: {choice} {error:.3g}, {kind} {other:.3g}"


def better(rows: Iterable[str], choice: str, kinds: Iterable[str], figure: str = "error") -> Predicate:
    """Holds where the choice has an error smaller by a tenth than every one of the fixed ones, in every row."""
    pairs = [(row, kind) for row in rows for kind in kinds if not (kind == "dpm_solver" and "_2m_" in row)]

    def predicate(values: Values) -> tuple[bool, str]:
        found = [against(values, row, choice, kind, figure) for row, kind in pairs]
        return all(quotient < TENTH for quotient, _ in found), "; ".join(text for _, text in found)

    return predicate


def _mean(values: Values, row: str, figure: str) -> float:
    return float(values.get(row, figure).mean())


def _lossless(values: Values) -> tuple[bool, str]:
    """The distance to test images is within a twentieth of that of all calls."""
    texts, holds = [], True
    for row in _DIGITS:
        calls, ours, full = (_mean(values, row, name) for name in ("calls_paper", "fd_paper", "fd_full"))
        holds &= ours < 1.05 * full
        texts.append(f"{row}: {calls:.3g} calls, Fréchet distance {ours:.3g}, all calls {full:.3g}, PSNR "
                     f"{_mean(values, row, 'psnr_paper'):.3g}")  # fmt: skip
    return holds, "; ".join(texts)


def _twice(values: Values) -> tuple[bool, str]:
    """Half of the calls or fewer."""
    calls = {row: _mean(values, row, "calls_paper") for row in _DIGITS}
    return all(made <= 25 for made in calls.values()), "; ".join(f"{row}: {n:.3g} of 50" for row, n in calls.items())


def _clock(values: Values) -> tuple[bool, str]:
    row = "mnist_wall_clock"
    texts, holds = [], True
    for mode in ("shared", "per_sample"):
        speed, calls, error = (_mean(values, row, f"{name}_{mode}_default") for name in ("speedup", "calls", "error"))
        holds &= speed >= 2
        texts.append(f"{mode}: {speed:.3g} times as fast, {calls:.3g} calls, error {error:.3g}")
    return holds, "; ".join(texts)


def _linear(values: Values) -> tuple[bool, str]:
    texts, holds = [], True
    for solver in _PAPER_SOLVERS:
        hold, linear = (_mean(values, "toy_masks", f"error_uniform_{reuse}_{solver}_20")
                        for reuse in ("hold", "linear"))  # fmt: skip
        holds &= linear < hold / 4
        texts.append(f"{solver}: {hold:.3g}, {linear:.3g}")
    return holds, "uniform grid, 20 calls, hold and linear: " + "; ".join(texts)


def _toy_against(names: Iterable[str], kind: str, solvers: Iterable[str] = _PAPER_SOLVERS) -> Predicate:
    """On the toy: the error of policies over that of a fixed choice at as many calls, each solver: less by a tenth."""
    def predicate(values: Values) -> tuple[bool, str]:
        texts, holds = [], True
        for name in names:
            for solver in solvers:
                calls, error = (_mean(values, f"toy_{name}", f"{figure}_{solver}") for figure in ("calls", "error"))
                other = at_calls(values, "toy_masks", f"{kind}_{solver}", calls)
                holds &= error < TENTH * other
                texts.append(f"{name}, {solver}, {calls:.3g} calls: {error:.3g}, {kind} {other:.3g}")
        return holds, "; ".join(texts)

    return predicate


def _truth(values: Values) -> tuple[bool, str]:
    """20 calls of DPM-Solver++ are nearer to the ODE than all 50 of DDIM."""
    texts, holds = [], True
    for row in ("digits_gaussians_ddim_n50", "digits_ddim_n50"):
        full, few, ours = (_mean(values, row, f"truth_{name}") for name in ("full", "dpm_solver_20", "default"))
        holds &= few < full < np.inf
        texts.append(f"{row}: all 50 calls {full:.3g}, default {ours:.3g}, DPM-Solver++ with 20 {few:.3g}")
    return holds, "; ".join(texts)


def _guidance(values: Values) -> tuple[bool, str]:
    """More guidance, more calls; the criterion and delta of the paper, DDIM."""
    rows = ("toy_guidance1", "toy_scalar", "toy_guidance7.5")
    calls = [_mean(values, row, "calls_ddim") for row in rows]
    return calls[0] < calls[1] < calls[2], "guidance 1, 3, 7.5: " + ", ".join(f"{n:.3g}" for n in calls) + " calls"


def _transfer(values: Values) -> tuple[bool, str]:
    """The share of steps that call is the same within a tenth for 25, 50 and 100 steps and all solvers."""
    rows = {25: "toy_n25", 50: "toy_scalar", 100: "toy_n100"}
    shares = {f"{solver} {n}": _mean(values, row, f"calls_{solver}") / n for n, row in rows.items()
              for solver in _PAPER_SOLVERS}  # fmt: skip
    return max(shares.values()) < 1.1 * min(shares.values()), ", ".join(f"{k}: {v:.0%}" for k, v in shares.items())


def _headroom(values: Values) -> tuple[bool, str]:
    """The best of a greedy search has less than half the error of the evenly spread choice, on the same 8 images."""
    texts, holds = [], True
    for row in _DEFAULT_ROWS:
        for reuse in ("hold", "linear"):
            best, even = (_mean(values, row, f"error_{kind}_{reuse}_20") for kind in ("greedy", "uniform_few"))
            holds &= best < even / 2
            texts.append(f"{row}, {reuse}: {best:.3g}, evenly spread {even:.3g}")
    return holds, "20 calls: " + "; ".join(texts)


CLAIMS = (
    Claim(name="twice_as_fast", text="Twice to five times as fast with 50 steps (here calls, of the paper's setting).",
          source="abstract", rows=_DIGITS, predicate=_twice,
          explanation="With DDIM it is. On grids that are even in the noise level or in log-SNR the criterion finds "
          "less to skip with the same delta."),
    Claim(name="nearly_lossless", text="Nearly lossless (here: with the paper's setting the Fréchet distance to test "
          "images rises by less than a twentieth).", source="abstract, figure 1", rows=_DIGITS, predicate=_lossless,
          explanation="Outputs held for up to four steps cost as much as a coarser grid. PSNR is above what others "
          "measured of it on large images, 24 to 26 dB. With DDIM the distance of the preset default, of linear reuse, "
          "rises by a fiftieth."),
    Claim(name="better_than_random", text="The criterion chooses better than chance: the paper's setting against "
          "random skips, both with held outputs.", source="section 3, in our words", rows=_COMPARED,
          predicate=better(_COMPARED, "scalar0.01_hold_c4", ("random_hold",)),
          explanation=f"On the toy study it does. {_WITHOUT_2M}"),
    Claim(name="better_than_uniform", text="And better than evenly spread calls, both with held outputs.",
          source="section 3, in our words", rows=_COMPARED,
          predicate=better(_COMPARED, "scalar0.01_hold_c4", ("uniform_hold",)),
          explanation=_WITHOUT_2M),
    Claim(name="better_than_fewer_steps", text="Skipping is better than fewer steps of the same solver, with as many "
          "calls.", source="figure 3", rows=_COMPARED,
          predicate=better(_COMPARED, "scalar0.01_hold_c4", ("plain",)),
          explanation="With DDIM and Euler held outputs are larger steps: it is a choice of a grid, and this one is "
          f"worse than the even one. {_WITHOUT_2M}"),
    Claim(name="toy_better_than_uniform", text="On the toy study it is better than evenly spread calls with DDIM and "
          "Euler.", source="section 3, in our words", rows=("toy_scalar", "toy_masks"),
          predicate=_toy_against(("scalar",), "uniform_hold", ("ddim", "euler")),
          explanation="By more than a tenth with DDIM, by less with Euler. With c_max 2 it has 0.58 of their error."),
    Claim(name="more_guidance_more_calls", text="Harder images get more calls: with guidance 1, 3 and 7.5.",
          source="figure 1, in our words", rows=("toy_guidance1", "toy_scalar", "toy_guidance7.5"),
          predicate=_guidance),
    Claim(name="delta_transfers", text="One delta serves all solvers and numbers of steps: the share of the steps that "
          "call stays within a tenth.", source="the paper's one setting", rows=("toy_n25", "toy_scalar", "toy_n100"),
          predicate=_transfer,
          explanation="Differences of increments depend on the length of the steps."),
    Claim(name="default_beats_fixed", text="Ours: with DDIM the preset default is nearer to all 50 calls than evenly "
          "spread calls with linear reuse, fewer steps, and DPM-Solver++, with as many calls.", source=_NOT_IN_PAPER,
          rows=_DEFAULT_ROWS, predicate=better(_DEFAULT_ROWS, "default", _FIXED)),
    Claim(name="default_beats_fixed_empirical", text="Ours: the same where the denoiser is that of the training digits "
          "themselves, mean errors.", source=_NOT_IN_PAPER, rows=("digits_empirical_ddim_n50",),
          predicate=better(("digits_empirical_ddim_n50",), "default", _FIXED, "error_mean"),
          explanation="Not than evenly spread calls. Either way all but a few images end at the same training image, "
          "and the few decide."),
    Claim(name="default_beats_fixed_euler", text="Ours: the same with Euler on Karras' grid and DPM-Solver++ on one of "
          "log-SNR.", source=_NOT_IN_PAPER, rows=(*_DIGITS[1:], *_EXACT[1:]),
          predicate=better((*_DIGITS[1:], *_EXACT[1:]), "default", _FIXED),
          explanation="These grids are already as even as the solvers need. The criterion asks for calls at low noise, "
          "where e changes fast and errors count little."),
    Claim(name="default_beats_fixed_guided", text="Ours: the same with DDIM on 28x28 digits, guidance 1, 3 and 7.5.",
          source=_NOT_IN_PAPER, rows=("mnist_ddim_n50", "mnist_ddim_n50_w3", "mnist_ddim_n50_w7.5"),
          predicate=better(("mnist_ddim_n50", "mnist_ddim_n50_w3", "mnist_ddim_n50_w7.5"), "default", _FIXED)),
    Claim(name="toy_default", text="Ours: on the toy study the preset default is nearer than evenly spread calls with "
          "linear reuse, all solvers.", source=_NOT_IN_PAPER, rows=("toy_default", "toy_masks"),
          predicate=_toy_against(("default",), "uniform_linear")),
    Claim(name="wall_clock", text="Ours: the preset default is at least twice as fast in seconds, in both modes.",
          source=_NOT_IN_PAPER, rows=("mnist_wall_clock",), predicate=_clock),
    Claim(name="linear_reuse", text="Ours: a line through the last two outputs is more than four times as accurate as "
          "the last one.", source=_NOT_IN_PAPER, rows=("toy_masks",), predicate=_linear),
    Claim(name="fidelity_is_not_truth", text="Ours: 20 calls of DPM-Solver++ are nearer to the ODE than all 50 of "
          "DDIM.", source=_NOT_IN_PAPER, rows=_DEFAULT_ROWS, predicate=_truth),
    Claim(name="headroom", text="Ours: a greedy search finds 20 calls with less than half the error of evenly spread "
          "ones.", source=_NOT_IN_PAPER, rows=_DEFAULT_ROWS, predicate=_headroom),
)  # fmt: skip
