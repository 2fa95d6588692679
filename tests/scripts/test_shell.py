"""The shell scripts on a machine without Python, without a network, and with everything in place."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import main
from configs.base import validate
from configs.listing import all_presets

ROOT = Path(main.__file__).parent
SCRIPTS = ("quickstart", "test", "environment.sh")
PYTHONS = ("python3.12", "python3.11", "python3.13", "python3", "python")


@pytest.fixture
def checkout(tmp_path):
    """A fresh copy of the scripts and the lists of requirements."""
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "scripts", root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.glob("requirements*.txt"):
        shutil.copy(path, root)
    return root


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


def run(root, *command, **environment):
    kept = {name: os.environ[name] for name in ("HOME", "TMPDIR", "LANG") if name in os.environ}
    environment = kept | {"PATH": "/usr/bin:/bin"} | environment
    return subprocess.run(command, cwd=root.parent, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_syntax_is_right(name):
    ended = subprocess.run(["bash", "-n", str(ROOT / "scripts" / name)], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    if name != "environment.sh":
        assert os.access(ROOT / "scripts" / name, os.X_OK)


@pytest.mark.parametrize("name", ["quickstart", "test"])
@pytest.mark.parametrize("fake", ["exit 1", "exit 127"])
def test_without_a_python_that_is_new_enough(checkout, tmp_path, name, fake):
    """Every name is found and every one is too old, or a shim that does not work."""
    for python in PYTHONS:
        executable(tmp_path / "bin" / python, fake)
    ended = run(checkout, str(checkout / "scripts" / name), PATH=f"{tmp_path / 'bin'}:/usr/bin:/bin")
    assert ended.returncode == 1 and ended.stderr.startswith("error: no Python 3.11 or newer"), ended.stderr
    assert "PYTHON=/path/to/python" in ended.stderr and ended.stderr.count("\n") == 1
    assert not (checkout / ".venv").exists()


def test_the_first_python_that_works_is_taken_and_a_named_one_goes_first(checkout, tmp_path):
    for python in PYTHONS:
        executable(tmp_path / "bin" / python, "exit 1")
    executable(tmp_path / "bin" / "python3.13", "exit 0")
    find = ["bash", "-c", f"source {shlex.quote(str(checkout / 'scripts' / 'environment.sh'))}; find_python"]
    path = f"{tmp_path / 'bin'}:/usr/bin:/bin"
    assert run(checkout, *find, PATH=path).stdout == "python3.13\n"
    assert run(checkout, *find, PATH=path, PYTHON=sys.executable).stdout == f"{sys.executable}\n"
    assert run(checkout, *find, PATH=path, PYTHON="/no/such/python").stdout == "python3.13\n"


def test_without_a_network(checkout):
    """Port 9 of this machine, where nobody listens, is the package index."""
    offline = {"PYTHON": sys.executable, "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0",
               "PIP_CONFIG_FILE": os.devnull, "PIP_DEFAULT_TIMEOUT": "2"}  # fmt: skip
    ended = run(checkout, str(checkout / "scripts" / "quickstart"), **offline)
    assert ended.returncode == 1, ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("error: the packages of requirements.txt could not be installed") and "--find-links" in last
    assert not list(checkout.glob(".venv/installed-*"))  # the next run tries again


@pytest.fixture
def installed(checkout):
    """A .venv whose programs only write down how they were called."""
    log = checkout / "calls"
    for program in ("python", "ruff"):
        executable(checkout / ".venv" / "bin" / program, f'echo "{program} $*" >>{shlex.quote(str(log))}')

    def calls(name, *arguments):
        log.write_text("")
        ended = run(checkout, str(checkout / "scripts" / name), *arguments)
        assert ended.returncode == 0, ended.stderr
        return log.read_text().splitlines()

    return checkout, calls


def test_packages_are_installed_once_and_again_when_the_list_changes(installed):
    checkout, calls = installed

    def installs():
        return [call for call in calls("quickstart") if "pip install" in call]

    assert len(installs()) == 1 and installs() == []
    with open(checkout / "requirements.txt", "a") as file:
        file.write("another\n")
    assert len(installs()) == 1 and installs() == []


def test_quickstart_trains_evaluates_and_shows_commands_that_are_valid(installed):
    _, calls = installed
    commands = [call.split()[1:] for call in calls("quickstart", "--config.training.steps=1000") if "pip" not in call]
    runs = ["runs/digits_dsm", "runs/digits_sim"]
    assert commands[-2:] == [[f"scripts/{name}.py", *runs] for name in ("results_table", "report")]
    assert [word for command in commands[:-2] for word in command if word.startswith("--mode=")] == [
        "--mode=train", *["--mode=evaluate"] * (len(commands) - 4), "--mode=train_and_evaluate"]  # fmt: skip
    for number, command in enumerate(commands[:-2]):
        assert command[0] == "main.py"
        flags = dict(word.removeprefix("--").split("=", 1) for word in command[1:])
        student = number == len(commands) - 3
        assert flags.pop("mode") in main.MODES and flags.pop("workdir") == runs[student]
        assert flags.get("config.distillation.teacher", runs[0]) == runs[0]
        config = all_presets()[flags.pop("config")].make()
        for name, value in flags.items():
            section, field = name.split(".")[1:]
            config[section][field] = int(value) if value.isdigit() else value
        validate(config)
        assert config.training.steps == 1000


def test_the_tests_are_the_quick_ones_unless_others_are_asked_for(installed):
    _, calls = installed
    assert calls("test")[-2:] == ["ruff check .", "python -m pytest -n 2 --dist loadfile -m not slow"]
    assert calls("test", "-m", "slow")[-1] == "python -m pytest -n 2 --dist loadfile -m slow"
    assert calls("test", "tests/data", "-x")[-1] == "python -m pytest -n 2 --dist loadfile -m not slow tests/data -x"
