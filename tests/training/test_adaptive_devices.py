"""Sampling with a decision for each image: eight devices make the images of one. Runs as a program, too."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.overrides import resolve
from diffusion.random import image_keys
from training.experiment import build_experiment
from training.inference import sample_function

DEVICES, COUNT = 8, 48


def results():
    """(images, network calls) of the closed form of the digits, with two slots on each device."""
    config = resolve("configs/exact.py:digits", {
        "sampler": "ddim", "sampler.steps": 20, "sampler.adaptive.preset": "fast",
        "sampler.adaptive.mode": "per_sample", "sampler.adaptive.slots": 2,
    })  # fmt: skip
    experiment = build_experiment(config)
    classes = experiment.train.num_classes
    labels = jnp.arange(COUNT) % classes if classes else None
    samples = sample_function(experiment)(experiment.params["score"], image_keys(0, jnp.arange(COUNT)), labels)
    return np.asarray(samples.x0), np.asarray(samples.nfe)


@pytest.mark.slow
def test_eight_devices_make_the_images_of_one(tmp_path):
    assert jax.device_count() == 1
    root, out = str(Path(__file__).parents[2]), tmp_path / "values.npz"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": root}
    ended = subprocess.run([sys.executable, __file__, str(out)], env=environment, cwd=root, capture_output=True,
                           text=True, timeout=300)  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    images, nfe = results()
    assert nfe.min() < nfe.max() < 20
    with np.load(out) as many:
        assert many["devices"] == DEVICES
        np.testing.assert_array_equal(many["nfe"], nfe)
        np.testing.assert_allclose(many["images"], images, rtol=1e-4, atol=1e-4)


if __name__ == "__main__":
    images, nfe = results()
    np.savez(sys.argv[1], images=images, nfe=nfe, devices=jax.device_count())
