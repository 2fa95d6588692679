"""Tables of papers by name: their rows, what runs for them at each size, and what the papers claim."""

from configs.tables.adaptive_diffusion import ADAPTIVE_DIFFUSION
from configs.tables.base import Table
from configs.tables.lcss import LCSS
from configs.tables.moment_matching import MOMENT_MATCHING
from configs.tables.poisson_midpoint import POISSON_MIDPOINT
from configs.tables.score_implicit_matching import SCORE_IMPLICIT_MATCHING

_TABLES = (LCSS, POISSON_MIDPOINT, SCORE_IMPLICIT_MATCHING, MOMENT_MATCHING, ADAPTIVE_DIFFUSION)
TABLES: dict[str, Table] = {table.name: table for table in _TABLES}
