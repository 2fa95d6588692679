"""Imports run one way, and each third-party package with a moving interface has one home file.

All files are parsed, not imported, so imports inside functions count too.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What each folder may import besides itself. `main` may import anything.
ALLOWED = {
    "diffusion": set(),
    "scoring": {"diffusion"},
    "samplers": {"diffusion"},
    "distillation": {"diffusion", "scoring", "samplers"},
    "data": set(),
    "evaluation": {"samplers", "data", "diffusion"},
    "training": {"diffusion", "scoring", "samplers", "distillation", "data", "evaluation"},
}
OURS = {*ALLOWED, "configs", "main", "scripts", "tests"}
NOBODY_IMPORTS = {"main", "tests", "scripts"}

# Package -> the only files that may import it (a prefix of the path).
HOMES = {
    "orbax": "training/checkpointing.py",
    "grain": "data/pipeline.py",
    "clu.metric_writers": "training/metric_writers.py",
    "tensorflow_datasets": "data/sources",
}


def imported_names(source: str) -> set[str]:
    """Every module that a file may import, dotted; `from a import b` gives both a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in ("import_module", "__import__"):
                names.add(node.args[0].value)
    return names


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def violations(sources: dict[str, str]) -> list[str]:
    """'file imports name' for every import that is not allowed, of files given as path -> text."""
    found = []
    for path, source in sources.items():
        folder = path.split("/")[0]
        for name in sorted(imported_names(source)):
            top = name.split(".")[0]
            forbidden = top in NOBODY_IMPORTS - {folder} or (
                folder in ALLOWED and top in OURS - ALLOWED[folder] - {folder}
            )
            homeless = any(within(name, package) and not path.startswith(home) for package, home in HOMES.items())
            if forbidden or homeless:
                found.append(f"{path} imports {name}")
    return found


@pytest.fixture(scope="module")
def sources():
    """All our Python files but the tests."""
    files = [ROOT / "main.py", *(path for folder in OURS - {"tests", "main"} for path in (ROOT / folder).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in files if path.exists()}


def test_imports_run_one_way(sources):
    assert violations(sources) == []


def test_all_folders_are_seen(sources):
    """The parser sees imports that we know to be there, so that an empty list of violations means something."""
    assert {path.split("/")[0] for path in sources} >= set(ALLOWED)
    for path, name in [
        ("samplers/heun.py", "diffusion.base"),
        ("scoring/dsm.py", "diffusion.base"),
        ("training/checkpointing.py", "orbax.checkpoint"),
        ("data/pipeline.py", "grain"),
    ]:
        assert name in imported_names(sources[path]), path


@pytest.mark.parametrize(
    "path, source",
    [
        ("diffusion/process.py", "from samplers.base import Samples"),
        ("diffusion/process.py", "def f():\n    import scoring.dsm"),
        ("scoring/new.py", "from samplers import SAMPLERS"),
        ("samplers/new.py", "if True:\n    import scoring"),
        ("data/base.py", "import diffusion"),
        ("evaluation/generate.py", "from training import ema"),
        ("distillation/new.py", "from training.state import TrainState"),
        ("training/loop.py", "import main"),
        ("training/loop.py", "from configs import base"),
        ("scripts/sweep.py", "from tests import conftest"),
        ("training/loop.py", "import orbax.checkpoint as ocp"),
        ("training/loop.py", "from clu import metric_writers"),
        ("training/loop.py", "import clu.metric_writers.utils"),
        ("data/base.py", "import grain.python"),
        ("data/base.py", "import importlib\nimportlib.import_module('tensorflow_datasets')"),
    ],
)
def test_violations_are_caught(path, source):
    """Negative controls."""
    assert violations({path: source})


@pytest.mark.parametrize(
    "path, source",
    [
        ("training/loop.py", "from clu import parameter_overview\nimport evaluation, distillation.sim"),
        ("training/metric_writers.py", "from clu import metric_writers"),
        ("data/sources/tfds.py", "import tensorflow_datasets as tfds\nfrom data.base import Source"),
        ("main.py", "import training.loop, configs.base"),
        ("diffusion/networks/dit.py", "from diffusion.networks.layers import f\nimport dataclasses, maintenance"),
    ],
)
def test_allowed_imports_pass(path, source):
    assert violations({path: source}) == []
