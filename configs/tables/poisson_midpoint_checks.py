"""Moments and biases of the Poisson midpoint table: `measure(seed, folder, **options)` -> figures, nothing trained.

The first three are exact: the production code fed with unit vectors (evaluation/probing.py), in double precision. The
last two draw samples. Imported without JAX, like all tables; each function runs in a process of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np


def slope_with_interval(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """{"slope", "slope_low", "slope_high"} of log y over log x by least squares, with its 95 % interval of the fit."""
    from scipy.stats import linregress, t

    line = linregress(np.log(x), np.log(y))
    half = float(t.ppf(0.975, len(x) - 2) * line.stderr) if len(x) > 2 else float("nan")
    return {"slope": float(line.slope), "slope_low": line.slope - half, "slope_high": line.slope + half}


def closed_form(mode: str, a: float, k: int) -> float:
    """Relative bias of the stationary variance of Langevin dynamics on a Gaussian, a = step size times precision."""
    if k == 1:
        return 1 / (1 - a / 2) - 1
    q, r = 1 - 1 / k, 2 - 1 / k
    top, spread = {
        "bernoulli": (1 - a * q + a**2 * (q * r / 6 + q**2 / 2), q**2 * r / 6),
        "single0": (1 - a * q + a**2 * q / 2, q * (2 - q) / 12),
        "single": (1 - a * q + a**2 * q**2 / 2, q**2 * (r / 6 - 1 / 4)),
    }[mode]
    return top / ((1 - (1 - a + a**2 * q / 2) ** 2 - a**4 * spread) / (2 * a)) - 1


def stationary_bias(
    seed: int, folder: Path, *, mode: str, micro_steps: int | None, friction: float | None, step_sizes: Sequence[float],
    fit: Sequence[float],
) -> dict[str, float]:
    """Stationary variance of the position on N(0, 1), less 1.

    Args:
      micro_steps: K; 1 for the plain chain, None for 1 / step size.
      friction: None for the overdamped dynamics.
      fit: the step sizes of the slope, that of the excess, or of the bias itself where K is 1 or 1 / step size.

    Returns:
      bias_a<step>, excess_a<step> over the chain of all the micro steps, overdamped also closed_form_a<step>; the
      largest difference between it and the bias; and the slope.
    """
    import jax

    from evaluation.probing import transitions
    from samplers.linear_dynamics import overdamped, underdamped

    def bias(step: float, k: int) -> float:
        dynamics = overdamped(step, k, 1) if friction is None else underdamped(step, k, 1, friction)
        parts = dynamics.force.shape[1]
        found = transitions(dynamics, lambda x, m, tau: -x[:, 0], mode, parts=parts)
        return float(found.stationary()[0, 0, 0]) - 1

    figures, fitted = {}, []
    with jax.enable_x64(True):
        for a in step_sizes:
            k = micro_steps or round(1 / a)
            figures[f"bias_a{a:g}"] = bias(a, k)
            if k > 1:
                figures[f"excess_a{a:g}"] = figures[f"bias_a{a:g}"] - bias(a / k, 1)
            if friction is None:
                figures[f"closed_form_a{a:g}"] = closed_form(mode, a, k)
            if a in fit:
                fitted.append(figures[f"{'bias' if micro_steps in (1, None) else 'excess'}_a{a:g}"])
    if friction is None:
        differences = [figures[f"bias_a{a:g}"] - figures[f"closed_form_a{a:g}"] for a in step_sizes]
        figures["difference"] = float(np.abs(differences).max())
    if len(fitted) > 1 and min(fitted) > 1e-12:  # mode single of K = 2 has no excess
        figures |= slope_with_interval([a for a in step_sizes if a in fit], fitted)
    return figures


def _deviations(process: Any, sampler: Any, scales: Sequence[float]) -> tuple[np.ndarray, float]:
    """Standard deviations of the samples of a Poisson midpoint sampler for data N(0, s^2), and its expected calls."""
    import jax
    import jax.numpy as jnp

    from diffusion.prediction import PREDICTIONS
    from evaluation.probing import transitions

    tables, squares = sampler.dynamics(process), np.square(scales)

    def quantity(x: jax.Array, m: jax.Array, tau: jax.Array) -> jax.Array:
        t = jnp.asarray(tables.t, x.dtype)[m, tau]
        alpha, sigma = process.alpha(t)[:, None, None], process.sigma(t)[:, None, None]
        x0_hat = alpha * squares / (alpha**2 * squares + sigma**2) * x
        return PREDICTIONS[sampler.freeze].from_x0(x0_hat, x, alpha, sigma, None)

    variance = transitions(tables, quantity, sampler.mode, features=len(scales)).after(np.ones((len(scales), 1, 1)))
    k = tables.micro_steps
    calls = np.where(k == 1, 1, 2 - 1 / k if sampler.mode == "bernoulli" else 2).sum()
    return np.sqrt(variance[:, 0, 0]), float(calls)


def diffusion_moments(
    seed: int, folder: Path, *, samplers: Mapping[str, Mapping[str, Any]], scales: Sequence[float],
    schedules: Mapping[str, Mapping[str, Any]],
) -> dict[str, float]:
    """Standard deviation of samples for data N(0, s^2) with the exact denoiser, at DDPM's thousand levels.

    Args:
      samplers: label -> options of the Poisson midpoint sampler, mode bernoulli or single, and "schedule", one of
        `schedules`; "logsnr_steps" stands for boundaries at so many levels, uniform in log-SNR.
      scales: s.
      schedules: label -> options of the discrete schedule.

    Returns:
      std_error_<label>_s<s>, the relative error; excess_<label>_s<s>, the deviation over that of all fine steps, less
      1, and std_error_<schedule>_fine_s<s> of these; calls_<label>, expected.
    """
    import jax

    from diffusion.discrete import Discrete
    from diffusion.process import GaussianProcess
    from samplers import SAMPLERS

    make, figures, fine = SAMPLERS["poisson_midpoint"], {}, {}
    with jax.enable_x64(True):
        for label, given in samplers.items():
            options = dict(given)
            name, nodes = options.pop("schedule"), options.pop("logsnr_steps", 0)
            process = GaussianProcess(Discrete(**schedules[name]))
            if nodes:
                levels = np.linspace(*process.logsnr(np.array([process.time_max, process.time_min])), nodes)
                ends = np.unique(np.append(1000 - np.round(1000 * process.time_of_logsnr(levels)), 1000))
                options |= {"boundaries": tuple(int(end) for end in ends), "steps": len(ends) - 1}
            if name not in fine:
                fine[name], _ = _deviations(process, make(steps=1000, spacing=1.0), scales)
                figures |= {f"std_error_{name}_fine_s{s:g}": float(f / s - 1) for s, f in zip(scales, fine[name])}
            got, figures[f"calls_{label}"] = _deviations(process, make(**options), scales)
            for s, one, whole in zip(scales, got, fine[name]):
                figures |= {f"std_error_{label}_s{s:g}": float(one / s - 1),
                            f"excess_{label}_s{s:g}": float(one / whole - 1)}  # fmt: skip
    return figures


def respaced_moments(seed: int, folder: Path, *, calls: Sequence[int], scales: Sequence[float]) -> dict[str, float]:
    """The same for DDPM and DDIM on every (1000 / calls)-th level: std_error_<ddpm | ddim>_nfe<calls>_s<s>.

    A step of DDPM is a macro step with K = 1; DDIM has no noise but that at its start, of which its samples are a
    multiple.
    """
    import jax
    import jax.numpy as jnp

    from diffusion.discrete import Discrete
    from diffusion.process import GaussianProcess
    from diffusion.random import image_keys
    from samplers import SAMPLERS

    @dataclass(frozen=True, kw_only=True)
    class Respaced(Discrete):
        """Without the levels below the last that is called."""

        calls: int = 1000

        @property
        def time_min(self) -> float:
            return 1 / self.calls

    make, figures = SAMPLERS["poisson_midpoint"], {}
    with jax.enable_x64(True):
        squares, keys, shape = np.square(scales), image_keys(seed, jnp.arange(1)), (len(scales),)
        for count in calls:
            process = GaussianProcess(Respaced(calls=count))

            def denoise(x: jax.Array, t: jax.Array, label: None = None, process: Any = process) -> jax.Array:
                alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
                return (alpha * squares / (alpha**2 * squares + sigma**2) * x).astype(x.dtype)

            ddpm, _ = _deviations(process, make(steps=count, fine_steps=count, spacing=1.0), scales)
            ddim = SAMPLERS["ddim"](steps=count).sample(denoise, process, keys, None, shape=shape).x0
            found = {"ddpm": ddpm, "ddim": np.asarray(jnp.abs(ddim / process.prior(keys, shape)))[0]}
            for name, deviation in found.items():
                errors = deviation / np.asarray(scales) - 1
                figures |= {f"std_error_{name}_nfe{count}_s{s:g}": float(e) for s, e in zip(scales, errors)}
    return figures


def langevin_monte_carlo(
    seed: int, folder: Path, *, step_size: float, micro_steps: int, chains: int, steps: int
) -> dict[str, float]:
    """What `stationary_bias` computes, from samples: bias_<mode>, standard_error_<mode>, and off_<mode> in these."""
    import jax
    import jax.numpy as jnp

    from diffusion.random import image_keys
    from samplers.langevin import langevin
    from samplers.midpoint import MODES

    keys, figures = image_keys(seed, jnp.arange(chains)), {}
    start = jax.random.normal(jax.random.fold_in(jax.random.key(seed), 1), (chains, 1))
    for mode in MODES:
        chain = partial(langevin, lambda x: -x, steps=steps, step_size=step_size, micro_steps=micro_steps, mode=mode)
        square = np.square(np.asarray(jax.jit(chain)(start, keys).x0, np.float64)[:, 0])
        bias, error = float(square.mean() - 1), float(square.std() / chains**0.5)
        exact = closed_form(mode, step_size, micro_steps)
        figures |= {f"bias_{mode}": bias, f"standard_error_{mode}": error, f"closed_form_{mode}": exact,
                    f"off_{mode}": (bias - exact) / error}  # fmt: skip
    return figures


def mixture_excess(
    seed: int, folder: Path, *, separation: float, step_sizes: Sequence[float], micro_steps: int, chains: int,
    begin: float, end: float,
) -> dict[str, float]:
    """E x^2 on 0.5 N(-m, 1) + 0.5 N(m, 1) over that of the chain of all micro steps, both with the same noise.

    Averaged over the steps between the times `begin` and `end`, and over the chains.

    Returns:
      excess_<lmc | mode>_a<step>, and its standard error, error_<...>.
    """
    import jax
    import jax.numpy as jnp

    from diffusion.random import image_keys
    from samplers.linear_dynamics import overdamped
    from samplers.midpoint import MODES, random_offsets, walk, weights

    k, m = micro_steps, separation
    keys = image_keys(seed, jnp.arange(chains))

    def evaluate(x: jax.Array, step: jax.Array, tau: jax.Array) -> tuple[jax.Array, jax.Array]:
        position = x[:, 0]
        return -position + m * jnp.tanh(m * position), jnp.ones(len(x), jnp.int32)

    def never(step: jax.Array, tau: jax.Array, count: jax.Array) -> jax.Array:
        return jnp.ones_like(tau)

    def advance(mode: str, h: float, x: jax.Array, w: jax.Array, number: jax.Array) -> jax.Array:
        """One macro step of each chain; w [K, chains, 1] is the noise of the micro steps."""
        if mode in ("fine", "lmc"):
            dynamics = overdamped(h / k, 1, k) if mode == "fine" else overdamped(h, 1, 1)
            draws = w if mode == "fine" else w.sum(0, keepdims=True) / k**0.5
            one = np.ones(len(dynamics.micro_steps))
            return walk(dynamics, evaluate, x, weight=one, offsets=never, normal=lambda count: draws[count[0]]).x
        dynamics, asked = overdamped(h, k, 1), {}
        of_step = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        law = random_offsets(mode, of_step, dynamics.micro_steps)

        def offsets(step: jax.Array, tau: jax.Array, count: jax.Array) -> jax.Array:
            target = law(step, tau, count)
            asked["segment"] = tau, target  # the draw for which `normal` is asked next
            return target

        total = jnp.concatenate([jnp.zeros_like(w[:1]), jnp.cumsum(w, axis=0)])

        def normal(count: jax.Array) -> jax.Array:
            tau, target = asked["segment"]
            rows, length = jnp.arange(chains), jnp.maximum(target - tau, 1)
            return (total[target, rows] - total[tau, rows]) / jnp.sqrt(length)[:, None]

        weight = weights(mode, dynamics.micro_steps)
        return walk(dynamics, evaluate, x, weight=weight, offsets=offsets, normal=normal).x

    schemes, figures = ("fine", "lmc", *MODES), {}
    start = m * jnp.where(jnp.arange(chains) % 2 == 0, 1.0, -1.0)[:, None]
    for h in step_sizes:
        count, first = round(end / h), round(begin / h)

        def body(carry: Any, number: jax.Array, h: float = h, first: int = first) -> Any:
            states, sums = carry
            w = jax.random.normal(jax.random.fold_in(jax.random.key(seed), number), (k, chains, 1))
            states = {name: advance(name, h, x, w, number) for name, x in states.items()}
            late = number >= first
            return (states, {name: sums[name] + late * states[name][:, 0] ** 2 for name in states}), None

        carry = (dict.fromkeys(schemes, start), dict.fromkeys(schemes, jnp.zeros(chains)))
        run = jax.jit(lambda carry, count=count, body=body: jax.lax.scan(body, carry, jnp.arange(count)))
        (_, sums), _ = run(carry)
        for name in schemes[1:]:
            excess = np.asarray(sums[name] - sums["fine"], np.float64) / (count - first)
            figures |= {f"excess_{name}_a{h:g}": float(excess.mean()),
                        f"error_{name}_a{h:g}": float(excess.std() / chains**0.5)}  # fmt: skip
    return figures
