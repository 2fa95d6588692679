"""Prints the newest result of every sampler of a workdir as a table, and where its pictures are.

  python scripts/results_table.py runs/digits_dsm
"""

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parent.parent))

from samplers import SAMPLERS
from training.workdir import read_json_lines

# Column title -> the metric whose name starts so, and how to print it.
COLUMNS = {
    "FD": ("fd_", "{:.2f}"),
    "FD of train": ("fd_", "{:.2f}"),
    "FD ratio": ("fd_ratio", "{:.2f}"),
    "KID": ("kid_", "{:.4f}"),
    "class accuracy": ("class_accuracy", "{:.1%}"),
    "memorisation ratio": ("memorisation_ratio", "{:.2f}"),
    "seconds": ("seconds", "{:.1f}"),
}


def metric_name(record: dict, title: str) -> str | None:
    """The full name of the metric of a column: it carries features, N and split."""
    start = COLUMNS[title][0]
    names = [name for name in record if name.startswith(start)]
    if start == "fd_":
        of_train = title == "FD of train"
        names = [name for name in names if name != "fd_ratio" and name.endswith("_of_train") == of_train]
    return names[0] if names and isinstance(record[names[0]], float) else None


def sampler_label(settings: dict) -> str:
    """Name and steps of a sampler, and whatever else is not its default: "ancestral 100 variance=large"."""
    defaults = dataclasses.asdict(SAMPLERS[settings["name"]]()) | {"guidance": 1.0, "guidance_interval": [0.0, "inf"]}
    other = [f"{name}={value}" for name, value in settings.items()
             if name not in ("name", "steps") and str(value).replace("Infinity", "inf") != str(defaults[name])]
    return " ".join([settings["name"], str(settings["steps"]), *other])


def table(records: list[dict]) -> str:
    """Rows of text, one per record."""
    rows = [["sampler", "NFE", *COLUMNS]]
    for record in records:
        row = [sampler_label(record["sampler"]), f"{record['nfe']:.4g}"]
        for title, (_, form) in COLUMNS.items():
            name = metric_name(record, title)
            row.append("-" if name is None else form.format(record[name]))
        rows.append(row)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows)


def main(argv: list[str]) -> int:
    if len(argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    workdir = Path(argv[1])
    newest = {}
    for record in read_json_lines(workdir / "results.jsonl"):
        newest[str(record["sampler"])] = record
    if not newest:
        print(f"error: no results in {workdir / 'results.jsonl'}: run main.py --mode=evaluate first", file=sys.stderr)
        return 2
    records = list(newest.values())
    print(table(records))
    full_names = [metric_name(records[-1], title) for title in ("FD", "KID")]
    print(f"\nFD and KID are {' and '.join(name for name in full_names if name)}; seconds are of sampling "
          f"{records[-1]['num_samples']} images.")
    print("Pictures:", *(f"  {workdir / picture}" for record in records for picture in record["pictures"]), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
