"""Runs what is missing of a paper's table, keeps its figures in results/, and writes docs/results.md and docs/results/.

  python scripts/reproduce.py --list
  python scripts/reproduce.py --table=lcss --size=small --processes=2
  python scripts/reproduce.py --table=lcss --rows=gamma_0.5,digits_lcss --seeds=3
  python scripts/reproduce.py --claims

A row and seed that is in the ledger, with the config that the row has now, is not run again; whatever was interrupted
goes on where it stopped. --document only writes the documents.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).absolute().parent.parent))

import jax
from absl import logging

from configs.overrides import ROOT, flags, resolve_all
from configs.tables import TABLES
from configs.tables.base import SIZES, Check, Row, Run, Table, figures_folder
from configs.tables.document import claim_rows, render, valid_lines, values_of
from evaluation.files import write_whole
from training import ledger
from training.trials import Outcome, Trial, run_trials
from training.workdir import read_json_lines

RESULTS, DOCS = ROOT / "results", ROOT / "docs"


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def lines_of(table: Table) -> list[dict]:
    """The ledger of a table, all sizes."""
    return [line for size in SIZES for line in read_json_lines(ledger.results_file(RESULTS, table.name, size))]


def chosen(kind: str, name: str, choices: list[str]) -> str:
    """`name`. Raises ValueError where it is none of the choices, which the message lists."""
    if name not in choices:
        raise ValueError(f"--{kind} = '{name}' is not known; choose from {', '.join(choices)}")
    return name


def choose_rows(table: Table, names: str | None, size: str) -> list[Row]:
    """The rows to run: those named, else all that have this size.

    Raises:
      ValueError: for an unknown row, one that does not have this size, or one that lacks something in full: then
        nothing at all is run.
    """
    known = [row.name for row in table.rows]
    rows = [table.row(chosen("rows", name, known)) for name in names.split(",")] if names else list(table.rows)
    lacking = [row for row in rows if size == "full" and row.missing]
    if lacking:
        others = [row.name for row in table.rows if row.full is not None and not row.missing]
        what = "".join(f"\n  {row.name}: {row.missing}" for row in lacking)
        raise ValueError(f"--size = full: this project lacks what these rows need:{what}\nrows that can run in full: "
                         f"{', '.join(others) or 'none'}")
    without = [row.name for row in rows if row.job(size) is None]
    if names and without:
        raise ValueError(f"--size = {size}: not a size of {', '.join(without)}")
    return [row for row in rows if row.job(size) is not None]


def jobs_missing(table: Table, rows: list[Row], size: str, seeds: int | None) -> list[tuple[Row, int]]:
    """Rows and seeds without a valid line."""
    there = {(line["row"], line["seed"]) for line in valid_lines(table, size, lines_of(table))}
    # Seed by seed, so that an interrupted table has something of every row.
    wanted = sorted(((row, seed) for row in rows for seed in range(seeds or row.seeds)), key=lambda job: job[1])
    return [(row, seed) for row, seed in wanted if (row.name, seed) not in there]


def check(jobs: list[tuple[Row, int]], size: str) -> None:
    """Raises ValueError naming the first row whose config cannot run."""
    for row in {row.name: row for row, _ in jobs}.values():
        job = row.job(size)
        if isinstance(job, Run):
            try:
                resolve_all(job.config, [dict(job.overrides)])
            except ValueError as error:
                raise ValueError(f"row {row.name}: {error}") from error


def make_trial(table: Table, row: Row, size: str, seed: int, root: Path) -> Trial:
    job = row.job(size)
    sha256 = job.identity(seed)
    folder = figures_folder(root / f"{table.name}-{size}", row.name, seed, sha256)
    return Trial(name=f"{row.name}, seed {seed}", workdir=folder, identity=sha256,
                 command=(sys.executable, *arguments_of(table, row, size, seed, folder)))  # fmt: skip


def arguments_of(table: Table, row: Row, size: str, seed: int, folder: Path) -> list[str]:
    """The program and its arguments, relative to the root of the checkout."""
    job = row.job(size)
    if isinstance(job, Check):
        return [str(ROOT / "scripts" / "reproduce.py"), f"--table={table.name}", f"--size={size}",
                f"--measure={row.name}", f"--seed={seed}", f"--workdir={folder}"]  # fmt: skip
    overrides = {**job.overrides, "seed": seed}
    return [str(ROOT / "main.py"), "--mode=train_and_evaluate", *flags(job.config, overrides), f"--workdir={folder}"]


def reproduce(arguments: argparse.Namespace, table: Table) -> int:
    """Runs what is missing; the exit code."""
    rows = choose_rows(table, arguments.rows, arguments.size)
    jobs = jobs_missing(table, rows, arguments.size, arguments.seeds)
    check(jobs, arguments.size)
    root = arguments.workdir.expanduser().absolute()
    trials = {make_trial(table, row, arguments.size, seed, root): (row, seed) for row, seed in jobs}
    print(f"{len(trials)} run(s) of {len(rows)} row(s) are missing", file=sys.stderr)

    def done(outcome: Outcome) -> None:
        row, seed = trials[outcome.trial]
        # Without paths of this machine.
        workdir = f"--workdir=runs/reproduce/{outcome.trial.workdir.relative_to(root)}"
        command = [part.replace(f"{ROOT}/", "") for part in (*outcome.trial.command[1:-1], workdir)]
        ledger.store(ledger.results_file(RESULTS, table.name, arguments.size), outcome, table=table.name, row=row.name,
                     size=arguments.size, seed=seed, command=shlex.join(["python", *command]))  # fmt: skip

    try:
        return run_trials(list(trials), processes=arguments.processes, done=done)[1]
    finally:
        write_documents()


def measure(arguments: argparse.Namespace, table: Table) -> int:
    """One measurement that is not a run, in this process."""
    row = table.row(chosen("measure", arguments.measure, [row.name for row in table.rows]))
    job = row.job(arguments.size)
    if not isinstance(job, Check):
        raise ValueError(f"--measure = {row.name} is a run of main.py, not a measurement")
    folder = arguments.workdir.expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    logging.set_verbosity(logging.INFO)
    jax.config.update("jax_compilation_cache_dir", str(folder.parent / ".jax_cache"))
    ledger.write_figures(folder, job.measure(arguments.seed, folder, **job.options))
    return 0


def write_documents() -> None:
    for path, text in render(TABLES, {name: lines_of(table) for name, table in TABLES.items()}).items():
        (DOCS / path).parent.mkdir(exist_ok=True)
        write_whole(DOCS / path, lambda file, text=text: file.write(text.encode()))


def list_rows(tables: list[Table]) -> str:
    """Every row with its state at each size."""
    lines = [["table", "row", *SIZES, "about"]]
    for table in tables:
        there = {size: [line["row"] for line in valid_lines(table, size, lines_of(table))] for size in SIZES}
        for row in table.rows:
            states = [f"{there[size].count(row.name)} of {row.seeds}" if row.job(size) else "-" for size in SIZES]
            about = f"{row.about}; lacks {row.missing}" if row.missing else row.about
            lines.append([table.name, row.name, states[0], "lacks something" if row.missing else states[1], about])
    widths = [max(len(line[k]) for line in lines) for k in range(4)]
    return "\n".join("  ".join([*map(str.ljust, line[:4], widths), line[4]]) for line in lines)


def print_claims(tables: list[Table]) -> None:
    """A table, then one JSON line per claim."""
    rows = [row for table in tables for row in claim_rows(table, values_of(table, "small", lines_of(table)))]
    width = max((len(row["claim"]) for row in rows), default=0)
    for row in rows:
        print(f"{row['claim']:{width}}  {row['verdict']:7}  {row['text']} [{row['source']}]")
        print(f"{'':{width}}  {row['figures']}")
    for row in rows:
        print(json.dumps(row, ensure_ascii=False))


def parse(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(prog="reproduce.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                     allow_abbrev=False)  # fmt: skip
    add = parser.add_argument
    add("--list", action="store_true", help="print every row with its state")
    add("--claims", action="store_true", help="print every claim with its verdict")
    add("--document", action="store_true", help="only write docs/results.md and docs/results/")
    add("--table", help=f"which paper: {', '.join(TABLES)}")
    add("--size", default="small", help=f"{' or '.join(SIZES)}; default small")
    add("--rows", help="names, separated by commas; default: all of this size")
    add("--seeds", type=int, help="runs of each row; default: as many as the row wants")
    add("--processes", type=int, default=1, help="runs at a time; default 1")
    add("--workdir", type=Path, default=Path("runs/reproduce"), help="where the runs are; default runs/reproduce")
    add("--measure", help=argparse.SUPPRESS)  # how a measurement is run as a process
    add("--seed", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(argv[1:])


def main(argv: list[str]) -> int:
    arguments = parse(argv)
    try:
        chosen("size", arguments.size, list(SIZES))
        if arguments.seeds is not None and arguments.seeds < 1:
            raise ValueError(f"--seeds = {arguments.seeds} must be at least 1")
        tables = [TABLES[chosen("table", arguments.table, list(TABLES))]] if arguments.table else list(TABLES.values())
        if arguments.list:
            print(list_rows(tables))
        elif arguments.claims:
            print_claims(tables)
        elif arguments.document:
            write_documents()
        elif not arguments.table:
            raise ValueError(f"--table is missing; choose from {', '.join(TABLES)}, or --list, --claims, --document")
        elif arguments.measure:
            return measure(arguments, tables[0])
        else:
            # Checking a config touches JAX: an accelerator that this process took would be missing in the runs.
            jax.config.update("jax_platforms", "cpu")
            return reproduce(arguments, tables[0])
        return 0
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv))
