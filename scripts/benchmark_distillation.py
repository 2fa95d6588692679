"""The suite `distillation` of scripts/benchmark.py: what one update of each method costs, in forward passes.

On a U-Net for 32x32 images: FLOPs (as XLA counts them), seconds and temporary memory of the compiled gradient of every
update, over those of one compiled forward pass of the images that it sees. Each has an expected number of forward
passes, with a backward pass to the input counted as one and one to the weights, too:

  score_implicit_matching   auxiliary 4 (images, then forward and backward), generator 7 (three forwards, the inputs of
                            two networks backwards, the generator backwards), of the KL members 5; the adversarial term
                            adds a discriminator's update of at most 3 (images, and features of both kinds) and nothing
                            to the generator's, which has the features already
  moment_matching           5 and 5 (the student's images, the teacher, and forward and backward of one network)
  instant_moment_matching   10, of both halves: 1 + 3 for the wish of the teacher, 3 for the student, 2 to 3 for the jvp
  progressive distillation  5 (two of the teacher), consistency distillation 5 (one of the teacher, one more student)

Weights of teacher and auxiliary network must not get gradients in the generator's update: that would show as FLOPs, and
the suite fails where an update takes a tenth more than expected.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from diffusion import SCHEDULES
from diffusion.denoiser import NetworkDenoiser
from diffusion.networks import initialise
from diffusion.process import GaussianProcess
from distillation import METHODS
from distillation.adversarial import initial_head
from distillation.base import AUXILIARY, DISCRIMINATOR, GENERATOR, PRECONDITIONER, TEACHER, Parts
from scoring.dsm import DSM
from scoring.time_samplers import LogNormalTimes
from scoring.weightings import EDMWeighting
from scripts.measuring import Figure, figure
from training.timing import paired

TOLERANCE = 1.1
# Label -> method, options, expected forward passes by role, images that an update sees over those of the batch.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, float], float]] = {
    "sim": ("score_implicit_matching", {}, {AUXILIARY: 4, GENERATOR: 7}, 1.0),
    "sid": ("score_implicit_matching", {"distance": "l2", "normalizer": "l1", "sid_coefficient": 1.2},
            {AUXILIARY: 4, GENERATOR: 7}, 1.0),
    "dmd": ("score_implicit_matching", {"distance": "l2", "normalizer": "l1", "through_scores": False},
            {AUXILIARY: 4, GENERATOR: 5}, 1.0),
    "sim_adversarial": ("score_implicit_matching", {"adversarial_weight": 1.0},
                        {AUXILIARY: 4, DISCRIMINATOR: 3, GENERATOR: 7}, 1.0),
    "moment_matching": ("moment_matching", {}, {AUXILIARY: 5, GENERATOR: 5}, 0.5),
    "instant_moment_matching": ("instant_moment_matching", {}, {GENERATOR: 10}, 0.5),
    "progressive_distillation": ("progressive_distillation", {}, {GENERATOR: 5}, 1.0),
    "consistency_distillation": ("consistency_distillation", {}, {GENERATOR: 5}, 1.0),
}  # fmt: skip
SHAPE, BATCH = (32, 32, 3), 16
UNET = {"width": 32, "channel_multipliers": (1, 2), "blocks_per_level": 1}


def distillation_suite(quick: bool) -> Iterator[Figure]:
    """Every update of every method. Raises RuntimeError where one does more work than it should."""
    name, options = ("mlp", {"width": 256, "depth": 2}) if quick else ("unet", UNET)
    n, case = (3 if quick else 5), f"{name} 32x32 width {options['width']} batch {BATCH}"
    apply, params = initialise(name, jax.random.key(0), shape=SHAPE, num_classes=0, **options)
    process = GaussianProcess(SCHEDULES["edm"]())
    others = dict.fromkeys((TEACHER, GENERATOR, AUXILIARY, PRECONDITIONER), params)
    batch = {"image": jax.random.normal(jax.random.key(1), (BATCH, *SHAPE))}
    features = jax.eval_shape(apply.features, params, batch["image"], jnp.zeros(BATCH))
    others[DISCRIMINATOR] = initial_head(jax.random.key(3), features.shape[-1])

    def network(params: Any, key: Any) -> NetworkDenoiser:
        return NetworkDenoiser(partial(apply, params), process, prediction="edm", sigma_data=0.5,
                               hidden=partial(apply.features, params))  # fmt: skip

    objective = DSM(weighting=EDMWeighting(), time_sampler=LogNormalTimes())
    parts = Parts(network=network, teacher=lambda params: network(params, None), guide=lambda denoise: denoise,
                  process=process, objective=objective, num_classes=0)  # fmt: skip
    for label, (method, settings, expected, share) in CASES.items():
        seen = batch["image"][: int(BATCH * share)]
        forward = jax.jit(lambda params, x: network(params, None)(x, jnp.full(len(x), 0.5), None))
        forward = forward.lower(params, seen).compile()
        for update in METHODS[method](**settings).updates(parts):
            gradient = jax.jit(jax.grad(update.loss, has_aux=True))
            own = others[update.role]
            gradient = gradient.lower(own, others, batch, jax.random.key(2)).compile()
            about = f"{case}: {label}, {update.role}"
            units = _flops(gradient) / _flops(forward)
            wanted = expected[update.role]
            if units > TOLERANCE * wanted:
                raise RuntimeError(f"{about} takes {units:.2f} forward passes, and {wanted} were expected: are weights "
                                   "differentiated that nothing moves?")
            seconds, _, ratio = paired(partial(gradient, own, others, batch, jax.random.key(2)),
                                       partial(forward, params, seen), n)  # fmt: skip
            yield figure("distillation", about, "FLOPs / forward pass", units, 1)
            yield figure("distillation", about, "expected", wanted, 1)
            yield figure("distillation", about, "seconds", seconds, n)
            yield figure("distillation", about, "seconds / forward pass", ratio, n)
            memory = gradient.memory_analysis().temp_size_in_bytes / 2**20
            yield figure("distillation", about, "temporary memory, MiB", memory, 1)


def _flops(compiled: Any) -> float:
    return compiled.cost_analysis()["flops"]
