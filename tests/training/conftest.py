"""A training run that is as small as one can be: digits, an MLP with one block of width 16, a few steps."""

from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from configs.base import get_config, validate
from training import evaluation, metric_writers
from training.loop import train

TINY = {
    "experiment": "tiny",
    "data.source": "digits",
    "data.batch_size": 32,
    "sigma_data": 0.7,
    "network.name": "mlp",
    "network.width": 16,
    "network.depth": 1,
    "network.dropout": 0.1,
    "optimizer.learning_rate": 1e-2,
    "optimizer.warmup_steps": 2,
    "ema.half_lives": (100, 1000),
    "training.steps": 24,
    "training.log_every": 1,
    "training.checkpoint_every": 5,
    "sampler.name": "ddim",
    "sampler.steps": 2,
    "evaluation.num_samples": 20,
    "evaluation.batch_size": 8,
}


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., ConfigDict]:
    """make({"field": value, ...}) -> the validated config of the tiny run with these fields changed."""

    def make(changes: dict | None = None) -> ConfigDict:
        config = get_config()
        config.update_from_flattened_dict(TINY | (changes or {}))
        validate(config)
        return config

    return make


@pytest.fixture
def no_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs go without event files, as where tensorflow is missing: importing it takes longer than these runs."""

    def missing(directory: object) -> None:
        raise ImportError("tensorflow is left out of this test")

    monkeypatch.setattr(metric_writers, "_clu_writer", missing)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiling the step takes most of the time of these tests: it is done roughly, and once."""
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.getbasetemp() / "jax_cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


class Pixels:
    """A `Features` that needs no training: the means of an image's four quarters, in the order of its pixels."""

    name, dimension, params = "pixels", 4, ()

    def __init__(self) -> None:
        self.provenance = {"name": "pixels", "weights_sha256": "0"}

    def taps(self, params, images):
        return {"features": images.reshape(len(images), 4, -1).astype(jnp.float32).mean(axis=2) / 255}


@pytest.fixture(scope="session")
def pixels() -> Pixels:
    """One for all tests, so that it is compiled once."""
    return Pixels()


@pytest.fixture
def pixel_features(monkeypatch: pytest.MonkeyPatch, pixels: Pixels) -> None:
    """Evaluations measure in pixels, since a classifier takes long."""
    monkeypatch.setattr(evaluation, "train_or_load_classifier", lambda *arguments: pixels)


@pytest.fixture(scope="module")  # after `quick_compilation`
def trained(tiny_config: Callable[..., ConfigDict], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of the tiny run, trained to its end; to be copied by tests that write."""

    def missing(directory: object) -> None:
        raise ImportError("tensorflow is left out of this test")

    workdir = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metric_writers, "_clu_writer", missing)
        assert train(tiny_config({"training.log_every": 24}), str(workdir)) == 0
    return workdir
