"""The ledger: what is missing runs once, figures are kept and stand where they belong, claims are judged by seeds."""

import dataclasses
import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from configs.tables import TABLES
from configs.tables.base import (
    Check,
    Claim,
    Figure,
    NotRunError,
    PaperValue,
    Row,
    Run,
    Table,
    Values,
    compare,
)
from configs.tables.document import NOTHING, mean_text, render
from configs.tables.lcss_checks import gamma
from training import ledger

ROOT = Path(__file__).parents[2]
DIGITS = "configs/digits.py:dsm"
FAKE = """
import json, pathlib, sys
arguments = dict(a.lstrip("-").split("=", 1) for a in sys.argv[1:])
workdir, seed = pathlib.Path(arguments["workdir"]), int(arguments["config.seed"])
rate = float(arguments["config.optimizer.learning_rate"])
with open(workdir.parent / "ran", "a") as file: file.write(f"{rate} {seed}\\n")
if rate == 0.5 and not (workdir.parent / "mended").exists(): sys.exit("error: rate 0.5 is bad")
facts = {"num_samples": 100, "environment": {"jax": "1"}, "git_revision": "abc"}
metrics = {"fd100_test_classifier": 100 * rate + seed, "fd100_test_classifier_ratio": 7.0, "x": "NaN"}
(workdir / "results.jsonl").write_text(json.dumps({"metrics": metrics, **facts}) + "\\n")
speeds = [1.0, 30.0, 50.0, 40.0]
lines = [{"step": i, "segment": 1, "time": 0, "score/loss": 5.0 - i, "steps_per_second": s}
         for i, s in enumerate(speeds)]
(workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
"""


def measured(seed, folder, *, offset):
    return {"value": offset + seed}


def slow_wins(values):
    errors, text = compare(values, "fd*_classifier", "slow", "fast")
    return errors < -2, text


FD = {"fd*_classifier": Figure("distance")}
SMALL = Table(
    name="small", title="A small table",
    rows=(
        Row(name="slow", about="a low rate", figures=FD, small=Run(DIGITS, {"optimizer.learning_rate": 0.01})),
        Row(name="fast", about="a high rate", figures=FD, small=Run(DIGITS, {"optimizer.learning_rate": 0.2}), seeds=2),
        Row(name="bad", about="fails", figures=FD, small=Run(DIGITS, {"optimizer.learning_rate": 0.5}), seeds=1),
        Row(name="check", about="no run", figures={"value": Figure("value")}, small=Check(measured, {"offset": 40.0})),
        Row(name="huge", about="the paper's | row", figures={"fid": Figure("FID", PaperValue(2.5, "table 9"))},
            missing="a cluster"),
        Row(name="both", about="two sizes", figures={"fd*": Figure("distance", PaperValue(None, "table 8"))},
            small=Run(DIGITS, {"optimizer.learning_rate": 0.03}), full=Run(DIGITS, {"optimizer.learning_rate": 0.04})),
    ),
    claims=(
        Claim(name="slow_wins", text="Slow is better.", source="table 9", rows=("slow", "fast"), predicate=slow_wins,
              explanation="It looks longer."),
    ),
)  # fmt: skip


