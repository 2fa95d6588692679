"""What the suites of the benchmark share: what is measured, and figures with the hardware they were measured on."""

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


def image_experiment(quick: bool) -> tuple[Any, str]:
    """A U-Net on 32x32 RGB images with batch 64; or, since that takes long to compile, a small DiT with batch 16."""
    from configs.base import get_config
    from training.experiment import build_experiment

    config = get_config()
    config.data.source = "emoji"
    config.data.batch_size = 16 if quick else 64
    config.data.flip = True
    if quick:
        options = {"name": "dit", "width": 64, "depth": 2, "num_heads": 2, "patch_size": 4}
    else:
        options = {"name": "unet", "width": 32, "channel_multipliers": (1, 2), "blocks_per_level": 1}
    config.network.update(options)
    case = f"{options['name']} 32x32 width {options['width']} batch {config.data.batch_size}"
    return build_experiment(config), case
