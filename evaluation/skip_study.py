"""A problem on which skipped network calls can be judged exactly: a guided mixture of Gaussians in 64 dimensions.

Five classes of a few Gaussians each, turned and stretched differently, with the spectrum of images; the denoiser is
exact and guided, eps_u + w (eps_c - eps_u). Solvers run on the grids of the diffusers library with Stable Diffusion's
levels: DDIM, Euler in x / alpha, and DPM-Solver++(2M). What skipping is compared with:

  1. fidelity   |x - x_full| / |x_full|, x_full of the same solver with all calls
  2. truth      the same against an ODE solution on all the levels, from the same noise

Errors are medians and 95th percentiles over images. All draws are numpy's, in a fixed order; run in float64.
"""

from functools import cache, lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffusion.base import Denoiser
from samplers.adaptive import run_in_step
from samplers.desynchronised import Requests, run_queue
from samplers.skipping import EACH_IMAGE, Limits, Skipping, Steps, device_tables

D, CLASSES, PER_CLASS, IMAGES = 64, 5, 2, 96
SOLVERS = ("ddim", "euler", "2m")


# --- The mixture ------------------------------------------------------------------------------------------------------


@cache
def mixture() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means [K, D], axes [D, K D] side by side, and variances [K, D] of K = 10 Gaussians, two of each class."""
    rng = np.random.default_rng(0)  # the order of the draws matters
    count = CLASSES * PER_CLASS
    common = np.linalg.qr(rng.standard_normal((D, D)))[0]
    spectrum = np.arange(1, D + 1) ** -1.2
    spectrum /= spectrum.mean()
    of_class = 0.8 * np.sqrt(spectrum) * rng.standard_normal((CLASSES, D))
    own = 0.48 * np.sqrt(spectrum) * rng.standard_normal((count, D))
    means = (0.8 * np.repeat(of_class, PER_CLASS, axis=0) + own) @ common.T
    axes, variances = [], []
    for _ in range(count):
        axes.append(np.linalg.qr(common + 0.09 * rng.standard_normal((D, D)))[0])
        variances.append(0.25 * spectrum * np.exp(0.3 * rng.standard_normal(D)) + 1e-3)
    return means, np.concatenate(axes, axis=1), np.stack(variances)


@lru_cache
def guided_denoiser(guidance: float = 3.0) -> Denoiser:
    """x0_hat at a noise level sigma / alpha, given as the time.

    Labels are classes; from CLASSES on the state is x / alpha, which Euler works on.
    """

    def denoise(x: Array, level: Array, label: Array) -> Array:
        klass, in_levels = label % CLASSES, label >= CLASSES
        means, axes, variances = (jnp.asarray(values) for values in mixture())
        alpha = jnp.where(in_levels, 1.0, 1 / jnp.sqrt(1 + level**2))[:, None]
        sigma = level[:, None] * alpha
        shape = (len(x), *variances.shape)
        middle = jnp.einsum("kd,dke->ke", means, axes.reshape(D, *variances.shape))
        residual = (x @ axes).reshape(shape) - alpha[..., None] * middle
        spread = alpha[..., None] ** 2 * variances + sigma[..., None] ** 2
        joint = -0.5 * (residual**2 / spread + jnp.log(spread)).sum(-1)
        inside = jnp.arange(CLASSES * PER_CLASS) // PER_CLASS == klass[:, None]
        free, held = jax.nn.softmax(joint), jax.nn.softmax(jnp.where(inside, joint, -jnp.inf))
        shares = free + guidance * (held - free)
        noise = sigma * ((shares[..., None] * residual / spread).reshape(len(x), -1) @ axes.T)
        return (x - sigma * noise) / alpha

    return denoise


# --- The solvers ------------------------------------------------------------------------------------------------------


@cache
def kept_variance() -> np.ndarray:
    """[1000] alpha^2 of Stable Diffusion's levels."""
    return np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)


