"""Adaptive sampling: any of the solvers below, without the network calls that would change little.

After Ye et al., "Training-Free Adaptive Diffusion with Bounded Difference Approximation Strategy", NeurIPS 2024; the
equations are in `samplers/skipping.py`. Two modes:

  shared      one decision for the whole batch, as in the paper; a skipped step costs no call. An image then depends on
              its neighbours.
  per_sample  one decision for each image, in slots that are refilled (`samplers/desynchronised.py`). An image does not.

Quality is set by c_max, the longest run of skips, first and by delta second. A delta has the unit of its criterion.
"""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from diffusion.base import Denoiser, Process, network_calls, require_kernel
from diffusion.random import image_noise
from samplers.ancestral import Ancestral, ancestral_tables
from samplers.base import Samples
from samplers.ddim import DDIM, ddim_tables
from samplers.desynchronised import Requests, run_queue
from samplers.dpm_solver import DPMSolver
from samplers.euler import Euler, reverse_tables
from samplers.heun import Heun
from samplers.heun_step import HeunStep
from samplers.skipping import (
    ALL_IMAGES,
    CRITERIA,
    EACH_IMAGE,
    LEAST_WARMUP,
    REUSES,
    Limits,
    Skipping,
    Steps,
    device_tables,
    least_calls,
    protected,
    row_at,
    select,
)
from samplers.time_grids import make_grid

MODES = ("shared", "per_sample")
AGGREGATES = ("mean", "max", "quantile")
SOLVERS = {"ddim": DDIM, "euler": Euler, "heun": Heun, "dpm_solver": DPMSolver, "ancestral": Ancestral}
FEW_STEPS = 15  # below, there is next to nothing to skip
PRESETS: dict[str, dict[str, Any]] = {
    # Of what was compared the nearest to all calls, on a grid uniform in time (`docs/results/adaptive_diffusion.md`).
    "default": {"criterion": "slope", "delta": 0.1, "reuse": "linear", "c_max": 2, "warmup": 2},
    # The authors' code.
    "paper": {"criterion": "scalar", "delta": 0.01, "c_max": 4, "compat": True},
    "safe": {"criterion": "scalar", "delta": 0.01, "c_max": 2, "tail": 2},
    "accurate": {"criterion": "slope", "delta": 0.1, "reuse": "linear", "c_max": 1},
    "fast": {"criterion": "slope", "delta": 0.2, "reuse": "linear", "c_max": 2},
}


