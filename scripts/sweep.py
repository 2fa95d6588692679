"""Trains and evaluates a config with many changes, several runs at a time, and says which change is the best.

  python scripts/sweep.py --config=configs/digits.py:dsm --sweep=configs/sweeps/lcss_sigma.py --processes=2

A sweep file has `sweep()`, which returns the trials as dicts of changed fields (configs/sweeps/base.py has helpers).
All of them are checked before the first starts. Each trial is a run in a workdir of its own; the same command with
--resume goes on with a sweep that was stopped, and repeats nothing that has finished. The results go to sweep.json.
"""

import argparse
import fnmatch
import math
import shlex
import sys
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).absolute().parent.parent))

import jax

from configs.overrides import ROOT, flags, identity, label, load_module, resolve_all
from evaluation.names import direction
from training.trials import LOG, Outcome, Trial, newest_record, run_trials
from training.workdir import write_json_atomic

SUMMARY = "sweep.json"
Overrides = dict[str, Any]


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def load_sweep(path: str) -> list[Overrides]:
    """The trials of a sweep file. Raises ValueError where it has none."""
    choices = sorted(f"configs/sweeps/{file.name}" for file in (ROOT / "configs" / "sweeps").glob("*.py")
                     if file.stem not in ("__init__", "base"))  # fmt: skip
    module = load_module(path, choices)
    if not hasattr(module, "sweep"):
        raise ValueError(f"{path} has no function sweep()")
    trials = module.sweep()
    if not isinstance(trials, list) or not trials or not all(isinstance(trial, dict) for trial in trials):
        raise ValueError(f"sweep() of {path} must return a list of dicts, at least one, not {trials!r}")
    return trials


def make_trials(config: str, sweep: list[Overrides], workdir: Path) -> list[Trial]:
    """A run of main.py for each. Raises ValueError naming the trial, field and value that do not fit."""
    trials = []
    for overrides, resolved in zip(sweep, resolve_all(config, sweep)):
        sha256 = identity(resolved)
        fields = "_".join(f"{field.split('.')[-1]}={value}" for field, value in overrides.items())
        # The hash tells apart what the readable part, cut to what file systems take, does not.
        safe = "".join(c if c.isalnum() or c in "=._-" else "-" for c in fields)[:100]
        folder = workdir / f"{safe}-{sha256[:8]}".lstrip("-.")
        trials.append(Trial(name=folder.name, workdir=folder, identity=sha256,
                            command=main_command(config, overrides, folder)))  # fmt: skip
    return trials


def main_command(config: str, overrides: Overrides, workdir: Path, python: str = sys.executable) -> tuple[str, ...]:
    """Trains and evaluates one trial."""
    program = str(ROOT / "main.py") if python == sys.executable else "main.py"
    return (python, program, "--mode=train_and_evaluate", *flags(config, overrides), f"--workdir={workdir}")


def metrics_of(outcome: Outcome) -> dict[str, float]:
    """The newest results of a trial, none of one that did not finish."""
    if not outcome.state.startswith("finished"):
        return {}
    return {name: float(value) for name, value in newest_record(outcome.trial.workdir)["metrics"].items()}


def choose_metric(wanted: str | None, found: list[dict[str, float]]) -> str:
    """The metric that trials are ordered by: of the given name or pattern, else the first with a known direction.

    Raises:
      ValueError: none or several are meant, or neither higher nor lower is better; the message lists the choices.
    """
    names = [name for name in dict.fromkeys(name for metrics in found for name in metrics) if direction(name)]
    if not names:
        raise ValueError("no trial has results that can be ordered")
    if wanted is None:
        return names[0]
    matching = [name for name in names if name == wanted] or fnmatch.filter(names, wanted)
    if len(matching) != 1:
        meant = f"means several: {', '.join(matching)}" if matching else f"is not known; choose from {', '.join(names)}"
        raise ValueError(f"--metric = '{wanted}' {meant}")
    return matching[0]


