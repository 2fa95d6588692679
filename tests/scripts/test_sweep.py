"""Sweeps: the helpers of sweep files, what is refused before anything runs, the table and the best command."""

import importlib.util
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from configs.digits import get_config as digits_config
from configs.overrides import flags, identity, resolve
from configs.sweeps.base import chain, product, zipped

ROOT = Path(__file__).parents[2]
DIGITS = "configs/digits.py:dsm"
FAKE = """
import json, pathlib, sys
arguments = dict(a.lstrip("-").split("=", 1) for a in sys.argv[1:])
workdir, rate = pathlib.Path(arguments["workdir"]), float(arguments["config.optimizer.learning_rate"])
with open(workdir / "runs", "a") as file: file.write("x")
if rate == 0.5 and not (workdir.parent / "mended").exists(): sys.exit("error: rate 0.5 is bad")
fd = "NaN" if rate == 0.25 else (rate - 0.01) ** 2
line = {"metrics": {"class_total_variation": 1.0, "fd100_test_classifier": fd, "class_accuracy": rate}}
(workdir / "results.jsonl").write_text(json.dumps(line) + "\\n")
"""


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("sweep", ROOT / "scripts" / "sweep.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def sweep(script, tmp_path, monkeypatch, capsys):
    """sweep(trials, *arguments) -> (exit code, stdout, stderr), with a small program in place of main.py."""
    fake, real = tmp_path / "fake.py", script.main_command

    def command(config, overrides, workdir, python=sys.executable):
        arguments = real(config, overrides, workdir, python=python)
        return arguments if python == "python" else (python, str(fake), *arguments[3:])

    fake.write_text(FAKE)
    monkeypatch.setattr(script, "main_command", command)

    def call(trials, *arguments, config=DIGITS):
        (tmp_path / "file.py").write_text(f"def sweep():\n    return {trials!r}\n")
        code = script.main(["sweep.py", f"--config={config}", f"--sweep={tmp_path / 'file.py'}",
                            f"--workdir={tmp_path / 'out'}", *arguments])  # fmt: skip
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def rates(*values):
    return [{"optimizer.learning_rate": value} for value in values]


def test_helpers():
    assert product({"a": [1, 2], "b": ["x", "y"]}) == [
        {"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"}]
    assert zipped({"a": [1, 2], "b": [3, 4]}) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    assert product(zipped({"a": [1, 2], "b": [3, 4]}), {"c": [5, 6]}) == [
        {"a": 1, "b": 3, "c": 5}, {"a": 1, "b": 3, "c": 6}, {"a": 2, "b": 4, "c": 5}, {"a": 2, "b": 4, "c": 6}]
    assert chain(product({"a": [1]}), product({"b": [2]})) == [{"a": 1}, {"b": 2}]
    with pytest.raises(ValueError, match=r"equal lengths, not \{'a': 1, 'b': 2\}"):
        zipped({"a": [1], "b": [1, 2]})
    with pytest.raises(ValueError, match="several factors of a product change a"):
        product({"a": [1]}, [{"a": 2}])


def test_flags_give_main_the_config_that_was_checked():
    """Through ml_collections' own parser, with every kind of value."""
    overrides = {"optimizer.learning_rate": 5e-4, "seed": 3, "data.flip": True, "network.name": "unet",
                 "network.depth": None, "network.channel_multipliers": [1, 2], "evaluation.features": ("efflite0",),
                 "data.path": "a b", "sampler.guidance_interval": (0.5, 7.0)}  # fmt: skip
    code = ("import sys, json; import main; from absl import flags; from configs.overrides import identity\n"
            "main._parse_flags(sys.argv); print(identity(main._CONFIG.value))")
    command = [sys.executable, "-c", code, *flags(DIGITS, overrides)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.stdout.strip() == identity(resolve(DIGITS, overrides)), ended.stderr
    changed = resolve(DIGITS, overrides)
    assert changed.network.depth is None and changed.network.channel_multipliers == (1, 2) and changed.seed == 3


def test_identity_sees_what_matters_and_outlives_new_fields():
    config, same = digits_config("dsm"), digits_config("dsm")
    with same.unlocked():
        same.new_section = {"option": None}
        same.network.new_option, same.evaluation.new_times = None, ()
    assert identity(config) == identity(same) == identity(resolve(DIGITS, {"seed": 0}))
    for change in ({"seed": 1}, {"network.dropout": 0.0}, {"data.flip": True}, {"sampler.churn": 0.0}):
        assert identity(resolve(DIGITS, change)) != identity(config), change


@pytest.mark.parametrize(
    ("trials", "parts"),
    [
        (rates(1e-3, -1.0), ["trial 2 of 2 (optimizer.learning_rate=-1.0)", "config.optimizer.learning_rate = -1.0"]),
        ([{"optimizer.rate": 1.0}], ["trial 1 of 1", "config.optimizer has no field 'rate'", "learning_rate"]),
        ([{"seed.x": 1}], ["config.seed has no field 'x'; choose from none"]),
        ([{"seed": "many"}], ["trial 1 of 1 (seed=many)", "config.seed = 'many'"]),
        ([{"seed": None}], ["config.seed = None: this field cannot be unset"]),
        ([{"sampler.name": "magic"}], ["config.sampler.name = 'magic' is not known", "heun"]),
        (rates(1e-3, 1e-2, 1e-3), ["trials 1 and 3 of 3 are the same: optimizer.learning_rate=0.001"]),
        ([{"seed": 0}, {}], ["trials 1 and 2 of 2 are the same"]),
        ([], ["must return a list of dicts, at least one"]),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(sweep, tmp_path, trials, parts):
    code, _, error = sweep(trials)
    assert code == 2 and error.startswith("error: ") and error.count("\n") == 1, error
    for part in parts:
        assert part in error
    assert not (tmp_path / "out").exists()


def test_files_that_are_not_there(script, capsys, tmp_path):
    assert script.main(["sweep.py", f"--config={DIGITS}", "--sweep=no.py", f"--workdir={tmp_path / 'x'}"]) == 2
    assert "there is no file no.py; choose from configs/sweeps/lcss_sigma.py" in capsys.readouterr().err
    arguments = ["--sweep=configs/sweeps/lcss_sigma.py", f"--workdir={tmp_path / 'x'}"]
    assert script.main(["sweep.py", "--config=configs/no.py:dsm", *arguments]) == 2
    assert "there is no file configs/no.py; choose from" in capsys.readouterr().err
    assert script.main(["sweep.py", "--config=configs/digits.py:no", *arguments]) == 2
    assert "'no' is not an experiment of configs/digits.py" in capsys.readouterr().err


def test_the_table_and_the_best_command(sweep, script, tmp_path):
    """One trial fails, one gives no number; the best is the one whose learning rate is 0.01."""
    code, out, error = sweep(rates(0.1, 0.25, 0.01, 0.5, 0.02), "--metric=fd*_test_classifier")
    table, _, best = out.partition("\n\n")
    rows = [line.split() for line in table.splitlines()]
    assert rows[0] == ["optimizer.learning_rate", "fd100_test_classifier", "state"]
    assert [row[0] for row in rows[1:]] == ["0.01", "0.02", "0.1", "0.25", "0.5"]
    assert [row[1:] for row in rows[1:]] == [
        ["0", "finished"], ["0.0001", "finished"], ["0.0081", "finished"], ["nan", "finished"], ["-", "failed"]]
    assert code == 1 and "error: rate 0.5 is bad" in error
    assert shlex.split(best.splitlines()[1]) == [
        "python", "main.py", "--mode=train_and_evaluate", f"--config={DIGITS}", "--config.optimizer.learning_rate=0.01",
        "--workdir=runs/best"]  # fmt: skip
    summary = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert summary["best"] == 2 and summary["metric"] == "fd100_test_classifier"
    assert [row["overrides"]["optimizer.learning_rate"] for row in summary["trials"]] == [0.1, 0.25, 0.01, 0.5, 0.02]


def test_resume_repeats_only_what_has_not_finished(sweep, tmp_path):
    assert sweep(rates(0.1, 0.5))[0] == 1
    code, _, error = sweep(rates(0.1, 0.5))
    assert code == 2 and "--resume goes on with it" in error
    (tmp_path / "out" / "mended").touch()
    code, out, _ = sweep(rates(0.1, 0.5, 0.9), "--resume", "--metric=class_accuracy")
    counts = {path.parent.name.rsplit("-", 1)[0]: len(path.read_text()) for path in tmp_path.glob("out/*/runs")}
    assert code == 0 and counts == {"learning_rate=0.1": 1, "learning_rate=0.5": 2, "learning_rate=0.9": 1}
    # Of an accuracy more is better.
    assert [line.split()[0] for line in out.splitlines()[1:4]] == ["0.9", "0.5", "0.1"]


def test_a_metric_that_is_not_known(sweep):
    code, _, error = sweep(rates(0.1), "--metric=fid")
    assert code == 2
    assert "--metric = 'fid' is not known; choose from class_total_variation, fd100_test_classifier, class" in error
    assert "means several: class_total_variation, class_accuracy" in sweep(rates(0.1), "--resume", "--metric=class*")[2]


@pytest.mark.slow
def test_a_real_sweep(tmp_path):
    """Two tiny runs, two at a time; the same again is instant and gives the same table."""
    tiny = {"network.width": 16, "network.depth": 1, "training.steps": 5, "optimizer.warmup_steps": 0,
            "sampler.steps": 2, "evaluation.num_samples": 32, "evaluation.batch_size": 32}  # fmt: skip
    (tmp_path / "file.py").write_text(
        f"from configs.sweeps.base import product\ndef sweep():\n    return product([{tiny!r}], {{'seed': [0, 1]}})\n")
    command = [sys.executable, "scripts/sweep.py", f"--config={DIGITS}", f"--sweep={tmp_path / 'file.py'}",
               f"--workdir={tmp_path / 'out'}", "--processes=2", "--metric=fd32_test_classifier"]  # fmt: skip
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert first.returncode == 0, first.stderr
    again = subprocess.run([*command, "--resume"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert again.returncode == 0 and "2 of 2 have finished before" in again.stderr
    assert again.stdout.replace(" before", "").split() == first.stdout.split()
