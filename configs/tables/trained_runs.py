"""Networks that several rows and tables want, trained once per seed in a folder beside the tables' own.

  <root>/distillation/teacher-<hash>   runs, one per config and seed
  <root>/distillation/features         classifiers, one per data set

Whoever comes first trains, and the others wait. Imported without JAX, like all tables.
"""

import contextlib
import fcntl
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from configs.overrides import identity, resolve


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Waits until no other process is in here with this path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def train_here(config: Any, folder: Path) -> None:
    """Trains, or goes on training; does nothing where it is done. Leaves the process on a stop request."""
    from configs.base import validate
    from training.loop import train

    validate(config)
    with alone(folder.with_name(f"{folder.name}.turn")):
        code = train(config, str(folder))
    if code:
        sys.exit(code)


def shared_folder(folder: Path) -> Path:
    """What the runs of all tables have in common, of a run in <root>/<table>/<run>."""
    return folder.parent.parent / "distillation"


def trained_run(config: str, overrides: Mapping[str, Any], seed: int, folder: Path) -> tuple[Any, Path]:
    """(config, workdir) of the run of this config and seed, trained."""
    resolved = resolve(config, {**overrides, "seed": seed, "training.tensorboard": False})
    workdir = shared_folder(folder) / f"teacher-{identity(resolved)[:8]}"
    train_here(resolved, workdir)
    return resolved, workdir


def features_of(config: Any, experiment: Any, folder: Path) -> Any:
    """The classifier of a data set."""
    from training.evaluation import make_features

    cache = shared_folder(folder) / "features"
    with alone(cache.with_name("features.turn")):
        return make_features(config, "classifier", experiment.train, experiment.test, cache)
