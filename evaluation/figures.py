"""Pictures of samples: grids, real beside generated, the way from noise to image, point clouds.

Small images are enlarged by whole pixels, never smoothed, so that what is seen is what was generated.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8

from evaluation.files import write_whole

_DPI = 160
INK = "#222222"
# Blue and orange of Okabe and Ito: told apart by colour-blind readers too.
_REAL, _GENERATED = "#0072B2", "#E69F00"


def _default_scale(side: int) -> int:
    """Enlarges images to at least 64 pixels a side."""
    return max(1, -(-64 // side))


def image_grid(
    images: UInt8[np.ndarray, "n h w c"], columns: int, *, scale: int | None = None
) -> UInt8[np.ndarray, "height width 3"]:
    """Images side by side, row by row, on white, with a margin around each.

    Args:
      images: N images of 0..255, grey (C = 1) or RGB (C = 3).
      columns: images in a row; the last row may be shorter.
      scale: whole-number enlargement; None: to at least 64 pixels a side.

    Raises:
      ValueError: for no images, another number of channels, or columns or scale below 1.
    """
    n, height, width, channels = images.shape
    scale = _default_scale(min(height, width)) if scale is None else scale
    if n == 0 or channels not in (1, 3):
        raise ValueError(f"a grid needs at least one image of 1 or 3 channels, got shape {images.shape}")
    if columns < 1 or scale < 1:
        raise ValueError(f"columns and scale must be at least 1, got {columns} and {scale}")
    columns = min(columns, n)
    rows = -(-n // columns)
    margin = max(2, min(height, width) * scale // 16)
    large = images.repeat(scale, axis=1).repeat(scale, axis=2)
    cell_height, cell_width = height * scale + margin, width * scale + margin
    canvas = np.full((rows * cell_height + margin, columns * cell_width + margin, 3), 255, np.uint8)
    for i, image in enumerate(large):
        top, left = margin + i // columns * cell_height, margin + i % columns * cell_width
        canvas[top : top + height * scale, left : left + width * scale] = image  # grey broadcasts over RGB
    return canvas


def save_grid(
    path: str | Path, images: UInt8[np.ndarray, "n h w c"], columns: int, *, scale: int | None = None
) -> None:
    """Writes `image_grid` as a PNG."""
    from PIL import Image

    grid = Image.fromarray(image_grid(images, columns, scale=scale))
    write_whole(path, lambda file: grid.save(file, format="png"))


def new_figure(width: float, height: float):
    """A matplotlib figure in inches; drawn without pyplot, which would keep it alive and may ask for a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_figure(path: str | Path, figure) -> None:
    """Writes a figure as a PNG, whole or not at all."""
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=_DPI, pil_kwargs={"optimize": True}))


def _place(figure, picture: np.ndarray, left: float, top: float, width: float, height: float) -> None:
    """Puts a picture at a place given in inches from the top left corner."""
    total_width, total_height = figure.get_size_inches()
    axes = figure.add_axes(
        (left / total_width, 1.0 - (top + height) / total_height, width / total_width, height / total_height)
    )
    axes.imshow(picture, interpolation="nearest", aspect="auto")
    axes.set_axis_off()


def _text(figure, x: float, y: float, text: str, **style) -> None:
    """Writes text at a place given in inches from the top left corner."""
    width, height = figure.get_size_inches()
    figure.text(x / width, 1.0 - y / height, text, color=INK, **style)


def _by_class(images: np.ndarray, labels: np.ndarray, classes: np.ndarray, columns: int) -> np.ndarray:
    """Rows of the first `columns` images of each class, white where there are fewer."""
    rows = np.full((len(classes), columns, *images.shape[1:]), 255, np.uint8)
    for row, c in zip(rows, classes):
        chosen = images[labels == c][:columns]
        row[: len(chosen)] = chosen
    return rows.reshape(-1, *images.shape[1:])


