"""The width of the smoothing in local LCSS: too narrow is noisy, too wide is biased. Three seeds of each.

  python scripts/sweep.py --config=configs/toy2d.py:lcss_nonaffine --sweep=configs/sweeps/lcss_sigma.py \\
    --metric=fisher_error --processes=2
"""

from configs.sweeps.base import Trials, product


def sweep() -> Trials:
    local = [{"objective.name": "lcss", "objective.mode": "local"}]
    return product(local, {"objective.local_c": [0.03, 0.1, 0.2, 0.3, 0.5], "seed": [0, 1, 2]})
