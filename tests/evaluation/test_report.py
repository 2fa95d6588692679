"""What stands in the report: which records, in which columns, which is best, which points are drawn."""

import base64
import io
import math
import re
import xml.etree.ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.report import plots
from evaluation.report.columns import best, columns_of, format_numbers, values
from evaluation.report.pictures import comparable, load_pictures
from evaluation.report.records import Run, newest, rows_of, sampler_label

NOWHERE = Path("/nowhere")
DATA = {"train": {"name": "digits", "sha256": "a" * 64}, "test": {"name": "digits", "sha256": "b" * 64}}


def record(sampler="heun", steps=18, *, metrics=None, weights="c" * 64, reference="b" * 64, **changes):
    """A record as the evaluation writes it."""
    features = {"name": "classifier", "weights_sha256": weights}
    return {
        "experiment": "digits_dsm", "step": 5000, "sampler": {"name": sampler, "steps": steps}, "seed": 0,
        "nfe": 2.0 * steps - 1, "num_samples": 100, "seconds": 2.0, "ema_half_life": 50000, "data": DATA,
        "metrics": {"fd100_test_classifier": 0.5} if metrics is None else metrics,
        "details": {"classifier": {"features": features, "reference": {"dataset": "digits",
                                                                      "data": {"sha256": reference}}}},
    } | changes  # fmt: skip


def rows(*records, folder=NOWHERE):
    return rows_of([Run(name="run", folder=folder, records=list(records))])


def test_the_newest_of_each_sampler_and_ema_is_shown():
    raw = record(metrics={"fd100_test_classifier": 3.0}, ema_half_life=None)
    old, new = (record(metrics={"fd100_test_classifier": value}) for value in (1.0, 2.0))
    other = record(steps=9)
    assert newest([old, raw, other, new]) == [new, raw, other]
    shown = rows(old, raw, other, new)
    assert {row.sampler: row.record for row in shown} == {
        "heun 9 EMA 50,000": other, "heun 18 EMA 50,000": new, "heun 18 EMA none": raw}  # fmt: skip
    assert shown.index(next(row for row in shown if row.record is other)) + 1 == shown.index(
        next(row for row in shown if row.record is new))  # fmt: skip


def test_rows_of_files_are_labelled_by_experiment_and_shown_once():
    """A ledger that repeats a workdir's records adds nothing; its others keep their experiment's name."""
    first, second = record(), record(experiment="emoji", steps=5)
    runs = [
        Run(name="a", folder=NOWHERE, records=[first]),
        Run(name="all.jsonl", folder=NOWHERE, is_workdir=False, records=[first | {"pictures": {}}, second]),
        Run(name="emoji", folder=NOWHERE, records=[record(experiment="emoji", steps=7)]),
    ]
    assert [row.label for row in rows_of(runs)] == ["a", "emoji (all.jsonl)", "emoji"]


def test_images_of_another_program_have_no_sampler():
    ledger = [{"metrics": {"fd5k_train_efflite0": value}, "num_samples": 5000, "data": {"name": name, "sha256": name}}
              for name, value in (("one", 1.0), ("two", 2.0), ("one", 3.0))]  # fmt: skip
    runs = [Run(name="all.jsonl", folder=NOWHERE, is_workdir=False, records=ledger)]
    assert [(row.label, row.sampler, row.title) for row in rows_of(runs)] == [("one", "", "one"), ("two", "", "two")]
    assert rows_of(runs)[0].record["metrics"] == {"fd5k_train_efflite0": 3.0}
    assert rows_of(runs)[0].seconds_per_image is None


@pytest.mark.parametrize(
    "settings, label",
    [
        ({"name": "heun", "steps": 18, "churn_max": "Infinity", "guidance": 1, "guidance_interval": [0, "Infinity"]},
         "heun 18"),
        ({"name": "heun", "steps": 18, "churn": 2.0, "guidance": 1.5}, "heun 18 churn=2.0 guidance=1.5"),
        ({"name": "ancestral", "steps": 100, "variance": "large"}, "ancestral 100 variance=large"),
        ({"name": "from_the_future", "spread": [1, 2]}, "from_the_future spread=[1, 2]"),
    ],
)  # fmt: skip
def test_a_sampler_is_named_by_what_is_not_its_default(settings, label):
    assert sampler_label(settings) == label


def test_numbers_are_never_mixed():
    """Another N, other features' weights, another reference: other columns, each with its own values only."""
    records = [
        record(metrics={"fd100_test_classifier": 1.0, "memorisation_ratio": 0.9}),
        record(metrics={"fd100_test_classifier": 2.0, "memorisation_ratio": 0.8}, weights="d" * 64),
        record(metrics={"fd100_test_classifier": 3.0}, reference="e" * 64),
        record(metrics={"fd200_test_classifier": 4.0}),
        record(metrics={"fd100_test_classifier": 5.0}),
    ]
    columns = columns_of(records)
    held = {(column.name, column.note): values(records, column) for column in columns}
    assert held == {
        ("fd100_test_classifier", "digits bbbbbbbb, features cccccccc"): [1.0, None, None, None, 5.0],
        ("fd100_test_classifier", "digits bbbbbbbb, features dddddddd"): [None, 2.0, None, None, None],
        ("fd100_test_classifier", "digits eeeeeeee, features cccccccc"): [None, None, 3.0, None, None],
        ("fd200_test_classifier", ""): [None, None, None, 4.0, None],
        ("memorisation_ratio", ""): [0.9, 0.8, None, None, None],
    }


