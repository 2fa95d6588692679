"""The pictures of docs/lcss.md, from the runs that scripts/reproduce.py left in its workdir.

  python scripts/lcss_pictures.py --runs=runs/reproduce/lcss-small

docs/lcss_curves.png      DSM and LCSS with the same keys: two curves, one model; SSM on data without noise: no minimum
docs/lcss_field.png       the score that LCSS learns of the checkerboard at one noise level, beside the exact one
docs/lcss_samples.png     Langevin samples of the scores that every objective learns of three densities
docs/lcss_nonaffine.png   the score of the double-well process by local LCSS at three times, beside the exact ones
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).absolute().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np

from configs.tables.lcss import OBJECTIVES
from evaluation.array_files import load_arrays
from evaluation.figures import INK, new_figure, save_figure
from evaluation.files import write_whole
from training.metric_writers import read_metrics

DOCS = ROOT / "docs"
# Okabe and Ito's colours, told apart by colour-blind readers too.
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
WIDTH, COLOURS = 760, 64


def newest(runs: Path, row: str) -> Path:
    """The folder of a row's last run. Raises FileNotFoundError naming the command that makes it."""
    found = sorted((marker.parent for marker in runs.glob(f"{row}-seed*-*/finished.json")),
                   key=lambda path: path.stat().st_mtime)  # fmt: skip
    if not found:
        raise FileNotFoundError(f"{runs} has no finished run of {row}; python scripts/reproduce.py --table=lcss "
                                f"--rows={row} makes one")
    return found[-1]


def curve(workdir: Path, metric: str) -> tuple[list[int], list[float]]:
    """Steps and values of a training metric."""
    values = read_metrics(workdir)[f"score/{metric}"]
    return list(values), list(values.values())


def draw_curves(runs: Path, path: Path) -> None:
    """Left: the same training seen through two losses. Right: SSM on the board itself."""
    figure = new_figure(9.6, 3.6)
    same, clean = newest(runs, "same_keys_dsm_lcss"), newest(runs, "checkerboard_clean_ssm_vr")
    left, right = figure.subplots(1, 2)
    left.plot(*curve(same / "dsm", "loss"), color=BLUE, linewidth=4, alpha=0.4, label="DSM: loss")
    left.plot(*curve(same / "lcss", "dsm_equivalent"), color=INK, linewidth=1, label="LCSS: loss + $|z|^2/2b^2$")
    left.plot(*curve(same / "lcss", "loss"), color=ORANGE, linewidth=1.5, label="LCSS: loss")
    left.set_title("checkerboard with noise, same keys", fontsize=10, color=INK)
    left.legend(fontsize=8, frameon=False)
    right.plot(*curve(clean, "loss"), color=GREEN, linewidth=1.5)
    right.set_title("SSM-VR on the checkerboard without noise", fontsize=10, color=INK)
    for axes in (left, right):
        axes.set_xlabel("step", fontsize=9, color=INK)
        axes.tick_params(labelsize=8, colors=INK)
    left.set_ylabel("loss per coordinate", fontsize=9, color=INK)
    figure.tight_layout()
    save_figure(path, figure)


def draw_samples(runs: Path, path: Path) -> None:
    """A row of panels per density, a column per objective."""
    densities = ("swiss_roll", "rings", "mixture")
    figure = new_figure(1.5 * len(OBJECTIVES), 1.6 * len(densities))
    panels = figure.subplots(len(densities), len(OBJECTIVES), squeeze=False)
    for density, line in zip(densities, panels):
        for objective, axes in zip(OBJECTIVES, line):
            parts = sorted(newest(runs, f"{density}_{objective}").glob("generated/*/*.npz"))
            points = np.concatenate([load_arrays(part)[0]["image"] for part in parts])
            axes.scatter(*points.T, s=0.5, color=BLUE, linewidths=0)
            axes.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal", xticks=[], yticks=[])
            if density == densities[0]:
                axes.set_title(objective, fontsize=9, color=INK)
        line[0].set_ylabel(density, fontsize=9, color=INK)
    figure.tight_layout()
    save_figure(path, figure)
    shrink(path, path)


def shrink(picture: Path, path: Path) -> None:
    """A copy that is small enough for the repository."""
    from PIL import Image

    image = Image.open(picture).convert("RGB")
    image.thumbnail((WIDTH, 10 * WIDTH))
    write_whole(path, lambda file: image.quantize(COLOURS).save(file, format="png", optimize=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "reproduce" / "lcss-small")
    runs = parser.parse_args().runs
    try:
        draw_curves(runs, DOCS / "lcss_curves.png")
        draw_samples(runs, DOCS / "lcss_samples.png")
        for row, name in (("checkerboard_lcss", "lcss_field"), ("nonaffine_lcss_c0.2_center", "lcss_nonaffine")):
            (field,) = newest(runs, row).glob("figures/*-field.png")
            shrink(field, DOCS / f"{name}.png")
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
