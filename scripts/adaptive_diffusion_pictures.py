"""The pictures of the table of adaptive sampling, from its ledger; and, sampled anew without a network, of its masks.

  python scripts/adaptive_diffusion_pictures.py

docs/adaptive_diffusion_fronts.png   error to the full sampler's images against calls
docs/adaptive_diffusion_clock.png    the same against seconds, of the presets in both modes
docs/adaptive_diffusion_masks.png    which steps of which images called, and how many calls images took
"""

import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).absolute().parent.parent
sys.path.insert(0, str(ROOT))

import jax
import jax.numpy as jnp
import numpy as np

from configs.overrides import resolve
from configs.tables import TABLES
from configs.tables.adaptive_diffusion import IMAGE_SOLVERS, PRESET_NAMES, TARGETS, image_row
from configs.tables.base import NotRunError, Values
from configs.tables.document import values_of
from diffusion.random import image_keys
from evaluation.figures import INK, new_figure, save_figure
from samplers.adaptive import Adaptive, with_preset
from samplers.ddim import DDIM
from scripts.plotting import BLUE, GREEN, ORANGE, RED, SKY, finish, line, points
from training.experiment import build_experiment
from training.workdir import read_json_lines

DOCS, NAME = ROOT / "docs", "adaptive_diffusion"
TITLES = {"ddim": "DDIM, grid uniform in time", "euler": "Euler, Karras' grid", "2m": "DPM-Solver++, grid of log-SNR"}
FIXED = {"uniform_hold": (INK, "--", "evenly spread, hold"), "uniform_linear": (INK, "-", "evenly spread, linear"),
         "random_hold": (SKY, "--", "random, hold"), "plain": (GREEN, "-", "fewer steps"),
         "dpm_solver": (GREEN, "--", "fewer steps, DPM-Solver++")}  # fmt: skip
SCALAR = tuple(f"scalar{delta}_hold_c4" for delta in (0.002, 0.005, 0.01, 0.02, 0.05))
SLOPE = ("slope0.03_linear_c2", "slope0.05_linear_c2", "default", "slope0.2_linear_c2")
MARKS = {"default": "*", "paper": "s", "safe": "v", "accurate": "D", "fast": "^"}
IMAGES, STEPS = 96, 50


