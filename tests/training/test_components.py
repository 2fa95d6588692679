"""Sections of a config become the components they name, with the options they set, or are refused in one line."""

import dataclasses

import jax
import pytest

from configs.base import get_config
from diffusion import PROCESSES, SCHEDULES
from diffusion.networks import NETWORKS
from diffusion.prediction import PREDICTIONS
from samplers import SAMPLERS
from scoring import OBJECTIVES
from scoring.base import Update
from scoring.time_samplers import TIME_SAMPLERS
from scoring.weightings import WEIGHTINGS
from training import components


def config_with(**fields):
    config = get_config()
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return config


def bare_process(config):
    """The component that config.process names: the schedule of a Gaussian process, or the process itself."""
    process = components.make_process(config)
    return getattr(process, "schedule", process)


@pytest.mark.parametrize(
    ("field", "classes", "get"),
    [
        ("process.name", SCHEDULES | PROCESSES, bare_process),
        ("sampler.name", SAMPLERS, components.make_sampler),
        ("objective.name", OBJECTIVES, components.make_objective),
        ("objective.weighting.name", WEIGHTINGS, lambda config: components.make_objective(config).weighting),
        ("objective.time_sampler.name", TIME_SAMPLERS, lambda config: components.make_objective(config).time_sampler),
    ],
)
def test_every_name_makes_its_class_with_its_own_defaults(field, classes, get):
    for name, made_class in classes.items():
        config = get_config()
        config.update_from_flattened_dict({field: name})
        component = get(config)
        assert type(component) is made_class
        plain = made_class(**({"sigma_data": config.sigma_data} if name == "edm" and "weighting" in field else {}))\
            if field != "objective.name" else component  # fmt: skip
        assert component == plain


@pytest.mark.parametrize(
    ("fields", "get", "expected"),
    [
        ({"sampler__name": "ddim", "sampler__eta": 0.3, "sampler__steps": 7}, components.make_sampler,
         {"eta": 0.3, "steps": 7}),
        ({"sampler__churn": 2.0, "sampler__churn_noise": 1.01, "sampler__grid": "uniform"}, components.make_sampler,
         {"churn": 2.0, "churn_noise": 1.01, "grid": "uniform"}),
        ({"process__sigma_max": 40.0, "process__rho": 5.0}, lambda c: components.make_process(c).schedule,
         {"sigma_max": 40.0, "rho": 5.0}),
        ({"process__name": "vp_linear", "process__beta_max": 10.0}, lambda c: components.make_process(c).schedule,
         {"beta_max": 10.0}),
        ({"objective__weighting__name": "snr_clipped", "objective__weighting__gamma": 3.0},
         lambda c: components.make_objective(c).weighting, {"gamma": 3.0}),
        ({"sigma_data": 0.7}, lambda c: components.make_objective(c).weighting, {"sigma_data": 0.7}),
        ({"objective__time_sampler__mean": -0.5}, lambda c: components.make_objective(c).time_sampler, {"mean": -0.5}),
        ({"ema__half_lives": (10, 30), "ema__ramp": 0.2}, components.make_ema, {"half_lives": (10, 30), "ramp": 0.2}),
    ],
)  # fmt: skip
def test_options_arrive(fields, get, expected):
    made = get(config_with(**fields))
    assert {name: getattr(made, name) for name in expected} == expected


def test_the_network_gets_its_options():
    fields = {"network__width": 8, "network__channel_multipliers": (1, 1, 2), "network__blocks_per_level": 1,
              "network__attention_resolutions": (4,), "network__num_heads": 2, "network__dropout": 0.25}  # fmt: skip
    _, params = components.make_network(config_with(**fields), (8, 8, 3), 10, jax.random.key(0))
    sides = {name.split("_")[1] for name in params["blocks"] if name.startswith("encoder")}
    with_attention = {name for name, block in params["blocks"].items() if "attention" in block}
    assert sides == {"8", "4", "2"} and with_attention and all("_4_" in name for name in with_attention)
    assert params["inputs"]["kernel"].shape[-1] == 8
    assert params["embedding"]["labels"]["embedding"].shape[0] == 11  # ten classes and "no class"