def test_columns_are_grouped_and_know_their_direction():
    metrics = ["class_accuracy", "memorisation_ratio", "recall5k_test_tf1", "kid5k_test_tf1", "fid5k_test_tf1_min",
               "fid5k_test_tf1_of_train", "fid50k_test_tf1", "new_thing", "class_total_variation"]  # fmt: skip
    columns = columns_of([record(metrics=dict.fromkeys(metrics, 1.0))])
    assert [(column.name, column.direction) for column in columns] == [
        ("fid5k_test_tf1_min", -1), ("fid5k_test_tf1_of_train", None), ("fid50k_test_tf1", -1),
        ("kid5k_test_tf1", -1), ("recall5k_test_tf1", 1), ("class_accuracy", 1), ("class_total_variation", -1),
        ("memorisation_ratio", None), ("new_thing", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "numbers, direction, marked",
    [
        ([3.0, 1.0, 2.0], -1, [1]),
        ([3.0, 1.0, 2.0], 1, [0]),
        ([-0.1, 0.2, math.nan, -math.inf, None], -1, [0]),
        ([math.nan, math.inf, 0.3, 0.2], 1, [2]),
        ([1.0, 2.0, 1.0], -1, [0, 2]),
        ([1.0, 2.0], None, []),
        ([1.0, None, math.nan], -1, []),
        ([1.0, 1.0], 1, []),
        ([], -1, []),
    ],
)
def test_the_best_is_marked(numbers, direction, marked):
    assert [i for i, is_best in enumerate(best(numbers, direction)) if is_best] == marked


@pytest.mark.parametrize(
    "numbers, texts",
    [
        ([0.50561, 0.7, 10.0], ["0.5056", "0.7000", "10.0000"]),
        ([2.344, 12.3], ["2.34", "12.30"]),
        ([100.0, 35.0], ["100", "35"]),
        ([35.0, 35.5, 36.0], ["35.00", "35.50", "36.00"]),
        ([-0.0075, 0.0000001, None], ["-0.007500", "1.0e-07", "\N{EN DASH}"]),
        ([1234.5, math.nan, math.inf, -math.inf], ["1,234", "NaN", "∞", "-∞"]),
        ([0.0], ["0"]),
    ],
)
def test_numbers_of_a_column_have_the_same_decimals(numbers, texts):
    assert format_numbers(numbers) == texts


def test_lines_hold_every_finite_point_once():
    metric = "fd100_test_classifier"
    shown = rows(
        record(steps=5, metrics={metric: 2.0}), record(steps=10, metrics={metric: 1.0}),
        record("ancestral", 50, metrics={metric: 3.0}), record("ancestral", 9, metrics={metric: "NaN"}),
        record("ancestral", 7, metrics={}), record("ancestral", 8, metrics={metric: 1.0}, nfe="Infinity"),
    )  # fmt: skip
    (column,) = plots.plotted(columns_of([row.record for row in shown]))
    lines = plots.quality_lines(shown, column, lambda row: row.nfe, ["other", "run"])
    assert {line.name: (line.run, line.points) for line in lines} == {
        "run, heun": (1, [(9.0, 2.0), (19.0, 1.0)]), "run, ancestral": (1, [(99.0, 3.0)])}  # fmt: skip
    assert len({line.marker for line in lines}) == 2
    # And all of them are drawn: matplotlib places a marker per point with <use> inside the clipped groups.
    svg = plots.quality_svg(lines, "NFE", reference=0.5)
    assert len(re.findall(r"<use [^>]*fill: var\(--run1\)", svg)) == 3


def test_only_distances_of_samples_are_plotted():
    names = ["fd1k_test_x", "fd1k_test_x_of_train", "fd1k_test_x_ratio", "fd1k_test_x_of_train_mean",
             "kid1k_test_x_min", "class_accuracy", "recall1k_test_x"]  # fmt: skip
    shown = plots.plotted(columns_of([record(metrics=dict.fromkeys(names, 1.0))]))
    assert [column.name for column in shown] == ["fd1k_test_x", "kid1k_test_x_min"]


def test_curves_are_the_losses():
    logged = {"score/loss": {}, "score/x0_mse": {}, "score/gradient_norm": {}, "learning_rate": {}, "epoch": {},
              "evaluate/heun35/loss": {}}  # fmt: skip
    assert plots.curve_names([logged, {"auxiliary/loss": {}}]) == [
        "auxiliary/loss", "score/gradient_norm", "score/loss", "score/x0_mse"]  # fmt: skip


def test_the_running_mean_is_the_mean_of_neighbours():
    y = np.random.default_rng(0).normal(size=157)
    reach = 157 // 50
    expected = [np.mean(y[max(0, i - reach) : i + reach + 1]) for i in range(len(y))]
    np.testing.assert_allclose(plots.running_mean(y), expected, atol=1e-12)
    np.testing.assert_array_equal(plots.running_mean(y[:10]), y[:10].cumsum() - np.append(0, y[:9].cumsum()))


def test_a_spike_of_a_long_curve_is_drawn():
    y = np.zeros(100_000)
    y[31_415], y[77_777] = 7.0, -7.0
    kept = plots._thin_extremes(y)
    assert {31_415, 77_777} <= {*kept.tolist()} and len(kept) <= 400


def test_log_axes_where_values_span_decades():
    assert plots.is_log([0.1, 1.0]) and not plots.is_log([0.2, 1.0])
    assert not plots.is_log([-1.0, 100.0]) and not plots.is_log([0.0, 1.0]) and not plots.is_log([])


def test_plots_are_well_formed_and_repeatable():
    curves = [(0, {1: 1.0, 2: 0.1, 3: math.nan}), (9, {1: 5.0})]
    svg = plots.curves_svg(curves)
    assert svg == plots.curves_svg(curves)
    xml.etree.ElementTree.fromstring(svg)
    assert "var(--run0)" in svg and "var(--run1)" in svg  # run 9 has the colour of run 1
    assert not re.search(r"#0[1-3]0[1-3]0\d", svg) and "<metadata>" not in svg and "nan" not in svg.lower()
    assert plots.curves_svg([(0, {1: math.nan}), (1, {})]) is None


def picture(path, scale, side=6, mode="RGB", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).resize((side * scale, side * scale), Image.NEAREST).save(path)
    return pixels


def test_samples_are_embedded_at_the_pixels_that_were_generated(tmp_path):
    pixels = picture(tmp_path / "s.png", scale=4)
    picture(tmp_path / "g.png", scale=4)
    shown = rows(record(pictures={"samples": "s.png", "grid": "g.png"}), folder=tmp_path)
    (samples, grid), warnings = load_pictures(shown)
    assert warnings == [] and (samples.width, samples.height, grid.width) == (6, 6, 24)
    decoded = Image.open(io.BytesIO(base64.b64decode(samples.uri.removeprefix("data:image/png;base64,"))))
    np.testing.assert_array_equal(np.asarray(decoded), pixels)
    assert grid.content == (tmp_path / "g.png").read_bytes()
    assert samples.is_pixels and not grid.is_pixels and samples.scale == 106


def test_pictures_that_cannot_be_shown_are_left_out_with_a_warning(tmp_path):
    (tmp_path / "secret.png").write_text("a secret")
    folder = tmp_path / "run"
    picture(tmp_path / "outside.png", scale=1)
    picture(folder / "good.png", scale=1)
    whole = (folder / "good.png").read_bytes()
    (folder / "torn.png").write_bytes(whole[: len(whole) - 40])
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "text.png").write_text("<svg onload='alert(1)'/>")
    bad = {"a": "../outside.png", "b": str(tmp_path / "outside.png"), "c": "torn.png", "d": "link.png", "e": "text.png",
           "f": "missing.png", "g": 5, "h": "."}  # fmt: skip
    shown, warnings = load_pictures(rows(record(pictures=bad | {"z": "good.png"}), folder=folder))
    assert [picture.name for picture in shown] == ["z"]
    assert len(warnings) == len(bad) and all(f"'{name}'" in warning for name, warning in zip(bad, warnings))


