"""What a table of a paper is made of. A row says what is measured; how, at the size that is possible here ("small") and
at the paper's ("full"); and what the paper reports. A claim is a statement of the paper with a test on small rows.
"""

import fnmatch
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from configs.overrides import identity, json_sha256, resolve

SIZES = ("small", "full")
NOT_READ = "not read"


@dataclass(frozen=True)
class PaperValue:
    """What a paper reports and where; None where we could not read it."""

    value: int | float | str | None
    source: str

    def __str__(self) -> str:
        value = f"{self.value:,}" if isinstance(self.value, int) else self.value
        return f"{NOT_READ if value is None else value} ({self.source})"


@dataclass(frozen=True)
class Figure:
    """A number of a row. The paper's is of the paper's size, hence never that of a row without a full size."""

    label: str
    paper: PaperValue | None = None


@dataclass(frozen=True)
class Run:
    """A training run with its evaluation: main.py --mode=train_and_evaluate."""

    config: str
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def identity(self, seed: int) -> str:
        """Hash of the resolved config. Raises ValueError where there is no such config."""
        return identity(resolve(self.config, {**self.overrides, "seed": seed}))


@dataclass(frozen=True)
class Check:
    """A measurement that is not one run: `measure(seed, folder, **options)` -> figures."""

    measure: Callable[..., dict[str, float]]
    options: Mapping[str, Any] = field(default_factory=dict)

    def identity(self, seed: int) -> str:
        """Hash of the function's own text, its options, and the configs that it is given, if any."""
        given = identity(resolve(self.options["config"], {})) if "config" in self.options else None
        teacher = [identity(resolve(self.options["teacher"], {}))] if "teacher" in self.options else []
        return json_sha256([inspect.getsource(self.measure), dict(self.options), given, seed, *teacher])


@dataclass(frozen=True, kw_only=True)
class Row:
    """Attributes:
      name: unique in its table.
      about: one line.
      figures: name or pattern of a figure -> its label and what the paper says.
      small, full: what runs; None where there is nothing to run.
      seeds: how many runs of the small size are wanted.
      settings: the paper's, of a row that cannot run in full.
      missing: what a run in full lacks.
    """

    name: str
    about: str
    figures: Mapping[str, Figure]
    small: Run | Check | None = None
    full: Run | Check | None = None
    seeds: int = 3
    settings: Mapping[str, Any] = field(default_factory=dict)
    missing: str = ""

    def job(self, size: str) -> Run | Check | None:
        return {"small": self.small, "full": self.full}[size]


class NotRunError(Exception):
    """A figure that a claim needs is not there."""


@dataclass(frozen=True)
class Values:
    """Figures of a table at one size: {row: {figure: one value per seed}}."""

    rows: Mapping[str, Mapping[str, Sequence[float]]]

    def get(self, row: str, figure: str) -> np.ndarray:
        """All values of a figure, given by its name or a pattern. Raises NotRunError where there are none."""
        found = self.rows.get(row, {})
        names = [figure] if figure in found else fnmatch.filter(found, figure)
        if not names:
            raise NotRunError(f"{row}: no {figure}")
        return np.asarray(found[names[0]], np.float64)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Attributes:
      text: the paper's statement; source: where it is.
      rows: the rows that the test looks at.
      predicate: Values -> (whether it holds, the figures that say so).
      explanation: why we find what we find.
    """

    name: str
    text: str
    source: str
    rows: tuple[str, ...]
    predicate: Callable[[Values], tuple[bool, str]]
    explanation: str = ""

    def verdict(self, values: Values) -> tuple[str, str]:
        """("holds" | "fails" | "not run", figures)."""
        try:
            holds, figures = self.predicate(values)
        except NotRunError as missing:
            return "not run", str(missing)
        return ("holds" if holds else "fails"), figures


@dataclass(frozen=True, kw_only=True)
class Table:
    name: str
    title: str
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...] = ()

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        twice = sorted({name for name in names if names.count(name) > 1})
        unknown = sorted({row for claim in self.claims for row in claim.rows} - set(names))
        if twice or unknown:
            raise ValueError(f"table {self.name}: rows that are twice there: {twice}; that only claims have: {unknown}")

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)


def mean_and_spread(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation over seeds (nan of one); not finite where a seed's value is not."""
    numbers = np.asarray(values, np.float64)
    with np.errstate(invalid="ignore"):
        return float(numbers.mean()), float(numbers.std(ddof=1)) if len(numbers) > 1 else math.nan


def compare(values: Values, figure: str, one: str, other: str) -> tuple[float, str]:
    """How many standard errors the mean of row `one` lies above that of `other` (Welch's t), and the figures.

    Raises:
      NotRunError: a row has fewer than two seeds, so that nothing is known of its spread.
    """
    samples = [values.get(row, figure) for row in (one, other)]
    for row, sample in zip((one, other), samples):
        if len(sample) < 2:
            raise NotRunError(f"{row}: {len(sample)} seed of the 2 that a comparison needs")
    means, spreads = zip(*(mean_and_spread(sample) for sample in samples))
    text = ", ".join(f"{row} {mean:.4g} ± {spread:.2g} (n={len(sample)})"
                     for row, mean, spread, sample in zip((one, other), means, spreads, samples))  # fmt: skip
    bad = [not np.isfinite(sample).all() for sample in samples]
    if any(bad):  # a run that diverged is above every one that did not
        return float(np.inf * (bad[0] - bad[1])) if bad[0] != bad[1] else 0.0, text
    error = math.sqrt(sum(spread**2 / len(sample) for spread, sample in zip(spreads, samples)))
    difference = means[0] - means[1]
    return (difference / error if error else math.copysign(math.inf, difference) if difference else 0.0), text


def figures_folder(root: Path, row: str, seed: int, sha256: str) -> Path:
    """The workdir of a row's run."""
    return root / f"{row}-seed{seed}-{sha256[:8]}"
