"""Everything that was collected -> one HTML page that needs no other file.

What the page says is gathered here as plain values; page.html.j2 says how it looks. All text is escaped by Jinja.
"""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from evaluation.report import plots
from evaluation.report.columns import Column, best, columns_of, data_name, format_numbers, values
from evaluation.report.pictures import SAMPLES, Picture, comparable, load_pictures
from evaluation.report.records import Row, Run, ema_label, experiment_of, finite, labels_of, number, rows_of

_COSTS = {"NFE": lambda row: row.nfe, "seconds per image": lambda row: row.seconds_per_image}
_CAPTIONS = {"grid": "Real beside generated.", "strip": "From noise (left) to image (right).",
             "field": "The learnt score beside the exact one."}  # fmt: skip


def render(runs: Sequence[Run]) -> tuple[str, list[str]]:
    """The page, and warnings of what is not in it. The same runs give the same text.

    Args:
      runs: with different names, in the order in which they are shown.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup, escape

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["plain"] = _plain
    environment.filters["breakable"] = lambda text: Markup(re.sub(r"([_./])", r"\1<wbr>", str(escape(text))))
    rows = rows_of(runs)
    labels = labels_of(runs, rows)
    columns = columns_of([row.record for row in rows])
    pictures, warnings = load_pictures(rows)
    text = environment.get_template("page.html.j2").render(
        labels=labels, colours=plots.COLOURS, plot_style=plots.STYLE, rows=rows,
        samplers=[(sampler, plots.MARKERS[marker]) for sampler, marker in plots.markers(rows).items()],
        facts=_facts(rows), findings=_findings(rows, columns), summary=_summary(rows, columns, labels),
        quality=_quality(rows, columns, labels), hardware=sorted({_hardware(row.record) for row in rows}),
        curves=_curves(runs, labels), sample_groups=comparable(pictures), others=_others(rows, pictures),
        configs=_configs(runs), warnings=warnings, provenance=[(row, _provenance(row)) for row in rows],
    )  # fmt: skip
    return text, warnings


def _facts(rows: Sequence[Row]) -> dict[str, str]:
    """What all numbers have in common, or do not: several values are all listed."""
    records = [row.record for row in rows]
    times = sorted(str(record["time"]) for record in records if record.get("time"))
    days = list(dict.fromkeys(time[:10] for time in times))
    facts = {
        "Data": {data_name(record) for record in records},
        "Images per evaluation": {f"{finite(record.get('num_samples')) or 0:,.0f}" for record in records},
        "Hardware": {_hardware(record) for record in records},
        "Code": {str(record.get("git_revision") or "unknown")[:10] for record in records},
        "Evaluated": {" to ".join(days[:1] + days[1:][-1:])} if days else set(),
    }
    return {name: ", ".join(sorted(found)) for name, found in facts.items() if found}


def _findings(rows: Sequence[Row], columns: Sequence[Column]) -> list[tuple[str, str, list[str]]]:
    """(metric, its lowest value, the rows that reach it) of the distances that several rows have."""
    found = []
    for column in plots.plotted(columns):
        numbers = values([row.record for row in rows], column)
        winners = [row.title for row, wins in zip(rows, best(numbers, column.direction)) if wins]
        if winners and column.group == "Fréchet distance":
            lowest = min(value for value in map(finite, numbers) if value is not None)
            found.append((_titled(column), f"{lowest:.4g}", winners))
    return found


def _summary(rows: Sequence[Row], columns: Sequence[Column], labels: Sequence[str]) -> dict[str, Any]:
    """The table: titles of groups with their widths, columns, and lines of cells (text, exact value, is it best)."""
    records = [row.record for row in rows]
    costs = [[cost(row) for row in rows] for cost in _COSTS.values()]
    numbers = costs + [values(records, column) for column in columns]
    marks = [[False] * len(rows) for _ in costs] + [
        best(column, columns[i].direction) for i, column in enumerate(numbers[len(costs):])]  # fmt: skip
    texts = [format_numbers(column) for column in numbers]
    lines = []
    for i, row in enumerate(rows):
        cells = [(texts[j][i], numbers[j][i], marks[j][i]) for j in range(len(numbers))]
        step = number(row.record.get("step"))
        experiment = experiment_of(row.record)
        lines.append({
            "row": row, "colour": labels.index(row.label) % plots.COLOURS, "cells": cells,
            "experiment": "" if experiment == row.label else experiment,
            "step": format_numbers([step])[0], "ema": ema_label(row.record),
        })  # fmt: skip
    groups = [(title, len(list(members))) for title, members in groupby(columns, key=lambda column: column.group)]
    return {"costs": list(_COSTS), "groups": groups, "columns": columns, "lines": lines}


def _quality(rows: Sequence[Row], columns: Sequence[Column], labels: Sequence[str]) -> list[dict[str, Any]]:
    """A plot of each distance against each cost, of those with two points or more."""
    found = []
    for column in plots.plotted(columns):
        reference = _reference(rows, columns, column)
        for name, cost in _COSTS.items():
            lines = plots.quality_lines(rows, column, cost, labels)
            if sum(len(line.points) for line in lines) >= 2:
                listed = "; ".join(
                    f"{line.name}: " + ", ".join(f"{y:.4g} at {x:.4g}" for x, y in line.points) for line in lines)
                found.append({"title": _titled(column), "cost": name, "alt": listed, "reference": reference,
                              "uri": _svg_uri(plots.quality_svg(lines, f"{name} (log axis)", reference))})  # fmt: skip
    return found


def _reference(rows: Sequence[Row], columns: Sequence[Column], column: Column) -> float | None:
    """The same metric of as many training images, where all rows agree on it."""
    records = [row.record for row in rows]
    same = {value for other in columns if other.name == f"{column.name}_of_train" and other.basis == column.basis
            for value in map(finite, values(records, other)) if value is not None}  # fmt: skip
    return same.pop() if len(same) == 1 else None


def _curves(runs: Sequence[Run], labels: Sequence[str]) -> list[dict[str, str]]:
    found = []
    for name in plots.curve_names([run.curves for run in runs]):
        logged = [(labels.index(run.name), run.curves[name]) for run in runs if name in run.curves]
        svg = plots.curves_svg(logged)
        if svg is not None:
            whose = ", ".join(labels[run] for run, _ in logged)
            found.append({"title": name, "alt": f"Curves of {whose}", "uri": _svg_uri(svg)})
    return found


def _others(rows: Sequence[Row], pictures: Sequence[Picture]) -> list[tuple[Row, list[tuple[Picture, str]]]]:
    """The pictures that are no samples, of each row, with captions."""
    found = []
    for row in rows:
        own = [(picture, _CAPTIONS.get(picture.name, picture.name)) for picture in pictures
               if picture.row is row and picture.name != SAMPLES]  # fmt: skip
        if own:
            found.append((row, own))
    return found


def _configs(runs: Sequence[Run]) -> dict[str, Any]:
    """Fields of the configs: those that differ, with a value per run, and the others, with one value."""
    known = [run for run in runs if run.config is not None]
    names = sorted({name for run in known for name in run.config})
    different, same = [], []
    for name in names:
        held = [run.config.get(name, _ABSENT) for run in known]
        if all(value is held[0] or (value == held[0] and _ABSENT not in held) for value in held):
            same.append((name, held[0]))
        else:
            different.append((name, [None if value is _ABSENT else _plain(value) for value in held]))
    return {"names": [run.name for run in known], "different": different, "same": same}


_ABSENT = object()


def _provenance(row: Row) -> dict[str, Any]:
    """All of a record but its metrics, which the table has, and pictures; what says most comes first."""
    first = ("time", "experiment", "step", "parameters_sha256", "ema_half_life", "sampler", "seed", "num_samples",
             "nfe", "nfe_max", "seconds", "git_revision", "config_sha256", "environment", "data", "details", "ranges")
    names = [name for name in first if name in row.record]
    names += sorted(row.record.keys() - {*first, "metrics", "pictures"})
    return {name: row.record[name] for name in names}


def _hardware(record: Mapping[str, Any]) -> str:
    """"8 x NVIDIA H100", or "1 x cpu (2 cores)"."""
    facts = record.get("environment")
    if not isinstance(facts, dict) or "device_kind" not in facts:
        return "unknown"
    cores = f" ({facts['cpu_count']} cores)" if facts["device_kind"] == "cpu" and "cpu_count" in facts else ""
    return f"{facts.get('device_count', 1)} x {facts['device_kind']}{cores}"


def _titled(column: Column) -> str:
    return f"{column.name} ({column.note})" if column.note else column.name


def _svg_uri(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