def real_beside_generated(
    path: str | Path,
    real: UInt8[np.ndarray, "n h w c"],
    generated: UInt8[np.ndarray, "m h w c"],
    labels_real: Int[np.ndarray, " _n"] | None = None,
    labels_generated: Int[np.ndarray, " _m"] | None = None,
    *,
    columns: int = 8,
    title: str | None = None,
) -> None:
    """Writes a figure with real images at the left and generated ones at the right, in their given order.

    With labels each row is a class (the first 16 of them), without labels the first 8 x `columns` images are shown.

    Raises:
      ValueError: if one set has labels and the other has not, a count of labels differs from its images', or as
        `image_grid`.
    """
    if (labels_real is None) != (labels_generated is None):
        raise ValueError("give labels of both the real and the generated images, or of neither")
    names: list[str] = []
    if labels_real is not None and labels_generated is not None:
        if len(labels_real) != len(real) or len(labels_generated) != len(generated):
            raise ValueError(
                f"{len(real)} real images have {len(labels_real)} labels, "
                f"{len(generated)} generated images have {len(labels_generated)}"
            )
        classes = np.union1d(labels_real, labels_generated)[:16]
        real = _by_class(real, labels_real, classes, columns)
        generated = _by_class(generated, labels_generated, classes, columns)
        names = [str(c) for c in classes]
    panels = [image_grid(images[: columns * max(8, len(names))], columns) for images in (real, generated)]
    width = 0.42 * columns
    unit = width / max(panel.shape[1] for panel in panels)  # inches per pixel, the same in both
    heights = [unit * len(panel) for panel in panels]
    left, gap, edge = (0.35 if names else 0.12), 0.25, 0.12
    top = 0.42 + (0.3 if title else 0.0)
    figure = new_figure(left + 2 * width + gap + edge, top + max(heights) + edge)
    if title:
        _text(figure, left + width + gap / 2, 0.24, title, ha="center", va="center", fontsize=11, weight="bold")
    for i, (panel, height, name) in enumerate(zip(panels, heights, ("real", "generated"))):
        start = left + i * (width + gap)
        _place(figure, panel, start, top, unit * panel.shape[1], height)
        _text(figure, start + width / 2, top - 0.16, name, ha="center", va="center", fontsize=10)
    for i, name in enumerate(names):
        middle = top + heights[0] * (i + 0.5) / len(names)
        _text(figure, left - 0.08, middle, name, ha="right", va="center", fontsize=9)
    save_figure(path, figure)


def denoising_strip(
    path: str | Path,
    trajectory: UInt8[np.ndarray, "steps n h w c"],
    noise_levels: Sequence[float] | Float[np.ndarray, " _steps"],
) -> None:
    """Writes a figure of the way from noise to image: one row per image, one column per step, the noise level above
    each.

    Args:
      trajectory: S states of N images, in the order of sampling.
      noise_levels: the noise level (sigma, or time) of each state.

    Raises:
      ValueError: unless there is one noise level per state, or as `image_grid`.
    """
    steps = len(trajectory)
    if len(noise_levels) != steps:
        raise ValueError(f"the trajectory has {steps} states but {len(noise_levels)} noise levels are given")
    grid = image_grid(trajectory.swapaxes(0, 1).reshape(-1, *trajectory.shape[2:]), steps)
    cell, edge, top = 0.6, 0.1, 0.5
    panel_width = cell * steps
    panel_height = panel_width * len(grid) / grid.shape[1]
    figure = new_figure(panel_width + 2 * edge, top + panel_height + edge)
    _place(figure, grid, edge, top, panel_width, panel_height)
    _text(figure, edge + 0.05, 0.16, "noise level", ha="left", va="center", fontsize=8, style="italic")
    for i, level in enumerate(noise_levels):
        middle = edge + panel_width * (i + 0.5) / steps
        _text(figure, middle, top - 0.1, f"{level:.2g}", ha="center", va="center", fontsize=8)
    save_figure(path, figure)


def scatter_2d(
    path: str | Path,
    real: Float[np.ndarray, "n 2"],
    generated: Float[np.ndarray, "m 2"],
    *,
    title: str | None = None,
) -> None:
    """Writes two clouds of points side by side, on the same axes: the real points, the generated ones.

    The axes show all the real points and a margin; generated points outside are counted in the corner.
    """
    middle = (real.max(axis=0) + real.min(axis=0)) / 2.0
    reach = max(float((real.max(axis=0) - real.min(axis=0)).max()) * 0.65, 1e-6)
    outside = int((np.abs(generated - middle) > reach).any(axis=1).sum())
    figure = new_figure(7.2, 3.9 if title else 3.6)
    for i, (points, name, colour) in enumerate(((real, "real", _REAL), (generated, "generated", _GENERATED))):
        axes = figure.add_subplot(1, 2, i + 1)
        axes.scatter(points[:, 0], points[:, 1], s=3, c=colour, alpha=0.5, linewidths=0, rasterized=True)
        axes.set(xlim=(middle[0] - reach, middle[0] + reach), ylim=(middle[1] - reach, middle[1] + reach))
        axes.set_aspect("equal")
        axes.set_title(f"{name} ({len(points):,})", fontsize=10, color=INK)
        axes.tick_params(labelsize=8, colors=INK, labelleft=i == 0)
        if i == 1 and outside:
            axes.text(0.98, 0.02, f"{outside:,} outside", transform=axes.transAxes, ha="right", fontsize=8, color=INK)
    if title:
        figure.suptitle(title, fontsize=11, weight="bold", color=INK)
    figure.tight_layout()
    save_figure(path, figure)
