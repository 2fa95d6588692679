"""The table of a made-up results.jsonl."""

import importlib.util
import json
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "scripts" / "results_table.py"
SETTINGS = {"grid": "karras", "churn": 0.0, "churn_min": 0.0, "churn_max": "Infinity", "churn_noise": 1.0,
            "guidance": 1.0, "guidance_interval": [0.0, "Infinity"]}  # fmt: skip


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("results_table", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(name="heun", steps=18, fd=2.5, **changes):
    settings = {"heun": SETTINGS, "ancestral": {"grid": "uniform", "guidance": 1.0}}[name]
    return {
        "sampler": {"name": name, "steps": steps, **settings},
        "nfe": 35.0,
        "num_samples": 1797,
        "seconds": 1.26,
        "fd_ratio": 1.25,
        "fd_classifier_1438_test_of_train": 2.0,
        "fd_classifier_1438_test": fd,
        "kid_classifier_1438_test": 0.00123,
        "kid_std": 0.5,
        "class_accuracy": 0.987,
        "class_accuracy_per_class": [0.9] * 10,
        "memorisation_ratio": 0.944,
        "pictures": [f"figures/{name}-grid.png"],
    } | changes


def run(script, capsys, workdir, records):
    (workdir / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in records))
    code = script.main(["results_table.py", str(workdir)])
    return code, capsys.readouterr()


def test_one_row_per_sampler_with_the_newest_result(script, capsys, tmp_path):
    records = [record(fd=9.0), record("ancestral", 100, nfe=100.0, fd=3.25), record(fd=2.5)]
    code, (out, err) = run(script, capsys, tmp_path, records)
    lines = out.splitlines()
    assert code == 0 and err == ""
    columns = "sampler NFE FD FD of train FD ratio KID class accuracy memorisation ratio seconds"
    assert lines[0].split() == columns.split()
    rows = [line.split() for line in lines[1:3]]
    assert rows[0][:2] == ["heun", "18"] and rows[1][:2] == ["ancestral", "100"]
    assert rows[0][-8:] == ["35", "2.50", "2.00", "1.25", "0.0012", "98.7%", "0.94", "1.3"]
    assert rows[1][-8:-5] == ["100", "3.25", "2.00"]
    assert len({len(line) for line in lines[:3]}) == 1  # aligned
    assert "fd_classifier_1438_test and kid_classifier_1438_test" in out and "sampling 1797 images" in out
    for name in ("heun", "ancestral"):
        assert str(tmp_path / "figures" / f"{name}-grid.png") in out


def test_settings_tell_rows_apart(script, capsys, tmp_path):
    guided = record()
    guided["sampler"] = guided["sampler"] | {"guidance": 2.0}
    code, (out, _) = run(script, capsys, tmp_path, [record(), guided])
    rows = out.splitlines()[1:3]
    assert code == 0 and "guidance=2.0" in rows[1] and "guidance" not in rows[0]


def test_what_a_result_does_not_have_is_a_dash(script, capsys, tmp_path):
    """Unlabelled data, points, values that are not finite, and a line that a kill has torn."""
    bare = {name: value for name, value in record().items() if "class" not in name}
    bare |= {"fd_points_1000_test": "NaN", "kid_points_1000_test": 0.5}
    (tmp_path / "results.jsonl").write_text(json.dumps(bare) + '\n{"sampler": {"na')
    assert script.main(["results_table.py", str(tmp_path)]) == 0
    cells = capsys.readouterr().out.splitlines()[1].split()
    assert cells[-8:] == ["35", "-", "-", "1.25", "0.5000", "-", "0.94", "1.3"]


def test_without_results_there_is_one_line(script, capsys, tmp_path):
    assert script.main(["results_table.py", str(tmp_path / "missing")]) == 2
    assert capsys.readouterr().err == (f"error: no results in {tmp_path / 'missing' / 'results.jsonl'}: run main.py "
                                       "--mode=evaluate first\n")  # fmt: skip


def test_without_a_workdir_it_says_how_it_is_used(script, capsys):
    assert script.main(["results_table.py"]) == 2
    assert "python scripts/results_table.py runs/digits_dsm" in capsys.readouterr().err
