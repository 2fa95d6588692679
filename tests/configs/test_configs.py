"""Every experiment there is can be built from, and every field there is does something."""

import ast
import inspect
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import base
from configs.base import Preset, choose, get_config, validate
from configs.listing import all_presets, list_configs
from diffusion import PROCESSES, SCHEDULES
from diffusion.networks import NETWORKS
from distillation import METHODS
from samplers import SAMPLERS
from samplers.adaptive import Adaptive
from scoring import OBJECTIVES
from scoring.time_samplers import TIME_SAMPLERS
from scoring.weightings import WEIGHTINGS
from training.exact_target import EXACT, ExactTarget

ROOT = Path(base.__file__).parents[1]
PRESETS = all_presets()

# Sections whose fields become arguments of the class that the section names.
COMPONENTS = {
    "process": SCHEDULES | PROCESSES,
    "network": NETWORKS | {EXACT: ExactTarget},
    "sampler": SAMPLERS,
    "sampler.adaptive": {"adaptive": Adaptive},
    "objective": OBJECTIVES,
    "objective.weighting": WEIGHTINGS,
    "objective.time_sampler": TIME_SAMPLERS,
    "distillation": METHODS,
}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid_and_described(name):
    preset = PRESETS[name]
    config = preset.make()
    validate(config)
    assert preset.description.strip() and preset.expected_time.strip()
    assert set(config.to_dict()) == set(get_config().to_dict())  # no field that base.py does not explain


@pytest.mark.parametrize("name", PRESETS)
def test_the_name_of_a_preset_finds_it_and_names_the_experiment(name):
    path, _, experiment = name.partition(":")
    module = __import__(path.removesuffix(".py").replace("/", "."), fromlist=["get_config"])
    assert (ROOT / path).is_file()
    expected = PRESETS[name].make()
    expected.experiment = f"{Path(path).stem}_{experiment}"
    assert module.get_config(experiment).to_dict() == expected.to_dict()
    with pytest.raises(ValueError, match=r"'nothing' is not an experiment of .*; choose from .*" + experiment):
        module.get_config("nothing")


def test_experiments_have_names_of_their_own():
    names = [f"{Path(name.partition(':')[0]).stem}_{name.partition(':')[2]}" for name in PRESETS]
    assert len(set(names)) == len(names) >= 1


def test_presets_do_not_share_what_can_be_changed():
    for preset in PRESETS.values():
        changed = preset.make()
        changed.training.steps += 1
        changed.data.source = "changed"
        assert preset.make().training.steps == changed.training.steps - 1
        assert preset.make().data.source != "changed"


def test_the_list_has_one_line_each():
    lines = list_configs().splitlines()
    assert [line.split()[0] for line in lines] == list(PRESETS)
    assert len({line.index(preset.description) for line, preset in zip(lines, PRESETS.values())}) == 1  # one column


def test_a_config_cannot_get_new_fields_or_types():
    presets = {"one": Preset(get_config, "words", "1 s")}
    config = choose(presets, "one", "configs/some.py")
    assert config.experiment == "some_one"
    config.lock()
    with pytest.raises(AttributeError):
        config.training.stepz = 3
    with pytest.raises(TypeError):
        config.training.steps = "many"


# --- every field is used ---------------------------------------------------------------------------------------------


def leaves(section, prefix=""):
    """Dotted names of all fields."""
    for name, value in section.items():
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


class Reads(ast.NodeVisitor):
    """What a module reads of a config: dotted ends such as "training.steps", also through `section = config.training`.

    A name bound to `<anything>.<section>` stands for that section within its function.
    """

    def __init__(self, sections):
        self.sections, self.aliases, self.found = sections, {}, set()

    def visit_FunctionDef(self, node):
        outer, self.aliases = self.aliases, dict(self.aliases)
        self.generic_visit(node)
        self.aliases = outer

    def visit_Assign(self, node):
        targets = node.targets[0].elts if isinstance(node.targets[0], ast.Tuple) else node.targets
        values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
        for target, value in zip(targets, values):
            if isinstance(target, ast.Name) and isinstance(value, ast.Attribute) and value.attr in self.sections:
                self.aliases[target.id] = value.attr
        self.generic_visit(node)

    def visit_Attribute(self, node):
        owner = node.value
        if isinstance(owner, ast.Attribute):
            self.found.add(f"{owner.attr}.{node.attr}")
        elif isinstance(owner, ast.Name):
            self.found.add(f"{self.aliases.get(owner.id, owner.id)}.{node.attr}")
        self.generic_visit(node)


def unused_fields(config):
    sections = {name.split(".")[-2] for name in leaves(config) if "." in name}
    reads = Reads(sections)
    for path in [ROOT / "main.py", *sorted((ROOT / "training").glob("*.py"))]:
        reads.aliases = {}
        reads.visit(ast.parse(path.read_text()))
    unused = []
    for field in leaves(config):
        section, _, name = field.rpartition(".")
        classes = COMPONENTS.get(section, {}).values()
        is_option = any(name in inspect.signature(made.__init__).parameters for made in classes)
        ending = f"{section.split('.')[-1] or 'config'}.{name}"
        if not (is_option or ending in reads.found):
            unused.append(field)
    return unused


def test_every_field_is_used():
    # The names of components are looked up by `components.build`, which is given the whole section.
    named = {f"{section}.name" for section in COMPONENTS}
    assert set(unused_fields(get_config())) - named == set()


def test_a_field_that_nobody_reads_is_noticed():
    """The negative control of the test above, in a plain section, in one of a component, and at the top."""
    config = get_config()
    config.training.forgotten, config.sampler.forgotten, config.forgotten = 1, 1, 1
    assert {"training.forgotten", "sampler.forgotten", "forgotten"} <= set(unused_fields(config))


def test_every_option_of_a_component_is_a_field():
    """What a class can be told can be told from the command line; shape and classes come from the data."""
    for section, classes in COMPONENTS.items():
        fields = set(leaves(get_config()))
        for name, made in classes.items():
            options = set(inspect.signature(made.__init__).parameters) - {"self", "shape", "num_classes", "rngs"}
            missing = {option for option in options if f"{section}.{option}" not in fields}
            # Of another section, or sections of their own.
            missing -= {"sigma_data", "weighting", "time_sampler", "solver"}
            assert not missing, (name, missing)
