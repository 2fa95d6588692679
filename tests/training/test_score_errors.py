"""Scores of a run against exact ones, in the numbers, the record and the picture of an evaluation."""

import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import get_config, validate
from evaluation.exact import exact_denoiser
from training import evaluation
from training.experiment import Experiment, build_experiment
from training.loop import train
from training.score_errors import score_errors
from training.workdir import read_json_lines

TOY = {
    "data.source": "toy2d:three_modes", "data.batch_size": 64, "network.name": "mlp", "network.width": 16,
    "network.depth": 1, "objective.label_dropout": 0.0, "training.steps": 3, "optimizer.warmup_steps": 1,
    "sampler.steps": 2, "evaluation.num_samples": 200, "evaluation.batch_size": 200, "evaluation.features": ("points",),
    "evaluation.metrics": ("w1",), "evaluation.memorisation": False, "evaluation.fisher_times": (0.2, 0.5),
}  # fmt: skip


def toy_config(**changes):
    config = get_config()
    config.update_from_flattened_dict(TOY | {name.replace("__", "."): value for name, value in changes.items()})
    validate(config)
    return config


def scaled(self, params, key=None):
    """A denoiser whose score is `params` times the exact one."""
    exact = exact_denoiser(self.config.data.source, self.process)

    def denoise(x_t, t, label):
        alpha = self.process.alpha(t)[:, None]
        return x_t / alpha + params * (exact(x_t, t, label) - x_t / alpha)

    return denoise


@pytest.mark.parametrize("source", ["toy2d:three_modes", "toy2d:rings"])
def test_a_score_of_known_error_gets_it_at_every_time(source, tmp_path, monkeypatch):
    experiment = build_experiment(toy_config(data__source=source))
    monkeypatch.setattr(Experiment, "denoiser", scaled)
    for factor, error in ((0.9, 0.01), (-1.0, 4.0)):
        numbers, pictures = score_errors(experiment, jnp.float32(factor), tmp_path, "name")
        expected = dict.fromkeys(("fisher_error_t0.2", "fisher_error_t0.5", "fisher_error"), error)
        assert numbers == pytest.approx(expected, rel=1e-3)
    assert pictures == {"field": tmp_path / "name-field.png"} and pictures["field"].stat().st_size > 10_000


def test_without_times_nothing_is_compared(tmp_path):
    experiment = build_experiment(toy_config(evaluation__fisher_times=()))
    assert score_errors(experiment, experiment.params["score"], tmp_path, "name") == ({}, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_tensorboard")
def test_the_record_of_an_evaluation_has_them(tmp_path):
    """And the masses of the modes of its samples, and their distance from the test split."""
    config = toy_config(evaluation__ranges=2)
    assert train(config, str(tmp_path)) == 0
    assert evaluation.evaluate(config, str(tmp_path)) == 0
    config.evaluation.ranges = 1
    assert evaluation.evaluate(config, str(tmp_path)) == 0
    two, one = read_json_lines(tmp_path / "results.jsonl")
    metrics = one["metrics"]
    assert metrics.keys() == {"wasserstein200_test_points", "mass_error", "fisher_error_t0.2", "fisher_error_t0.5",
                              "fisher_error"}  # fmt: skip
    assert metrics["fisher_error"] == pytest.approx((metrics["fisher_error_t0.2"] + metrics["fisher_error_t0.5"]) / 2)
    assert all(metrics[name] == two["metrics"][name] for name in metrics if name.startswith("fisher"))  # the seed's
    assert two["metrics"].keys() >= {"mass_error_mean", "mass_error_min", "wasserstein200_test_points_mean"}
    points = np.concatenate([np.load(path)["image"] for path in sorted(tmp_path.glob("generated/*/0*.npz"))])[:200]
    masses = [(points < -0.4).mean(), ((points > -0.4) & (points < 0.8)).mean(), (points > 0.8).mean()]
    assert one["details"]["mode_masses"] == pytest.approx(masses)
    assert metrics["mass_error"] == pytest.approx(np.abs(np.subtract(masses, (0.5, 0.2, 0.3))).max())
    assert (tmp_path / one["pictures"]["field"]).stat().st_size > 10_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluation__fisher_times": (0.5, 1.5)}, r"fisher_times = \(0.5, 1.5\) must be times between 0.0 and 1.0"),
        ({"evaluation__fisher_times": (0.5, 0.5)}, "each once"),
        ({"data__source": "digits"}, "nobody knows the exact score of config.data.source = 'digits' under"),
        ({"evaluation__features": ("classifier",)}, "config.evaluation.metrics = .*'w1' needs the features 'points'"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_training(changes, message):
    with pytest.raises(ValueError, match=message):
        toy_config(**changes)
