"""The suite `objectives` of scripts/benchmark.py: what a gradient of each objective costs, as a ratio to DSM's.

On an MLP and an energy network for points, a U-Net and a DiT for 32x32 images: seconds, FLOPs and temporary memory as
XLA counts them (the body of a scanned stack once, on both sides of the ratio), and whether the network's derivative is
differentiated again. LCSS and FD-SSM must not do that: it is their promise, and the suite fails if one does.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from diffusion import SCHEDULES
from diffusion.denoiser import NetworkDenoiser
from diffusion.networks import Apply, initialise
from diffusion.process import GaussianProcess
from scoring import FDSSM, FDSSMVR, ISM, LCSS, SSM, SSMVR, LastIncrement
from scoring.base import Objective
from scoring.dsm import DSM
from scoring.time_samplers import LogNormalTimes
from scoring.weightings import EDMWeighting
from scripts.measuring import Figure, figure
from training.timing import paired

_COMMON = {"weighting": EDMWeighting(), "time_sampler": LogNormalTimes()}
OBJECTIVES: dict[str, Objective] = {
    "dsm": DSM(**_COMMON),
    "lcss": LCSS(**_COMMON),
    "lcss local": LCSS(mode="local", **_COMMON),
    "lcss local, centred": LCSS(mode="local", control_variate="center", **_COMMON),
    "lcss local, norm at x": LCSS(mode="local", norm_at="x", **_COMMON),
    "fd_ssm": FDSSM(**_COMMON),
    "fd_ssm_vr": FDSSMVR(**_COMMON),
    "ssm": SSM(**_COMMON),
    "ssm_vr": SSMVR(**_COMMON),
    "ism": ISM(**_COMMON),
}
# The simulation is a cost of its own; two steps leave the objective's.
LAST_INCREMENT = {"last_increment": LastIncrement(simulation_steps=2, **_COMMON)}
FIRST_ORDER = [name for name in OBJECTIVES if name == "dsm" or name.startswith(("lcss", "fd_ssm"))]
MAX_ISM_DIMENSION = 2  # ISM costs 1 + d times DSM

# Case -> network, shape, options, batch size.
CASES = {
    "mlp 2-D width 128": ("mlp", (2,), {"width": 128, "depth": 2}, 1024),
    "energy 2-D width 300": ("energy", (2,), {"width": 300, "depth": 2}, 1024),
    "unet 32x32 width 32": (
        "unet", (32, 32, 3), {"width": 32, "channel_multipliers": (1, 2), "blocks_per_level": 1}, 8),
    "dit 32x32 width 128": ("dit", (32, 32, 3), {"width": 128, "depth": 4, "num_heads": 4, "patch_size": 4}, 16),
}
QUICK_CASES = ("mlp 2-D width 128",)


def objectives_suite(quick: bool) -> Iterator[Figure]:
    """Every objective against DSM on every network."""
    n = 3 if quick else 5
    for case in QUICK_CASES if quick else CASES:
        name, shape, options, batch = CASES[case]
        apply, params = initialise(name, jax.random.key(0), shape=shape, num_classes=0, **options)
        arguments = (params, jax.random.normal(jax.random.key(1), (batch, *shape)), jax.random.key(2))
        reference = gradient(OBJECTIVES["dsm"], apply).lower(*arguments).compile()
        for label, objective in (OBJECTIVES | LAST_INCREMENT).items():
            if label != "ism" or math.prod(shape) <= MAX_ISM_DIMENSION:
                yield from _costs(f"{case} batch {batch}: {label}", objective, apply, arguments, reference, n)


def _costs(
    case: str, objective: Objective, apply: Apply, arguments: tuple[Any, ...], reference: Any, n: int
) -> Iterator[Figure]:
    """One objective on one network. Raises RuntimeError where it breaks the promise of the first order."""
    twice = second_order(objective, apply, *arguments)
    if twice and case.split(": ")[1] in FIRST_ORDER:
        raise RuntimeError(f"{case} differentiates the network twice")
    mine = gradient(objective, apply).lower(*arguments).compile()
    seconds, _, ratio = paired(partial(mine, *arguments), partial(reference, *arguments), n)
    costs = [(c.cost_analysis()["flops"], c.memory_analysis().temp_size_in_bytes) for c in (mine, reference)]
    yield figure("objectives", case, "seconds of a gradient", seconds, n)
    yield figure("objectives", case, "seconds / dsm", ratio, n)
    yield figure("objectives", case, "FLOPs / dsm", costs[0][0] / costs[1][0], 1)
    yield figure("objectives", case, "temporary memory / dsm", costs[0][1] / costs[1][1], 1)
    yield figure("objectives", case, "second-order differentiation", float(twice), 1)


def gradient(objective: Objective, apply: Apply) -> Any:
    """Jitted (params, x0, key) -> gradient of the objective in the parameters, on EDM's process."""
    process = GaussianProcess(SCHEDULES["edm"]())

    def loss(params: Any, x0: Any, key: Any) -> Any:
        denoise = NetworkDenoiser(partial(apply, params), process, prediction="edm", sigma_data=0.5)
        return objective(denoise, process, x0, None, key)[0]

    return jax.jit(jax.grad(loss))


def second_order(objective: Objective, apply: Apply, params: Any, x0: Any, key: Any) -> bool:
    """Whether the gradient differentiates the network's derivative, seen in its jaxpr.

    The derivative of the network is given as a function of its own whose derivative is marked by a primitive that
    nothing else uses.
    """

    @jax.custom_jvp
    def derivative(primals: Any, tangents: Any) -> Any:
        return jax.jvp(apply, primals, tangents)

    @derivative.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        values, changes = jax.jvp(partial(jax.jvp, apply), primals, tangents)
        return values, jax.tree.map(lambda change: jnp.real(jax.lax.complex(change, change)), changes)

    @jax.custom_jvp
    def marked(params: Any, x: Any, level: Any) -> Any:
        return apply(params, x, level)

    marked.defjvp(derivative)

    def network(params: Any, x: Any, level: Any, label: Any) -> Any:
        return marked(params, x, level)

    jaxpr = jax.make_jaxpr(gradient(objective, network))(params, x0, key)
    return " complex" in str(jaxpr)
