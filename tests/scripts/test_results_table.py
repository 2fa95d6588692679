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


def record(name="heun", steps=18, fd=2.5, nfe=35.0, **changes):
    settings = {"heun": SETTINGS, "ancestral": {"grid": "uniform", "guidance": 1.0}}[name]
    return {
        "experiment": "digits",
        "sampler": {"name": name, "steps": steps, **settings},
        "nfe": nfe,
        "num_samples": 1000,
        "seconds": 1.25,
        "metrics": {
            "fd1k_test_classifier": fd,
            "fd1k_test_classifier_of_train": 2.0,
            "kid1k_test_classifier": -0.00123,
            "class_accuracy": 0.987,
        },
        "pictures": {"samples": f"figures/{name}-samples.png"},
    } | changes


def run(script, capsys, workdir, records):
    (workdir / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in records))
    code = script.main(["results_table.py", str(workdir)])
    return code, capsys.readouterr()


def cells(line):
    """The name, and the numbers, of a line of the table."""
    name, *numbers = line.split("  ")
    return name.strip(), [number.strip() for number in numbers if number.strip()]


def test_one_column_per_sampler_with_the_newest_result(script, capsys, tmp_path):
    records = [record(fd=9.0), record("ancestral", 100, nfe=100.0, fd=3.25), record(fd=2.5)]
    code, (out, err) = run(script, capsys, tmp_path, records)
    lines = out.split("\n\n")[0].splitlines()
    assert code == 0 and err == ""
    assert cells(lines[0]) == ("", ["ancestral 100", "heun 18"])
    assert dict(map(cells, lines[1:])) == {
        "NFE": ["100", "35"],
        "seconds per image": ["0.001250", "0.001250"],
        "images per second": ["800", "800"],
        "fd1k_test_classifier": ["3.250", "2.500"],
        "fd1k_test_classifier_of_train": ["2", "2"],
        "kid1k_test_classifier": ["-0.001230"] * 2,
        "class_accuracy": ["0.9870", "0.9870"],
    }
    assert len({len(line) for line in lines}) == 1  # aligned
    for name in ("heun", "ancestral"):
        assert str(tmp_path / "figures" / f"{name}-samples.png") in out


def test_settings_tell_columns_apart(script, capsys, tmp_path):
    guided = record()
    guided["sampler"] = guided["sampler"] | {"guidance": 2.0}
    code, (out, _) = run(script, capsys, tmp_path, [record(), guided])
    assert code == 0 and cells(out.splitlines()[0])[1] == ["heun 18", "heun 18 guidance=2.0"]


def test_what_a_result_does_not_have_is_a_dash(script, capsys, tmp_path):
    """Other metrics, values that are not finite, no pictures, and a line that a kill has torn."""
    bare = record("ancestral", 10, metrics={"fd1k_test_classifier": "NaN", "kid1k_test_classifier": 0.5})
    del bare["pictures"]
    text = "\n".join(json.dumps(line) for line in (record(), bare)) + '\n{"sampler": {"na'
    (tmp_path / "results.jsonl").write_text(text)
    assert script.main(["results_table.py", str(tmp_path)]) == 0
    lines = dict(map(cells, capsys.readouterr().out.split("\n\n")[0].splitlines()))
    assert lines["fd1k_test_classifier"] == ["NaN", "2.500"]
    assert lines["class_accuracy"] == ["\N{EN DASH}", "0.9870"]


def test_runs_side_by_side(script, capsys, tmp_path):
    for name, nfe in (("teacher", 35.0), ("student", 1.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.jsonl").write_text(json.dumps(record(nfe=nfe)) + "\n")
    assert script.main(["results_table.py", str(tmp_path / "teacher"), str(tmp_path / "student")]) == 0
    out = capsys.readouterr().out
    assert [cells(line) for line in out.splitlines()[:3:2]] == [("", ["teacher", "student"]), ("NFE", ["35", "1"])]
    assert all(str(tmp_path / name / "figures") in out for name in ("teacher", "student"))


def test_without_results_there_is_one_line(script, capsys, tmp_path):
    assert script.main(["results_table.py", str(tmp_path / "missing")]) == 2
    assert capsys.readouterr().err == (f"error: no results in {tmp_path / 'missing' / 'results.jsonl'}: run main.py "
                                       "--mode=evaluate first\n")  # fmt: skip


def test_without_a_workdir_it_says_how_it_is_used(script, capsys):
    assert script.main(["results_table.py"]) == 2
    assert "python scripts/results_table.py runs/digits_dsm" in capsys.readouterr().err
