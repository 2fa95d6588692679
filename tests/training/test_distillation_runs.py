"""Whole distillations of a closed form: `./scripts/test -m slow tests/training/test_distillation_runs.py`, minutes.

Eight Gaussians in the plane, whose exact denoiser is the teacher: what is wrong with a student is its method's fault.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import validate
from configs.overrides import resolve
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
    "data.source": "toy2d:mixture", "data.batch_size": 1024, "network.width": 128, "network.depth": 3,
    "network.dropout": 0.0, "distillation.teacher": "exact", "optimizer.beta1": 0.0, "optimizer.learning_rate": 1e-3,
    "optimizer.warmup_steps": 100, "training.checkpoint_every": 4000, "ema.half_lives": (100_000,),
}  # fmt: skip


@pytest.fixture(autouse=True)
def full_speed(quick_compilation):
    """These runs are long: compiling them well pays."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def distances(folder, overrides, samplers):
    """Sliced Wasserstein distances to exact draws: of the trained student, and of its teacher with these samplers."""
    config = resolve("configs/toy2d.py:dsm", STUDENT | overrides)
    validate(config)
    assert train(config, str(folder)) == 0
    experiment, params, _, _ = load_run(config, str(folder))
    exact = exact_denoiser("toy2d:mixture", experiment.process)
    labels = jnp.asarray(labels_of(np.arange(COUNT), experiment.train.num_classes))
    draws, classes = (np.asarray(part) for part in exact.sample(jax.random.key(1), 4 * COUNT))

    def distance(denoise, sampler):
        keys = image_keys(0, jnp.arange(COUNT))
        run = jax.jit(lambda keys: sampler.sample(denoise, experiment.process, keys, labels, shape=(2,)).x0)
        x = np.asarray(run(keys))
        by_class = [sliced_wasserstein(x[np.asarray(labels) == k], draws[classes == k]) for k in np.unique(classes)]
        return float(np.mean(by_class))

    student = distance(experiment.denoiser(params), components.make_sampler(config))
    return student, [distance(exact, sampler) for sampler in samplers]


def test_four_steps_of_moment_matching_are_better_than_four_of_the_teacher(tmp_path):
    """Than of the exact denoiser with the same sampler. Half the distance was hoped for, and 0.67 of it is measured."""
    steps = {"steps": 4, "grid": "trailing", "zero_terminal_snr": True}
    overrides = {"distillation.name": "moment_matching", "distillation.num_steps": 4, "training.steps": 4000}
    overrides |= {"sampler.name": "ancestral"} | {f"sampler.{name}": value for name, value in steps.items()}
    student, (teacher,) = distances(tmp_path / "run", overrides, [SAMPLERS["ancestral"](**steps)])
    assert student < 0.8 * teacher, (student, teacher)


def test_one_step_of_score_implicit_matching_is_better_than_four_of_the_teacher(tmp_path):
    """From random parameters and without data."""
    overrides = {"distillation.name": "score_implicit_matching", "distillation.auxiliary_warmup": 200,
                 "distillation.auxiliary_updates": 2, "optimizer.beta2": 0.999, "training.steps": 4000,
                 "sampler.name": "one_step"}  # fmt: skip
    student, (teacher,) = distances(tmp_path / "run", overrides, [SAMPLERS["ddim"](steps=4, grid="trailing")])
    assert student < teacher, (student, teacher)
