"""The folder of a run: one process at a time, one config, and files that a kill cannot tear."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from training import workdir as workdirs
from training.workdir import (
    append_json_line,
    check_config,
    compare_config,
    prepare_workdir,
    read_config,
    read_json_lines,
    store_config,
    write_json_atomic,
)

ROOT = Path(__file__).parents[2]
CONFIG = {"name": "digits", "training": {"steps": 2000, "log_every": 50}, "sampler": {"steps": 8}, "rates": [0.9, 0.99]}


def altered(**parts):
    return {**CONFIG, **parts}


# The folder and its lock.


def test_the_folder_is_created_and_left_clean(tmp_path):
    with prepare_workdir(tmp_path / "a" / "b") as workdir:
        assert workdir == tmp_path / "a" / "b"
        assert [path.name for path in workdir.iterdir()] == [".lock"]
        assert (workdir / ".lock").read_text().split()[0] == str(os.getpid())


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=r"the workdir cannot be written \(Not a directory\).*file/run"):
        prepare_workdir(tmp_path / "file" / "run").__enter__()

    def read_only(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(workdirs.tempfile, "TemporaryFile", read_only)  # the probe: file modes do not stop root
    with pytest.raises(OSError, match=r"cannot be written \(Read-only file system\)"):
        prepare_workdir(tmp_path / "run").__enter__()


CHILD = """
import sys, time
from training.workdir import prepare_workdir
with prepare_workdir(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_two_processes_cannot_share_a_folder_and_death_frees_it(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", CHILD, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "locked\n"
    with pytest.raises(RuntimeError, match=f"{tmp_path} is in use by process {holder.pid} on "):
        prepare_workdir(tmp_path).__enter__()
    holder.send_signal(signal.SIGKILL)
    holder.wait(30)
    holder.stdout.close()
    for _ in range(2):  # taken over, and free again after the block
        with prepare_workdir(tmp_path):
            assert (tmp_path / ".lock").read_text().split()[0] == str(os.getpid())


# The config.


def test_differences_are_listed_by_dotted_name():
    training = {"steps": 4000, "log_every": 50, "seed": 1}
    assert compare_config(CONFIG, altered(name="mnist", training=training, sampler={})) == [
        'name: "digits" (stored) != "mnist" (now)',
        "sampler: absent (stored) != {} (now)",
        "sampler.steps: 8 (stored) != absent (now)",
        "training.seed: absent (stored) != 1 (now)",
        "training.steps: 2000 (stored) != 4000 (now)",
    ]


@pytest.mark.parametrize(
    ("now", "ignore", "count"),
    [
        (altered(), (), 0),
        (altered(rates=(0.9, 0.99)), (), 0),
        (altered(rates=[0.99, 0.9]), (), 1),
        (altered(sampler={"steps": 9.0}), (), 1),
        (altered(sampler={"steps": 8.0}), (), 0),
        (altered(sampler={"steps": 9}), ("sampler",), 0),
        (altered(sampler={"steps": 9}), ("samp", "steps"), 1),  # whole names only
        (altered(training={"steps": 2000, "log_every": 1}), ("training.log_every",), 0),
        (altered(training={"steps": 1, "log_every": 1}), ("training.log_every",), 1),
    ],
)
def test_what_counts_as_a_difference(now, ignore, count):
    assert len(compare_config(CONFIG, now, ignore)) == count


def test_nan_equals_itself():
    assert compare_config({"a": float("nan")}, {"a": float("nan")}) == []


def test_a_run_keeps_the_config_it_was_begun_with(tmp_path, caplog):
    check_config(tmp_path, CONFIG)
    assert read_config(tmp_path) is None  # checking leaves no trace
    store_config(tmp_path, CONFIG)
    check_config(tmp_path, CONFIG)
    assert read_config(tmp_path) == CONFIG
    longer = altered(training={"steps": 4000, "log_every": 50})
    with pytest.raises(ValueError, match=r"training\.steps: 2000 \(stored\) != 4000 \(now\)"):
        check_config(tmp_path, longer)
    assert read_config(tmp_path) == CONFIG
    check_config(tmp_path, longer, allow_change=True)
    assert read_config(tmp_path) == CONFIG
    store_config(tmp_path, longer)
    assert read_config(tmp_path) == longer
    assert "training.steps: 2000 (stored) != 4000 (now)" in caplog.text
    check_config(tmp_path, {**longer, "sampler": {"steps": 4}}, ignore=("sampler",))


def test_a_folder_with_foreign_checkpoints_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "5").mkdir()
    with pytest.raises(ValueError, match=r"holds checkpoints/, but no config\.json"):
        check_config(tmp_path, CONFIG)
    (tmp_path / "checkpoints" / "5").rmdir()
    check_config(tmp_path, CONFIG)


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("[1]", "holds a list, not a config")])
def test_an_unreadable_config_is_named(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"config\.json {message}"):
        check_config(tmp_path, CONFIG)


# JSON files.


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "value.json"
    write_json_atomic(path, {"a": 1})

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space"):
            write_json_atomic(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["value.json"]
    write_json_atomic(path, {"a": (1, float("inf"))})
    assert json.loads(path.read_text()) == {"a": [1, "Infinity"]}


@pytest.mark.parametrize("cut", [1, 5, 9])
def test_a_torn_line_is_left_out_and_does_not_swallow_the_next(tmp_path, cut, caplog):
    path = tmp_path / "lines.jsonl"
    for number in range(3):
        append_json_line(path, {"n": number})
    os.truncate(path, path.stat().st_size - cut)
    whole = [{"n": 0}, {"n": 1}] + ([{"n": 2}] if cut == 1 else [])  # only the line break is missing
    assert read_json_lines(path) == whole
    append_json_line(path, {"n": 3})
    assert read_json_lines(path) == [*whole, {"n": 3}]
    assert ("line 3 is torn" in caplog.text) == (cut == 5)


def test_lines_are_valid_json_also_for_nan(tmp_path):
    path = tmp_path / "lines.jsonl"
    append_json_line(path, {"a": float("nan"), "b": [float("-inf"), {"c": float("inf")}], "d": 0.1})

    def refuse(word):
        raise AssertionError(word)

    record = json.loads(path.read_text(), parse_constant=refuse)
    assert record == {"a": "NaN", "b": ["-Infinity", {"c": "Infinity"}], "d": 0.1}
    assert float(record["a"]) != float(record["a"]) and float(record["b"][0]) == float("-inf")


def test_writers_do_not_mix_lines(tmp_path):
    path = tmp_path / "lines.jsonl"

    def write(writer):
        for number in range(20):
            append_json_line(path, {"writer": writer, "n": number, "text": "x" * 10_000})

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records = read_json_lines(path)
    assert len(records) == 80
    for writer in range(4):
        assert [record["n"] for record in records if record["writer"] == writer] == list(range(20))


def test_no_file_has_no_lines(tmp_path):
    assert read_json_lines(tmp_path / "missing.jsonl") == []