def solver_levels(name: str, steps: int) -> np.ndarray:
    """[steps + 1] alpha^2 at which a solver calls, and that at which it ends."""
    kept = kept_variance()
    if name == "2m":
        chosen = np.linspace(0, 999, steps + 1).round()[::-1][:-1].astype(int)
    else:
        chosen = np.arange(steps)[::-1] * (1000 // steps) + 1
    return np.append(kept[chosen], kept[0])


def tables_of(name: str, levels: np.ndarray) -> Steps:
    """A solver on levels of alpha^2, with sigma / alpha as the time and room for two outputs."""
    alpha, sigma, steps = np.sqrt(levels), np.sqrt(1 - levels), len(levels) - 1
    if name == "euler":
        alpha, sigma = np.ones(steps + 1), np.append(np.sqrt(1 / levels[:-1] - 1), 0.0)
    weights = np.zeros((steps, 2))
    a = sigma[1:] / sigma[:-1]
    weights[:, 0] = alpha[1:] - a * alpha[:-1]
    with np.errstate(divide="ignore"):
        lam = np.log(alpha / sigma)
    if name == "2m":  # D = x0 + (x0 - x0_prev) h / (2 h_prev), but for the first and the last step
        h = np.diff(lam)
        gain = -alpha[1:] * np.expm1(-h)
        ratio = np.zeros(steps)
        ratio[1:-1] = h[1:-1] / (2 * h[:-2])
        weights = np.stack([gain * (1 + ratio), -gain * ratio], axis=1)
    return Steps(sigma[:-1] / alpha[:-1], alpha[:-1], sigma[:-1], lam[:-1], a, weights, np.zeros(steps),
                 np.zeros(steps, bool))  # fmt: skip


@cache
def tables(steps: int = 50) -> dict[str, Steps]:
    return {name: tables_of(name, solver_levels(name, steps)) for name in SOLVERS}


def images(count: int, steps: int = 50) -> tuple[Float[Array, "3 count d"], Int[Array, "3 count"]]:
    """The first `count` of IMAGES states to begin with, of each solver, and their labels."""
    klass = jnp.asarray(np.random.default_rng(7).integers(0, CLASSES, IMAGES)[:count])
    z = np.random.default_rng(11).standard_normal((IMAGES, D))[:count]
    first = [np.sqrt(tables(steps)[name].sigma[0] ** 2 + 1) if name == "euler" else 1.0 for name in SOLVERS]
    labels = jnp.stack([klass + CLASSES * (name == "euler") for name in SOLVERS])
    return jnp.asarray(np.stack([scale * z for scale in first])), labels


# --- Runs -------------------------------------------------------------------------------------------------------------


@partial(jax.jit, static_argnames=("skipping", "denoise", "slots"))
def _in_queue(skipping, denoise, requests, tables, slots):
    return run_queue(skipping, denoise, requests, tables, slots=slots, stochastic=False)


@partial(jax.jit, static_argnames=("denoise", "reuse"))
def _with_mask(denoise, x, label, tables, mask, reuse):
    skipping = Skipping(criterion="scalar", reuse=reuse, over=EACH_IMAGE)
    free, keys = limits((len(x),), 0.0, 1, mask.shape[-1]), jax.vmap(jax.random.key)(jnp.arange(len(x)))
    samples, _ = run_in_step(skipping, denoise, x, keys, label, tables, free, stochastic=False, mask=mask)
    return samples.x0


def limits(shape: tuple[int, ...], delta, c_max, steps, *, warmup=4, tail=0, budget=None) -> Limits:
    """Each a number or one per image."""
    whole = (c_max, steps, warmup, tail, steps if budget is None else budget)
    return Limits(jnp.broadcast_to(jnp.asarray(delta, float), shape),
                  *(jnp.broadcast_to(jnp.asarray(value, jnp.int32), shape) for value in whole))  # fmt: skip


def adaptive(
    criterion: str, delta: float, c_max: int, reuse: str, count: int = IMAGES, *, compat: bool = False,
    normalize: bool = False, warmup: int = 4, tail: int = 0, budget=None, steps: int = 50, guidance: float = 3.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Results [3, count, D] and calls [3, count], solver by solver; all of them are requests of one queue."""
    skipping = Skipping(criterion=criterion, reuse=reuse, over=EACH_IMAGE, compat=compat, normalize=normalize)
    x, labels = images(count, steps)
    requests = Requests(
        x.reshape(-1, D), jax.vmap(jax.random.key)(jnp.arange(3 * count)), labels.reshape(-1),
        jnp.repeat(jnp.arange(3), count),
        limits((3 * count,), delta, c_max, steps, warmup=warmup, tail=tail, budget=budget),
    )  # fmt: skip
    all_tables = device_tables(list(tables(steps).values()))
    done = _in_queue(skipping, guided_denoiser(guidance), requests, all_tables, 48)
    return np.asarray(done.x).reshape(3, count, D), np.asarray(done.calls).reshape(3, count)


def masked(
    mask: Bool[np.ndarray, "*count n"], reuse: str, count: int = IMAGES, *, guidance: float = 3.0,
    solvers: tuple[str, ...] = SOLVERS, repeat: int | None = None,
) -> np.ndarray:
    """Results [solvers, count, D] of given steps that call, of all images or [count, N] of each; with `repeat` of the
    first few images again and again."""
    steps = mask.shape[-1]
    x, labels = images(repeat or count, steps)
    again = np.arange(count) % x.shape[1]
    x, labels = x[:, again], labels[:, again]
    mask, denoise = jnp.broadcast_to(jnp.asarray(mask), (count, steps)), guided_denoiser(guidance)
    return np.stack([
        _with_mask(denoise, x[i], labels[i], device_tables([tables(steps)[name]]), mask, reuse)
        for i, name in enumerate(SOLVERS) if name in solvers])  # fmt: skip


@lru_cache
def full(count: int = IMAGES, *, steps: int = 50, guidance: float = 3.0) -> np.ndarray:
    """Results [3, count, D] of all calls."""
    return masked(np.ones(steps, bool), "hold", count, guidance=guidance)


@lru_cache
def truth(count: int = IMAGES, *, steps: int = 50, guidance: float = 3.0) -> np.ndarray:
    """Results [3, count, D] of 2M on all levels from that of each solver's start on."""
    x, labels = images(count, steps)
    denoise, found = guided_denoiser(guidance), []
    for i, name in enumerate(SOLVERS):
        levels = kept_variance()[::-1]
        levels = levels[levels >= solver_levels(name, steps)[0]]
        start = x[i] * np.sqrt(levels[0]) if name == "euler" else x[i]  # Euler's state is x / alpha
        run = device_tables([tables_of("2m", levels)])
        mask = jnp.ones((count, len(levels) - 1), bool)
        found.append(_with_mask(denoise, start, labels[i] % CLASSES, run, mask, "hold"))
    return np.stack(found)


def errors(
    results: Float[np.ndarray, "solvers n d"], reference: Float[np.ndarray, "solvers n d"]
) -> Float[np.ndarray, "solvers 2"]:
    """Equation 1 or 2: median and 95th percentile of each solver."""
    relative = np.linalg.norm(results - reference, axis=2) / np.linalg.norm(reference, axis=2)
    return np.stack([np.median(relative, axis=1), np.percentile(relative, 95, axis=1)], axis=1)
