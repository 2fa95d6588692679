"""The folder of a run: created, proven writable, locked; its config; JSON files that are whole after any kill.

    <workdir>/.lock           held by the one training process, with its pid
    <workdir>/config.json     the resolved config that the weights were trained with
    <workdir>/checkpoints/    see checkpointing.py
    <workdir>/metrics.jsonl   see metric_writers.py
"""

import contextlib
import errno
import fcntl
import json
import math
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from absl import logging

from evaluation.files import write_whole

LOCK, CONFIG, CHECKPOINTS = ".lock", "config.json", "checkpoints"


@contextlib.contextmanager
def prepare_workdir(path: str | os.PathLike) -> Iterator[Path]:
    """Creates the folder of a run, proves it writable and holds its lock inside the `with` block.

    The kernel releases the lock when the process ends, however it ends, so a stale lock cannot exist. Only the first
    of several processes locks, since all of them share the folder.

    Raises OSError where the folder cannot be written, and RuntimeError naming the pid of a process that holds the lock.
    """
    workdir = Path(path).expanduser().absolute()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir) as probe:
            probe.write(b"probe")
    except OSError as problem:
        raise OSError(problem.errno, f"the workdir cannot be written ({problem.strerror})", str(workdir)) from problem
    if jax.process_index() != 0:
        yield workdir
        return
    with open(workdir / LOCK, "a+") as lock:  # "a+", because opening must not erase the pid of the holder
        _lock(lock.fileno(), workdir)
        lock.truncate(0)
        lock.write(f"{os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        yield workdir


def check_config(workdir: Path, current: dict, *, allow_change: bool = False, ignore: tuple[str, ...] = ()) -> None:
    """Refuses to continue a run with another config than it was begun with. Writes nothing; see `store_config`.

    Args:
      workdir: of the run, locked by this process.
      current: the resolved config, JSON values.
      allow_change: log the differences and go on with `current`.
      ignore: names and sections that cannot change the trained weights, such as ("sampler", "training.log_every").

    Raises ValueError listing the differences, or where checkpoints lie in the folder without a config.
    """
    stored = read_config(workdir)
    if stored is None:
        if (workdir / CHECKPOINTS).is_dir() and any((workdir / CHECKPOINTS).iterdir()):
            raise ValueError(f"workdir {workdir} holds {CHECKPOINTS}/, but no {CONFIG}: it is not a run of this "
                             "project, or it lost its config. Choose another workdir.")
        return
    lines = compare_config(stored, current, ignore)
    if lines:
        text = f"the config differs from the one that workdir {workdir} was begun with:\n  " + "\n  ".join(lines)
        if not allow_change:
            raise ValueError(text)
        logging.warning("Change allowed: %s", text)


def store_config(workdir: Path, current: dict) -> None:
    """Stores the config of a run that has been found to fit it, unless the same is there."""
    stored = read_config(workdir)
    if stored is None or compare_config(stored, current):
        write_json_atomic(workdir / CONFIG, current)


def read_config(workdir: Path) -> dict | None:
    """The stored config of a run, None where there is none. Raises ValueError where the file is not a JSON object."""
    path = Path(workdir) / CONFIG
    if not path.exists():
        return None
    try:
        config = json.loads(path.read_text())
    except ValueError as problem:
        raise ValueError(f"{path} is not JSON: {problem}") from problem
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a {type(config).__name__}, not a config")
    return config


def compare_config(stored: dict, current: dict, ignore: tuple[str, ...] = ()) -> list[str]:
    """Differences of two configs, as "training.steps: 2000 (stored) != 4000 (now)", in the order of the names."""
    was, now = (flat_config(_valid(config)) for config in (stored, current))
    lines = []
    for name in sorted(was.keys() | now.keys()):
        if any(name == prefix or name.startswith(f"{prefix}.") for prefix in ignore):
            continue
        if was.get(name) is None and now.get(name) is None:
            continue  # a field that is not set may be one that the other version does not have
        left, right = (json.dumps(values[name]) if name in values else "absent" for values in (was, now))
        if left != right and not (name in was and name in now and was[name] == now[name]):  # 1 equals 1.0
            lines.append(f"{name}: {left} (stored) != {right} (now)")
    return lines


def write_json_atomic(path: str | os.PathLike, value: Any) -> None:
    """Writes JSON so that a reader, also after a kill, sees the old file or the new one; NaN as `append_json_line`."""
    text = json.dumps(_valid(value), indent=2, allow_nan=False) + "\n"
    write_whole(Path(path), lambda file: file.write(text.encode()))


def append_json_line(path: str | os.PathLike, record: dict) -> None:
    """Appends one line in one write, so that processes do not mix lines; on the disk when this returns.

    NaN and infinities become the strings "NaN", "Infinity" and "-Infinity", which `float` reads, for JSON has none.
    Raises OSError where the disk is full.
    """
    line = (json.dumps(_valid(record), allow_nan=False) + "\n").encode()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line  # a kill tore the last line: it must not swallow this one
        if os.write(descriptor, line) != len(line):
            raise OSError(errno.ENOSPC, "line written in part", str(path))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json_lines(path: str | os.PathLike) -> list[dict]:
    """All whole lines of a file of JSON objects; torn ones are left out with a warning. No file, no lines."""
    path, records = Path(path), []
    for number, line in enumerate(path.read_text(errors="replace").splitlines() if path.exists() else [], start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif line.strip():
            logging.warning("%s, line %d is torn and left out", path, number)
    return records


def _lock(descriptor: int, workdir: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = (workdir / LOCK).read_text().strip() or "unknown"
        raise RuntimeError(f"workdir {workdir} is in use by process {holder}: wait for it, stop it, or choose another "
                           "workdir") from None
    except OSError as problem:  # some network file systems have no locks
        logging.warning("%s cannot be locked (%s): start only one process per workdir", workdir, problem.strerror)


def flat_config(config: dict, prefix: str = "") -> dict[str, Any]:
    """{"training": {"steps": 5}} -> {"training.steps": 5}; an empty section stays a value."""
    flat = {}
    for name, value in config.items():
        nested = isinstance(value, dict) and value
        flat |= flat_config(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat


def _valid(value: Any) -> Any:
    """What JSON makes of a value, with words for the numbers that it lacks."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {name: _valid(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_valid(item) for item in value]
    return value
