"""Lists of trials. A trial is a dict of changed fields, {"optimizer.learning_rate": 1e-3, "seed": 0}.

  product({"optimizer.learning_rate": [1e-3, 1e-4], "seed": [0, 1]})     all four combinations, the last field fastest
  zipped({"network.width": [64, 128], "network.depth": [2, 4]})          two trials: the first values, the second values
  product(zipped({...}), {"seed": [0, 1]})                               a list of trials may be a factor too
  chain(product({...}), product({...}))                                  one after the other
"""

import itertools
from collections.abc import Sequence
from typing import Any

Trials = list[dict[str, Any]]


def product(*factors: dict[str, Sequence[Any]] | Trials) -> Trials:
    """Every combination. Raises ValueError for a field that two factors change."""
    lists: list[Trials] = []
    for factor in factors:
        fields = factor.items() if isinstance(factor, dict) else ()
        lists += [[{name: value} for value in values] for name, values in fields]
        lists += [] if isinstance(factor, dict) else [factor]
    trials = []
    for parts in itertools.product(*lists):
        fields = [name for part in parts for name in part]
        if len(set(fields)) < len(fields):
            twice = sorted({name for name in fields if fields.count(name) > 1})
            raise ValueError(f"several factors of a product change {', '.join(twice)}")
        trials.append({name: value for part in parts for name, value in part.items()})
    return trials


def zipped(fields: dict[str, Sequence[Any]]) -> Trials:
    """The n-th values of all fields together. Raises ValueError for lists of unequal lengths."""
    lengths = {name: len(values) for name, values in fields.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"zipped needs lists of equal lengths, not {lengths}")
    return [dict(zip(fields, values)) for values in zip(*fields.values())]


def chain(*lists: Trials) -> Trials:
    """One list after the other."""
    return list(itertools.chain(*lists))
