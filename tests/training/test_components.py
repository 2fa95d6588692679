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
