"""The command that writes the report: what it reads, what it refuses, where it writes."""

import importlib.util
import json
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "scripts" / "report.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("report", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(**changes):
    return {"experiment": "digits", "sampler": {"name": "heun", "steps": 18}, "nfe": 35.0, "num_samples": 10,
            "seconds": 1.0, "metrics": {"fd10_test_x": 0.123}} | changes  # fmt: skip


def workdir(path, records=(), metrics=(), config=None):
    path.mkdir(parents=True)
    if records:
        (path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in records))
    if metrics:
        lines = [{"step": step, "segment": 1, "time": 0.0, "score/loss": loss} for step, loss in metrics]
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if config is not None:
        (path / "config.json").write_text(config)
    return path


def test_the_page_is_written_into_the_first_folder(script, capsys, tmp_path):
    """Of three kinds of arguments, with a torn line and records of no use in between."""
    a = workdir(tmp_path / "a", [record()], [(1, 0.5), (2, 0.25)], '{"network": {"width": 64}}')
    with open(a / "results.jsonl", "a") as file:
        file.write('{"fd": 1.0}\n[1]\n{"sampler": {"na')
    b = workdir(tmp_path / "b", metrics=[(1, 0.75)], config='{"network": {"width": 32}}')
    ledger = tmp_path / "results" / "all.jsonl"
    ledger.parent.mkdir()
    ledger.write_text(json.dumps(record(experiment="emoji", metrics={"fd10_test_x": 0.456})) + "\n")
    arguments = ["report.py", str(ledger), str(a), str(b), str(a)]
    assert script.main(arguments) == 0
    out, err = capsys.readouterr()
    page = (a / "report.html").read_bytes()
    assert str(a / "report.html") in out and "3 run(s)" in out
    assert "1 result line(s) without 'sampler' or 'metrics' are left out" in err
    for text in (b"0.1230", b"0.4560", b"emoji", b">32<", b">64<", b"Curves of a, b"):
        assert text in page, text
    assert script.main(arguments) == 0
    assert (a / "report.html").read_bytes() == page
    assert {path.name for path in a.iterdir()} == {"results.jsonl", "metrics.jsonl", "config.json", "report.html"}


def test_output_names_the_file(script, tmp_path):
    a = workdir(tmp_path / "a", [record()])
    output = tmp_path / "new" / "page.html"
    assert script.main(["report.py", str(a), f"--output={output}"]) == 0
    assert output.read_text().startswith("<!doctype html>") and not (a / "report.html").exists()
    assert output.stat().st_mode & 0o777 == 0o644


def test_folders_of_one_name_are_told_apart(script):
    assert script.names_of([Path("/x/a"), Path("/x/b")]) == ["a", "b"]
    assert script.names_of([Path("/x/old/a"), Path("/x/new/a")]) == ["old/a", "new/a"]


def test_what_cannot_be_read_is_a_warning(script, capsys, tmp_path):
    good = workdir(tmp_path / "good", [record()])
    torn = workdir(tmp_path / "torn", [record(experiment="other")], [(1, 0.5)], "{no json")
    wrong = workdir(tmp_path / "wrong", [record(experiment="third")], [(1, [])])
    empty = workdir(tmp_path / "empty")
    assert script.main(["report.py", *map(str, (good, torn, wrong, empty, tmp_path / "missing"))]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and all(line.startswith("warning: ") for line in lines)
    for line, name, words in zip(lines, ("torn", "wrong", "empty", "missing"),
                                 ("is not JSON", "list", "no results", "no results")):  # fmt: skip
        assert str(tmp_path / name) in line and words in line
    page = (good / "report.html").read_text()
    assert "other" in page and "third" in page and "score/" in page  # the curves of the torn one are there


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["{tmp}/missing"], "neither results nor training curves in {tmp}/missing"),
        (["{tmp}/empty", "{tmp}/empty.jsonl"], "neither results nor training curves"),
        (["{tmp}/a", "--outptu=x"], "--outptu"),
        ([], "required"),
        (["{tmp}/a", "--output={tmp}/a/results.jsonl/x"], "cannot be written"),
    ],
)
def test_errors_are_one_line(script, capsys, tmp_path, arguments, words):
    workdir(tmp_path / "a", [record()])
    workdir(tmp_path / "empty")
    (tmp_path / "empty.jsonl").write_text("\n")
    try:
        code = script.main(["report.py", *(argument.format(tmp=tmp_path) for argument in arguments)])
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and err.count("\n") == 1
    assert err.startswith("error: ") and words.format(tmp=tmp_path) in err
