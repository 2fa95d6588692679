"""Speed as ratios: the project's hot paths against the bare compiled work they must do, in one process.

  step       a whole training step (data, update, EMA, finite check, metrics) over the compiled forward + backward +
             optimiser of the same network on one fixed batch
  samplers   every sampler over as many compiled forwards as its NFE; time to compile few steps and many
  adaptive   skipped calls: seconds at half the calls over all of them; slots that are refilled, and their forwards
  objectives seconds, FLOPs and temporary memory of each objective's compiled gradient over DSM's
  distillation FLOPs, seconds and memory of each update of each method over one forward pass
  evaluation Frechet distance at 2048 dimensions; accumulation of moments over Inception's own time; and, where torch
             and torch-fidelity are installed, Inception against theirs on the same images
  start_up   seconds from `python main.py` to the first finished step: cold, and with the compilation cache warm

  python scripts/benchmark.py --suite=step            one suite
  python scripts/benchmark.py --suite=all --quick     all of them, smaller, in about a minute

Prints one JSON line per figure (suite, case, metric, value, n, hardware), then a table. Times of the two sides of a
ratio are taken in turn, A B A B ..., and the ratio is the median over the pairs, since machines drift.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).absolute().parent.parent
sys.path.insert(0, str(ROOT))

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scripts.benchmark_adaptive import adaptive_suite
from scripts.benchmark_distillation import distillation_suite
from scripts.benchmark_objectives import objectives_suite
from scripts.benchmark_samplers import samplers_suite
from scripts.measuring import Figure, figure, image_experiment
from training.timing import paired


def bare_step(experiment: Any) -> Callable[[Any, Any, Any, Any], Any]:
    """Forward, backward, optimiser: the least that a training step has to do."""
    update, optimizer = experiment.updates[0], experiment.optimizers["score"]

    def step(params: Any, opt_state: Any, batch: Any, key: Any) -> Any:
        (loss, _), gradient = jax.value_and_grad(update.loss, has_aux=True)(params, {}, batch, key)
        changes, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, changes), opt_state, loss

    return jax.jit(step, donate_argnums=(0, 1))


def step_suite(quick: bool) -> Iterator[Figure]:
    """The training loop's step against the bare step, on U-Net 32x32."""
    from training.mesh import put_batch

    experiment, case = image_experiment(quick)
    n = 30 if quick else 11
    full, bare = jax.jit(experiment.step(), donate_argnums=0), bare_step(experiment)
    state = experiment.initial_state()
    copy = jax.tree.map(jnp.copy, (state.params["score"], state.opt_state["score"]))
    slots: dict[str, Any] = {"full": state, "bare": copy}
    fixed = put_batch({k: v for k, v in experiment.pipeline.batch(0).items() if k != "index"}, experiment.mesh)
    key = jax.random.key(0)
    with experiment.pipeline.batches(0) as batches:
        def run_full() -> Any:
            batch = next(batches)
            batch.pop("index")
            slots["full"], metrics = full(slots["full"], {}, put_batch(batch, experiment.mesh))
            return metrics

        def run_bare() -> Any:
            *slots["bare"], loss = bare(*slots["bare"], fixed, key)
            return loss

        seconds, bare_seconds, ratio = paired(run_full, run_bare, n)
    yield figure("step", case, "seconds per training step", seconds, n)
    yield figure("step", case, "seconds per bare step", bare_seconds, n)
    yield figure("step", case, "training step / bare step", ratio, n)


