"""What the benchmark prints: figures, with the hardware they were measured on."""

import os
import platform
from typing import Any

import jax

Figure = dict[str, Any]


def hardware() -> str:
    """Device kind and count, and for CPUs how many cores this process may use."""
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    kind = device.device_kind if device.platform != "cpu" else f"{platform.machine()} CPU, {cores} cores"
    return f"{jax.device_count()} x {kind}"


def figure(suite: str, case: str, metric: str, value: float, n: int) -> Figure:
    return {"suite": suite, "case": case, "metric": metric, "value": round(value, 4), "n": n, "hardware": hardware()}
