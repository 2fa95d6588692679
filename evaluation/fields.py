"""Pictures of score fields in the plane: the learnt one beside the exact one, a row per time.

Both panels of a row have the same arrow scale. Colour is the error relative to the root mean square of the exact score
over p_t, which is the scale of the relative Fisher error: what is dark counts little, where points are.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from evaluation.figures import INK, new_figure, save_figure

SIDE = 24  # arrows in a row of a panel
_LONGEST = 1.25  # cells of the grid


class Field(NamedTuple):
    """Two scores on one grid.

    Attributes:
      title: of the row.
      error: relative Fisher error.
      points: [SIDE * SIDE, 2] where the scores are taken, from `grid_over`.
      learnt, exact: [SIDE * SIDE, 2] the scores.
      scale: root mean square of the exact score over p_t.
      shown: [n, 2] some draws of x_t, drawn behind the arrows.
    """

    title: str
    error: float
    points: Float[np.ndarray, "n 2"]
    learnt: Float[np.ndarray, "n 2"]
    exact: Float[np.ndarray, "n 2"]
    scale: float
    shown: Float[np.ndarray, "m 2"]


def grid_over(points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "m 2"]:
    """The centres of SIDE x SIDE squares that cover the middle 99 % of the points in both coordinates, and a margin."""
    low, high = np.quantile(points, [0.005, 0.995], axis=0)
    reach = 0.58 * max(float((high - low).max()), 1e-6)
    axis = reach * (2 * (np.arange(SIDE) + 0.5) / SIDE - 1)
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2) + (low + high) / 2


def save_fields(path: str | Path, fields: Sequence[Field]) -> None:
    """Writes a figure of one row per field: learnt score, exact score, arrows of one scale.

    Arrows longer than 1.25 cells are cut to that length: where p_t is nearly 0 scores are very large. The unit is the
    score's root mean square, one cell long.

    Raises:
      ValueError: for no fields.
    """
    if not fields:
        raise ValueError("there are no fields to draw")
    height = 3.9 * len(fields)
    figure = new_figure(8.4, height + 0.5)
    grid = figure.add_gridspec(
        len(fields), 3, width_ratios=(1, 1, 0.05), left=0.07, right=0.92, top=1 - 0.35 / (height + 0.5),
        bottom=0.3 / (height + 0.5), hspace=0.24, wspace=0.06,
    )
    for row, field in enumerate(fields):
        left, right, bar = (figure.add_subplot(grid[row, column]) for column in range(3))
        error = np.linalg.norm(field.learnt - field.exact, axis=1) / field.scale
        title = f"learnt, {field.title}: relative Fisher error {field.error:.2g}"
        arrows = _panel(left, field, field.learnt, np.minimum(error, 1), title)
        _panel(right, field, field.exact, None, f"exact, {field.title}").axes.tick_params(labelleft=False)
        colours = figure.colorbar(arrows, cax=bar, extend="max")
        colours.set_label("error / rms of the exact score", fontsize=8, color=INK)
        colours.ax.tick_params(labelsize=8, colors=INK)
    save_figure(path, figure)


def _panel(axes, field: Field, scores: np.ndarray, colour: np.ndarray | None, title: str):
    cell = float(np.ptp(field.points[:, 0])) / (SIDE - 1)
    lengths = np.linalg.norm(scores, axis=1, keepdims=True) / field.scale
    arrows = scores / field.scale * cell * np.minimum(1, _LONGEST / np.maximum(lengths, 1e-12))
    axes.scatter(*field.shown.T, s=1.5, c="#b8b8b8", linewidths=0, rasterized=True)
    style = {"pivot": "mid", "angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.0035}
    if colour is None:
        drawn = axes.quiver(*field.points.T, *arrows.T, color=INK, **style)
    else:
        drawn = axes.quiver(*field.points.T, *arrows.T, colour, cmap="viridis_r", clim=(0, 1), **style)
    for limits, values in ((axes.set_xlim, field.points[:, 0]), (axes.set_ylim, field.points[:, 1])):
        limits(values.min() - cell, values.max() + cell)
    axes.set_aspect("equal")
    axes.set_title(title, fontsize=10, color=INK)
    axes.tick_params(labelsize=8, colors=INK)
    return drawn
