"""Prints the newest result of every sampler of a workdir as a table, and where its pictures are.

  python scripts/results_table.py runs/digits_dsm

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
    lines.append(["seconds per image", *format_numbers([row.seconds_per_image for row in rows])])
    for column in columns_of(records):
        title = f"{column.name} ({column.note})" if column.note else column.name
        lines.append([title, *format_numbers(values(records, column))])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    padded = ([cell.rjust(width) for cell, width in zip(line[1:], widths[1:])] for line in lines)
    return "\n".join("  ".join([line[0].ljust(widths[0]), *numbers]) for line, numbers in zip(lines, padded))


def main(argv: list[str]) -> int:
    if len(argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    workdir = Path(argv[1])
    rows = rows_of([Run(name=workdir.name, folder=workdir, records=read_json_lines(workdir / "results.jsonl"))])
    if not rows:
        print(f"error: no results in {workdir / 'results.jsonl'}: run main.py --mode=evaluate first", file=sys.stderr)
        return 2
    print(table(rows))
    print("\nPictures:")
    for row in rows:
        for picture in (row.record.get("pictures") or {}).values():
            print(f"  {workdir / picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
