"""What the pictures of the tables share: colours, lines over seeds, axes."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from configs.tables.base import NotRunError, Values
from evaluation.figures import INK

# Okabe and Ito's colours, told apart by colour-blind readers too; solid and dashed share them.
BLUE, ORANGE, GREEN, RED, SKY, PINK, YELLOW = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7",
                                               "#F0E442")  # fmt: skip


def points(values: Values, row: str, prefix: str, suffix: str = "") -> tuple[np.ndarray, np.ndarray]:
    """The number in the names of all figures "<prefix><number><suffix>" of a row, ascending, and [N, seeds] values."""
    pattern = re.compile(re.escape(prefix) + r"([0-9.]+)" + re.escape(suffix))
    found = {float(match[1]): name for name in values.rows.get(row, {}) if (match := pattern.fullmatch(name))}
    if not found:
        raise NotRunError(f"{row}: no {prefix}...{suffix}")
    order = sorted(found)
    return np.array(order), np.array([values.get(row, found[key]) for key in order])


def line(axes: Any, x: np.ndarray, y: np.ndarray, colour: str, style: str, label: str, **more: Any) -> None:
    """The mean over seeds, with the band from the lowest to the highest where there are several."""
    y = np.where(np.isfinite(y), y, np.nan)
    axes.plot(x, y.mean(axis=1), color=colour, linestyle=style, label=label, linewidth=1.4, markersize=3, **more)
    if y.shape[1] > 1:
        axes.fill_between(x, y.min(axis=1), y.max(axis=1), color=colour, alpha=0.15, linewidth=0)


def finish(axes: Any, title: str, x: str, y: str, ticks: Sequence[float]) -> None:
    """Logarithmic axes, with labels at `ticks` of the horizontal one and at powers of ten of the other."""
    from matplotlib.ticker import NullFormatter, NullLocator

    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(list(ticks), [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(title, fontsize=10, color=INK)
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=INK)
