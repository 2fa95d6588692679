"""Quality against cost, and training curves, as SVG without any text of the user's: titles and legends are HTML.

Colours are the CSS variables of `STYLE`, so that one picture serves a light and a dark page. Lines of a run have the
run's colour everywhere; samplers are told apart by their markers.
"""

import functools
import io
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from evaluation.report.columns import Column, stem, values
from evaluation.report.records import Row, finite

COLOURS = 8
MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚"}  # matplotlib's name -> the same in HTML
PLOTTED = ("fid", "fidinf", "fd", "fdinf", "sfid", "sfd", "kid", "cmmd")
_NOT_PLOTTED = ("_of_train", "_ratio", "_std")
_CURVES = ("loss", "mse", "gradient_norm")
_POINTS, _WINDOW = 400, 25  # points drawn of a curve; a curve's length over that of the window of its mean
# Blue, vermilion, green, purple, ochre, sky, grey, rose, after Okabe and Ito; the second set for dark pages.
_LIGHT = ("#0067a5", "#d1571a", "#00825f", "#8e4a9e", "#a97b00", "#3a9bd0", "#666666", "#c4417a")
_DARK = ("#5aa9e6", "#f08a4b", "#3ec59a", "#c58ad4", "#d9b23d", "#8fd0f5", "#a8a8a8", "#f07fae")
STYLE = (
    ":root{--ink:#3b4048;--rule:#dfe2e6;" + "".join(f"--run{i}:{colour};" for i, colour in enumerate(_LIGHT)) + "}"
    "@media screen and (prefers-color-scheme:dark){:root{--ink:#c3c8d0;--rule:#343941;"
    + "".join(f"--run{i}:{colour};" for i, colour in enumerate(_DARK)) + "}}"
)  # fmt: skip
# Matplotlib knows no CSS: colours that stand for the variables, and are exchanged in the text of the SVG.
_INK, _RULE = "#010101", "#020202"
_VARIABLES = {_INK: "var(--ink)", _RULE: "var(--rule)"} | {f"#03030{i}": f"var(--run{i})" for i in range(COLOURS)}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a plot: `points` [(x, y)] in the order of x, of run number `run`, with a key of `MARKERS`."""

    name: str
    run: int
    marker: str
    points: list[tuple[float, float]]


def markers(rows: Sequence[Row]) -> dict[str, str]:
    """A key of `MARKERS` for each sampler."""
    return dict(zip(sorted({row.line for row in rows}), itertools.cycle(MARKERS)))


def quality_lines(
    rows: Sequence[Row], column: Column, cost: Callable[[Row], float | None], labels: Sequence[str]
) -> list[Line]:
    """One line per run and sampler: a metric against a cost. Points without finite numbers, or cost, are left out.

    `labels` are those of all runs of the page, in the order of their colours.
    """
    marker = markers(rows)
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row, value in zip(rows, values([row.record for row in rows], column)):
        x, y = finite(cost(row)), finite(value)
        if x is not None and y is not None and x > 0:
            points.setdefault((row.label, row.line), []).append((x, y))
    return [
        Line(name=", ".join(filter(None, [label, sampler])), run=labels.index(label), marker=marker[sampler],
             points=sorted(line))
        for (label, sampler), line in points.items()
    ]  # fmt: skip


def plotted(columns: Sequence[Column]) -> list[Column]:
    """The columns that are drawn against cost: distances of the samples."""
    return [column for column in columns if stem(column.name) in PLOTTED
            and not re.sub("_(mean|min)$", "", column.name).endswith(_NOT_PLOTTED)]  # fmt: skip


def curve_names(curves: Sequence[Mapping[str, dict[int, float]]]) -> list[str]:
    """The logged scalars that are drawn: losses, errors, and norms of gradients, by name."""
    names = {name for logged in curves for name in logged if not name.startswith("evaluate/")}
    return sorted(name for name in names if any(part in name.split("/")[-1] for part in _CURVES))


def running_mean(y: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The mean of the neighbours at either side, a twenty-fifth of the curve together; fewer at its ends."""
    reach = len(y) // (2 * _WINDOW)
    total = np.concatenate([[0.0], np.cumsum(y)])
    low = np.maximum(np.arange(len(y)) - reach, 0)
    high = np.minimum(np.arange(len(y)) + reach + 1, len(y))
    return (total[high] - total[low]) / (high - low)


