"""Adaptive sampling on a mixture in 64 dimensions with guidance: calls and errors of 50 steps, as measured in float64.

The problem and its solvers are in `evaluation/skip_study.py`. All solvers are run at once, as requests of three
schedules in one queue.
"""

import jax
import numpy as np
import pytest

from evaluation.skip_study import adaptive, full, masked, truth
from evaluation.skip_study import errors as errors_to
from samplers.masks import uniform_mask

N, IMAGES = 50, 96


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def errors(results):
    """Median and 95th percentile of relative distances to the full run, [3, 2]."""
    return errors_to(results, full())


def assert_pinned(run, calls, expected):
    """Calls within 0.15, errors within 3 % and the digits that are known."""
    results, counted = run
    np.testing.assert_allclose(counted.mean(1), calls, atol=0.15)
    measured = errors(results)
    for pair, known in zip(measured, expected):
        np.testing.assert_allclose(pair[: len(known)], known, rtol=0.03, atol=5e-5)


# --- Pins -------------------------------------------------------------------------------------------------------------

# criterion, delta, c_max, reuse, compat: calls, and median and 95th percentile of the error, of DDIM, Euler and 2M
POLICIES = {
    "scalar": (("scalar", 0.01, 4, "hold", False), (27.31, 26.41, 31.18),
               ((0.0176, 0.0304), (0.0189, 0.0465), (0.0142, 0.0227))),
    "paper": (("scalar", 0.01, 4, "hold", True), (27.25, 26.41, 31.08), ((0.0177,), (0.0189,), (0.0142,))),
    "scalar, two": (("scalar", 0.01, 2, "hold", False), (30.45, 29.12, 34.02),
                    ((0.0105, 0.0203), (0.0124, 0.0275), (0.0090, 0.0156))),
    "vector": (("vector", 0.05, 4, "hold", False), (26.25, 21.67, 29.82),
               ((0.0252, 0.0503), (0.0356, 0.0751), (0.0162, 0.0334))),
    "slope": (("slope", 0.05, 4, "hold", False), (19.99, 19.99, 18.76),
              ((0.0267, 0.0646), (0.0267, 0.0647), (0.0285, 0.0639))),
    "scalar, linear": (("scalar", 0.01, 4, "linear", False), (20.97, 20.99, 23.94),
                       ((0.0049, 0.0089), (0.0092, 0.0213), (0.0045, 0.0103))),
    "slope, linear": (("slope", 0.1, 4, "linear", False), (16.14, 16.14, 15.11),
                      ((0.0078, 0.0151), (0.0078, 0.0151), (0.0068, 0.0144))),
    "fast": (("slope", 0.2, 2, "linear", False), (20.01, 20.01, 19.92),
             ((0.0034, 0.0051), (0.0034, 0.0050), (0.0025, 0.0044))),
    "accurate": (("slope", 0.1, 1, "linear", False), (28.00, 28.00, 27.99),
                 ((0.0010, 0.0016), (0.0010, 0.0016), (0.0008, 0.0014))),
}  # fmt: skip
QUICK = ("scalar", "scalar, two", "slope, linear", "fast", "accurate")  # two programs


def policy(name):
    (criterion, delta, c_max, reuse, compat), calls, expected = POLICIES[name]
    assert_pinned(adaptive(criterion, delta, c_max, reuse, compat=compat), calls, expected)


@pytest.mark.parametrize("name", QUICK)
def test_pins(name):
    policy(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in POLICIES if name not in QUICK])
def test_more_pins(name):
    policy(name)


def test_linear_reuse_is_four_times_as_accurate_on_one_mask():
    """Steps 0 to 4 and then every third, 20 calls, with all three solvers; and as measured."""
    mask = (np.arange(N) < 4) | (np.arange(N) % 3 == 1)
    assert mask.sum() == 20
    hold, linear = (errors(masked(mask, reuse)) for reuse in ("hold", "linear"))
    np.testing.assert_allclose(hold, ((0.0377, 0.0659), (0.0373, 0.0657), (0.0268, 0.0536)), rtol=0.03)
    np.testing.assert_allclose(linear, ((0.0062, 0.0089), (0.0061, 0.0087), (0.0038, 0.0057)), rtol=0.03, atol=5e-5)
    assert (hold[:, 0] > 4 * linear[:, 0]).all()


