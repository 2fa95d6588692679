"""Which numbers may stand in one column, how they are written, and which of them is the best.

A column holds one metric by its full name, on one data set, in the features of one network: a distance of another N, in
other features or to other data is another column, however alike the names are.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.names import direction
from evaluation.report.records import finite, number

# Titles of groups of columns, in their order -> the stems of the metrics in them.
GROUPS = {
    "Fréchet distance": ("fid", "fidinf", "fd", "fdinf", "sfid", "sfd"),
    "Kernel distance": ("kid", "cmmd"),
    "Points": ("wasserstein", "mass"),
    "Score": ("fisher",),
    "Inception Score": ("is",),
    "Fidelity and diversity": ("precision", "recall", "density", "coverage"),
    "Classes": ("class",),
    "Memorisation": ("memorisation",),
}
OTHER = "Other"
_NONE = "\N{EN DASH}"


@dataclass(frozen=True, kw_only=True)
class Column:
    """One metric whose values may be compared.

    Attributes:
      name: the full name.
      group: a title of `GROUPS`, or `OTHER`.
      direction: -1 where lower is better, +1 where higher is, None where neither is.
      basis: the hashes of what the samples are compared with, and of the features' weights.
      note: what tells it from columns of the same name; "" where there is none.
    """

    name: str
    group: str
    direction: int | None
    basis: tuple[str, str]
    note: str = ""


def stem(name: str) -> str:
    """"fid50k_train_tf1" -> "fid", "class_accuracy" -> "class"."""
    return re.match("[a-z]*", name).group()


def columns_of(records: Sequence[Mapping[str, Any]]) -> list[Column]:
    """The union of the metrics of all records: by group, then by the first record that has it, then by name."""
    bases: dict[str, dict[tuple[str, str], Mapping[str, Any]]] = {}
    first: dict[str, int] = {}
    for i, record in enumerate(records):
        for name in record["metrics"]:
            first.setdefault(name, i)
            bases.setdefault(name, {}).setdefault(basis(record, name), record)
    order = [*GROUPS, OTHER]
    names = sorted(bases, key=lambda name: (order.index(_group(name)), first[name], _natural(name)))
    return [
        Column(name=name, group=_group(name), direction=direction(name), basis=key,
               note=_note(record, name, list(bases[name])) if len(bases[name]) > 1 else "")
        for name in names for key, record in bases[name].items()
    ]  # fmt: skip


def basis(record: Mapping[str, Any], name: str) -> tuple[str, str]:
    """What values of one name must share to be compared: hashes of (the reference, the weights of the features)."""
    measured = _extractor(record, name)
    reference, features = (measured.get(key) for key in ("reference", "features"))
    weights = str(features.get("weights_sha256") or "") if isinstance(features, dict) else ""
    return _identity(reference if isinstance(reference, dict) else record.get("data")), weights


def values(records: Sequence[Mapping[str, Any]], column: Column) -> list[float | None]:
    """The value of each record, None where it has none in this column."""
    return [
        number(record["metrics"].get(column.name)) if basis(record, column.name) == column.basis else None
        for record in records
    ]


def best(numbers: Sequence[float | None], direction: int | None) -> list[bool]:
    """Which numbers are the best: none where nothing can be compared, several where they are equal; never NaN."""
    compared = [value for value in map(finite, numbers) if value is not None]
    if direction is None or len(compared) < 2 or min(compared) == max(compared):
        return [False] * len(numbers)
    winner = max(compared) if direction > 0 else min(compared)
    return [value == winner for value in numbers]


def format_numbers(numbers: Sequence[float | None]) -> list[str]:
    """With as many decimals as give the middle one four digits, the same for all, so that they can be aligned."""
    sizes = sorted(abs(value) for value in map(finite, numbers) if value)
    decimals = min(max(3 - math.floor(math.log10(sizes[len(sizes) // 2])), 0), 7) if sizes else 0
    if all(value is None or value == round(value) for value in map(finite, numbers)):
        decimals = 0
    return [_format(value, decimals) for value in numbers]


def _format(value: float | None, decimals: int) -> str:
    if value is None:
        return _NONE
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "-∞"
    if value and abs(value) < 10**-decimals:
        return f"{value:.1e}"
    return f"{value:,.{decimals}f}"


def _group(name: str) -> str:
    return next((title for title, stems in GROUPS.items() if stem(name) in stems), OTHER)


def _natural(name: str) -> list[tuple[int, str]]:
    """fid5k before fid50k."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def _extractor(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The details of the extractor that a metric is measured with: its name is a part of the metric's, or for Inception
    its resize rule. {} for metrics without one."""
    parts = name.split("_")
    details = record.get("details")
    for extractor, measured in details.items() if isinstance(details, dict) else ():
        features = measured.get("features") if isinstance(measured, dict) else None
        if isinstance(features, dict) and (
            {extractor, str(features.get("resize"))} & {*parts} or (parts[0] == "class" and extractor == "classifier")
        ):
            return measured
    return {}


def _identity(data: Any) -> str:
    """A hash, or hashes, of what a description of data is about; all of it where it has none."""
    if not isinstance(data, dict):
        return json.dumps(data)
    if isinstance(data.get("data"), dict):
        data = data["data"]
    known = data.get("sha256") or data.get("file_sha256")
    return str(known) if known else json.dumps({key: _identity(value) for key, value in data.items()}, sort_keys=True)


def _note(record: Mapping[str, Any], name: str, others: Sequence[tuple[str, str]]) -> str:
    """What tells a basis from the others, in words."""
    reference, weights = basis(record, name)
    parts = []
    if len({other[0] for other in others}) > 1:
        known = _extractor(record, name).get("reference")
        about = known.get("dataset") if isinstance(known, dict) else None
        parts.append(f"{about} {reference[:8]}" if about else data_name(record))
    if len({other[1] for other in others}) > 1:
        parts.append(f"features {weights[:8] or 'unknown'}")
    return ", ".join(parts)


def data_name(record: Mapping[str, Any]) -> str:
    """"digits 2872120c": name and short hash of the data set, by its last split."""
    data = record.get("data")
    splits = [data] if isinstance(data, dict) and "name" in data else data.values() if isinstance(data, dict) else ()
    named = [facts for facts in splits if isinstance(facts, dict) and "name" in facts]
    return f"{named[-1]['name']} {str(named[-1].get('sha256', ''))[:8]}".strip() if named else "unknown"
