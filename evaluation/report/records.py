"""Which evaluations are shown, and under which label: the newest of each run, sampler settings and EMA.

A record is one line of results.jsonl: what was evaluated (experiment, step, sampler, ema_half_life), what it cost (nfe,
seconds, num_samples), what came out (metrics by full name) and all that this depends on.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from samplers import SAMPLERS

_GUIDANCE = {"guidance": 1.0, "guidance_interval": [0.0, "Infinity"]}  # the defaults of what is no sampler's field


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """One argument of the report: a workdir, or a file of records of several experiments.

    Attributes:
      name: of the folder or file, different for each run.
      is_workdir: False for a file, whose rows are labelled by their experiment.
      folder: what the paths of pictures are relative to.
      records: lines of results.jsonl, the newest last.
      curves: logged scalars as {name: {step: value}}.
      config: flat, {"training.steps": 5000}; None where there is none.
    """

    name: str
    folder: Path
    records: list[dict]
    is_workdir: bool = True
    curves: dict[str, dict[int, float]] = dataclasses.field(default_factory=dict)
    config: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One evaluation.

    Attributes:
      label: of the run.
      sampler: name, steps, and what is not its default.
      line: the same without the steps: evaluations that differ in their steps alone lie on one line.
    """

    run: Run
    label: str
    sampler: str
    line: str
    record: dict

    @property
    def title(self) -> str:
        return ", ".join(filter(None, [self.label, self.sampler]))

    @property
    def nfe(self) -> float | None:
        return number(self.record.get("nfe"))

    @property
    def seconds_per_image(self) -> float | None:
        seconds, count = number(self.record.get("seconds")), number(self.record.get("num_samples"))
        return seconds / count if seconds is not None and count else None


def number(value: Any) -> float | None:
    """A number of a record, of which JSON may have made a word: "NaN", "Infinity". None for anything else."""
    if isinstance(value, str) and value in ("NaN", "Infinity", "-Infinity"):
        return float(value)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def finite(value: Any) -> float | None:
    """The same, None for NaN and infinities too."""
    result = number(value)
    return result if result is not None and math.isfinite(result) else None


def sampler_label(settings: Mapping[str, Any], *, steps: bool = True) -> str:
    """Name and steps of a sampler, and whatever else is not its default: "ancestral 100 variance=large"."""
    sampler = SAMPLERS.get(settings["name"])
    defaults = _GUIDANCE | ({} if sampler is None else dataclasses.asdict(sampler()))
    shown = [str(settings["name"])]
    if steps and "steps" in settings:
        shown.append(str(settings["steps"]))
    for name, value in settings.items():
        if name not in ("name", "steps") and not (name in defaults and _plain(value) == _plain(defaults[name])):
            shown.append(f"{name}={value if isinstance(value, str) else json.dumps(value)}")
    return " ".join(shown)


def is_record(record: Mapping[str, Any]) -> bool:
    """Whether it has what every evaluation has: metrics by name, and a sampler's settings or none, as for images of
    another program."""
    sampler = record.get("sampler", {"name": ""})
    named = isinstance(sampler, dict) and isinstance(sampler.get("name"), str)
    return named and isinstance(record.get("metrics"), dict)


def newest(records: Iterable[dict]) -> list[dict]:
    """The last record of each experiment, sampler and EMA, in the order of their first ones."""
    latest = {}
    for record in records:
        key = [record.get(name) for name in ("experiment", "sampler", "ema_half_life")]
        images = None if "sampler" in record else record.get("data")
        latest[_canonical([*key, images])] = record
    return list(latest.values())


def experiment_of(record: Mapping[str, Any]) -> str:
    """Its name; for images of another program that of their folder or file."""
    data = record.get("data")
    return str(record.get("experiment") or (data.get("name") if isinstance(data, dict) else None) or "unknown")


def rows_of(runs: Sequence[Run]) -> list[Row]:
    """One row per newest evaluation: runs in their order, then by sampler and NFE. What is listed twice comes once."""
    rows, seen = [], set()
    for run in runs:
        chosen = newest(record for record in run.records if is_record(record))
        several_emas = len({_canonical(record.get("ema_half_life")) for record in chosen}) > 1
        group = []
        for record in chosen:
            identity = _canonical({name: value for name, value in record.items() if name != "pictures"})
            if identity not in seen:
                ema = f" EMA {ema_label(record)}" if several_emas else ""
                group.append(_row(run, record, ema, [other.name for other in runs]))
            seen.add(identity)
        rows += sorted(group, key=lambda row: (row.label, row.line, math.inf if row.nfe is None else row.nfe))
    return rows


def labels_of(runs: Sequence[Run], rows: Sequence[Row]) -> list[str]:
    """Of everything that is shown, in its order: a run has its colour by its place in here."""
    labels: dict[str, None] = {}
    for run in runs:
        labels |= {run.name: None} if run.is_workdir else {row.label: None for row in rows if row.run is run}
    return list(labels)


def _row(run: Run, record: dict, ema: str, taken: Sequence[str]) -> Row:
    experiment, settings = experiment_of(record), record.get("sampler")
    label = run.name if run.is_workdir else experiment if experiment not in taken else f"{experiment} ({run.name})"
    name, line = ("", "") if settings is None else (sampler_label(settings), sampler_label(settings, steps=False))
    return Row(run=run, label=label, sampler=name + ema, line=line + ema, record=record)


def ema_label(record: Mapping[str, Any]) -> str:
    """The half-life in images: "50,000", or "none" for the weights themselves."""
    half_life = number(record.get("ema_half_life"))
    return "none" if half_life is None else f"{half_life:,.0f}"


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _plain(value: Any) -> Any:
    """Comparable across JSON: 1 == 1.0, (0, inf) == [0.0, "Infinity"]."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    as_number = number(value)
    return value if as_number is None else as_number
