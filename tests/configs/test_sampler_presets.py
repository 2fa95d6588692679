"""`--config.sampler=NAME:PRESET`: the whole section at once, before the fields, whatever the order."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import configs
from configs.base import get_config, validate
from configs.overrides import change, flags, identity, resolve
from configs.samplers import PRESETS, known_presets
from samplers import SAMPLERS
from training.components import make_sampler

ROOT = Path(configs.__file__).parents[1]
STATIC = "configs/toy2d.py:static"  # Langevin, 300 steps
PARSE = """
import json, sys, main
main._parse_flags(sys.argv)
print(json.dumps(main._CONFIG.value.sampler.to_dict()), "jax" in sys.modules)
"""


def set_fields(config):
    """The options of the sampler section that are not None, without guidance."""
    kept = ("guidance", "guidance_interval")
    adaptive = {f"adaptive.{name}": value for name, value in config.sampler.adaptive.items()}
    fields = {name: value for name, value in config.sampler.items() if name not in (*kept, "adaptive")} | adaptive
    return {name: value for name, value in fields.items() if value is not None}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_name_is_the_sampler_with_its_own_defaults(name):
    config = resolve(STATIC, {"sampler": name, "sampler.guidance": 2.0, "sampler.guidance_interval": (0.0, 1.0)})
    assert set_fields(config) == {"name": name}
    assert make_sampler(config) == SAMPLERS[name]()
    assert config.sampler.guidance == 2.0 and config.sampler.guidance_interval == (0.0, 1.0)
    again = config.copy_and_resolve_references()
    change(again, "sampler", f"{name}:default")
    assert identity(again) == identity(config)


def test_guidance_is_of_the_denoiser_and_stays():
    config = get_config()
    config.sampler.update({"guidance": 3.0, "guidance_interval": (0.1, 2.0), "churn": 5.0})
    config.sampler.adaptive.preset = "fast"
    assert set(set_fields(config)) == {"name", "churn", "adaptive.preset"}
    change(config, "sampler", "ddim")
    assert config.sampler.guidance == 3.0 and config.sampler.guidance_interval == (0.1, 2.0)
    assert set_fields(config) == {"name": "ddim"}


def test_the_section_comes_before_its_fields():
    fields = {"sampler.steps": 20, "sampler": "heun:edm_imagenet64", "sampler.churn": 1.0}
    orders = [fields, dict(reversed(fields.items()))]
    expected = {"name": "heun", **PRESETS["heun"]["edm_imagenet64"], "steps": 20, "churn": 1.0}
    for overrides in orders:
        assert set_fields(resolve(STATIC, overrides)) == expected
    assert flags(STATIC, fields)[1:3] == ["--config.sampler.steps=20", "--config.sampler=heun:edm_imagenet64"]


@pytest.mark.parametrize("choice", [f"{name}:{preset}" for name, presets in PRESETS.items() for preset in presets])
def test_every_preset_is_valid(choice):
    """On a variance-preserving process, which all samplers take."""
    config = resolve("configs/exact.py:gaussians_mnist5k", {"sampler": choice})
    validate(config)
    name, _, preset = choice.partition(":")
    assert set_fields(config) == {"name": name, **PRESETS[name][preset]}


@pytest.mark.parametrize("choice", ["heun:nothing", "heun:", "ddim:edm_imagenet64", "magic:nothing", "", ":", None, 3])
def test_what_is_no_preset(choice):
    with pytest.raises(ValueError) as caught:
        resolve(STATIC, {"sampler": choice})
    message = str(caught.value)
    assert message.startswith(f"config.sampler = '{choice}' is not known; choose the name of a sampler, or one of ")
    assert "heun:edm_imagenet64" in message and "\n" not in message


def test_an_unknown_name_is_found_when_the_config_is_checked():
    with pytest.raises(ValueError, match=r"config\.sampler\.name = 'magic' is not known; choose from ancestral, "):
        validate(resolve(STATIC, {"sampler": "magic"}))


def test_all_presets_are_listed():
    assert "heun:edm_imagenet64" in known_presets() and "heun:default" not in known_presets()


def parsed(*arguments):
    command = [sys.executable, "-c", PARSE, f"--config={STATIC}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_the_command_line_in_any_order():
    """As `resolve`, and still without waiting for JAX. The last of several choices counts, and None unsets."""
    ended = parsed("--config.sampler.steps=20", "--config.sampler=ddim", "--config.sampler.churn=None",
                   "--config.sampler=heun:edm_imagenet64", "--config.seed=3")  # fmt: skip
    section, jax = ended.stdout.rsplit(" ", 1)
    overrides = {"sampler": "heun:edm_imagenet64", "sampler.steps": 20, "sampler.churn": None}
    assert json.loads(section) == json.loads(json.dumps(resolve(STATIC, overrides).sampler.to_dict())), ended.stderr
    assert jax.strip() == "False"


def test_a_command_line_with_what_is_no_preset():
    ended = parsed("--config.sampler=heun:nothing")
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert ended.stderr.startswith("error: config.sampler = 'heun:nothing' is not known; choose the name of a sampler")
