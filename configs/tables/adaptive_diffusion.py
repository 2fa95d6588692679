"""Ye et al., "Training-Free Adaptive Diffusion with Bounded Difference Approximation Strategy", NeurIPS 2024.

The rows that run here; `adaptive_diffusion_paper.py` has those of the paper and of its peers, and
`adaptive_diffusion_claims.py` what is claimed. Adaptive choices are compared with fixed ones at as many calls.
"""

from typing import Any

from configs.tables.adaptive_diffusion_checks import paired_images, toy_masks, toy_policy, wall_clock
from configs.tables.adaptive_diffusion_claims import CLAIMS
from configs.tables.adaptive_diffusion_paper import PAPER_ROWS
from configs.tables.base import Check, Figure, Row, Table

SOLVERS = ("ddim", "euler", "2m")
LABELS = {"calls": "calls", "error": "error", "error_mean": "error, mean", "error95": "error, 95th percentile",
          "truth": "error to the ODE", "psnr": "PSNR", "ssim": "SSIM", "features": "feature distance",
          "fd": "Fréchet distance to test images"}  # fmt: skip


def _policy(criterion: str, delta: float, c_max: int, reuse: str, **more: Any) -> dict[str, Any]:
    return {"criterion": criterion, "delta": delta, "c_max": c_max, "reuse": reuse, **more}


# --- The toy study ----------------------------------------------------------------------------------------------------

# Name -> about, options.
TOY: dict[str, tuple[str, dict[str, Any]]] = {
    "scalar": ("scalar 0.01, hold, c_max 4", _policy("scalar", 0.01, 4, "hold")),
    "paper": ("the same, as the authors count", _policy("scalar", 0.01, 4, "hold", compat=True)),
    "scalar_c2": ("scalar 0.01, hold, c_max 2", _policy("scalar", 0.01, 2, "hold")),
    "vector": ("vector 0.05, hold, c_max 4", _policy("vector", 0.05, 4, "hold")),
    "slope": ("slope 0.05, hold, c_max 4", _policy("slope", 0.05, 4, "hold")),
    "scalar_linear": ("scalar 0.01, linear, c_max 4", _policy("scalar", 0.01, 4, "linear")),
    "slope_linear": ("slope 0.1, linear, c_max 4", _policy("slope", 0.1, 4, "linear")),
    "accurate": ("preset accurate", _policy("slope", 0.1, 1, "linear")),
    "fast": ("preset fast", _policy("slope", 0.2, 2, "linear")),
    "default": ("preset default", _policy("slope", 0.1, 2, "linear", warmup=2)),
    "normalized": ("scalar 0.01, hold, increments normalised", _policy("scalar", 0.01, 4, "hold", normalize=True)),
    "budget15": ("slope 0.05, linear, at most 15 calls", _policy("slope", 0.05, 4, "linear", budget=15)),
    "budget20": ("slope 0.05, linear, at most 20 calls", _policy("slope", 0.05, 4, "linear", budget=20)),
    "guidance1": ("scalar 0.01, hold, c_max 4, guidance 1", _policy("scalar", 0.01, 4, "hold", guidance=1.0)),
    "guidance7.5": ("scalar 0.01, hold, c_max 4, guidance 7.5", _policy("scalar", 0.01, 4, "hold", guidance=7.5)),
    "n25": ("scalar 0.01, hold, c_max 4, 25 steps", _policy("scalar", 0.01, 4, "hold", steps=25)),
    "n100": ("scalar 0.01, hold, c_max 4, 100 steps", _policy("scalar", 0.01, 4, "hold", steps=100)),
}  # fmt: skip
TOY_CALLS = (15, 20, 25, 30)


def _toy() -> list[Row]:
    rows = []
    for name, (about, options) in TOY.items():
        figures = {f"{figure}_{solver}": Figure(f"{LABELS[figure]}, {solver}")
                   for solver in SOLVERS for figure in ("calls", "error", "error95")}  # fmt: skip
        rows.append(Row(name=f"toy_{name}", about=f"guided mixture in 64 dimensions, {about}", figures=figures, seeds=1,
                        small=Check(toy_policy, options)))  # fmt: skip
    kinds = ("uniform_hold", "uniform_linear", "random_hold", "plain", "greedy_hold", "greedy_linear")
    figures = {f"truth_full_{solver}": Figure(f"error of all calls to the ODE, {solver}") for solver in SOLVERS}
    figures |= {f"error_{kind}_{solver}_{n}": Figure(f"error, {kind}, {solver}, {n} calls") for kind in kinds
                for solver in SOLVERS for n in TOY_CALLS if kind != "plain" or 1000 % n == 0}  # fmt: skip
    rows.append(Row(name="toy_masks", about="guided mixture in 64 dimensions, fixed choices of calls", figures=figures,
                    seeds=1, small=Check(toy_masks, {"calls": TOY_CALLS, "steps": 50})))  # fmt: skip
    return rows


# --- Images -----------------------------------------------------------------------------------------------------------

