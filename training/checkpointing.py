"""Checkpoints: a step on disk is complete and verified, or it is not used. The only file that knows orbax.

One folder per step, named by its number, holding four items that are written together:

  state    every array of the training state (orbax)
  data     position and fingerprint of the data pipeline (JSON)
  config   the resolved config (JSON)
  meta     schema version, step, environment, sha256 of every array, of the other JSON items and of itself (JSON)

Saving is synchronous. orbax writes into a temporary folder and renames it, so a killed process leaves the whole step or
no step; when `save` has returned, nothing that happens to the process can lose the step. (An asynchronous save is lost
without a word, exit code 0, when the process ends soon after it: the interpreter has stopped the threads that it needs
before any exit hook runs.)

orbax's checkpoint manager is left aside, its checkpointer does the writing: the manager takes any folder with a number
for a step, loads flipped bits and other dtypes without an error, does not fall back when the newest step is damaged,
and its best-keeping lets a NaN push out the best step. Here no metric decides what is deleted, only the order of steps.
The rename is atomic for the death of the process; after a power cut the hashes find what did not reach the disk, so
keep at least two steps.
"""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jaxtyping import PyTree

from training import manifest
from training.manifest import TEMPORARY, DamagedError, first_line, is_step_name, read_meta

SCHEMA_VERSION = 1
FREE_SPACE_FACTOR = 1.2
DAMAGED, DELETING = "damaged-", "deleting-"


class Restored(NamedTuple):
    """A verified checkpoint; `meta` includes the environment that it was made in."""

    step: int
    state: PyTree
    data: dict
    config: dict
    meta: dict


