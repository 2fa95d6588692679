"""Experiments by name with changed fields, as scripts need them: resolved, checked, identified, and as command lines.

Overrides are flat, {"optimizer.learning_rate": 1e-3}: what `--config.optimizer.learning_rate=0.001` is for main.py.
{"sampler": "ddim"} resets the section to a sampler's defaults, or "NAME:PRESET" to a preset (configs/samplers.py),
before all others.
"""

import hashlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from configs.samplers import choose_sampler

ROOT = Path(__file__).absolute().parent.parent


def load_module(path: str, choices: list[str]) -> ModuleType:
    """The module of a Python file, relative to the working directory or to the root of the checkout.

    Raises:
      ValueError: there is no such file; the message lists `choices`.
    """
    found = next((file for file in (Path(path).expanduser(), ROOT / path) if file.is_file()), None)
    if found is None:
        raise ValueError(f"there is no file {path}; choose from {', '.join(choices)}, or a file of your own")
    spec = importlib.util.spec_from_file_location(f"_loaded_{found.stem}", found)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def resolve(config: str, overrides: dict[str, Any]) -> ConfigDict:
    """The config of "FILE:NAME" with some fields changed; not yet validated, and without JAX.

    Raises:
      ValueError: for an unknown file or name, and as `change`.
    """
    from configs.listing import all_presets

    file, _, name = config.partition(":")
    resolved = load_module(file, list(all_presets())).get_config(name or None)
    # A section as a whole comes before its fields, in whatever order they are given.
    for field, value in sorted(overrides.items(), key=lambda override: override[0] != "sampler"):
        change(resolved, field, value)
    return resolved


def change(config: ConfigDict, field: str, value: Any) -> None:
    """Sets a field, "optimizer.learning_rate". None unsets one whose default is None.

    The field "sampler" is the section, and its value "NAME" or "NAME:PRESET".

    Raises:
      ValueError: for an unknown field, or a value of another type, naming it and the choices.
    """
    if field == "sampler":
        choose_sampler(config, value)
        return
    section, where = config, "config"
    for part in field.split("."):
        if not isinstance(section, ConfigDict) or part not in section:
            choices = ", ".join(section) if isinstance(section, ConfigDict) else "none"
            raise ValueError(f"{where} has no field '{part}'; choose from {choices}")
        parent, section, where = section, section[part], f"{where}.{part}"
    if value is None and _default(field) is not None:
        raise ValueError(f"{where} = None: this field cannot be unset")
    try:
        parent[part] = value
    except TypeError as error:
        raise ValueError(f"{where} = {value!r}: {error}") from error


def _default(field: str) -> Any:
    from configs.base import get_config

    value = get_config()
    for part in field.split("."):
        value = value[part]
    return value


def resolve_all(config: str, trials: list[dict[str, Any]]) -> list[ConfigDict]:
    """Every trial's config, validated; the first that does not fit stops it all.

    Raises:
      ValueError: naming the trial, the field and the value; or two trials that are the same.
    """
    from configs.base import validate

    resolved: list[ConfigDict] = []
    seen: dict[str, int] = {}
    for number, overrides in enumerate(trials, start=1):
        try:
            resolved.append(resolve(config, overrides))
            validate(resolved[-1])
        except ValueError as error:
            about = label(overrides) or "no changes"
            raise ValueError(f"trial {number} of {len(trials)} ({about}): {error}") from error
        first = seen.setdefault(identity(resolved[-1]), number)
        if first != number:
            raise ValueError(f"trials {first} and {number} of {len(trials)} are the same: {label(overrides)}")
    return resolved


def identity(config: ConfigDict) -> str:
    """sha256 of the fields that are set. Not of None, "" and (), the defaults of most fields that a later version adds:
    results that were made before stay those of the same config."""
    def set_fields(section: dict[str, Any]) -> dict[str, Any]:
        kept = {name: set_fields(value) if isinstance(value, dict) else value for name, value in section.items()}
        return {name: value for name, value in kept.items() if value not in (None, "", (), [], {})}

    return json_sha256(set_fields(config.to_dict()))


def json_sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()).hexdigest()


def flags(config: str, overrides: dict[str, Any]) -> list[str]:
    """Arguments of main.py."""
    return [f"--config={config}", *(f"--config.{field}={_text(value)}" for field, value in overrides.items())]


def label(overrides: dict[str, Any]) -> str:
    """"optimizer.learning_rate=0.001, seed=0"."""
    return ", ".join(f"{field}={_text(value)}" for field, value in overrides.items())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else repr(tuple(value) if isinstance(value, list) else value)