# Name -> process, sampler, options. Without its own noise DDIM on EDM's process is Euler in the noise level.
IMAGE_SOLVERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ddim": ("vp_linear", "ddim", {"grid": "uniform"}),
    "euler": ("edm", "ddim", {"grid": "karras"}),
    "2m": ("vp_linear", "dpm_solver", {"grid": "logsnr"}),
}  # fmt: skip
# Name -> about, config, whether it is trained, images.
TARGETS = {
    "digits_empirical": ("the training digits, exact", "configs/exact.py:digits", False, 300),
    "digits_gaussians": ("a Gaussian per class of digits, exact", "configs/exact.py:gaussians_digits", False, 300),
    "digits": ("8x8 digits, a network", "configs/digits.py:dsm", True, 1000),
    "mnist": ("28x28 digits, a network", "configs/images.py:mnist5k_mlp", True, 500),
}
CALLS = {50: (13, 16, 20, 25, 32), 25: (8, 11, 15)}
GREEDY = (16, 20, 25)
PRESET_NAMES = ("default", "paper", "safe", "accurate", "fast")
POLICIES = {
    **{name: {"preset": name} for name in PRESET_NAMES},
    **{f"scalar{delta}_hold_c4": _policy("scalar", delta, 4, "hold") for delta in (0.002, 0.005, 0.01, 0.02, 0.05)},
    **{f"vector{delta}_hold_c4": _policy("vector", delta, 4, "hold") for delta in (0.02, 0.05)},
    "slope0.05_hold_c4": _policy("slope", 0.05, 4, "hold"),
    **{f"slope{delta}_linear_c4": _policy("slope", delta, 4, "linear") for delta in (0.1, 0.2)},
    **{f"slope{delta}_linear_c2": _policy("slope", delta, 2, "linear", warmup=2) for delta in (0.03, 0.05, 0.2)},
    "slope0.1_linear_c1": _policy("slope", 0.1, 1, "linear", warmup=2),
}  # fmt: skip
_SHOWN = ("calls", "error", "truth", "psnr", "ssim")


def image_row(target: str, solver: str, steps: int, guidance: float) -> str:
    """The name of its row."""
    return f"{target}_{solver}_n{steps}" + (f"_w{guidance:g}" if guidance != 1 else "")


def _image_row(target: str, solver: str, steps: int, guidance: float, seeds: int) -> Row:
    about, config, trained, count = TARGETS[target]
    process, sampler, options = IMAGE_SOLVERS[solver]
    shown = (*_SHOWN, "features", "fd") if trained else (*_SHOWN, "error_mean")
    near = {50: 20, 25: 11}[steps]  # calls of the fixed choices that the document shows
    names = ["full", *PRESET_NAMES, *(f"{kind}_{near}" for kind in ("uniform_hold", "uniform_linear", "random_hold",
                                                                    "plain"))]  # fmt: skip
    names += [f"dpm_solver_{near}"] if sampler != "dpm_solver" else []
    figures = {f"{figure}_{name}": Figure(f"{LABELS[figure]}, {name}") for name in names for figure in shown
               if (name, figure) != ("full", "psnr")}  # fmt: skip
    greedy = GREEDY if steps == 50 and guidance == 1 and solver == "ddim" and target != "digits_empirical" else ()
    figures |= {f"error_{kind}_{reuse}_{n}": Figure(f"error on 8 images, {kind} {reuse}, {n} calls")
                for kind in ("greedy", "uniform_few") for reuse in ("hold", "linear") for n in greedy}  # fmt: skip
    more = {"config": config, "process": process, "trained": trained, "guidance": guidance, "sampler": sampler,
            "options": options, "steps": steps, "count": count, "policies": POLICIES, "calls": CALLS[steps],
            "greedy": greedy}  # fmt: skip
    scale = f", guidance {guidance:g}" if guidance != 1 else ""
    return Row(name=image_row(target, solver, steps, guidance), figures=figures, seeds=seeds,
               about=f"{about}: {solver}, {steps} steps{scale}", small=Check(paired_images, more))  # fmt: skip


def _images() -> list[Row]:
    seeds = {"digits_empirical": 1, "digits_gaussians": 2, "digits": 3}
    rows = [_image_row(target, solver, steps, 1.0, seeds=count if steps == 50 else 1)
            for target, count in seeds.items() for steps in (50, 25) for solver in IMAGE_SOLVERS]  # fmt: skip
    rows += [_image_row("mnist", solver, 50, guidance, seeds=1) for solver in IMAGE_SOLVERS
             for guidance in (1.0, 3.0, 7.5)]  # fmt: skip
    rows += [_image_row("mnist", solver, 25, 3.0, seeds=1) for solver in IMAGE_SOLVERS]
    return rows


def _clock() -> list[Row]:
    about, config, _, _ = TARGETS["mnist"]
    figures = {"seconds": Figure("seconds of the full sampler, 96 images")}
    for mode in ("shared", "per_sample"):
        for name in PRESET_NAMES:
            figures |= {f"calls_{mode}_{name}": Figure(f"calls, {mode}, {name}"),
                        f"error_{mode}_{name}": Figure(f"error, {mode}, {name}"),
                        f"speedup_{mode}_{name}": Figure(f"full sampler's seconds over its own, {mode}, {name}")}
    figures |= {f"utilisation_{name}": Figure(f"share of the rows of all calls in use, {name}")
                for name in PRESET_NAMES}  # fmt: skip
    process, sampler, options = IMAGE_SOLVERS["ddim"]
    more = {"config": config, "process": process, "guidance": 3.0, "sampler": sampler, "options": options, "steps": 50,
            "slots": 16, "requests": 96, "presets": PRESET_NAMES, "repeats": 3}  # fmt: skip
    return [Row(name="mnist_wall_clock", about=f"{about}: ddim, 50 steps, guidance 3, seconds", figures=figures,
                seeds=1, small=Check(wall_clock, more))]  # fmt: skip


ADAPTIVE_DIFFUSION = Table(
    name="adaptive_diffusion",
    title="Skipping network calls by a third-order criterion (Ye et al., NeurIPS 2024)",
    rows=(*_toy(), *_images(), *_clock(), *PAPER_ROWS),
    claims=CLAIMS,
)
