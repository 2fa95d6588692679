"""The Poisson midpoint method [Kandasamy & Nagaraj 2024]: K small steps of a chain for about two network calls.

Given a chain of micro steps with a network q, y_{i+1} = a_i y_i + b_i q(y_i, i) + c_i Z_i, it makes K of them at once.
Write a_{i..j} for the product of a_i ... a_{j-1}. From x = y_0:

  1. q0 = q(x, 0)
  2. x_i = a_{0..i} x + (sum_{j < i} a_{j+1..i} b_j) q0 + N_i,   N_i = sum_{j < i} a_{j+1..i} c_j Z_j
  3. x_K + w sum_i H_i a_{i+1..K} b_i (q(x_i, i) - q0),          H random, with w E[H_i] = 1 for i = 1 ... K - 1

so that the expectation over H is what q(x_i, i) at every micro step would give; the same noise Z is in all x_i, or the
method would be worse than one long step. Midpoints do not depend on each other. H, its law and w:

  bernoulli   every i fires with probability 1 / K, w = K; 2 - 1 / K calls on average (Option 1 in the main text)
  single0     one i of 0 ... K - 1, w = K; no second call for i = 0 (Option 2 in the main text)
  single      one i of 1 ... K - 1, w = K - 1; always two calls, and exactly the two micro steps for K = 2 (Option 2 of
              the appendix)

The printed algorithms differ in two places: their unrolled form loses the noise of the last micro step, and their index
of H is read as the micro step, where it must be the offset i, or the last micro step is never corrected.

Only what is called is computed: with t_1 < t_2 < ... the offsets that fire, the noise goes from offset to offset,
N_{t_2} = a_{t_1..t_2} N_{t_1} + (standard deviation of the noise between them) W, one normal draw a call.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion.base import expand
from diffusion.random import image_stream, image_uniform

MODES = ("bernoulli", "single0", "single")


@runtime_checkable
class Dynamics(Protocol):
    """A chain of micro steps in groups: what equations 1 to 3 need of it, for every row at its own place.

    `m` [B] is the macro step of each row, `tau` and `target` [B] are micro steps within it, 0 ... K; states are
    [B, ...].

    Attributes:
      micro_steps: [M] K of each macro step, on the host.
    """

    micro_steps: np.ndarray

    def mean(self, m: Array, tau: Array, x: Array, q: Array) -> Array:
        """x_tau of equation 2 without its noise."""
        ...

    def noise(self, m: Array, tau: Array, target: Array, noise: Array, z: Array) -> Array:
        """N_target from N_tau and a standard normal draw."""
        ...

    def correction(self, m: Array, tau: Array, change: Array) -> Array:
        """The summand of equation 3 without H, with `change` = q(x_tau, tau) - q0."""
        ...


class Walk(NamedTuple):
    """Attributes:
      x: [B, ...] at the end.
      nfe: [B] network calls of each row.
      rounds: calls of the whole batch one after another: the largest number of any row, guidance not counted.
      states, quantities: [M, B, ...] x and q0 at the start of every macro step, if they were asked for.
    """

    x: Float[Array, "batch *shape"]
    nfe: Int[Array, " batch"]
    rounds: Int[Array, ""]
    states: Float[Array, "macro batch *shape"] | None = None
    quantities: Array | None = None


def check_mode(mode: str) -> None:
    """Raises ValueError unless `mode` is one of MODES."""
    if mode not in MODES:
        raise ValueError(f"mode = '{mode}' is not known; choose from {', '.join(MODES)}")


def weights(mode: str, micro_steps: np.ndarray) -> np.ndarray:
    """[M] w of each macro step."""
    return micro_steps - 1 if mode == "single" else micro_steps


def random_offsets(mode: str, keys: Key[Array, " batch"], micro_steps: np.ndarray) -> Callable[..., Array]:
    """(m, tau, count) -> the next micro step that fires after `tau`, or K, each row's from its own key."""
    keys, sizes = image_stream(keys, "offsets"), jnp.asarray(micro_steps, jnp.int32)

    def offsets(m: Int[Array, " batch"], tau: Int[Array, " batch"], count: Int[Array, " batch"]) -> Array:
        u, k = image_uniform(keys, count), sizes[m]
        if mode == "bernoulli":
            # From one that fires to the next: geometric, so that what does not fire costs nothing.
            gap = 1 + jnp.floor(jnp.log1p(-u) / jnp.log1p(-1 / k)).astype(jnp.int32)
            return jnp.minimum(tau + gap, k)
        first = 1 if mode == "single" else 0
        drawn = first + jnp.minimum((u * (k - first)).astype(jnp.int32), k - first - 1)
        return jnp.where((tau > 0) | (drawn <= 0) | (k == 1), k, drawn)

    return offsets