class Checkpoints:
    """The checkpoints of one run, in one local or shared folder.

    Nothing is created or removed before the first `save`, so that reading a run which is still training is harmless.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 2):
        """Keeps the `keep` >= 1 newest steps. Raises ValueError for another `keep`."""
        if keep < 1:
            raise ValueError(f"keep = {keep}: at least one checkpoint must be kept")
        self.directory = Path(directory).absolute()  # orbax takes no relative paths
        self.keep = keep
        with _quiet_orbax():
            self._orbax = ocp.Checkpointer(ocp.CompositeCheckpointHandler(handler_registry=_handlers()))

    def good_steps(self, *, warn: bool = False) -> list[int]:
        """Complete steps in order of their numbers. The arrays themselves are verified by `restore` only."""
        steps = []
        for entry in sorted(self.directory.iterdir()) if self.directory.is_dir() else []:
            if entry.name.startswith((DAMAGED, DELETING)):
                continue
            try:
                steps.append(read_meta(entry)["step"])
            except DamagedError as problem:
                if warn:
                    logging.warning("Ignored in %s: %s", self.directory, problem)
        return sorted(steps)

    def latest_good_step(self) -> int | None:
        """The highest complete step, or None; every other entry of the folder is ignored with a warning."""
        return max(self.good_steps(warn=True), default=None)

    def save(self, step: int, state: PyTree, *, data: dict, config: dict) -> bool:
        """Writes one step and deletes the ones beyond `keep`; every process must call it.

        Args:
          step: number of finished training steps, the folder's name.
          state: jax or numpy arrays. Not donated: it may be used as soon as this returns.
          data, config: JSON values.

        Returns False where the very same state and data position are saved already (a last step that is also a
        regular one, or a signal right after a save), else True. Raises ValueError where the step exists with other
        content, which means that two runs share a folder; where weights are not finite; and where data or config are
        not JSON. Raises OSError where the step cannot be written, on a full disk for one: older steps stay.
        """
        data, config = _as_json(data, "data"), _as_json(config, "config")
        meta = {
            "schema_version": SCHEMA_VERSION,
            "step": int(step),
            "environment": manifest.environment(),
            "leaves": manifest.leaf_manifest(state, require_finite=True),
            "data_sha256": manifest.json_hash(data),
            "config_sha256": manifest.json_hash(config),
        }
        meta["sha256"] = manifest.json_hash(meta)
        folder = self.directory / str(int(step))
        if os.path.lexists(folder) and self._is_saved(folder, meta):
            return False
        with _one_process("prepare") as first:
            if first:
                self._prepare(sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
        json_items = {"data": data, "config": config, "meta": meta}
        json_args = {name: ocp.args.JsonSave(item) for name, item in json_items.items()}
        try:
            with _quiet_orbax():
                self._orbax.save(folder, args=ocp.args.Composite(state=ocp.args.PyTreeSave(state), **json_args))
        except Exception as problem:
            raise OSError(f"checkpoint {folder} could not be written ({first_line(problem)}); older steps are intact: "
                          f"{self.good_steps()}") from problem
        with _one_process("delete") as first:
            if first:
                for old in self.good_steps()[: -self.keep]:
                    self._delete(self.directory / str(old))
        return True

    def restore(self, abstract_state: PyTree, step: int | None = None) -> Restored | None:
        """The newest step whose every byte is right, laid out as `abstract_state` says; None for a run without any.

        Args:
          abstract_state: arrays or `jax.ShapeDtypeStruct`s with the shapes, dtypes and shardings that are wanted now.
          step: this step or nothing, for evaluation; the default takes the newest and falls back, loudly, over damaged
            ones, which are then renamed to `damaged-<step>`.

        Raises ValueError listing paths where shapes, dtypes or the tree differ: nothing is cast, padded or left out.
        Raises RuntimeError where steps exist, but none is usable: a run never starts from scratch over a lost one.
        """
        if step is not None:
            try:
                return self._load(self.directory / str(int(step)), abstract_state)
            except DamagedError as problem:
                raise RuntimeError(f"checkpoint {step} of {self.directory} cannot be used: {problem}. Complete steps: "
                                   f"{self.good_steps()}") from problem
        damaged: dict[Path, DamagedError] = {}
        for folder in self._candidates():
            try:
                restored = self._load(folder, abstract_state)
            except DamagedError as problem:
                logging.error("CHECKPOINT DAMAGED: step %s of %s: %s", folder.name, self.directory, problem)
                damaged[folder] = problem
                continue
            with _one_process("set aside") as first:
                for bad in damaged:
                    logging.error("CHECKPOINT DAMAGED: step %s is replaced by step %s", bad.name, restored.step)
                    if first:
                        _set_aside(bad)
            return restored
        # Only after a success is anything renamed: what fails for every step is more likely our fault than theirs.
        if damaged or (self.directory.is_dir() and any(self.directory.glob(f"{DAMAGED}*"))):
            why = "; ".join(str(problem) for problem in damaged.values()) or "all were set aside as damaged earlier"
            raise RuntimeError(f"no usable checkpoint is left in {self.directory} ({why}). Not starting from scratch: "
                               "move that folder away to do so.")
        return None

    def _candidates(self) -> list[Path]:
        """Everything that has a step's name, good or bad, the newest first."""
        self.good_steps(warn=True)
        entries = self.directory.iterdir() if self.directory.is_dir() else []
        return sorted((entry for entry in entries if is_step_name(entry.name)), key=lambda entry: -int(entry.name))

    def _load(self, folder: Path, abstract_state: PyTree) -> Restored:
        meta = read_meta(folder)
        if meta["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"checkpoint {folder} has schema version {meta['schema_version']}; this code reads "
                             f"{SCHEMA_VERSION}: use the version of the code that wrote it")
        lines = manifest.differences(meta["leaves"], manifest.describe(abstract_state))
        if lines:
            shown = "\n  ".join(lines[:20] + ([f"and {len(lines) - 20} more"] if len(lines) > 20 else []))
            raise ValueError(f"checkpoint {folder} does not fit this run:\n  {shown}")
        abstract = jax.tree.map(_abstract, abstract_state)
        state = ocp.args.PyTreeRestore(abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract))
        restored = self._verified(folder, meta, state)
        changes = manifest.environment_changes(meta["environment"])
        if changes:
            logging.warning("This environment is not the checkpoint's: the run continues with the same data and keys, "
                            "but not bit for bit. %s", "; ".join(changes))
        return restored

    def read(self) -> Restored | None:
        """The newest step as it lies on the disk, in numpy arrays, whatever it is a state of; None where there is none.

        For those who know which part they want: dictionaries stay what they are, all other nodes are lists.

        Raises RuntimeError where steps exist, but the newest is damaged. Nothing is renamed.
        """
        folder = next(iter(self._candidates()), None)
        if folder is None:
            return None
        try:
            meta = read_meta(folder)
            return self._verified(folder, meta, ocp.args.PyTreeRestore(restore_args=self._as_numpy(folder)))
        except DamagedError as problem:
            raise RuntimeError(f"checkpoint {folder.name} of {self.directory} cannot be used: {problem}") from problem

    def _as_numpy(self, folder: Path) -> PyTree:
        """orbax's arguments for reading every array of a step into numpy. Raises DamagedError."""
        try:
            with _quiet_orbax():
                tree = self._orbax.metadata(folder).item_metadata["state"].tree
        except Exception as problem:  # as in `_verified`
            raise DamagedError(f"step {folder.name} cannot be read ({first_line(problem)})") from problem
        return jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), tree)

    def _verified(self, folder: Path, meta: dict, state: ocp.args.PyTreeRestore) -> Restored:
        """Reads one step and compares every byte with its manifest. Raises DamagedError."""
        args = ocp.args.Composite(state=state, data=ocp.args.JsonRestore(), config=ocp.args.JsonRestore())
        try:
            with _quiet_orbax():
                items = self._orbax.restore(folder, args=args)
        except (MemoryError, jax.errors.JaxRuntimeError):  # a device that is too small is no damage
            raise
        except Exception as problem:  # orbax and tensorstore raise a dozen types, Exception itself among them
            raise DamagedError(f"step {folder.name} cannot be read ({first_line(problem)})") from problem
        lines = manifest.differences(meta["leaves"], manifest.leaf_manifest(items.state), keys=("sha256",))
        lines += [name for name in ("data", "config") if manifest.json_hash(items[name]) != meta[f"{name}_sha256"]]
        if lines:
            raise DamagedError(f"step {folder.name} has other content than was saved ({len(lines)} x, {lines[0]})")
        return Restored(meta["step"], items.state, items.data, items.config, meta)

    def _is_saved(self, folder: Path, meta: dict) -> bool:
        """Whether the folder holds the same state and data. What is no good step is moved out of the way."""
        try:
            there = read_meta(folder)
        except DamagedError as problem:
            logging.warning("%s is in the way of a save: %s", folder, problem)
            with _one_process("clear") as first:
                if first:
                    _set_aside(folder)
            return False
        lines = manifest.differences(there["leaves"], meta["leaves"], keys=("shape", "dtype", "sha256"))
        if lines or there["data_sha256"] != meta["data_sha256"]:
            raise ValueError(f"step {folder.name} is already saved in {self.directory} with other content (first "
                             f"{(lines or ['data position'])[0]}): does another run write to this folder?")
        return True

    def _prepare(self, nbytes: int) -> None:
        """Removes what interrupted saves and deletions left, and refuses a save that cannot fit on the disk."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for entry in self.directory.iterdir():
            if entry.name.startswith(DELETING) or TEMPORARY in entry.name:
                shutil.rmtree(entry, ignore_errors=True)
        free, needed = shutil.disk_usage(self.directory).free, int(FREE_SPACE_FACTOR * nbytes)
        if free < needed:
            message = f"{needed / 2**20:.0f} MiB needed for a checkpoint, {free / 2**20:.0f} MiB free"
            raise OSError(errno.ENOSPC, message, str(self.directory))

    def _delete(self, folder: Path) -> None:
        """Renames first, so that a kill in the middle cannot leave half a step under a step's name."""
        aside = folder.with_name(DELETING + folder.name)
        try:
            folder.rename(aside)
            shutil.rmtree(aside)
        except OSError as problem:
            logging.warning("Old checkpoint %s could not be deleted: %s", folder, problem)


