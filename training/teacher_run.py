"""A teacher from the workdir of its run: parameters, what Adam knows of them, and a hash that says which they were.

A student's checkpoint holds the hash, not the teacher. So the student can be sampled and evaluated without its teacher,
and its training refuses to go on with another one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree
from ml_collections import ConfigDict

from distillation.base import GENERATOR
from training.checkpointing import Checkpoints
from training.manifest import named_leaves, state_hash
from training.workdir import CHECKPOINTS, compare_config, flat_config, read_config

# What a teacher and its student have in common. Dropout and number format are no part of what a network has learnt.
SHARED = ("process", "prediction", "sigma_data", "network", "data.pad_to")
FREE = ("network.dropout", "network.dtype")


@dataclass(frozen=True, eq=False)
class TeacherRun:
    """Attributes:
      params: of the chosen average.
      second_moment: Adam's bias-corrected average of squared gradients, as `params`; None where it was not kept.
      facts: for the student's checkpoint: {"sha256": of params, "step": ..., "workdir": as the config names it}.
    """

    params: PyTree
    second_moment: PyTree | None
    facts: dict[str, Any]


def load_teacher(config: ConfigDict, like: PyTree, image_shape: tuple[int, ...]) -> TeacherRun:
    """The teacher that config.distillation names.

    Args:
      config: of the student.
      like: parameters of the student's network, whose shapes the teacher's must have.
      image_shape: of the student, which not every network shows in its parameters.

    Raises:
      FileNotFoundError: there is no run, or no checkpoint yet.
      ValueError: the run is of another process, prediction, network or image shape, or lacks the average, or what its
        guidance needs.
      RuntimeError: its newest checkpoint is damaged.
    """
    section = config.distillation
    folder = Path(section.teacher).expanduser()
    field = f"config.distillation.teacher = '{section.teacher}'"
    stored = read_config(folder) if folder.is_dir() else None
    if stored is None:
        raise FileNotFoundError(f"{field}: there is no run in this folder; train the teacher first, with main.py "
                                "--mode=train --workdir=FOLDER")
    _check_settings(field, stored, config)
    try:
        restored = Checkpoints(folder / CHECKPOINTS).read()
    except RuntimeError as problem:
        raise RuntimeError(f"{field}: {problem}") from problem
    if restored is None:
        raise FileNotFoundError(f"{field}: this run has no checkpoint yet")
    role = GENERATOR if GENERATOR in restored.state["params"] else "score"
    params = _average(field, restored.state, role, stored, section.teacher_ema or 0)
    _check_shapes(field, params, like)
    shape = restored.data.get("image_shape")
    if shape is not None and tuple(shape) != image_shape:
        raise ValueError(f"{field} is a network for other images: its shape is {tuple(shape)}, the student's "
                         f"{image_shape}")
    if section.guidance not in (None, 1.0) and role == "score" and not stored["objective"]["label_dropout"]:
        raise ValueError(f"config.distillation.guidance = {section.guidance} needs a teacher that was trained with "
                         f"objective.label_dropout > 0, which {field} was not")
    moment = _second_moment(restored.state["opt_state"][role], params, stored["optimizer"]["beta2"])
    facts = {"sha256": state_hash(params), "step": restored.step, "workdir": section.teacher}
    return TeacherRun(params, moment, facts)


def check_teacher(stored: dict[str, Any] | None, now: dict[str, Any] | None, step: int) -> None:
    """Raises ValueError unless a student's checkpoint was made with the teacher that is there now."""
    was, is_now = ((facts or {}).get("sha256") for facts in (stored, now))
    if was != is_now:
        raise ValueError(f"the teacher has changed: checkpoint {step} was made with the parameters {was} of "
                         f"{(stored or {}).get('workdir')}, and config.distillation.teacher = "
                         f"'{(now or {}).get('workdir')}' now holds {is_now}. Take another workdir for a student of "
                         "the new teacher")


def _check_settings(field: str, stored: dict, config: ConfigDict) -> None:
    current = config.to_dict()
    others = [name for name in {*flat_config(stored), *flat_config(current)}
              if not any(name == prefix or name.startswith(f"{prefix}.") for prefix in SHARED)]  # fmt: skip
    different = compare_config(stored, current, (*others, *FREE))
    if different:
        raise ValueError(f"{field} is a teacher of another kind than the student (stored: the teacher, now: the "
                         "student):\n  " + "\n  ".join(different))


def _average(field: str, state: dict, role: str, stored: dict, index: int) -> PyTree:
    """The average with this index, in the order of the run's half-lives; -1 for the live parameters."""
    half_lives = stored["ema"]["half_lives"]
    if not -1 <= index < len(half_lives):
        raise ValueError(f"config.distillation.teacher_ema = {index}: must be -1 or an index into the half-lives of "
                         f"the teacher, {half_lives} ({field})")
    return state["params"][role] if index < 0 else state["ema"][role][str(half_lives[index])]


def _check_shapes(field: str, params: PyTree, like: PyTree) -> None:
    shapes = [{path: tuple(leaf.shape) for path, leaf in named_leaves(tree).items()} for tree in (params, like)]
    wrong = [path for path in {**shapes[0], **shapes[1]} if shapes[0].get(path) != shapes[1].get(path)]
    if wrong:
        first = wrong[0]
        raise ValueError(f"{field} is a network for other images or classes: {first} is {shapes[0].get(first)}, and "
                         f"the student's is {shapes[1].get(first)} ({len(wrong)} arrays differ)")


def _second_moment(opt_state: Any, params: PyTree, beta2: float) -> PyTree | None:
    """nu / (1 - beta2^count) of Adam, wherever it is in the chain."""
    leaves = named_leaves(opt_state)
    counts = {path: leaf for path, leaf in leaves.items() if path.split("/")[-1] == "count"}
    for path, count in counts.items():
        prefix = path.removesuffix("count") + "nu/"
        if count == 0:  # it has not seen a gradient yet
            continue
        found = [leaf for name, leaf in leaves.items() if name.startswith(prefix)]
        if found:
            correction = 1 - beta2 ** float(count)
            return jax.tree.unflatten(jax.tree.structure(params), [np.float32(nu / correction) for nu in found])
    return None
