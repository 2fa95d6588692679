"""Two pieces of work timed against each other, since machines drift and are shared."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def paired(a: Callable[[], Any], b: Callable[[], Any], n: int) -> tuple[float, float, float]:
    """Median seconds of `a` and of `b`, and the median of a / b over n pairs run in turn, after one warm-up of each."""
    times: list[tuple[float, float]] = []
    for i in range(n + 1):
        pair = []
        # The order alternates: whatever the first leaves behind (heat, caches) falls on both alike.
        for run in (a, b) if i % 2 else (b, a):
            begin = time.perf_counter()
            jax.block_until_ready(run())
            pair.append(time.perf_counter() - begin)
        times.append(tuple(pair) if i % 2 else tuple(reversed(pair)))
    seconds = np.array(times[1:])
    return (*np.median(seconds, axis=0), float(np.median(seconds[:, 0] / seconds[:, 1])))