def _set_aside(folder: Path) -> None:
    """Renames to the first free of damaged-<step>, damaged-<step>.1, ...; nothing is deleted."""
    names = (f"{DAMAGED}{folder.name}{suffix}" for suffix in ("", *(f".{n}" for n in range(1, 1000))))
    aside = next(folder.with_name(name) for name in names if not os.path.lexists(folder.with_name(name)))
    try:
        folder.rename(aside)
        logging.error("%s was renamed to %s", folder, aside.name)
    except OSError as problem:  # such as a read-only folder in an evaluation: the step is still not used
        logging.warning("%s could not be renamed: %s", folder, problem)


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _handlers() -> ocp.handlers.DefaultCheckpointHandlerRegistry:
    """What writes and reads each item."""
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    # Weights do not compress; without trying to, saving and restoring are about three times as fast.
    arrays = ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_compression=False)
    registry.add("state", ocp.args.PyTreeSave, arrays)
    registry.add("state", ocp.args.PyTreeRestore, arrays)
    for name in ("data", "config", "meta"):
        handler = ocp.JsonCheckpointHandler()
        registry.add(name, ocp.args.JsonSave, handler)
        registry.add(name, ocp.args.JsonRestore, handler)
    return registry


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
    """orbax tells some forty lines per checkpoint at the level of information."""
    before = logging.get_verbosity()
    logging.set_verbosity(min(before, logging.WARNING))
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _as_json(value: dict, name: str) -> dict:
    """The value as it will be read back (tuples become lists), so that hashes agree."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as problem:
        raise ValueError(f"the {name} item of a checkpoint must be JSON: {problem}") from problem


@contextlib.contextmanager
def _one_process(name: str) -> Iterator[bool]:
    """True in the process that may rename and delete; the others wait at the end until it has done so."""
    yield jax.process_index() == 0
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"checkpointing: {name}")
