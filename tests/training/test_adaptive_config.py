"""config.sampler.adaptive: what arrives at the sampler, what is refused, and that configs without it stay the same."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from configs.overrides import identity, resolve
from diffusion.random import image_keys
from samplers.adaptive import PRESETS, Adaptive
from samplers.ddim import DDIM
from training import components

DDIM50 = {"sampler": "ddim", "sampler.steps": 50}


def config(fields, base=DDIM50):
    adaptive = {f"sampler.adaptive.{name}": value for name, value in fields.items()}
    return resolve("configs/digits.py:dsm", base | adaptive)


def test_without_a_field_there_is_nothing_adaptive_and_results_keep_their_identity():
    """The hash of a config is what the ledger knows its lines by: a section of which nothing is set is not in it."""
    plain = config({})
    assert components.make_sampler(plain) == DDIM(steps=50)
    assert "adaptive" not in components.sampler_settings(plain)
    without = plain.copy_and_resolve_references()
    del without.sampler.adaptive
    assert identity(without) == identity(plain) != identity(config({"preset": "fast"}))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_its_options_and_fields_come_first(preset):
    made = components.make_sampler(config({"preset": preset, "tail": 3, "mode": "per_sample"}))
    assert made == Adaptive(solver=DDIM(steps=50), **PRESETS[preset] | {"tail": 3, "mode": "per_sample"})
    assert {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}["steps"] == 50


def test_another_criterion_does_not_take_the_delta_of_the_presets_unit():
    """0.1 of slope would skip almost everything as a scalar's. Its own delta is kept with the preset's criterion."""
    assert components.make_sampler(config({"preset": "accurate", "criterion": "scalar"})).limits().delta == (
        pytest.approx(0.01)
    )
    assert components.make_sampler(config({"preset": "accurate", "criterion": "slope"})).delta == 0.1
    assert components.make_sampler(config({"preset": "accurate", "delta": 0.3})).delta == 0.3


@pytest.mark.parametrize(("fields", "message"), [
    ({"preset": "quick"}, "config.sampler.adaptive.preset = 'quick' is not known; choose from default, paper, safe, "
                          "accurate, fast"),
    ({"criterion": "third"}, "config.sampler.adaptive.criterion = 'third' is not known; choose from scalar, vector, "
                             "slope"),
    ({"delta": 0.1}, "config.sampler.adaptive.delta = 0.1 needs its criterion, whose unit it has; choose from scalar, "
                     "vector, slope"),
    ({"criterion": "scalar", "delta": math.nan}, "config.sampler.adaptive.delta = nan must be finite"),
    ({"budget": 12}, "config.sampler.adaptive.budget = 12 is less than the 13 calls that 50 steps with warmup = 4, "
                     "start = 0.0, tail = 0 and c_max = 4 take at least"),
    ({"warmup": 50}, "config.sampler.adaptive.warmup = 50 leaves nothing to skip of the 50 steps of the solver"),
    ({"c_max": 0}, "config.sampler.adaptive.c_max = 0 must be at least 1"),
])  # fmt: skip
def test_what_is_wrong_is_named_in_one_line(fields, message):
    with pytest.raises(ValueError) as caught:
        components.check_method(config(fields))
    assert str(caught.value) == message


def test_a_sampler_that_cannot_skip_and_a_student_are_refused():
    with pytest.raises(ValueError, match=r"^config\.sampler\.adaptive: solver = SASolver cannot skip calls; choose "):
        components.check_method(config({"preset": "fast"}, {"sampler": "sa_solver"}))
    student = resolve("configs/digits.py:moment_matching", {
        "sampler": "ddim", "sampler.steps": 20, "distillation.teacher": "exact", "sampler.adaptive.preset": "fast",
    })  # fmt: skip
    with pytest.raises(ValueError, match=r"a student of config\.distillation\.name = 'moment_matching' needs all of"):
        components.check_method(student)


@pytest.mark.parametrize(("steps", "warns"), [(14, True), (15, False)])
def test_few_steps_are_warned_of(steps, warns, caplog):
    components.check_method(config({"preset": "fast"}, {"sampler": "ddim", "sampler.steps": steps}))
    assert ("leaves little to skip" in caplog.text) == warns


def test_settings_are_the_solvers_with_a_section_of_their_own():
    """They name a folder of images: two samplers must not share one."""
    settings = components.sampler_settings(config({"preset": "fast"}))
    assert settings["name"] == "ddim" and settings["steps"] == 50 and settings["eta"] == 0.0
    assert settings["adaptive"]["c_max"] == 2 and settings["adaptive"]["criterion"] == "slope"
    assert settings != components.sampler_settings(config({"preset": "accurate"}))


def test_the_images_of_a_strip_are_those_of_the_sample():
    """With keep_steps images keep step, whatever the mode; what comes out must be the same."""
    made = config({"preset": "fast", "mode": "per_sample", "slots": 3}, DDIM50 | {"sampler.steps": 20})
    sampler, process = components.make_sampler(made), components.make_process(made)

    def denoise(x_t, t, label):
        level = jax.numpy.exp(-0.5 * process.logsnr(t))[:, None]
        return jax.numpy.tanh(3 * x_t / (1 + level**2))

    keys = image_keys(0, jax.numpy.arange(7))
    alone = sampler.sample(denoise, process, keys, None, shape=(4,))
    strip = sampler.sample(denoise, process, keys, None, shape=(4,), keep_steps=True)
    np.testing.assert_allclose(strip.x0, alone.x0, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(strip.nfe, alone.nfe)
    assert 4 < alone.nfe.min() < alone.nfe.max() + 1 < 20
    assert strip.x0_steps.shape == (20, 7, 4) and strip.t_steps.shape == (20,)
    np.testing.assert_allclose(strip.x0_steps[-1], strip.x0, rtol=1e-5, atol=1e-5)  # the last step is x0_hat