UNKNOWN = {
    "process.name": SCHEDULES | PROCESSES,
    "network.name": {*NETWORKS, "exact"},
    "sampler.name": SAMPLERS,
    "objective.name": OBJECTIVES,
    "objective.weighting.name": WEIGHTINGS,
    "objective.time_sampler.name": TIME_SAMPLERS,
    "prediction": PREDICTIONS,
    "sampler.grid": ("uniform", "trailing", "karras", "logsnr"),
    "optimizer.name": ("adam", "adamw"),
    "optimizer.schedule": ("constant", "cosine", "linear"),
}


@pytest.mark.parametrize("field", UNKNOWN)
def test_an_unknown_name_is_answered_with_the_known_ones(field):
    config = get_config()
    config.update_from_flattened_dict({field: "nonsense"})
    with pytest.raises(ValueError) as caught:
        components.check(config)
    message = str(caught.value)
    assert message.startswith(f"config.{field} = 'nonsense' is not known; choose from ") and "\n" not in message
    assert set(message.split("choose from ")[1].split(", ")) == set(UNKNOWN[field])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sampler__eta": 0.5}, "config.sampler.eta = 0.5 has no meaning for config.sampler.name = 'heun', whose "
                                "options are .*churn"),
        ({"sampler__name": "ancestral", "sampler__churn": 1.0}, "whose options are grid, steps"),
        ({"process__name": "rectified_flow", "process__rho": 7.0}, "config.process.rho = 7.0 has no meaning for"),
        ({"network__depth": 3}, "config.network.depth = 3 has no meaning for config.network.name = 'unet'"),
        ({"objective__weighting__gamma": 3.0}, "config.objective.weighting.gamma = 3.0 has no meaning"),
        ({"objective__time_sampler__name": "uniform", "objective__time_sampler__std": 1.0}, "whose options are none"),
    ],
)  # fmt: skip
def test_an_option_of_another_component_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        components.check(config_with(**fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sampler__steps": 0}, r"config\.sampler\.steps = 0"),
        ({"objective__time_sampler__std": -1.0}, r"config\.objective\.time_sampler\.std = -1.0 must be positive"),
        ({"ema__half_lives": (5, 5)}, r"config.ema: half_lives = \(5, 5\) must be positive and distinct"),
        ({"ema__ramp": 0.0}, "config.ema: ramp = 0.0 must be positive"),
        ({"optimizer__gradient_clip": -1.0}, "config.optimizer.gradient_clip = -1.0"),
        ({"process__sigma_min": -1.0}, "config.process: .*sigma_min.*-1.0"),
    ],
)
def test_a_value_out_of_range_names_its_section(fields, message):
    with pytest.raises(ValueError, match=message):
        components.check(config_with(**fields))


@pytest.mark.parametrize(
    ("fields", "shape", "message"),
    [
        ({}, (9, 9, 1), "9 is not divisible by 2"),
        ({"network__name": "dit", "network__patch_size": 4}, (6, 6, 3), "6"),
        ({}, (2,), r"\(2,\)"),
        ({"network__attention_resolutions": (5,)}, (8, 8, 1), "attention_resolutions.*5"),
        ({"network__dropout": 1.0}, (8, 8, 1), "dropout.*1.0"),
        ({"network__dtype": "float16"}, (8, 8, 1), "float16"),
    ],
)
def test_a_network_that_cannot_take_the_image_says_so(fields, shape, message):
    with pytest.raises(ValueError, match=message) as caught:
        components.make_network(config_with(**fields), shape, 10, jax.random.key(0))
    assert "\n" not in str(caught.value) and "config." in str(caught.value)


