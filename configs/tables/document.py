"""docs/results.md and docs/results/: the claims, and what the ledger holds of each table. A function of the ledger and
the tables alone.
"""

import fnmatch
import math
from collections.abc import Iterable, Mapping

from configs.tables.base import SIZES, Figure, Row, Table, Values, mean_and_spread
from training.ledger import current_lines, figures_by_row

NOTHING = "\N{EN DASH}"
_HEAD = """# Results

<!-- Written by scripts/reproduce.py from the lines in results/: do not edit. -->

Means ± standard deviations over n seeds. "small" is what a laptop computes, with other data and networks than those of
the papers; only a run of the size "full" stands beside a paper's value. A value is "not read" where the paper prints it
and we could not read it. `python scripts/reproduce.py --list` shows what can be run.
"""
_HEAD_OF_TABLE = """# {name}: {title}

<!-- Written by scripts/reproduce.py from the lines in results/: do not edit. -->

`docs/results.md` says how to read this, and has the claims. A row runs by

    python scripts/reproduce.py --table={name} --size=SIZE --rows=ROW
"""


def values_of(table: Table, size: str, lines: list[dict]) -> Values:
    """The figures of the lines that belong to the rows as they are now."""
    return Values(figures_by_row(valid_lines(table, size, lines)))


def valid_lines(table: Table, size: str, lines: list[dict]) -> list[dict]:
    """The newest line of each row and seed of this size."""
    jobs = {row.name: row.job(size) for row in table.rows}

    def identity(row: str, seed: int) -> str | None:
        job = jobs.get(row)
        try:
            return None if job is None else job.identity(seed)
        except ValueError:  # no such config any more
            return None

    return current_lines([line for line in lines if line.get("size") == size], identity)


def claim_rows(table: Table, values: Values) -> list[dict[str, str]]:
    """{"table", "claim", "text", "source", "verdict", "figures", "explanation"} of each claim."""
    rows = []
    for claim in table.claims:
        verdict, figures = claim.verdict(values)
        rows.append({"table": table.name, "claim": claim.name, "text": claim.text, "source": claim.source,
                     "verdict": verdict, "figures": figures, "explanation": claim.explanation})  # fmt: skip
    return rows


def render(tables: Mapping[str, Table], lines: Mapping[str, list[dict]]) -> dict[str, str]:
    """The documents by their paths in docs/. `lines` of each table: all of its sizes."""
    values = {name: {size: values_of(table, size, lines.get(name, [])) for size in SIZES}
              for name, table in tables.items()}  # fmt: skip
    claims = [row for name, table in tables.items() for row in claim_rows(table, values[name]["small"])]
    contents = "".join(f"* [{table.title}](results/{name}.md)\n" for name, table in tables.items())
    documents = {"results.md": "\n".join([_HEAD, "## Tables\n", contents, "## Claims\n", _markdown(
        ["claim", "source", "verdict", "figures, small size", "why"],
        [[row["text"], f"{row['table']}: {row['source']}", f"**{row['verdict']}**", row["figures"], row["explanation"]]
         for row in claims])])}  # fmt: skip
    for name, table in tables.items():
        body = [cells for row in table.rows for size in SIZES for cells in _cells(row, size, values[name][size])]
        head = _HEAD_OF_TABLE.format(name=name, title=table.title)
        documents[f"results/{name}.md"] = f"{head}\n{_markdown(['row', 'figure', 'paper', 'ours', 'size'], body)}"
    return documents


def _cells(row: Row, size: str, values: Values) -> Iterable[list[str]]:
    """One line per figure; none for a size that the row does not have."""
    if row.job(size) is None and not (size == "full" and row.missing):
        return
    about, measured = f"**{row.name}**: {row.about}", values.rows.get(row.name, {})
    for pattern, figure in row.figures.items():
        names = fnmatch.filter(measured, pattern)
        ours = mean_text(measured[names[0]]) if names else f"not run, for want of: {row.missing}" if (
            size == "full" and row.missing) else "not run"
        yield [about, figure.label, _paper(figure, size), ours, size]
        about = ""


def _paper(figure: Figure, size: str) -> str:
    return NOTHING if size != "full" or figure.paper is None else str(figure.paper)


def mean_text(values: list[float]) -> str:
    """"0.0369 ± 0.0012 (n=5)"; of values that are not finite only how many."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return f"not finite (n={len(values)})"
    mean, spread = mean_and_spread(finite)
    text = f"{mean:.4g}" + (f" ± {spread:.2g}" if len(finite) > 1 else "") + f" (n={len(finite)})"
    return text + (f", {len(values) - len(finite)} not finite" if len(finite) < len(values) else "")


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)]) + "\n"