def rank(values: list[float | None], metric: str) -> list[int]:
    """Indices of the trials, the best first; then those that gave no number, in their order."""
    sign = direction(metric)
    key = lambda i: math.inf if values[i] is None or math.isnan(values[i]) else -sign * values[i]  # noqa: E731
    return sorted(range(len(values)), key=key)


def table(sweep: list[Overrides], values: list[float | None], states: list[str], metric: str) -> str:
    """Trials x changed fields x metric, the best first."""
    fields = list(dict.fromkeys(field for overrides in sweep for field in overrides))
    lines = [[*fields, metric, "state"]]
    for i in rank(values, metric):
        value = "-" if values[i] is None else f"{values[i]:.5g}"
        lines.append([*(str(sweep[i].get(field, "")) for field in fields), value, states[i]])
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines)


def summarise(
    arguments: argparse.Namespace, sweep: list[Overrides], trials: list[Trial], outcomes: list[Outcome]
) -> int:
    """Prints the table and the best command, and writes sweep.json; the exit code."""
    by_name = {outcome.trial.name: outcome for outcome in outcomes}
    states = [by_name[trial.name].state if trial.name in by_name else "not started" for trial in trials]
    metrics = [metrics_of(by_name[trial.name]) if trial.name in by_name else {} for trial in trials]
    workdir = arguments.workdir
    rows = [{"overrides": overrides, "state": state, "metrics": numbers, "workdir": trial.workdir.name,
             "identity": trial.identity} for overrides, state, numbers, trial in zip(sweep, states, metrics, trials)]
    summary = {"config": arguments.config, "sweep": arguments.sweep, "trials": rows}
    write_json_atomic(workdir / SUMMARY, summary)
    if not any(metrics):
        print("error: no trial has finished", file=sys.stderr)
        return 1
    metric = choose_metric(arguments.metric, metrics)
    values = [numbers.get(metric) for numbers in metrics]
    print(table(sweep, values, states, metric))
    best = rank(values, metric)[0]
    if values[best] is None or math.isnan(values[best]):
        print(f"error: no trial has a number for {metric}", file=sys.stderr)
        return 1
    command = shlex.join(main_command(arguments.config, sweep[best], Path("runs/best"), python="python"))
    write_json_atomic(workdir / SUMMARY, summary | {"metric": metric, "best": best, "command": command})
    print(f"\nThe best, {metric} = {values[best]:.5g} with {label(sweep[best])}:\n  {command}")
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(prog="sweep.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                     allow_abbrev=False)  # fmt: skip
    parser.add_argument("--config", required=True, metavar="FILE:NAME", help="the experiment whose fields are changed")
    parser.add_argument("--sweep", required=True, metavar="FILE", help="a file with sweep(), as in configs/sweeps/")
    parser.add_argument("--workdir", type=Path, help="of the sweep; default: runs/sweeps/<name of the sweep file>")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time; default 1")
    parser.add_argument("--metric", help="name or pattern of the metric to order by, e.g. 'fd*_test_classifier'")
    parser.add_argument("--resume", action="store_true", help="go on with a sweep that was stopped")
    arguments = parser.parse_args(argv[1:])
    arguments.workdir = (arguments.workdir or Path("runs/sweeps") / Path(arguments.sweep).stem).expanduser()
    return arguments


def main(argv: list[str]) -> int:
    arguments = parse(argv)
    workdir = arguments.workdir
    try:
        if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())) and not arguments.resume:
            raise ValueError(f"--workdir = {workdir} exists: --resume goes on with it, or choose another")
        sweep = load_sweep(arguments.sweep)
        # Checking a config touches JAX: an accelerator that this process took would be missing in the runs.
        jax.config.update("jax_platforms", "cpu")
        trials = make_trials(arguments.config, sweep, workdir)
        outcomes, code = run_trials(trials, processes=arguments.processes)
        if code in (0, 1):
            code = max(code, summarise(arguments, sweep, trials, outcomes))
        else:
            print(f"stopped; go on with --resume. Logs: {workdir}/*/{LOG}", file=sys.stderr)
        return code
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv))
