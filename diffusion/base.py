"""The two contracts of this folder, and the shapes they speak.

A **denoiser** is any callable `denoise(x_t, t, label) -> x0_hat`: a network, a guided pair of networks, or the exact
posterior mean of a known distribution. A **process** says how data become noise. Both are protocols: nothing has to
inherit from them.
"""

from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Shaped

# Host tables (float64 numpy) and traced arrays run through the same formulas.
Scalar = float | np.ndarray | np.generic | Array


@runtime_checkable
class Denoiser(Protocol):
    """An estimate of E[x0 | x_t]: the lingua franca of samplers, objectives and metrics."""

    def __call__(
        self, x_t: Float[Array, "batch *shape"], t: Float[Array, " batch"], label: Int[Array, " batch"] | None
    ) -> Float[Array, "batch *shape"]: ...


@runtime_checkable
class Process(Protocol):
    """A noising process dx = f(x, t) dt + g(t) dw on t in [time_min, time_max], noise at the end.

    `conditioning(t)` is what a network is told of the time, about in [-3, 3].

    With a Gaussian kernel, x_t = alpha x0 + sigma noise, it also has `corrupt` and `posterior`. Without one it has
    `simulate`, and alpha = 1 and sigma, about the width over which p_t varies, are only the scales in which a network
    sees x: its denoiser is x_t + sigma^2 score by definition.
    """

    time_min: float
    time_max: float

    def alpha(self, t: Any) -> Any: ...

    def sigma(self, t: Any) -> Any: ...

    def logsnr(self, t: Any) -> Any: ...

    def conditioning(self, t: Any) -> Any: ...

    def drift(self, x: Float[Array, "batch *shape"], t: Float[Array, " batch"]) -> Float[Array, "batch *shape"]: ...

    def diffusion(self, t: Any) -> Any: ...

    def prior(self, keys: Key[Array, " batch"], shape: tuple[int, ...]) -> Float[Array, "batch *shape"]: ...


def has_kernel(process: Process) -> bool:
    """Whether p_t(x_t | x0) is a Gaussian in closed form: `corrupt` and `posterior` exist."""
    return hasattr(process, "corrupt") and hasattr(process, "posterior")


def require_kernel(process: Process, name: str) -> None:
    """Raises ValueError unless `process` has a closed-form Gaussian kernel (alpha, sigma), which `name` needs."""
    if not has_kernel(process):
        raise ValueError(
            f"{name} needs a process with a closed-form Gaussian kernel, and {type(process).__name__} has none: "
            "it can only be simulated. Choose a process built on one of the schedules (config.process.name)."
        )


def array_namespace(t: Scalar) -> ModuleType:
    """numpy for host values (kept in float64), jax.numpy for traced or device arrays."""
    return jnp if isinstance(t, jax.Array) else np


def expand(values: Shaped[Array, " batch"], like: Shaped[Array, "batch *shape"]) -> Shaped[Array, "batch ..."]:
    """[B] -> [B, 1, ..., 1], so that one value per image broadcasts against the images."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def network_calls(denoise: Denoiser, t: Float[Array, " batch"], label: Any) -> Int[Array, " batch"]:
    """Network evaluations per image that one call of `denoise` at `t` costs: 1 unless the denoiser says otherwise."""
    if hasattr(denoise, "network_calls"):
        return denoise.network_calls(t, label)
    return jnp.ones(t.shape, jnp.int32)