@pytest.fixture
def script(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("reproduce", ROOT / "scripts" / "reproduce.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "fake.py").write_text(FAKE)
    real = module.arguments_of

    def fake(table, row, size, seed, folder):
        arguments = real(table, row, size, seed, folder)
        return arguments if isinstance(row.job(size), Check) else [str(tmp_path / "fake.py"), *arguments[2:]]

    monkeypatch.setattr(module, "arguments_of", fake)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(module, "DOCS", tmp_path)
    monkeypatch.setattr(module, "TABLES", {"small": SMALL})
    return module


@pytest.fixture
def reproduce(script, tmp_path, capsys):
    """reproduce(*arguments) -> (exit code, stdout, stderr)."""

    def call(*arguments):
        code = script.main(["reproduce.py", *arguments, f"--workdir={tmp_path / 'runs'}", "--processes=2"])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def ledger_lines(tmp_path, size="small"):
    path = tmp_path / "results" / f"small-{size}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_missing_runs_once_and_is_kept(reproduce, tmp_path):
    code, _, error = reproduce("--table=small", "--rows=slow,fast,bad")
    assert code == 1 and "6 run(s) of 3 row(s) are missing" in error and "error: rate 0.5 is bad" in error
    lines = {(line["row"], line["seed"]): line for line in ledger_lines(tmp_path)}
    assert set(lines) == {("slow", 0), ("slow", 1), ("slow", 2), ("fast", 0), ("fast", 1)}
    line = lines["slow", 1]
    assert line["figures"] == {"fd100_test_classifier": 2.0, "fd100_test_classifier_ratio": 7.0, "x": "NaN",
                               "train_loss_first": 5.0, "train_loss": 2.0, "train_steps_per_second": 40.0}
    assert line["size"] == "small" and line["num_samples"] == 100 and line["git_revision"] == "abc"
    assert line["environment"] == {"jax": "1"} and line["hardware"] and line["seconds"] > 0 and "time" in line
    assert line["config_sha256"] == SMALL.row("slow").small.identity(1)
    assert f"--config={DIGITS} --config.optimizer.learning_rate=0.01 --config.seed=1" in line["command"]
    assert str(tmp_path / "runs") not in line["command"] and "--workdir=runs/reproduce/small-small/" in line["command"]
    # The same again: only what failed, and seeds that were not asked for before.
    (tmp_path / "runs" / "small-small" / "mended").touch()
    code, _, error = reproduce("--table=small", "--rows=fast,bad,slow", "--seeds=3")
    assert code == 0 and "4 run(s) of 3 row(s) are missing" in error
    ran = (tmp_path / "runs" / "small-small" / "ran").read_text().splitlines()
    assert sorted(ran) == ["0.01 0", "0.01 1", "0.01 2", "0.2 0", "0.2 1", "0.2 2",
                           "0.5 0", "0.5 0", "0.5 1", "0.5 2"]  # fmt: skip
    assert len(ledger_lines(tmp_path)) == 9


def test_a_lost_line_is_written_again_without_a_run(reproduce, tmp_path):
    """Killed between the end of a run and its line, or the ledger was lost: the finished workdir is there."""
    reproduce("--table=small", "--rows=fast")
    first = ledger_lines(tmp_path)
    (tmp_path / "results" / "small-small.jsonl").unlink()
    assert reproduce("--table=small", "--rows=fast")[0] == 0
    for old, new in zip(first, ledger_lines(tmp_path)):
        assert {k: v for k, v in old.items() if k != "time"} == {k: v for k, v in new.items() if k != "time"}
    assert len((tmp_path / "runs" / "small-small" / "ran").read_text().splitlines()) == 2


def test_a_line_of_another_config_does_not_count(script, reproduce, tmp_path, monkeypatch):
    reproduce("--table=small", "--rows=fast")
    assert "2 of 2" in reproduce("--list")[1]
    changed = dataclasses.replace(SMALL.row("fast"), small=Run(DIGITS, {"optimizer.learning_rate": 0.3}))
    rows = tuple(changed if row.name == "fast" else row for row in SMALL.rows)
    monkeypatch.setattr(script, "TABLES", {"small": dataclasses.replace(SMALL, rows=rows)})
    assert "0 of 2" in reproduce("--list")[1]
    assert "2 run(s) of 1 row(s) are missing" in reproduce("--table=small", "--rows=fast")[2]
    assert "100 * 0.2" not in (tmp_path / "results" / "small.md").read_text() and len(ledger_lines(tmp_path)) == 4


def test_measurements(script, tmp_path):
    """A row whose small size is a function: in the process that is started for it, and through the ledger."""
    for seed in (0, 2):
        folder = tmp_path / f"check-{seed}"
        command = ["reproduce.py", "--table=small", "--measure=check", f"--seed={seed}", f"--workdir={folder}"]
        assert script.main(command) == 0
        record = ledger.read_figures(folder)
        assert record["metrics"] == {"value": 40.0 + seed} and record["environment"]["jax"]
    identities = {Check(measured, {"offset": offset}).identity(seed) for offset in (1, 2) for seed in (0, 1)}
    assert len(identities) == 4 and Check(gamma, {"offset": 1}).identity(0) not in identities
    assert script.main(["reproduce.py", "--table=small", "--measure=slow", f"--workdir={tmp_path / 'x'}"]) == 2


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--table=nothing"], ["--table = 'nothing' is not known; choose from small"]),
        (["--table=small", "--rows=slow,no"], ["--rows = 'no' is not known; choose from slow, fast, bad, check, huge"]),
        (["--table=small", "--size=big"], ["--size = 'big' is not known; choose from small, full"]),
        (["--table=small", "--seeds=0"], ["--seeds = 0 must be at least 1"]),
        (["--table=small", "--rows=huge"], ["--size = small: not a size of huge"]),
        ([], ["--table is missing; choose from small"]),
        (["--table=small", "--size=full"], ["huge: a cluster", "rows that can run in full: both"]),
        (["--table=small", "--size=full", "--rows=both,huge"], ["huge: a cluster"]),
    ],
)
def test_what_is_refused_before_anything_runs(reproduce, tmp_path, arguments, parts):
    code, out, error = reproduce(*arguments)
    assert code == 2 and out == "" and error.startswith("error: "), error
    for part in parts:
        assert part in error
    assert not (tmp_path / "runs").exists()


