"""Tables of papers by name: their rows, what runs for them at each size, and what the papers claim."""

from configs.tables.base import Table
from configs.tables.lcss import LCSS

TABLES: dict[str, Table] = {"lcss": LCSS}