def evaluation_suite(quick: bool) -> Iterator[Figure]:
    """FID's parts, on random images and random weights: neither changes the work."""
    from evaluation.distances import frechet_distance
    from evaluation.features.inception import inception_from_weights
    from evaluation.features.inception_weights import random_weights
    from evaluation.moments import accumulate, moments, new_accumulator
    from training.mesh import make_mesh

    draw = np.random.default_rng(0)
    width = 512 if quick else 2048
    sets = [moments(draw.gamma(0.5, size=(2 * width, width)).astype(np.float32)) for _ in range(2)]
    seconds = [_seconds(lambda: frechet_distance(*sets)) for _ in range(3)]
    yield figure("evaluation", f"{width} dimensions, full rank", "seconds of a Frechet distance", np.median(seconds), 3)

    batch, n = (4, 3) if quick else (16, 7)
    images = draw.integers(0, 256, (batch, 64, 64, 3), np.uint8)
    weights = random_weights(0)
    inception = inception_from_weights(weights)
    features = jax.jit(lambda params, images: inception.taps(params, images)["features"])
    add = jax.jit(accumulate, donate_argnums=0)
    rows, mask, shift = features(inception.params, images), jnp.ones(batch), jnp.zeros(2048)
    slots = {"sums": new_accumulator(2048, make_mesh())}

    def run_accumulate() -> Any:
        slots["sums"] = add(slots["sums"], rows, mask, shift)
        return slots["sums"].count

    case = f"Inception, batch {batch}"
    extra, feature_seconds, ratio = paired(run_accumulate, lambda: features(inception.params, images), n)
    yield figure("evaluation", case, "images per second", batch / feature_seconds, n)
    yield figure("evaluation", case, "seconds to accumulate a batch", extra, n)
    yield figure("evaluation", case, "accumulation / features", ratio, n)
    theirs = torch_fidelity_features(weights)
    if theirs is None:
        print("torch-fidelity and torch 2.13 are not installed: no comparison with them", file=sys.stderr)
        return
    _, seconds, ratio = paired(lambda: features(inception.params, images), lambda: theirs(images), n)
    yield figure("evaluation", case, "images per second of torch-fidelity", batch / seconds, n)
    yield figure("evaluation", case, "throughput / torch-fidelity's", 1 / ratio, n)


def _seconds(run: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def torch_fidelity_features(weights: dict[str, np.ndarray]) -> Callable[[np.ndarray], Any] | None:
    """torch-fidelity's extractor with these weights, uint8 [n, h, w, c] -> features; None where it is not installed."""
    if any(importlib.util.find_spec(name) is None for name in ("torch", "torch_fidelity")):
        return None
    import torch

    from scripts.record_fixtures import channels_first, torch_fidelity_inception

    extractor = torch_fidelity_inception(["2048"], weights)

    def features(images: np.ndarray) -> Any:
        with torch.inference_mode():
            return extractor(channels_first(images))[0].numpy()

    return features


def start_up_suite(quick: bool) -> Iterator[Figure]:
    """Wall-clock of a new process until one training step is finished, by polling its metrics."""
    n = 1 if quick else 3
    cold, warm = [], []
    for _ in range(n):
        with tempfile.TemporaryDirectory() as folder:
            cold.append(_seconds_to_first_step(Path(folder) / "first"))
            warm.append(_seconds_to_first_step(Path(folder) / "second"))
    yield figure("start_up", "digits:dsm, cold cache", "seconds to the first finished step", float(np.median(cold)), n)
    yield figure("start_up", "digits:dsm, warm cache", "seconds to the first finished step", float(np.median(warm)), n)


def _seconds_to_first_step(workdir: Path) -> float:
    command = [sys.executable, "main.py", "--config=configs/digits.py:dsm", f"--workdir={workdir}",
               "--config.training.log_every=1"]
    begin = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (workdir / "metrics.jsonl").exists():
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} ended with {process.returncode} before its first step")
            time.sleep(0.02)
        return time.perf_counter() - begin
    finally:
        process.kill()
        process.wait()


SUITES = {
    "step": step_suite, "samplers": samplers_suite, "adaptive": adaptive_suite, "objectives": objectives_suite,
    "distillation": distillation_suite, "evaluation": evaluation_suite, "start_up": start_up_suite,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=[*SUITES, "all"], default="all")
    parser.add_argument("--quick", action="store_true", help="smaller cases: all suites in about a minute")
    arguments = parser.parse_args()
    figures = []
    for name in SUITES if arguments.suite == "all" else [arguments.suite]:
        for result in SUITES[name](arguments.quick):
            print(json.dumps(result), flush=True)
            figures.append(result)
    width = max(len(f"{f['case']}: {f['metric']}") for f in figures)
    print()
    for f in figures:
        print(f"{f['suite']:12} {f['case'] + ': ' + f['metric']:{width}} {f['value']:10.4g}  (n = {f['n']})")


if __name__ == "__main__":
    main()