def test_a_row_that_cannot_run_is_named_before_any_starts(script, reproduce, tmp_path, monkeypatch):
    broken = Row(name="broken", about="", figures={}, small=Run(DIGITS, {"optimizer.learning_rate": -1.0}))
    monkeypatch.setattr(script, "TABLES", {"small": dataclasses.replace(SMALL, rows=(*SMALL.rows, broken))})
    code, _, error = reproduce("--table=small", "--rows=fast,broken")
    assert code == 2 and "row broken" in error and "config.optimizer.learning_rate = -1.0" in error
    assert not (tmp_path / "runs").exists()


def test_the_paper_stands_only_beside_its_own_size(reproduce, tmp_path):
    reproduce("--table=small", "--rows=slow,fast,both", "--seeds=2")
    assert reproduce("--table=small", "--size=full", "--rows=both", "--seeds=1")[0] == 0
    text, claims = ((tmp_path / path).read_text() for path in ("results/small.md", "results.md"))
    cells = [[cell.strip(" |") for cell in line.split(" | ")] for line in text.splitlines() if line.startswith("| ")]
    rows = {(row[0].split("**")[1], row[4]): row[1:4] for row in cells if row[0].startswith("**")}
    # seeds 0, 1: 100 * rate + seed, whose standard deviation is sqrt(1/2)
    assert rows["slow", "small"] == ["distance", NOTHING, "1.5 ± 0.71 (n=2)"]
    assert rows["both", "small"] == ["distance", NOTHING, "3.5 ± 0.71 (n=2)"]
    assert rows["both", "full"] == ["distance", "not read (table 8)", "4 (n=1)"]
    assert rows["huge", "full"] == ["FID", "2.5 (table 9)", "not run, for want of: a cluster"]
    assert rows["bad", "small"] == ["distance", NOTHING, "not run"] and ("huge", "small") not in rows
    assert text.startswith("# small: A small table\n") and "the paper's \\| row" in text
    assert "[A small table](results/small.md)" in claims
    assert "| Slow is better. | small: table 9 | **holds** | slow 1.5 ± 0.71 (n=2), fast 20.5 ± 0.71 (n=2) |" in claims


def test_claims(reproduce):
    _, out, _ = reproduce("--claims")
    assert json.loads(out.splitlines()[-1])["verdict"] == "not run" and "slow: no fd*_classifier" in out
    reproduce("--table=small", "--rows=slow,fast", "--seeds=1")
    assert "1 seed of the 2 that a comparison needs" in reproduce("--claims")[1]
    reproduce("--table=small", "--rows=slow,fast")
    _, out, _ = reproduce("--claims", "--table=small")
    last = json.loads(out.splitlines()[-1])
    assert (last["claim"], last["verdict"], last["table"]) == ("slow_wins", "holds", "small")
    assert out.startswith("slow_wins  holds ")