@pytest.mark.parametrize("name", ["ancestral", "ddim", "heun", "dsm"])
def test_what_needs_a_kernel_refuses_a_process_without_one(name):
    """A process that can only be simulated, as configured."""

    def denoise(x, t, label):
        return x

    keys, config = jax.random.split(jax.random.key(0), 2), get_config()
    config.process.name = "double_well"
    process = components.make_process(config)
    with pytest.raises(ValueError, match="needs a process with a closed-form Gaussian kernel, and DoubleWell has none"):
        if name == "dsm":
            components.make_objective(config)(denoise, process, jax.numpy.zeros((2, 3)), None, jax.random.key(0))
        else:
            config.sampler.name = name
            components.make_sampler(config).sample(denoise, process, keys, None, shape=(3,))


def test_components_are_plain_values():
    config = get_config()
    for component in (components.make_sampler(config), components.make_process(config), components.make_ema(config)):
        assert dataclasses.is_dataclass(component) and hash(component) is not None


# --- clocks of the roles of a distillation ---------------------------------------------------------------------------

STEPS = 40


def rate_of(role, *, repeats=1, start=0, **fields):
    """Training step, and which of its repeats -> learning rate of a role, whose optimiser counts its own steps."""
    settings = {"training__steps": STEPS, "optimizer__learning_rate": 0.1, "optimizer__warmup_steps": 5} | fields
    rate = components.learning_rate(config_with(**settings), Update(role, print, repeats=repeats, start=start))
    return lambda step, repeat=0: float(rate((step - start) * repeats + repeat))


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
@pytest.mark.parametrize("repeats", [2, 5])
def test_a_role_that_runs_several_times_a_step_has_the_rate_of_one_that_runs_once(schedule, repeats):
    """At the last repeat of each step of the ramp, and at the first of each step after it; in between it moves on."""
    once = rate_of("generator", optimizer__schedule=schedule)
    several = rate_of("auxiliary", repeats=repeats, optimizer__schedule=schedule)
    for step in range(5):
        assert several(step, repeats - 1) == pytest.approx(once(step), rel=1e-5)
    for step in range(5, STEPS + 1):
        assert several(step) == pytest.approx(once(step), rel=1e-4, abs=1e-8)
    if schedule != "constant":  # the negative control: a clock of its own would be ahead
        assert once(10 * repeats - 1) < 0.9 * several(10)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_role_that_starts_late_has_its_own_ramp_and_ends_with_the_others(schedule):
    late, other = rate_of("generator", start=10, optimizer__schedule=schedule), rate_of("auxiliary", repeats=3)
    assert [late(step) for step in range(10, 15)] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1], rel=1e-5)
    assert late(STEPS - 1) > 0 and late(STEPS) == pytest.approx(0, abs=1e-8)
    assert other(STEPS) == pytest.approx(0, abs=1e-8)


def test_the_auxiliary_network_may_have_a_learning_rate_of_its_own():
    fields = {"distillation__auxiliary_learning_rate": 0.4, "optimizer__schedule": "constant"}
    assert rate_of("auxiliary", **fields)(20) == pytest.approx(0.4)
    assert rate_of("generator", **fields)(20) == rate_of("auxiliary", optimizer__schedule="constant")(20)
    assert rate_of("generator", **fields)(20) == pytest.approx(0.1)


def test_the_optimiser_of_a_role_uses_its_rate_and_the_epsilon_of_the_config():
    """The first change of Adam without a first moment: -rate g / (|g| + epsilon)."""
    config = config_with(distillation__auxiliary_learning_rate=0.4, optimizer__warmup_steps=0, optimizer__beta1=0.0,
                         optimizer__epsilon=0.5, optimizer__gradient_clip=0.0)  # fmt: skip
    for role, rate in (("auxiliary", 0.4), ("generator", 1e-3)):
        made = components.optimizer(config, Update(role, print))
        changes, _ = made.update(jax.numpy.asarray([2.0]), made.init(jax.numpy.zeros(1)))
        assert float(changes[0]) == pytest.approx(-rate * 2.0 / 2.5, rel=1e-5)


@pytest.mark.parametrize("start", [STEPS, STEPS + 3])
def test_a_role_that_would_start_after_the_end_is_refused(start):
    message = f"config.distillation.auxiliary_warmup = {start} must be less than config.training.steps = {STEPS}"
    with pytest.raises(ValueError, match=message):
        rate_of("generator", start=start)