def test_pins_of_uniform_grids():
    """20, 25 and 30 calls, medians."""
    known = {"hold": ((0.036, 0.022, 0.018), (0.036, 0.022, 0.018), (0.025, 0.016, 0.013)),
             "linear": ((0.0049, 0.0023, 0.0014), (0.0048, 0.0022, 0.0014), (0.0029, 0.0016, 0.0009))}  # fmt: skip
    for reuse, of_solvers in known.items():
        found = [errors(masked(uniform_mask(N, calls), reuse))[:, 0] for calls in (20, 25, 30)]
        atol = {"hold": 5e-4, "linear": 5e-5}[reuse]
        np.testing.assert_allclose(np.stack(found, axis=1), of_solvers, rtol=0.03, atol=atol)


def test_the_full_run_is_itself_wrong():
    """Against the ODE from the same noise, by more than 20 calls with linear reuse are against the full run."""
    np.testing.assert_allclose(errors_to(full(), truth())[:, 0], (0.0243, 0.0274, 0.0153), rtol=0.03)


def test_normalised_increments():
    """They make DDIM and Euler agree, and their delta means something else at another number of steps."""
    _, calls = adaptive("scalar", 0.01, 4, "hold", normalize=True)
    np.testing.assert_allclose(calls[:2].mean(1), 21.4, atol=0.15)
    for steps, share in ((100, 0.34), (10, 0.65)):
        _, calls = adaptive("scalar", 0.01, 4, "hold", normalize=True, steps=steps)
        np.testing.assert_allclose(calls[:2].mean(1) / steps, share, atol=0.005)
        np.testing.assert_array_equal(calls[0], calls[1])


def test_the_full_run_is_adaptive_sampling_that_skips_nothing():
    results, calls = adaptive("scalar", -1.0, 4, "hold")
    assert (calls == N).all()
    np.testing.assert_allclose(results, full(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "criterion, reuse, deltas",
    [("scalar", "hold", (0.001, 0.005, 0.01, 0.02, 0.05, 0.2)), ("slope", "linear", (0.01, 0.03, 0.1, 0.3, 1.0))],
)
def test_more_is_skipped_the_higher_delta_is(criterion, reuse, deltas):
    """By each solver, in the mean over the images, from nearly nothing on to all that c_max allows."""
    means = np.stack([adaptive(criterion, delta, 4, reuse)[1].mean(1) for delta in deltas])
    assert (np.diff(means, axis=0) <= 0).all()
    assert (means[0] > 35).all() and (means[-1] < 17).all()


@pytest.mark.parametrize("criterion, reuse", [("scalar", "hold"), ("slope", "linear")])
def test_every_budget_is_kept_and_spent(criterion, reuse):
    """By each image, with a tail and without; three budgets by turns."""
    for tail in (0, 2):
        budgets = np.tile([15, 20, 25], IMAGES)
        delta = {"scalar": 0.01, "slope": 0.05}[criterion]
        _, calls = adaptive(criterion, delta, 4, reuse, tail=tail, budget=budgets)
        for budget in (15, 20, 25):
            of_budget = calls.reshape(3, IMAGES // 3, 3)[..., (15, 20, 25).index(budget)]
            assert of_budget.max() <= budget and (of_budget.mean(1) >= budget - 1).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "criterion, delta, reuse, medians",
    [("scalar", 0.01, "hold", (0.084, 0.037, 0.0225)), ("slope", 0.05, "linear", (0.0087, 0.0067, 0.0066))],
)
def test_pins_of_budgets(criterion, delta, reuse, medians):
    """DDIM with at most 15, 20 and 25 calls."""
    for budget, median in zip((15, 20, 25), medians):
        results, _ = adaptive(criterion, delta, 4, reuse, budget=budget)
        np.testing.assert_allclose(errors(results)[0, 0], median, rtol=0.03, atol=5e-4 if median > 0.01 else 5e-5)