def values(**rows):
    return Values({row: {"e": [float(number) for number in numbers]} for row, numbers in rows.items()})


def test_comparisons_are_in_standard_errors():
    """Against scipy's Welch test, and where numbers are not finite."""
    from scipy.stats import ttest_ind

    one, two = np.random.default_rng(0).normal([[1.0], [3.0]], [[1.0], [0.2]], (2, 6))
    errors, text = compare(values(a=one, b=two), "e", "a", "b")
    assert errors == pytest.approx(ttest_ind(one, two, equal_var=False).statistic) and text.count("n=6") == 2
    nan = math.nan
    assert compare(values(a=[1, nan], b=[5, 6]), "e", "a", "b")[0] == math.inf  # what diverged is the larger error
    assert compare(values(a=[1, 2], b=[nan, nan]), "e", "a", "b")[0] == -math.inf
    assert compare(values(a=[1, 1], b=[2, 2]), "e", "a", "b")[0] == -math.inf
    assert compare(values(a=[1, 1], b=[1, 1]), "e", "a", "b")[0] == 0
    with pytest.raises(NotRunError, match="b: no e"):
        compare(values(a=[1, 2]), "e", "a", "b")


def test_numbers_in_the_document():
    assert mean_text([0.03691, 0.03709]) == "0.037 ± 0.00013 (n=2)"
    assert mean_text([2.0]) == "2 (n=1)" and mean_text([math.nan]) == "not finite (n=1)"
    assert mean_text([1.0, math.inf, 3.0]) == "2 ± 1.4 (n=2), 1 not finite"


# --- the tables themselves -------------------------------------------------------------------------------------------


def test_the_document_is_what_the_ledger_gives():
    lines = {}
    for name in TABLES:
        files = [ledger.results_file(ROOT / "results", name, size) for size in ("small", "full")]
        texts = [path.read_text() for path in files if path.exists()]
        lines[name] = [json.loads(line) for text in texts for line in text.splitlines()]
    message = "run python scripts/reproduce.py --document"
    for path, text in render(TABLES, lines).items():
        assert (ROOT / "docs" / path).read_text() == text, message


def test_names_are_unique_and_claims_speak_of_rows_that_run():
    with pytest.raises(ValueError, match=r"twice there: \['slow'\].*only claims have: \[\]"):
        dataclasses.replace(SMALL, rows=(*SMALL.rows, SMALL.rows[0]))
    with pytest.raises(ValueError, match=r"only claims have: \['slow'\]"):
        dataclasses.replace(SMALL, rows=SMALL.rows[1:])
    for table in TABLES.values():
        for claim in table.claims:
            assert all(table.row(row).small for row in claim.rows), claim.name
        for row in table.rows:
            # What cannot run says why, and a paper's value needs a size of the paper's.
            assert row.small or row.full or (row.missing and row.settings), row.name
            papers = any(figure.paper for figure in row.figures.values())
            assert bool(row.full or row.missing) >= papers, row.name


@pytest.mark.parametrize("size", ["small", "full"])
def test_every_run_of_a_table_is_a_valid_config(script, size):
    """Of runs that differ in their data or their length only one is checked."""
    for table in TABLES.values():
        different = {}
        for row in table.rows:
            job = row.job(size)
            if isinstance(job, Run):
                rest = {k: v for k, v in job.overrides.items() if k not in ("data.source", "training.steps")}
                different.setdefault((job.config, str(rest)), (row, 0))
                job.identity(0)
        script.check(list(different.values()), size)


@pytest.mark.parametrize("claim", [claim for table in TABLES.values() for claim in table.claims], ids=lambda c: c.name)
def test_claims_without_figures_are_not_run(claim):
    assert claim.verdict(Values({}))[0] == "not run"
    only_one = Values({row: {"fd1_test_classifier": [1.0], "fisher_error": [1.0]} for row in claim.rows[:1]})
    assert claim.verdict(only_one)[0] == "not run"


