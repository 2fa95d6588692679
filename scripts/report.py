"""Writes one HTML page that compares runs: numbers, plots, samples, configs. It needs no other file, and no network.

  python scripts/report.py runs/digits_dsm
  python scripts/report.py runs/a runs/b results/all.jsonl --output=report.html

Arguments are workdirs, of which any part may be missing, and files of result lines. The page goes to report.html in the
first folder given, unless --output names another file.
"""

import argparse
import sys
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).absolute().parent.parent))

from evaluation.files import write_whole
from evaluation.report.page import render
from evaluation.report.records import Run, is_record
from training.metric_writers import read_metrics
from training.workdir import flat_config, read_config, read_json_lines


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def names_of(paths: list[Path]) -> list[str]:
    """The last parts of each path, as many as tell them apart: ["runs/a", "old/a"] -> ["runs/a", "old/a"]."""
    for count in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def collect(paths: list[Path]) -> tuple[list[Run], list[str]]:
    """What lies at each path, and a warning for each that has nothing to show or has parts that cannot be read."""
    runs, warnings = [], []
    for name, path in zip(names_of(paths), paths):
        is_workdir = not path.is_file()
        folder = path if is_workdir else path.parent
        records = read_json_lines(path / "results.jsonl" if is_workdir else path)
        curves, config = {}, None
        try:
            if is_workdir:
                curves = read_metrics(path)
                config = read_config(path)
        except (ValueError, TypeError) as problem:
            warnings.append(f"{path}: {problem}")
        others = sum(not is_record(record) for record in records)
        if others:
            warnings.append(f"{path}: {others} result line(s) without 'sampler' or 'metrics' are left out")
        if others == len(records) and not curves:
            warnings.append(f"{path}: no results and no training curves")
            continue
        flat = None if config is None else flat_config(config)
        runs.append(Run(name=name, folder=folder, records=records, is_workdir=is_workdir, curves=curves, config=flat))
    return runs, warnings


def main(argv: list[str]) -> int:
    parser = _Parser(prog="report.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                     allow_abbrev=False)  # fmt: skip
    parser.add_argument("paths", nargs="+", metavar="workdir or file", help="a workdir, or a file of result lines")
    parser.add_argument("--output", help="the page to write; default: report.html in the first folder given")
    arguments = parser.parse_args(argv[1:])
    paths = list(dict.fromkeys(Path(path).expanduser().absolute() for path in arguments.paths))
    runs, warnings = collect(paths)
    if not runs:
        print(f"error: neither results nor training curves in {', '.join(map(str, paths))}", file=sys.stderr)
        return 2
    first = next((path for path in paths if path.is_dir()), paths[0].parent)
    output = Path(arguments.output).expanduser().absolute() if arguments.output else first / "report.html"
    text, unseen = render(runs)
    for warning in warnings + unseen:
        print(f"warning: {warning}", file=sys.stderr)
    try:
        write_whole(output, lambda file: file.write(text.encode()))
    except OSError as problem:
        print(f"error: {output} cannot be written: {problem.strerror}", file=sys.stderr)
        return 2
    print(f"{output}: {len(runs)} run(s), {len(text.encode()) / 2**20:.2f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
