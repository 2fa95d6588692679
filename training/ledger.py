"""The ledger: one JSON line for each run of a table, with all that its figures depend on.

    results/<table>-<size>.jsonl   {"row": ..., "seed": ..., "figures": {name: value}, "config_sha256": ..., ...}

A line counts as long as the config that its row has now is the one it was made with.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from evaluation.report.records import number
from training.metric_writers import read_metrics
from training.trials import Outcome, newest_record
from training.workdir import append_json_line, write_json_atomic

FIGURES = "figures.json"
# Facts of an evaluation, or of a measurement, that a line repeats.
_FACTS = ("num_samples", "environment", "git_revision")


def results_file(folder: Path, table: str, size: str) -> Path:
    return folder / f"{table}-{size}.jsonl"


def current_lines(lines: list[dict], identity: Callable[[str, int], str | None]) -> list[dict]:
    """The newest line of each row and seed, of those whose config is still the row's.

    Args:
      identity: (row, seed) -> the hash that a line must have; None for rows that are no more.
    """
    newest = {}
    for line in lines:
        key = (line.get("row"), line.get("seed"))
        if isinstance(line.get("figures"), dict) and line.get("config_sha256") == identity(*key):
            newest[key] = line
    return list(newest.values())


def figures_by_row(lines: list[dict]) -> dict[str, dict[str, list[float]]]:
    """{row: {figure: one value per seed, in the order of the seeds}}."""
    rows: dict[str, dict[str, list[float]]] = {}
    for line in sorted(lines, key=lambda line: line["seed"]):
        for name, value in line["figures"].items():
            if (parsed := number(value)) is not None:
                rows.setdefault(line["row"], {}).setdefault(name, []).append(parsed)
    return rows


def store(path: Path, outcome: Outcome, *, table: str, row: str, size: str, seed: int, command: str) -> None:
    """Appends the line of a finished trial. Raises ValueError where its workdir has no figures."""
    workdir = outcome.trial.workdir
    record = read_figures(workdir)
    facts = {name: record.get(name) for name in _FACTS}
    path.parent.mkdir(parents=True, exist_ok=True)
    append_json_line(path, {
        "table": table, "row": row, "size": size, "seed": seed, "figures": record["metrics"], **facts,
        "hardware": hardware(), "config_sha256": outcome.trial.identity, "command": command,
        "seconds": round(outcome.seconds, 1), "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    })  # fmt: skip


def read_figures(workdir: Path) -> dict:
    """What a run or a measurement left: its record, with the figures as "metrics"."""
    if (workdir / FIGURES).is_file():
        return json.loads((workdir / FIGURES).read_text())
    record = newest_record(workdir)
    return record | {"metrics": record["metrics"] | training_figures(workdir)}


def write_figures(workdir: Path, figures: dict[str, float]) -> None:
    """The same for a measurement that is not a run."""
    from training.manifest import environment, git_revision

    write_json_atomic(workdir / FIGURES, {"metrics": figures, "environment": environment(),
                                          "git_revision": git_revision()})  # fmt: skip


def training_figures(workdir: Path) -> dict[str, float]:
    """Of the training itself: the loss in the first and in the last window that was logged, and the usual speed."""
    curves = read_metrics(workdir)
    losses = list(curves.get("score/loss", {}).values())
    speeds = list(curves.get("steps_per_second", {}).values())
    figures = {"train_loss_first": losses[0], "train_loss": losses[-1]} if losses else {}
    # The first window holds the compilation.
    return figures | ({"train_steps_per_second": statistics.median(speeds[1:] or speeds)} if speeds else {})


def hardware() -> str:
    """The processor by name; the accelerator is in the line's environment."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}"
