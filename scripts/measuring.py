"""How the benchmark measures: figures, hardware, and two sides of a ratio in turn."""

import os
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

Figure = dict[str, Any]


def hardware() -> str:
    """Device kind and count, and for CPUs how many cores this process may use."""
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    kind = device.device_kind if device.platform != "cpu" else f"{platform.machine()} CPU, {cores} cores"
    return f"{jax.device_count()} x {kind}"


def figure(suite: str, case: str, metric: str, value: float, n: int) -> Figure:
    return {"suite": suite, "case": case, "metric": metric, "value": round(value, 4), "n": n, "hardware": hardware()}


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