def test_too_many_pictures_are_made_smaller_but_samples_stay_exact(tmp_path, monkeypatch):
    pixels = picture(tmp_path / "s.png", scale=1, side=64)
    picture(tmp_path / "g.png", scale=1, side=64)
    shown = rows(record(pictures={"samples": "s.png", "grid": "g.png"}), folder=tmp_path)
    monkeypatch.setattr("evaluation.report.pictures.BUDGET", 1000)
    (samples, grid), (warning,) = load_pictures(shown)
    assert "encoded again" in warning and len(grid.content) < (tmp_path / "g.png").stat().st_size / 2
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(samples.content)).convert("RGB")), pixels)


def test_grids_are_comparable_where_seed_data_and_size_agree(tmp_path):
    picture(tmp_path / "s.png", scale=1)
    picture(tmp_path / "large.png", scale=1, side=7)
    other_data = {"train": {"name": "emoji", "sha256": "f" * 64}}
    own = {"pictures": {"samples": "s.png"}}
    shown = rows(
        record(steps=1, **own), record(steps=2, **own), record(steps=3, seed=1, **own),
        record(steps=4, pictures={"samples": "large.png"}), record(steps=5, data=other_data, **own), folder=tmp_path,
    )  # fmt: skip
    groups = comparable(load_pictures(shown)[0])
    assert [[picture.row.sampler for picture in group] for group in groups] == [
        ["heun 1", "heun 2"], ["heun 3"], ["heun 4"], ["heun 5"]]  # fmt: skip
