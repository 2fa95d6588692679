"""Prints the newest result of every sampler of one or more workdirs as a table, and where its pictures are.

  python scripts/results_table.py runs/digits_dsm
  python scripts/results_table.py runs/digits_dsm runs/digits_sim     # a teacher and its student, side by side

scripts/report.py makes a page of several runs, with plots and pictures.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parent.parent))

from evaluation.report.columns import columns_of, format_numbers, values
from evaluation.report.records import Row, Run, rows_of
from training.workdir import read_json_lines


def table(rows: list[Row]) -> str:
    """Metrics by their full names, one per line, so that a terminal holds them; one column per evaluation."""
    records = [row.record for row in rows]
    lines = [["", *(row.sampler for row in rows)], ["NFE", *format_numbers([row.nfe for row in rows])]]
    if len({row.run.name for row in rows}) > 1:
        lines.insert(0, ["", *(row.run.name for row in rows)])
    seconds = [row.seconds_per_image for row in rows]
    lines.append(["seconds per image", *format_numbers(seconds)])
    lines.append(["images per second", *format_numbers([1 / one if one else None for one in seconds])])
    for column in columns_of(records):
        title = f"{column.name} ({column.note})" if column.note else column.name
        lines.append([title, *format_numbers(values(records, column))])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    padded = ([cell.rjust(width) for cell, width in zip(line[1:], widths[1:])] for line in lines)
    return "\n".join("  ".join([line[0].ljust(widths[0]), *numbers]) for line, numbers in zip(lines, padded))


def main(argv: list[str]) -> int:
    if len(argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    runs = [Run(name=path.name, folder=path, records=read_json_lines(path / "results.jsonl"))
            for path in map(Path, argv[1:])]  # fmt: skip
    rows = rows_of(runs)
    for run in runs:
        if not any(row.run is run for row in rows):
            print(f"error: no results in {run.folder / 'results.jsonl'}: run main.py --mode=evaluate first",
                  file=sys.stderr)  # fmt: skip
            return 2
    print(table(rows))
    print("\nPictures:")
    for row in rows:
        for picture in (row.record.get("pictures") or {}).values():
            print(f"  {row.run.folder / picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