def lcss_values(**changes):
    """Made-up figures: LCSS and DSM equal to rounding, rivals half as fast and twice as wrong."""
    rng = np.random.default_rng(1)
    near = lambda value: list(value * (1 + 0.01 * rng.normal(size=5)))  # noqa: E731
    rows = {}
    for name in ("lcss", "dsm", "ssm", "ssm_vr", "fd_ssm", "fd_ssm_vr"):
        factor = 2.0 if "ssm" in name else 1.0
        error = {"fisher_error": near(0.04 * factor)}
        rows[f"step_time_{name}"] = {"ratio": near(factor)}
        rows |= {f"checkerboard_{name}": error, f"checkerboard_{name}_equal_time": error}
        rows[f"digits_{name}"] = {"fd1438_test_classifier": near(3.0 * factor)}
    rows["same_keys_dsm_lcss"] = {"relative_difference": [1e-4], "dsm_fisher_error": [0.04],
                                  "lcss_fisher_error": [0.0401]}  # fmt: skip
    rows["checkerboard_clean_ssm_vr"] = {"train_loss_first": [-1.0, -2.0], "train_loss": [-30.0, -40.0]}
    rows["nonaffine_lcss_c0.2_center"] = {"fisher_error": [0.02, 0.03]}
    rows["nonaffine_dsm_wrong_kernel"] = {"fisher_error": [0.42]}
    rows |= {f"gamma_{g}": {"variance_sde": [v]} for g, v in (("0.5", 8.8), ("1", 1.0), ("10", 0.05))}
    return Values(rows | changes)


def test_verdicts_of_the_lcss_claims():
    """Each verdict on made-up figures, and another one when the figures say the opposite."""
    verdicts = {claim.name: claim.verdict(lcss_values())[0] for claim in TABLES["lcss"].claims}
    fails = {"faster_than_dsm", "differs_from_dsm", "better_than_dsm", "worse_fid_than_dsm", "ssm_collapses"}
    assert {name for name, verdict in verdicts.items() if verdict == "fails"} == fails
    assert {*verdicts.values()} == {"holds", "fails"}
    opposite = lcss_values(
        checkerboard_lcss={"fisher_error": [0.2, 0.21]},
        checkerboard_dsm={"fisher_error": [0.04, 0.041]},
        checkerboard_ssm={"fisher_error": [0.04, 0.041]},
        step_time_dsm={"ratio": [1.5, 1.52]},
        step_time_ssm={"ratio": [0.7, 0.71]},
        digits_lcss={"fd1438_test_classifier": [1.0, 1.01]}, digits_ssm_vr={"fd1438_test_classifier": [90.0, math.nan]},
        same_keys_dsm_lcss={"relative_difference": [0.9], "dsm_fisher_error": [0.04], "lcss_fisher_error": [0.02]},
        checkerboard_clean_ssm_vr={"train_loss_first": [-1.0], "train_loss": [-1.1]},
        nonaffine_dsm_wrong_kernel={"fisher_error": [0.01]},
        **{"gamma_0.5": {"variance_sde": [1.0]}},
    )  # fmt: skip
    changed = {claim.name: claim.verdict(opposite)[0] for claim in TABLES["lcss"].claims}
    same = {name for name in verdicts if changed[name] == verdicts[name]}
    assert same == {"worse_fid_than_dsm", "better_images_than_ssm"}


def test_gamma_without_training(tmp_path):
    """gamma = 1/2, with u1 = 1 + 50^2 and u0 = 1 + 0.01^2: ODE sqrt(u0 u1), SDE u0 (1 + log(u1 / u0))."""
    figures = gamma(0, tmp_path, gamma=0.5, count=4000)
    assert figures["variance_ode"] == pytest.approx(math.sqrt(1.0001 * 2501), rel=0.08)
    assert figures["variance_sde"] == pytest.approx(1.0001 * (1 + math.log(2501 / 1.0001)), rel=0.08)


def test_importing_the_tables_is_light():
    import subprocess

    code = "import sys; import configs.tables.lcss; print({'jax', 'tensorflow', 'flax'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "set()"