def with_preset(preset: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """The options of a preset with those that are given in their place.

    A criterion of its own comes without the preset's delta, which is in another unit.

    Raises:
      ValueError: for an unknown preset.
    """
    if preset is None:
        return given
    if preset not in PRESETS:
        raise ValueError(f"preset = '{preset}' is not known; choose from {', '.join(PRESETS)}")
    known = PRESETS[preset]
    if given.get("criterion", known["criterion"]) != known["criterion"]:
        known = {name: value for name, value in known.items() if name != "delta"}
    return known | given


class SkipReport(NamedTuple):
    """What was skipped.

    Attributes:
      calls: [B] steps with a call, of each image.
      called: [B, N] which.
      dense_calls: how often the network was called, on `rows` images at once; twice each time for Heun's steps.
      rows: images in a call.
    """

    calls: Int[Array, " batch"]
    called: Bool[Array, "batch n"]
    dense_calls: Int[Array, ""]
    rows: int

    @property
    def utilisation(self) -> Float[Array, ""]:
        """The share of all rows that an image wanted."""
        return jnp.sum(self.calls) / (self.dense_calls * self.rows)


@dataclass(frozen=True, kw_only=True)
class Adaptive:
    """A solver with skipped calls.

    Attributes:
      solver: a DDIM, Euler, Heun, DPMSolver or Ancestral sampler; its `steps` are N. Heun's are skipped as a whole.
      mode: a name of MODES.
      criterion: scalar (of the authors' code), vector (of the paper) or slope (ours); None for scalar.
      delta: threshold; None for the criterion's own. Below 0 nothing is skipped.
      reuse: hold the last output, or extend the last two linearly.
      c_max: most skips in a row, at least 1; in compat 0 means no limit.
      warmup: first steps that always call.
      start: share of the steps, from the first on, that always call.
      tail: last steps that always call.
      budget: most calls an image may take; None for any number.
      aggregate: shared mode: the statistics of the whole batch ("mean"), or a skip only where all images want it
        ("max") or nine of ten do ("quantile").
      slots: per_sample mode: images at a time.
      compat: count skips in a row as the authors' code does.
      normalize: scalar and vector: compare increments per unit of noise level; an experiment, which is not better.

    Raises:
      ValueError: for an unknown name, a number out of range, options that do not go together, or a solver that cannot
        be wrapped.
    """

    solver: Any
    mode: str = "shared"
    criterion: str | None = None
    delta: float | None = None
    reuse: str = "hold"
    c_max: int = 4
    warmup: int = 4
    start: float = 0.0
    tail: int = 0
    budget: int | None = None
    aggregate: str = "mean"
    slots: int = 16
    compat: bool = False
    normalize: bool = False
    steps: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        if not isinstance(self.solver, tuple(SOLVERS.values())):
            raise ValueError(f"solver = {type(self.solver).__name__} cannot skip calls; choose from "
                             f"{', '.join(SOLVERS)}")
        object.__setattr__(self, "steps", self.solver.steps)
        if getattr(self.solver, "churn", 0) > 0:
            raise ValueError(f"solver = Heun with churn = {self.solver.churn} cannot skip calls; it must be 0")
        for name, choices in (("mode", MODES), ("reuse", REUSES), ("aggregate", AGGREGATES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} = '{getattr(self, name)}' is not known; choose from {', '.join(choices)}")
        if self.criterion is None and self.delta is not None:
            raise ValueError(f"delta = {self.delta} needs its criterion, whose unit it has; choose from "
                             f"{', '.join(CRITERIA)}")
        if self.criterion not in (None, *CRITERIA):
            raise ValueError(f"criterion = '{self.criterion}' is not known; choose from {', '.join(CRITERIA)}")
        if self.delta is not None and not math.isfinite(self.delta):
            raise ValueError(f"delta = {self.delta} must be finite")
        if self.c_max < (0 if self.compat else 1):
            raise ValueError(f"c_max = {self.c_max} must be at least {0 if self.compat else 1}")
        if not 0 <= self.start <= 1:
            raise ValueError(f"start = {self.start} must lie in [0, 1]")
        if self.tail < 0:
            raise ValueError(f"tail = {self.tail} must be at least 0")
        if self.slots < 1:
            raise ValueError(f"slots = {self.slots} must be at least 1")
        if self.mode == "per_sample" and self.aggregate != "mean":
            raise ValueError(f"aggregate = '{self.aggregate}' is for mode = 'shared': per_sample decides for each "
                             "image")
        if self.normalize and self._criterion == "slope":
            raise ValueError("normalize = True is for criterion = 'scalar' or 'vector': slope sees no increments")
        least = max(LEAST_WARMUP[self._criterion], 2 if self.reuse == "linear" else 1)
        if self.warmup < least:
            raise ValueError(f"warmup = {self.warmup} must be at least {least} for criterion = '{self._criterion}'")
        if self.steps <= self.warmup:
            raise ValueError(f"warmup = {self.warmup} leaves nothing to skip of the {self.steps} steps of the solver")
        if self.budget is not None:
            self._check_budget(0)

    def _check_budget(self, forced: int) -> None:
        first = protected(self.steps, warmup=self.warmup, start=self.start)
        least = least_calls(self.steps, warmup=first, c_max=self.c_max, tail=self.tail,
                            compat=self.compat)  # fmt: skip
        if self.budget < least + forced and forced:
            raise ValueError(f"budget = {self.budget} is less than {least + forced}: {least} calls at least, and "
                             f"{forced} where the guidance interval begins or ends")
        if self.budget < least:
            raise ValueError(f"budget = {self.budget} is less than the {least} calls that {self.steps} steps with "
                             f"warmup = {self.warmup}, start = {self.start}, tail = {self.tail} and c_max = "
                             f"{self.c_max} take at least")

    @property
    def _criterion(self) -> str:
        return self.criterion or "scalar"

    def limits(self, count: tuple[int, ...] = ()) -> Limits:
        """Of every image alike, () or [count] each."""
        delta = CRITERIA[self._criterion] if self.delta is None else self.delta
        first = protected(self.steps, warmup=self.warmup, start=self.start)
        budget = self.steps if self.budget is None else self.budget
        whole = (self.c_max, self.steps, first, self.tail, budget)
        return Limits(jnp.full(count, delta), *(jnp.full(count, value, jnp.int32) for value in whole))

    def skipping(self) -> Skipping:
        """The state machine of these options."""
        agreement = {"mean": None, "max": 1.0, "quantile": 0.9}[self.aggregate]
        return Skipping(criterion=self._criterion, reuse=self.reuse, compat=self.compat, agreement=agreement,
                        normalize=self.normalize,
                        over=EACH_IMAGE if self.mode == "per_sample" else ALL_IMAGES)  # fmt: skip

    def sample(
        self, denoise: Denoiser, process: Process, keys: Key[Array, " batch"], label: Any, *,
        shape: tuple[int, ...], keep_steps: bool = False,
    ) -> Samples:
        """As every sampler; with `keep_steps` x0_hat is also that of steps without a call, and all images keep step.

        A denoiser that can say so has an attribute `one_time`, true if it takes one time for all images. `label` is a
        tree of [B, ...] arrays for a denoiser that wants one.

        Raises:
          ValueError: for a process without a kernel, a budget that guidance makes impossible, or mode per_sample with a
            denoiser that needs one time for all images.
        """
        return self.sample_with_report(denoise, process, keys, label, shape=shape, keep_steps=keep_steps)[0]

    def sample_with_report(
        self, denoise: Denoiser, process: Process, keys: Key[Array, " batch"], label: Any, *,
        shape: tuple[int, ...], keep_steps: bool = False,
    ) -> tuple[Samples, SkipReport]:
        """`sample`, and what was skipped."""
        denoise, run = stepwise(self.solver, process, denoise)
        run.forced[: protected(self.steps, warmup=self.warmup, start=self.start)] = False  # they call anyway, as these
        run.forced[self.steps - self.tail :] = False
        if self.budget is not None:
            self._check_budget(int(run.forced.sum()))
        x, tables, stochastic = process.prior(keys, shape), device_tables([run]), bool(run.noise.any())
        count, shared = len(x), self.mode == "shared"
        limits = self.limits(() if shared else (count,))
        if shared or keep_steps:
            return run_in_step(self.skipping(), denoise, x, keys, label, tables, limits, stochastic=stochastic,
                               keep_steps=keep_steps)  # fmt: skip
        _check_times(denoise, x, label, min(self.slots, count))
        requests = Requests(x, keys, label, jnp.zeros(count, jnp.int32), limits)
        done = run_queue(self.skipping(), denoise, requests, tables, slots=self.slots, stochastic=stochastic)
        return Samples(done.x, done.nfe), SkipReport(done.calls, done.called, done.turns, min(self.slots, count))


def stepwise(solver: Any, process: Process, denoise: Denoiser) -> tuple[Denoiser, Steps]:
    """A solver as tables, and the denoiser whose x0_hat they take: the given one, but for Heun's two calls a step.

    Raises:
      ValueError: as `solver_steps`.
    """
    run = solver_steps(solver, process, denoise)
    return (HeunStep(denoise, process, run.t) if isinstance(solver, Heun) else denoise), run


def solver_steps(solver: Any, process: Process, denoise: Denoiser | None = None) -> Steps:
    """The tables of a solver on a process; a denoiser with a guidance interval is called where it begins and ends.

    Raises:
      ValueError: for a process without a kernel.
    """
    require_kernel(process, "adaptive sampling")
    if isinstance(solver, DPMSolver):
        t, a, weights, noise = solver.tables(process)
    else:
        t = make_grid(process, solver.grid, solver.steps).t
        if isinstance(solver, Euler):
            tables = reverse_tables(process, t, 0.5) | {"c": np.zeros(len(t))}
        elif isinstance(solver, DDIM | Heun):  # Heun's are those of DDIM with the x0_hat of `HeunStep`
            tables = ddim_tables(process, t, getattr(solver, "eta", 0.0))
        else:
            tables = ancestral_tables(process, t, solver.variance, zero_terminal_snr=solver.zero_terminal_snr)
        a, weights, noise = tables["a"], tables["b"][:, None], tables["c"]
    alpha, sigma = process.alpha(t), process.sigma(t)
    flow = bool(np.allclose(alpha + sigma, 1.0))
    guided = np.asarray(denoise.guided(t)) if hasattr(denoise, "guided") else np.zeros(len(t), bool)
    forced = np.append(False, guided[1:] != guided[:-1])
    with np.errstate(divide="ignore"):  # a flow begins at alpha = 0
        lam = np.log(alpha / sigma)
    return Steps(t, np.ones_like(t) if flow else alpha, sigma, lam, a, weights, noise, forced)


def _check_times(denoise: Denoiser, x: Float[Array, "batch *shape"], label: Any, slots: int) -> None:
    """Raises ValueError for a denoiser that needs one time for all images, as far as it says so or shapes tell."""
    rule = ("mode = 'per_sample' calls the network with a time for each image, and this denoiser takes one for all; "
            "choose mode = 'shared'")
    if getattr(denoise, "one_time", False):
        raise ValueError(rule)
    count = slots + (slots == x.shape[-1])  # or times could be taken for channels

    def of(values: Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, *values.shape[1:]), values.dtype)

    try:
        shape = jax.eval_shape(denoise, of(x), of(jnp.zeros(1)), jax.tree.map(of, label)).shape
    except (TypeError, ValueError, AssertionError) as problem:
        raise ValueError(f"{rule} ({problem})") from problem
    if shape != of(x).shape:
        raise ValueError(f"{rule} (x0_hat has shape {shape}, the images {of(x).shape})")


def run_in_step(
    skipping: Skipping, denoise: Denoiser, x: Float[Array, "batch *shape"], keys: Key[Array, " batch"], label: Any,
    tables: dict[str, Array], limits: Limits, *, stochastic: bool, mask: Bool[Array, "*count n"] | None = None,
    keep_steps: bool = False,
) -> tuple[Samples, SkipReport]:
    """All images at the same step, as a scan whose network call is under a condition.

    With one decision for all a step that skips costs no call; with one for each it does as soon as one image calls, and
    the results are those of `run_queue`.

    Args:
      tables: of `device_tables`, of one run.
      mask: steps that call, in place of a criterion, of all images or [B, N] of each; the first always does.
    """
    steps, (batch, *shape) = tables["t"].shape[1], x.shape

    def step(carry: Any, k: Array) -> tuple[Any, tuple[Array, Array | None]]:
        state, nfe, dense_calls = carry
        row, ahead = row_at(tables, 0, k), row_at(tables, 0, k + 1)
        t = jnp.full(batch, row["t"])

        def skip() -> tuple[Any, Array]:
            return state, skipping.reused(state, row)

        def call() -> tuple[Any, Array]:
            x0_hat = denoise(state.x, t, label).astype(state.x.dtype)
            after = skipping.called(state, x0_hat, row), x0_hat
            return select(state.need, after, skip()) if state.need.ndim else after

        now, x0_hat = jax.lax.cond(state.need.any(), call, skip)
        nfe = nfe + jnp.where(state.need, network_calls(denoise, t, label), 0)
        noise = image_noise(keys, k + 1, tuple(shape)) if stochastic else None
        given = None if mask is None else mask[..., jnp.minimum(k + 1, steps - 1)] & jnp.ones_like(state.need)
        after = skipping.step(now, x0_hat, row, ahead, limits, noise, given)
        return (after, nfe, dense_calls + state.need.any()), (state.need, x0_hat if keep_steps else None)

    start = (skipping.start(x, tables["weights"].shape[-1]), jnp.zeros(batch, jnp.int32), jnp.array(0))
    (state, nfe, dense_calls), (called, x0_steps) = jax.lax.scan(step, start, jnp.arange(steps))
    called = jnp.broadcast_to(called.T if called.ndim > 1 else called, (batch, steps))
    report = SkipReport(jnp.broadcast_to(state.calls, batch), called, dense_calls, batch)
    return Samples(state.x, nfe, x0_steps, tables["t"][0] if keep_steps else None), report
