"""The pictures of the Poisson midpoint table, from its ledger alone.

  python scripts/poisson_midpoint_pictures.py
  python scripts/poisson_midpoint_pictures.py --ledger=results/poisson_midpoint-small.jsonl

docs/poisson_midpoint_exact.png    quality against calls with exact denoisers, in units of the distance of exact draws
docs/poisson_midpoint_learnt.png   the same with networks, in units of the distance of training images
docs/poisson_midpoint_bias.png     bias of Langevin dynamics against the step, with closed forms as lines
docs/poisson_midpoint_spread.png   what one macro step for K fine steps adds to the deviation of samples, against K
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).absolute().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np

from configs.tables import TABLES
from configs.tables.base import NotRunError, Values
from configs.tables.document import values_of
from configs.tables.poisson_midpoint import EXACT, MICRO_STEPS
from configs.tables.poisson_midpoint_checks import closed_form
from evaluation.figures import INK, new_figure, save_figure
from scripts.plotting import BLUE, GREEN, ORANGE, PINK, RED, SKY, YELLOW, finish, line, points
from training.workdir import read_json_lines

DOCS, NAME = ROOT / "docs", "poisson_midpoint"
STYLES: dict[str, tuple[str, str, str]] = {
    "ddpm": (INK, "-", "DDPM"), "ddim": (INK, "--", "DDIM"), "heun": (YELLOW, "-", "Heun"),
    "dpm_solver": (GREEN, "--", "DPM-Solver++"), "sde_dpm_solver": (GREEN, "-", "SDE-DPM-Solver++"),
    "sa_solver": (SKY, "-", "SA-Solver"), "randomized_midpoint": (PINK, "-", "randomized midpoint"),
    "predictor_corrector": (YELLOW, "--", "predictor-corrector"), "lmc": (PINK, "--", "annealed Langevin"),
    "pmm_single": (RED, "-", "PMM of the paper, single"), "pmm_bernoulli": (RED, "--", "PMM of the paper, bernoulli"),
    "pmm_x0": (ORANGE, "--", "PMM, x0, closer ends"), "pmm_v": (BLUE, "-", "PMM, v, closer ends"),
}  # fmt: skip
MODE_COLOURS = {"bernoulli": BLUE, "single0": GREEN, "single": ORANGE}


def draw_quality(values: Values, path: Path, targets: dict[str, str], floor: float, learnt: bool) -> None:
    """One panel per target, one line per sampler, over the mean of `floor`."""
    figure = new_figure(3.7 * len(targets) + 2.2, 3.4)
    panels = figure.subplots(1, len(targets), squeeze=False)[0]
    for axes, (target, title) in zip(panels, targets.items()):
        unit = values.get(*((target, "fd_data") if learnt else (f"{target}_draws", "sliced_wasserstein"))).mean()
        highest = 0.0
        for label, (colour, style, name) in STYLES.items():
            row, prefix = (target, f"fd_{label}_nfe") if learnt else (f"{target}_{label}", "sliced_wasserstein_nfe")
            calls, distances = points(values, row, prefix)
            _, made = points(values, row, f"calls_{label}_nfe" if learnt else "calls_nfe")
            line(axes, made.mean(axis=1), distances / unit, colour, style, name, marker="o")
            highest = max(highest, float(distances[calls >= 20].mean(axis=1).max() / unit) if label == "ddpm" else 0.0)
        axes.axhline(1.0, color=INK, linewidth=0.6, linestyle=":")
        finish(axes, title, "network calls", "distance / that of " + ("training images" if learnt else "exact draws"),
               (10, 20, 40, 80, 200, 1000))
        axes.set_ylim(floor, 3 * highest)
        shown = [tick for tick in (0.7, 1, 1.5, 2, 3, 5, 10, 20, 30) if floor < tick < 3 * highest]
        axes.set_yticks(shown, [f"{tick:g}" for tick in shown])
    panels[-1].legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure.tight_layout()
    save_figure(path, figure)


def draw_bias(values: Values, path: Path) -> None:
    """Left: total bias of the overdamped chains and closed forms. Right: excess of the underdamped ones."""
    figure = new_figure(9.6, 3.8)
    left, right = figure.subplots(1, 2)
    fine = np.geomspace(0.025, 0.4, 60)
    a, bias = points(values, "lmc", "bias_a")
    left.plot(a, bias, "o", color=INK, markersize=4)
    left.plot(fine, [closed_form("single", x, 1) for x in fine], color=INK, linewidth=1, label="Langevin")
    for mode, colour in MODE_COLOURS.items():
        for k, style in ((8, "--"), (32, "-")):
            a, bias = points(values, f"plmc_{mode}_k{k}", "bias_a")
            left.plot(a, bias, "o", color=colour, markersize=4)
            left.plot(fine, [closed_form(mode, x, k) for x in fine], style, color=colour, linewidth=1,
                      label=f"{mode}, K = {k}")  # fmt: skip
    finish(left, "relative bias of the variance; lines: closed forms", "step size times precision", "", a)
    h, bias = points(values, "ulmc", "bias_a")
    line(right, h, bias, INK, "-", "underdamped Langevin, bias", marker="o")
    for mode in ("bernoulli", "single"):
        for k, style in ((8, "--"), (32, "-")):
            h, excess = points(values, f"pulmc_{mode}_k{k}", "excess_a")
            slope = float(values.get(f"pulmc_{mode}_k{k}", "slope").mean())
            line(right, h, excess, MODE_COLOURS[mode], style, f"{mode}, K = {k}, slope {slope:.2f}", marker="o")
    finish(right, "underdamped: excess over all micro steps", "step size", "", h)
    for axes in (left, right):
        axes.legend(fontsize=7, frameon=False)
    figure.tight_layout()
    save_figure(path, figure)


def draw_spread(values: Values, path: Path) -> None:
    """The excess of the deviation for three widths of Gaussian data."""
    figure = new_figure(10.5, 3.6)
    for axes, s in zip(figure.subplots(1, 3, sharey=True), (1, 0.5, 0.1)):
        for mode in ("bernoulli", "single"):
            k, excess = points(values, f"moments_{mode}", "excess_K", f"_s{s:g}")
            shown = excess[:, 0] > 1e-9  # none at all for single and K = 2
            line(axes, k[shown], excess[shown], MODE_COLOURS[mode], "-", mode, marker="o")
        finish(axes, f"data of standard deviation {s:g}", "K, fine steps in a macro step", "",
               [k for k in MICRO_STEPS if k not in (5, 40)])  # fmt: skip
        axes.legend(fontsize=8, frameon=False)
    figure.axes[0].set_ylabel("excess of the deviation over DDPM-1000", fontsize=9, color=INK)
    figure.tight_layout()
    save_figure(path, figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ledger", type=Path, default=ROOT / "results" / f"{NAME}-small.jsonl")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of the pictures; default docs")
    arguments = parser.parse_args()
    values = values_of(TABLES[NAME], "small", read_json_lines(arguments.ledger))
    exact = {target: about for target, (about, *_) in EXACT.items()}
    learnt = {"digits_learnt": "8x8 digits, a network", "mnist5k_learnt": "28x28 digits, a network"}
    try:
        draw_bias(values, arguments.out / f"{NAME}_bias.png")
        draw_spread(values, arguments.out / f"{NAME}_spread.png")
        draw_quality(values, arguments.out / f"{NAME}_exact.png", exact, 0.5, learnt=False)
        draw_quality(values, arguments.out / f"{NAME}_learnt.png", learnt, 0.5, learnt=True)
    except NotRunError as missing:
        sys.exit(f"error: {arguments.ledger}: {missing}; python scripts/reproduce.py --table={NAME} makes the figures "
                 "that are missing")


if __name__ == "__main__":
    main()
