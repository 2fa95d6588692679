"""Fixed choices of the steps that call: what a criterion has to be better than, at as many calls.

  uniform   steps 0 and 1, and the others as evenly as whole numbers allow
  random    the first steps, and of the rest any choice without more than c_max skips in a row, all equally likely
  greedy    from all calls on, again and again without the one that is missed least, as a few given images have it

They run through the same state machine as `Adaptive`, with the same reuse of outputs (`sample_with_mask`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from diffusion.base import Denoiser, Process
from samplers.adaptive import SkipReport, run_in_step, stepwise
from samplers.base import Samples
from samplers.skipping import ALL_IMAGES, EACH_IMAGE, Limits, Skipping, device_tables


def uniform_mask(steps: int, calls: int) -> Bool[np.ndarray, " n"]:
    """Which of `steps` steps call.

    Raises:
      ValueError: unless 2 <= calls <= steps.
    """
    if not 2 <= calls <= steps:
        raise ValueError(f"calls = {calls} must lie between 2 and the {steps} steps")
    mask = np.zeros(steps, bool)
    mask[[0, *np.linspace(1, steps - 1, calls - 1).round().astype(int)]] = True
    return mask


def random_masks(
    draw: np.random.Generator, count: int, steps: int, calls: int, *, c_max: int, warmup: int = 4
) -> Bool[np.ndarray, "count n"]:
    """Independent choices.

    Raises:
      ValueError: where no choice has so many calls.
    """

    # ways[step][run][left]: choices for the steps from `step` on, after `run` skips in a row, with `left` calls.
    ways: dict[int, np.ndarray] = {steps: np.zeros((c_max + 1, calls + 2), object)}
    ways[steps][:, 0] = 1
    for step in range(steps - 1, warmup - 1, -1):
        later, table = ways[step + 1], np.zeros((c_max + 1, calls + 2), object)
        table[:, 1:] += later[0, :-1]  # it calls
        table[:-1] += later[1:]  # it does not
        ways[step] = table
    if not 1 <= warmup <= calls <= steps or not ways[warmup][0, calls - warmup]:
        raise ValueError(f"calls = {calls} of {steps} steps are not possible with warmup = {warmup} and c_max = "
                         f"{c_max}")
    masks = np.ones((count, steps), bool)
    for mask in masks:
        run, left = 0, calls - warmup
        for step in range(warmup, steps):
            share = ways[step + 1][0, left - 1] / ways[step][run, left] if left else 0.0
            mask[step] = draw.random() < share
            run, left = (0, left - 1) if mask[step] else (run + 1, left)
    return masks


def greedy_masks(
    error: Callable[[Bool[np.ndarray, "masks n"]], Float[np.ndarray, " masks"]], steps: int, calls: Sequence[int]
) -> dict[int, Bool[np.ndarray, " n"]]:
    """{number of calls: mask} for each of `calls`, by backward elimination; step 0 always calls.

    Args:
      error: of each of steps - 1 masks. A round that has fewer candidates repeats the first ones, so that what is asked
        for has always the same shape.

    Raises:
      ValueError: for no numbers of calls, or one that is not between 1 and `steps`.
    """
    if not calls or not 1 <= min(calls) <= max(calls) <= steps:
        raise ValueError(f"calls = {tuple(calls)} must be numbers between 1 and the {steps} steps")
    mask, found = np.ones(steps, bool), {}
    for left in range(steps, min(calls) - 1, -1):
        if left in calls:
            found[left] = mask.copy()
        dropped = np.flatnonzero(mask)[1:]
        if left == min(calls):
            break
        candidates = np.repeat(mask[None], steps - 1, axis=0)
        padded = np.resize(dropped, steps - 1)
        candidates[np.arange(steps - 1), padded] = False
        found_errors = np.asarray(error(candidates))[: len(dropped)]
        mask[dropped[np.argmin(np.where(np.isnan(found_errors), np.inf, found_errors))]] = False
    return found


def sample_with_mask(
    solver: Any, mask: Bool[Any, "*count n"], denoise: Denoiser, process: Process, keys: Key[Array, " batch"],
    label: Any, *, shape: tuple[int, ...], reuse: str = "hold",
) -> tuple[Samples, SkipReport]:
    """A solver that calls at given steps, the first of them always, and nowhere else even where guidance changes.

    Args:
      solver: as of `Adaptive`.
      mask: [N] for all images, or [B, N] for each; a call is then saved only where no image wants it.
      reuse: as of `Adaptive`.

    Raises:
      ValueError: for a process without a kernel, or a mask of another number of steps or images.
    """
    denoise, run = stepwise(solver, process, denoise)
    if mask.shape not in ((len(run.t),), (len(keys), len(run.t))):
        raise ValueError(f"a mask of shape {mask.shape} does not fit {len(keys)} images and the {len(run.t)} steps of "
                         "the solver")
    over, count = (ALL_IMAGES, ()) if mask.ndim == 1 else (EACH_IMAGE, (len(keys),))
    ignored = Limits(jnp.zeros(count), *(jnp.zeros(count, jnp.int32) for _ in range(5)))
    return run_in_step(Skipping(criterion="scalar", reuse=reuse, over=over), denoise, process.prior(keys, shape), keys,
                       label, device_tables([run]), ignored, stochastic=bool(run.noise.any()),
                       mask=jnp.asarray(mask))  # fmt: skip