def adaptive_points(values: Values, row: str, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Calls [N] and errors [N, seeds] of adaptive choices, by calls."""
    calls = np.array([values.get(row, f"calls_{name}").mean() for name in names])
    errors = np.array([values.get(row, f"error_{name}") for name in names])
    order = np.argsort(calls)
    return calls[order], errors[order]


def draw_fronts(values: Values, path: Path) -> None:
    """A panel for each solver (columns) and target (rows)."""
    targets = ("digits_gaussians", "digits")
    figure = new_figure(10.0, 7.0)
    for axes, (target, solver) in zip(figure.subplots(2, 3).flat, [(t, s) for t in targets for s in TITLES]):
        row = image_row(target, solver, STEPS, 1.0)
        for kind, (colour, style, label) in FIXED.items():
            if kind == "dpm_solver" and solver == "2m":
                continue
            line(axes, *points(values, row, f"error_{kind}_"), colour, style, label, marker=".")
        for names, colour, label in ((SCALAR, RED, "scalar, hold, up to 4 (the paper)"),
                                     (SLOPE, BLUE, "slope, linear, up to 2 (ours)")):  # fmt: skip
            line(axes, *adaptive_points(values, row, names), colour, "-", label, marker="o")
        for name, mark in MARKS.items():
            calls, error = (values.get(row, f"{figure}_{name}").mean() for figure in ("calls", "error"))
            colour = RED if name in ("paper", "safe") else BLUE
            axes.plot(calls, error, mark, color=colour, markersize=12 if mark == "*" else 7, markeredgecolor="white",
                      label=f"preset {name}", linestyle="none", zorder=5)  # fmt: skip
        finish(axes, f"{TARGETS[target][0]}\n{TITLES[solver]}", "calls of 50 steps", "error to all calls",
               (13, 16, 20, 25, 32, 40))
        axes.set_xlim(12, 46)
        axes.set_ylim(1.2e-3, 0.15)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    figure.legend(handles, labels, fontsize=8, frameon=False, loc="lower center", ncols=4)
    save_figure(path, figure)


def draw_clock(values: Values, path: Path) -> None:
    """Errors of the presets against how much faster they are."""
    figure = new_figure(5.2, 3.6)
    axes = figure.subplots()
    for mode, colour in (("shared", ORANGE), ("per_sample", BLUE)):
        for name in PRESET_NAMES:
            speed, error, calls = (float(values.get("mnist_wall_clock", f"{what}_{mode}_{name}").mean())
                                   for what in ("speedup", "error", "calls"))  # fmt: skip
            axes.plot(speed, error, MARKS[name], color=colour, markersize=8, linestyle="none",
                      label=f"{name}, {mode}, {calls:.3g} calls")  # fmt: skip
    axes.axvline(1.0, color=INK, linewidth=0.6, linestyle=":")
    axes.set_yscale("log")
    axes.set_title("28x28 digits, DDIM, 50 steps, guidance 3", fontsize=10, color=INK)
    axes.set_xlabel("times as fast as all calls, in seconds", fontsize=9, color=INK)
    axes.set_ylabel("error to all calls", fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=INK, which="both")
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure.tight_layout()
    save_figure(path, figure)


def masks(preset: str) -> tuple[np.ndarray, np.ndarray]:
    """[images, steps] which steps called, and [images] calls, on the exact denoiser of a Gaussian per class."""
    process, _, options = IMAGE_SOLVERS["ddim"]
    experiment = build_experiment(resolve(TARGETS["digits_gaussians"][1], {"process.name": process}))
    adaptive = Adaptive(solver=DDIM(steps=STEPS, **options), mode="per_sample", **with_preset(preset, {}))

    def run(params: Any, keys: Any) -> Any:
        report = adaptive.sample_with_report(experiment.denoiser(params), experiment.process, keys, None,
                                             shape=experiment.image_shape)[1]  # fmt: skip
        return report.called, report.calls

    called, calls = jax.jit(run)(experiment.params["score"], image_keys(0, jnp.arange(IMAGES)))
    return np.asarray(called), np.asarray(calls)


def draw_masks(path: Path) -> None:
    """Upper row: masks, images ordered by calls. Lower row: how many images took how many calls."""
    presets = ("paper", "safe", "default")
    figure = new_figure(10.5, 5.0)
    panels = figure.subplots(2, len(presets), height_ratios=(2, 1))
    for preset, above, below in zip(presets, *panels):
        called, calls = masks(preset)
        above.imshow(called[np.argsort(calls, kind="stable")], cmap="Blues", vmin=0, vmax=1.3, aspect="auto",
                     interpolation="nearest")  # fmt: skip
        above.set_title(f"preset {preset}: {calls.mean():.1f} of {STEPS} calls", fontsize=10, color=INK)
        above.set_xlabel("step (blue: a call)", fontsize=9, color=INK)
        above.set_ylabel("image", fontsize=9, color=INK)
        below.hist(calls, bins=np.arange(12.5, 40.5), color=BLUE, edgecolor="white", linewidth=0.5)
        below.set_xlabel("calls of an image", fontsize=9, color=INK)
        below.set_ylabel("images", fontsize=9, color=INK)
        for axes in (above, below):
            axes.tick_params(labelsize=8, colors=INK)
    figure.tight_layout()
    save_figure(path, figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ledger", type=Path, default=ROOT / "results" / f"{NAME}-small.jsonl",
                        help=f"default results/{NAME}-small.jsonl")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of the pictures; default docs")
    arguments = parser.parse_args()
    values = values_of(TABLES[NAME], "small", read_json_lines(arguments.ledger))
    try:
        draw_masks(arguments.out / f"{NAME}_masks.png")
        draw_fronts(values, arguments.out / f"{NAME}_fronts.png")
        draw_clock(values, arguments.out / f"{NAME}_clock.png")
    except NotRunError as missing:
        sys.exit(f"error: {arguments.ledger}: {missing}; python scripts/reproduce.py --table={NAME} makes the figures "
                 "that are missing")


if __name__ == "__main__":
    main()