def is_log(y: Sequence[float] | Float[np.ndarray, " n"]) -> bool:
    """Whether a log axis shows numbers better: all above 0, and the largest ten times the smallest."""
    return len(y) > 0 and min(y) > 0 and max(y) >= 10 * min(y)


def quality_svg(lines: Sequence[Line], x_label: str, reference: float | None = None) -> str:
    """A plot of `quality_lines`: log x axis; `reference` is a dashed line across."""
    figure, axes = _axes(x_label)
    axes.set_xscale("log")
    heights = [y for line in lines for _, y in line.points]
    if is_log(heights):
        axes.set_yscale("log")
    if reference is not None:
        axes.axhline(reference, color=_INK, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.7)
    for line in lines:
        colour = f"#03030{line.run % COLOURS}"
        axes.plot(*zip(*line.points), color=colour, marker=line.marker, markersize=5.5, linewidth=1.5,
                  markeredgewidth=0)  # fmt: skip
    _plain_ticks(axes.xaxis, [x for line in lines for x, _ in line.points])
    if axes.get_yscale() == "log":
        _plain_ticks(axes.yaxis, heights)
    axes.margins(0.08)
    return _svg(figure)


def curves_svg(curves: Sequence[tuple[int, dict[int, float]]]) -> str | None:
    """Curves {step: value} of (run number, curve): the raw one pale, its running mean over it. None if nothing is
    finite."""
    figure, axes = _axes("training step")
    shown: list[float] = []
    for run, curve in curves:
        logged = np.array([(step, value) for step, value in sorted(curve.items()) if np.isfinite(value)], np.float64)
        if not len(logged):
            continue
        steps, raw = logged.T
        mean = running_mean(raw)
        at, extremes = _thin(steps), _thin_extremes(raw)
        colour = f"#03030{run % COLOURS}"
        axes.plot(steps[extremes], raw[extremes], color=colour, linewidth=0.8, alpha=0.3)
        axes.plot(steps[at], mean[at], color=colour, linewidth=1.5, marker="o" if len(steps) == 1 else None)
        shown += raw.tolist()
    if not shown:
        return None
    if is_log(shown):
        axes.set_yscale("log")
        _plain_ticks(axes.yaxis, shown)
    axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    axes.margins(x=0.02)
    return _svg(figure)


def _thin(x: Float[np.ndarray, " n"]) -> np.ndarray:
    """Indices of at most `_POINTS` points, the ends among them."""
    return np.unique(np.linspace(0, len(x) - 1, _POINTS).round().astype(int))


def _thin_extremes(y: Float[np.ndarray, " n"]) -> np.ndarray:
    """Indices of about `_POINTS` points, among them the lowest and highest of every stretch, so that no spike is
    lost."""
    if len(y) <= _POINTS:
        return np.arange(len(y))
    stretches = np.array_split(np.arange(len(y)), _POINTS // 2)
    return np.unique([pick for part in stretches for pick in (part[y[part].argmin()], part[y[part].argmax()])])


def _axes(x_label: str):
    """An empty figure; drawn without pyplot, which would keep it alive."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 2.6))
    axes = figure.add_axes((0.145, 0.175, 0.81, 0.785))  # the same in all, so that they line up on the page
    axes.set_xlabel(x_label, fontsize=9, color=_INK)
    axes.tick_params(which="both", labelsize=9, labelcolor=_INK, color=_RULE, length=3, width=0.8)
    axes.grid(color=_RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set(color=_RULE, visible=side in ("left", "bottom"))
    return figure, axes


def _plain_ticks(axis, shown: Sequence[float]) -> None:
    """1, 2, 5, 10, ... written out, where a log axis has few decades; at the decades alone where it has many."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    few = max(shown) < 300 * min(shown)
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}" if value >= 1e-4 else f"{value:.0e}"))
    axis.set_minor_formatter(NullFormatter())


def _svg(figure) -> str:
    """The same bytes for the same figure: without the date, and with ids that are hashes."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg"):], flags=re.DOTALL)
    text = re.sub(r"font-family: [^;]*;", "font-family: system-ui, sans-serif;", text)
    text = functools.reduce(lambda text, colour: text.replace(colour, _VARIABLES[colour]), _VARIABLES, text)
    return text.replace("<defs>", f"<style>{STYLE}</style><defs>", 1)
