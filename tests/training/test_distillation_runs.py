"""Whole distillations of a closed form: `./scripts/test -m slow tests/training/test_distillation_runs.py`, minutes.

The exact denoiser of points in the plane is the teacher: what is wrong with a student is its method's fault.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import validate
from configs.overrides import resolve
from data.base import gather
from diffusion.random import image_keys
from evaluation.exact import exact_denoiser
from evaluation.generate import labels_of
from evaluation.sample_distances import sliced_wasserstein
from samplers import SAMPLERS
from training import components
from training.inference import load_run
from training.loop import train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_tensorboard")]
COUNT = 10_000
STUDENT = {
    "data.batch_size": 1024, "network.width": 128, "network.depth": 3,
    "network.dropout": 0.0, "distillation.teacher": "exact", "optimizer.beta1": 0.0, "optimizer.learning_rate": 1e-3,
    "optimizer.warmup_steps": 100, "training.checkpoint_every": 4000, "ema.half_lives": (100_000,),
}  # fmt: skip


@pytest.fixture(autouse=True)
def full_speed(quick_compilation):
    """These runs are long: compiling them well pays."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def distances(folder, source, overrides, sampler):
    """Sliced Wasserstein distances to the data: of the trained student, and of its teacher with this sampler.

    Of labelled data the mean over the classes.
    """
    config = resolve("configs/toy2d.py:dsm", STUDENT | {"data.source": source} | overrides)
    validate(config)
    assert train(config, str(folder)) == 0
    experiment, params, _, _ = load_run(config, str(folder))
    data = gather(experiment.train, np.arange(4 * COUNT))
    labels = labels_of(np.arange(COUNT), experiment.train.num_classes)
    keys = image_keys(0, jnp.arange(COUNT))

    def distance(denoise, sampler):
        run = jax.jit(lambda keys, labels: sampler.sample(denoise, experiment.process, keys, labels, shape=(2,)).x0)
        x = np.asarray(run(keys, None if labels is None else jnp.asarray(labels)))
        if labels is None:
            return sliced_wasserstein(x, data["image"])
        return float(np.mean([sliced_wasserstein(x[labels == k], data["image"][data["label"] == k])
                              for k in np.unique(labels)]))  # fmt: skip

    student = distance(experiment.denoiser(params), components.make_sampler(config))
    return student, distance(exact_denoiser(source, experiment.process), sampler)


def test_four_steps_of_moment_matching_are_better_than_four_of_the_teacher(tmp_path):
    """Less than half the distance of the exact denoiser with the same sampler, on a mixture without labels."""
    steps = {"steps": 4, "grid": "trailing", "zero_terminal_snr": True}
    overrides = {"distillation.name": "moment_matching", "distillation.num_steps": 4, "training.steps": 4000}
    overrides |= {"sampler.name": "ancestral"} | {f"sampler.{name}": value for name, value in steps.items()}
    student, teacher = distances(tmp_path / "run", "toy2d:three_modes", overrides, SAMPLERS["ancestral"](**steps))
    assert student < 0.5 * teacher, (student, teacher)


def test_one_step_of_score_implicit_matching_is_better_than_four_of_the_teacher(tmp_path):
    """From random parameters and without data."""
    overrides = {"distillation.name": "score_implicit_matching", "distillation.auxiliary_warmup": 200,
                 "distillation.auxiliary_updates": 2, "optimizer.beta2": 0.999, "training.steps": 4000,
                 "sampler.name": "one_step"}  # fmt: skip
    ddim = SAMPLERS["ddim"](steps=4, grid="trailing")
    student, teacher = distances(tmp_path / "run", "toy2d:mixture", overrides, ddim)
    assert student < teacher, (student, teacher)
