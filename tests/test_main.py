"""The command line: what a user can get wrong is answered with one line and exit code 2, before any work is lost."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import main
from configs.digits import get_config as digits_config
from configs.listing import all_presets

ROOT = Path(main.__file__).parent
DIGITS = "--config=configs/digits.py:dsm"


def run(*arguments, **options):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run([sys.executable, "main.py", *arguments], cwd=ROOT, env=environment, capture_output=True,
                          text=True, timeout=200, **options)  # fmt: skip


def assert_one_line(ended, *parts):
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1, ended.stderr
    for part in parts:
        assert part in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--config=configs/nothing.py:dsm"], ["there is no file configs/nothing.py", "configs/digits.py:dsm"]),
        (["--config", "configs/nothing.py:dsm"], ["there is no file configs/nothing.py", "configs/digits.py:dsm"]),
        (["--config=configs/digits.py:nothing"], ["'nothing' is not an experiment of configs/digits.py", "dsm"]),
        (["--config=configs/digits.py"], ["configs/digits.py needs the name of an experiment", "dsm"]),
        ([DIGITS, "--config.training.stepz=3"], ["config.training has no field 'stepz'", "steps", "log_every"]),
        ([DIGITS, "--config.trainings.steps=3"], ["config has no field 'trainings'", "training", "sampler"]),
        ([DIGITS, "--config.training.steps=many"], ["config.training.steps", "many"]),
        ([DIGITS, "--config.seed=None"], ["config.seed = None: this field cannot be unset"]),
        ([DIGITS, "--nonsense=3"], ["nonsense"]),
    ],
)
def test_a_command_line_that_cannot_be_read(arguments, parts):
    assert_one_line(run(*arguments, "--workdir=/nowhere"), *parts)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["--config=FILE:NAME is missing", "--list_configs"]),
        ([DIGITS], ["--workdir=FOLDER is missing"]),
        ([DIGITS, "--workdir=x", "--mode=fly"],
         ["--mode = 'fly' is not known; choose from train, sample, evaluate, train_and_evaluate, reference"]),
        ([DIGITS, "--workdir=x", "steps=3"], ["not understood: steps=3"]),
    ],
)
def test_a_command_line_that_lacks_something(arguments, parts):
    assert_one_line(run(*arguments), *parts)


def test_a_workdir_that_cannot_be_made(tmp_path):
    """A regular file is in the way. (Permissions would not stop a superuser.)"""
    (tmp_path / "file").write_text("")
    ended = run(DIGITS, f"--workdir={tmp_path / 'file' / 'run'}")
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("error: ") and str(tmp_path / "file" / "run") in ended.stderr


# --- in this process -------------------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """command(changes, mode=..., workdir=...) -> (exit code, stderr), as after parsing the flags."""
    cache = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs

    def call(changes=None, *, mode="train", workdir=tmp_path / "run", allow=False):
        config = digits_config("dsm")
        tiny = {"network.width": 16, "network.depth": 1, "training.steps": 2, "optimizer.warmup_steps": 0}
        config.update_from_flattened_dict(tiny | (changes or {}))
        flags = {"_CONFIG": config, "_WORKDIR": str(workdir), "_MODE": mode, "_ALLOW": allow, "_LIST": False,
                 "_MULTIHOST": False}  # fmt: skip
        for name, value in flags.items():
            monkeypatch.setattr(main, name, SimpleNamespace(value=value))
        code = main.main(["main.py"])
        return code, capsys.readouterr().err

    yield call
    jax.config.update("jax_compilation_cache_dir", cache[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", cache[1])


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"training.steps": 0}, ["config.training.steps = 0 must be at least 1"]),
        ({"training.accumulation": 0}, ["config.training.accumulation = 0"]),
        ({"training.accumulation": 3}, ["config.training.accumulation = 3", "must divide data.batch_size"]),
        ({"training.keep": 0}, ["config.training.keep = 0 must be at least 1"]),
        ({"data.shift": -1}, ["config.data.shift = -1 must be at least 0"]),
        ({"sampler.name": "magic"}, ["config.sampler.name = 'magic' is not known", "heun", "ddim"]),
        ({"network.name": "magic"}, ["config.network.name = 'magic' is not known", "mlp", "unet"]),
        ({"process.name": "magic"}, ["config.process.name = 'magic' is not known", "edm"]),
        ({"objective.name": "magic"}, ["config.objective.name = 'magic' is not known", "dsm"]),
        ({"data.source": "magic"}, ["config.data.source = 'magic'", "digits", "toy2d"]),
        ({"sampler.eta": 0.5}, ["config.sampler.eta = 0.5 has no meaning for config.sampler.name = 'heun'", "churn"]),
        ({"network.name": "unet", "network.depth": None, "data.pad_to": 9}, ["9 is not divisible by 2", "config.data"]),
        ({"data.batch_size": 5000}, ["config.data.batch_size = 5000", "1438"]),
        ({"data.source": "toy2d", "sampler.guidance": 2.0}, ["config.sampler.guidance = 2.0 needs labelled data"]),
        ({"objective.label_dropout": 0.0, "sampler.guidance": 2.0}, ["config.sampler.guidance = 2.0 needs a network"]),
        ({"sampler.guidance": -1.0}, ["config.sampler.guidance = -1.0 must be at least 0"]),
        ({"sampler.guidance_interval": (2.0, 1.0)}, ["config.sampler.guidance_interval = (2.0, 1.0) must be"]),
        ({"objective.label_dropout": 1.0}, ["config.objective.label_dropout = 1.0 must lie in [0, 1)"]),
        ({"evaluation.ema": 7}, ["config.evaluation.ema = 7 must be -1 (live parameters) or an index"]),
        ({"sigma_data": float("nan")}, ["config.sigma_data = nan must be positive"]),
        ({"optimizer.learning_rate": float("nan")}, ["config.optimizer.learning_rate = nan must be positive"]),
        ({"optimizer.warmup_steps": 2}, ["optimizer.warmup_steps = 2 must lie in [0, config.training.steps = 2)"]),
    ],
)  # fmt: skip
def test_a_setting_that_makes_no_sense(command, tmp_path, changes, parts):
    code, error = command(changes)
    assert code == 2 and error.startswith("error: ") and error.count("\n") == 1, error
    for part in parts:
        assert part in error
    assert not (tmp_path / "run").exists()  # nothing was begun


def test_data_that_cannot_be_used(command, tmp_path):
    (tmp_path / "none").mkdir()
    code, error = command({"data.source": f"folder:{tmp_path / 'none'}"})
    assert code == 2 and error == f"error: {tmp_path / 'none'} holds no images (.png, .jpg, .jpeg, .webp)\n"
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 and nothing more")
    code, error = command({"data.source": f"npz:{tmp_path / 'bad.npz'}"})
    assert code == 2 and error.startswith(f"error: cannot read {tmp_path / 'bad.npz'} as an npz file")
    labels = np.arange(100) - 1
    np.savez(tmp_path / "labels.npz", images=np.zeros((100, 8, 8, 1), np.uint8), labels=labels)
    code, error = command({"data.source": f"npz:{tmp_path / 'labels.npz'}"})
    assert code == 2 and "labels.npz: labels lie in -1..98, outside 0..98" in error


@pytest.mark.parametrize(("code", "called"), [(0, ["train", "evaluate"]), (143, ["train"])])
def test_train_and_evaluate(command, monkeypatch, code, called):
    """Both in one process, and no evaluation of a training that was stopped."""
    import training.evaluation
    import training.loop

    calls = []
    monkeypatch.setattr(training.loop, "train", lambda *a, **k: calls.append("train") or code)
    monkeypatch.setattr(training.evaluation, "evaluate", lambda *a: calls.append("evaluate") or 0)
    assert command(mode="train_and_evaluate")[0] == code and calls == called
    calls.clear()
    assert command(mode="train")[0] == code and calls == ["train"]


EXACT = {"network.name": "exact", "network.width": None, "network.depth": None, "network.dropout": None}


@pytest.mark.parametrize("mode", ["train", "train_and_evaluate"])
def test_nothing_to_train(command, tmp_path, mode):
    code, error = command(EXACT, mode=mode)
    assert code == 2 and error == ("error: config.network.name = 'exact': there is nothing to train; use --mode=sample "
                                   "or --mode=evaluate\n")  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_a_score_that_is_not_finite(command, monkeypatch):
    """A denoiser that answers NaN ends in one line with the remedy, not in black images."""
    from diffusion.exact import ExactEmpirical

    monkeypatch.setattr(ExactEmpirical, "__call__", lambda self, x_t, t, label=None: x_t * jax.numpy.nan)
    changes = EXACT | {"sampler.name": "ddim", "sampler.steps": 2, "evaluation.batch_size": 8}
    code, error = command(changes, mode="sample")
    assert (code, error) == (2, "error: image 0 is not finite (8 of this batch of 8): the sampler diverged; take more "
                                "steps, less guidance, or another checkpoint\n")  # fmt: skip


@pytest.mark.parametrize("mode", ["sample", "evaluate"])
def test_nothing_to_evaluate(command, tmp_path, mode):
    (tmp_path / "run").mkdir()
    code, error = command(mode=mode)
    assert (code, error) == (2, f"error: no run in workdir {tmp_path / 'run'}: train one first, with --mode=train\n")


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    """Errors of libraries, and of kinds that are not meant for users, are not made to look like bad input."""

    def raised(function):
        monkeypatch.setattr(main, "_run", lambda argv: function())
        return main.main(["main.py"])

    def ours():
        raise ValueError("of this project")

    assert raised(ours) == 2
    faults = {KeyError: lambda: {}["missing"], ZeroDivisionError: lambda: 1 // 0, ValueError: lambda: json.loads("{")}
    for fault, function in faults.items():
        with pytest.raises(fault):
            raised(function)


def test_the_list_of_configs_needs_neither_jax_nor_tensorflow():
    code = (
        "import sys; sys.argv = ['main.py', '--list_configs']; import main; from absl import app\n"
        "try: app.run(main.main, flags_parser=main._parse_flags)\n"
        "except SystemExit as end: print('code', end.code, 'loaded', {'jax', 'tensorflow', 'flax'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    *lines, last = ended.stdout.splitlines()
    assert last == "code 0 loaded set()", ended.stdout + ended.stderr
    assert [line.split()[0] for line in lines] == list(all_presets())
    for line, preset in zip(lines, all_presets().values()):
        assert preset.description in line and preset.expected_time in line


START = """
import sys
sys.path.insert(0, ".")
from training import loop
from training.experiment import Experiment

def spying(self):
    def spy(*arguments):
        print("traced", "tensorflow" in sys.modules)  # at the first step; compiling it would take long
        raise SystemExit

    return spy

Experiment.step = spying
from configs.digits import get_config
from configs.base import validate
config = get_config("dsm")
config.update_from_flattened_dict({"network.width": 16, "network.depth": 1, "training.steps": 1,
    "optimizer.warmup_steps": 0, "sampler.steps": 2})
validate(config)
loop.train(config, sys.argv[1])
"""


def test_tensorflow_is_not_imported_before_the_first_step_is_on_its_way(tmp_path):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    ended = subprocess.run([sys.executable, "-c", START, str(tmp_path / "run")], cwd=ROOT, env=environment,
                           capture_output=True, text=True, timeout=200)  # fmt: skip
    assert ended.stdout.splitlines()[-1] == "traced False", ended.stdout + ended.stderr
