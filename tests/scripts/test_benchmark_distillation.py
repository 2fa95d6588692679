"""The check of FLOPs in the benchmark of distillations: what is expected is found, and superfluous work is an error."""

import dataclasses
import importlib.util
from pathlib import Path

import jax
import pytest

from distillation.progressive_distillation import ProgressiveDistillation

PATH = Path(__file__).parents[2] / "scripts" / "benchmark_distillation.py"


@pytest.fixture
def script(monkeypatch):
    """Without its clock: seconds are not what is tested here."""
    spec = importlib.util.spec_from_file_location("benchmark_distillation", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "paired", lambda a, b, n: (0.0, 0.0, 0.0))
    return module


def units(figures):
    """{case: (forward passes, expected)}."""
    found = {}
    for figure in figures:
        if figure["metric"] in ("FLOPs / forward pass", "expected"):
            found.setdefault(figure["case"].split(": ")[1], []).append(figure["value"])
    return {case: tuple(values) for case, values in found.items()}


@pytest.mark.slow
def test_every_update_takes_the_forward_passes_that_are_expected(script):
    """To 10 % below and 15 % above: also too little work would be a sign of a broken loss.

    What the discriminator takes is counted as whole passes, though features are not the whole network.
    """
    found = units(script.distillation_suite(quick=True))
    assert len(found) == sum(len(expected) for _, _, expected, _ in script.CASES.values()) == 14
    for case, (made, expected) in found.items():
        least = 0.8 if case == "sim_adversarial, discriminator" else 0.9
        assert least * expected < made < 1.15 * expected, case


def tied(method, name):
    """The method with the teacher's weights made functions of the student's: they get a gradient, as by mistake."""
    updates = method.updates

    def mistaken(self, parts):
        def wrap(update):
            def loss(params, others, batch, key):
                weights = jax.tree.map(lambda own, student: own + 1e-3 * student, others[name], params)
                return update.loss(params, others | {name: weights}, batch, key)

            return dataclasses.replace(update, loss=loss)

        return tuple(map(wrap, updates(self, parts)))

    return mistaken


@pytest.mark.slow
def test_weights_that_are_differentiated_and_not_moved_are_an_error(script, monkeypatch):
    """A target whose gradient is not stopped goes through the teacher's weights; stopped, it costs nothing."""
    monkeypatch.setattr(script, "CASES", {"progressive_distillation": script.CASES["progressive_distillation"]})
    monkeypatch.setattr(ProgressiveDistillation, "updates", tied(ProgressiveDistillation, "teacher"))
    ((made, expected),) = units(script.distillation_suite(quick=True)).values()
    assert made < 1.15 * expected  # the negative control: the gradient ends at the target
    monkeypatch.setattr(jax.lax, "stop_gradient", lambda x: x)
    with pytest.raises(RuntimeError, match=r"progressive_distillation, generator takes \d+\.\d+ forward passes, and 5 "
                                           "were expected: are weights differentiated that nothing moves"):  # fmt: skip
        list(script.distillation_suite(quick=True))
