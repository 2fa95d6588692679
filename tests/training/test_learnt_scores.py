"""Whole training runs against exact scores: `./scripts/test -m slow tests/training/test_learnt_scores.py`, minutes."""

import jax
import pytest

from configs.overrides import resolve
from configs.tables.lcss import LCSS
from training.evaluation import evaluate
from training.loop import train
from training.workdir import read_json_lines

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_tensorboard")]


@pytest.fixture(autouse=True)
def full_speed(quick_compilation):
    """These runs are long: compiling them well pays."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def metrics_of(tmp_path):
    """(preset, overrides) -> the metrics of its evaluation after training."""

    def run(preset: str, overrides: dict) -> dict[str, float]:
        config, folder = resolve(preset, overrides), tmp_path / str(len([*tmp_path.iterdir()]))
        assert train(config, str(folder)) == 0 and evaluate(config, str(folder)) == 0
        return read_json_lines(folder / "results.jsonl")[-1]["metrics"]

    return run


def test_dsm_and_lcss_learn_the_checkerboard_and_the_same(metrics_of):
    """3,000 steps at noise 0.3 on a board of side 8: an error of the score below 6 %, equal for both to 0.001."""
    dsm, lcss = (
        metrics_of("configs/toy2d.py:static", {"objective.name": name})["fisher_error"] for name in ("dsm", "lcss")
    )
    assert dsm < 0.06 and lcss < 0.06
    assert abs(dsm - lcss) < 1e-3


def test_local_lcss_learns_a_process_without_a_kernel(metrics_of):
    """At clock times 0.1, 0.5 and 2 the score is right to 5 %, and so are the samples of the reverse process."""
    metrics = metrics_of("configs/toy2d.py:lcss_nonaffine", {})
    errors = [value for name, value in metrics.items() if name.startswith("fisher_error_t")]
    assert len(errors) == 3 and max(errors) < 0.05
    (w1,) = [value for name, value in metrics.items() if name.startswith("wasserstein")]
    assert w1 < 0.08
    assert metrics["mass_error"] < 0.03


def test_a_gaussian_kernel_is_wrong_there(tmp_path):
    """Negative control: DSM, as if the process were the VP one of the same clock."""
    check = LCSS.row("nonaffine_dsm_wrong_kernel").small
    figures = check.measure(0, tmp_path, **check.options)
    assert figures["fisher_error_t0.1558"] > 0.3 and figures["fisher_error_t0.3141"] > 0.3
