"""Every experiment there is, for `python main.py --list_configs`. Runs without JAX, so that it answers at once."""

import importlib
import pkgutil

import configs
from configs.base import Preset


def all_presets() -> dict[str, Preset]:
    """"configs/<file>.py:<name>" -> preset, in the order of files and names."""
    presets = {}
    for module in sorted(info.name for info in pkgutil.iter_modules(configs.__path__) if not info.ispkg):
        contents = importlib.import_module(f"configs.{module}")
        for name, preset in getattr(contents, "CONFIGS", {}).items():
            presets[f"configs/{module}.py:{name}"] = preset
    return presets


def list_configs() -> str:
    """A table: config, expected time, one line about it."""
    presets = all_presets()
    width = max(len(name) for name in presets)
    time = max(len(preset.expected_time) for preset in presets.values())
    return "\n".join(
        f"{name:{width}}  {preset.expected_time:{time}}  {preset.description}" for name, preset in presets.items()
    )
