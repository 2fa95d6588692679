"""Tables of papers by name: their rows, what runs for them at each size, and what the papers claim."""

from configs.tables.base import Table
from configs.tables.lcss import LCSS
from configs.tables.poisson_midpoint import POISSON_MIDPOINT

TABLES: dict[str, Table] = {"lcss": LCSS, "poisson_midpoint": POISSON_MIDPOINT}