def walk(
    dynamics: Dynamics,
    evaluate: Callable[[Array, Array, Array], tuple[Array, Array]],
    x: Float[Array, "batch *shape"],
    *,
    weight: np.ndarray,
    offsets: Callable[[Array, Array, Array], Array],
    normal: Callable[[Array], Array],
    keep: bool = False,
) -> Walk:
    """All macro steps. Every row has its own place, so that rows whose offsets differ in number wait for no other.

    Args:
      dynamics: M macro steps.
      evaluate: (state at micro step tau of macro step m, m, tau) -> (q, network calls that it cost [B]).
      x: [B, ...] at the start.
      weight: [M] w of equation 3.
      offsets: (m, tau, count) -> [B] the micro step called next, or K for the end of the macro step.
      normal: (count) -> standard normal draws like x; `count` [B] is the number of evaluations before this one.
      keep: also return states and quantities.
    """
    sizes, weight = jnp.asarray(dynamics.micro_steps, jnp.int32), jnp.asarray(weight, x.dtype)
    macro_steps, rows = len(dynamics.micro_steps), jnp.arange(len(x))

    def step(carry: dict[str, Any]) -> dict[str, Any]:
        tau, count, noise, correction = carry["tau"], carry["count"], carry["noise"], carry["correction"]
        active, m = carry["m"] < macro_steps, jnp.minimum(carry["m"], macro_steps - 1)
        q, calls = evaluate(carry["y"], m, tau)
        starts = expand(tau == 0, x)
        q0 = jnp.where(expand(tau == 0, q), q, carry["q0"])  # (1)
        correction = correction + expand(weight[m], x) * dynamics.correction(m, tau, q - q0)
        correction, noise = jnp.where(starts, 0, correction), jnp.where(starts, 0, noise)
        target = offsets(m, tau, count)
        ends = target == sizes[m]
        noise = dynamics.noise(m, tau, target, noise, normal(count))
        y = dynamics.mean(m, target, carry["x"], q0) + noise  # (2)
        y = jnp.where(expand(ends, x), y + correction, y)  # (3)
        new = {
            "x": jnp.where(expand(ends, x), y, carry["x"]), "y": y, "q0": q0, "noise": noise, "correction": correction,
            "m": carry["m"] + ends, "tau": jnp.where(ends, 0, target), "count": count + 1, "nfe": carry["nfe"] + calls,
        }  # fmt: skip
        moved = {name: jnp.where(expand(active, value), value, carry[name]) for name, value in new.items()}
        moved["rounds"] = carry["rounds"] + 1
        if keep:
            for name, value in (("states", carry["x"]), ("quantities", q0)):
                moved[name] = carry[name].at[m, rows].set(
                    jnp.where(expand(active & (tau == 0), value), value, carry[name][m, rows]))  # fmt: skip
        return moved

    zero, q = jnp.zeros(len(x), jnp.int32), jax.eval_shape(evaluate, x, *2 * (jnp.zeros(len(x), jnp.int32),))[0]
    carry = {"x": x, "y": x, "q0": jnp.zeros(q.shape, q.dtype), "noise": jnp.zeros_like(x),
             "correction": jnp.zeros_like(x), "m": zero, "tau": zero, "count": zero, "nfe": zero,
             "rounds": jnp.int32(0)}  # fmt: skip
    if keep:
        carry |= {"states": jnp.zeros((macro_steps, *x.shape), x.dtype),
                  "quantities": jnp.zeros((macro_steps, *q.shape), q.dtype)}  # fmt: skip
    end = jax.lax.while_loop(lambda carry: (carry["m"] < macro_steps).any(), step, carry)
    return Walk(end["x"], end["nfe"], end["rounds"], end.get("states"), end.get("quantities"))
