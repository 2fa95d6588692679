"""The page: parsed as HTML, every number is looked up in the row and column where it belongs."""

import base64
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.report.page import render
from evaluation.report.records import Run

VOID = {"meta", "img", "br", "wbr", "link"}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """Tables as rows of (text, is best), images, sections and all attributes; fails where tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.attributes, self.images, self.text, self.tags = {}, [], [], "", []
        self._open, self._region, self._best = [], None, False
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.attributes += attrs
        self._region = values.get("aria-label", self._region)
        if tag not in VOID:
            self._open.append(tag)
        if tag == "img":
            self.images.append(values)
        if tag == "table":
            self.tables[self._region] = []
        if tag == "tr":
            self.tables[self._region].append([])
        if tag in ("td", "th"):
            self.tables[self._region][-1].append(("", values.get("class") == "best"))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, tag

    def handle_data(self, data):
        if self._open and self._open[-1] in ("style", "script"):
            return
        self.text += data
        if {"td", "th"} & {*self._open} and "table" in self._open:
            text, is_best = self.tables[self._region][-1][-1]
            self.tables[self._region][-1][-1] = (text + data, is_best)

    def summary(self):
        """{row: {column: (text, is best)}}."""
        _, head, *body = self.tables["Summary of all evaluations"]
        names = [re.sub("[ ↓↑].*", "", name) if "_" in name else name for name, _ in head]
        return {row[0][0]: dict(zip(names[1:], row[1:])) for row in body}


def record(steps, metrics, **changes):
    return {
        "experiment": "digits_dsm", "step": 5000, "parameters_sha256": "e6cd8f",
        "sampler": {"name": "heun", "steps": steps}, "seed": 0,
        "nfe": 2.0 * steps - 1, "nfe_max": 2 * steps - 1, "num_samples": 1000, "seconds": 2.5 * steps,
        "metrics": metrics, "ranges": [{"first": 0, "metrics": metrics}], "details": {}, "ema_half_life": 50000,
        "data": {"test": {"name": "digits", "sha256": "b" * 64}},
        "environment": {"device_kind": "cpu", "device_count": 1}, "git_revision": "1234567890abcdef",
        "time": "2026-11-21T15:00:00Z",
    } | changes  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two workdirs with results, one of them with pictures, and one that is only trained."""
    tmp_path = tmp_path_factory.mktemp("run")
    pixels = np.random.default_rng(0).integers(0, 256, (26, 26, 3), np.uint8)
    for name in ("s", "grid", "strip"):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    pictures = {"pictures": {"samples": "s.png", "grid": "grid.png", "strip": "strip.png"}}
    metrics = [{"fd1k_test_classifier": fd, "fd1k_test_classifier_of_train": 0.4, "kid1k_test_classifier": kid,
                "class_accuracy": accuracy, "memorisation_ratio": 0.9} for fd, kid, accuracy in
               ((0.52, -0.0052, 0.91), (0.51, -0.0051, 0.99), ("NaN", "-Infinity", "NaN"))]  # fmt: skip
    loss = {step: 1.0 / step for step in range(100, 1000, 100)}
    config = {"training.steps": 5000, "network.width": 256, "seed": 0}
    return [
        Run(name="first", folder=tmp_path, curves={"score/loss": loss, "learning_rate": loss}, config=config,
            records=[record(9, metrics[0], **pictures), record(18, metrics[1], **pictures)]),
        Run(name="second", folder=tmp_path, config=config | {"network.width": 512, "network.depth": 4},
            records=[record(9, metrics[2], ema_half_life=None)]),
        Run(name="trained", folder=tmp_path, records=[], curves={"score/loss": loss}, config=config),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def text(runs):
    return render(runs)[0]


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_every_number_stands_in_its_row_and_column(page):
    table = page.summary()
    assert list(table) == ["first digits_dsmheun 9", "first digits_dsmheun 18", "second digits_dsmheun 9"]
    (first, second, _), (nine, eighteen, nan) = table, table.values()
    assert {name: text for name, (text, _) in nine.items()} == {
        "NFE": "17", "seconds per image": "0.02250", "fd1k_test_classifier": "0.5200",
        "fd1k_test_classifier_of_train": "0.4000", "kid1k_test_classifier": "-0.005200 (best)",
        "class_accuracy": "0.9100", "memorisation_ratio": "0.9000", "training step": "5,000",
        "EMA half-life, images": "50,000",
    }  # fmt: skip
    assert nan["fd1k_test_classifier"] == ("NaN", False) and nan["EMA half-life, images"] == ("none", False)
    marked = {(row, name) for row, cells in table.items() for name, (text, is_best) in cells.items() if is_best}
    assert marked == {(second, "fd1k_test_classifier"), (first, "kid1k_test_classifier"),
                      (second, "class_accuracy")}  # fmt: skip
    assert eighteen["fd1k_test_classifier"][0] == "0.5100 (best)"
    assert "Lowest fd1k_test_classifier: 0.51 by first, heun 18" in page.text


def test_plots_are_there_with_their_points(page, runs):
    plots = {image["alt"] for image in page.images if image["src"].startswith("data:image/svg+xml")}
    assert plots == {
        "fd1k_test_classifier against NFE. first, heun: 0.52 at 17, 0.51 at 35",
        "fd1k_test_classifier against seconds per image. first, heun: 0.52 at 0.0225, 0.51 at 0.045",
        "kid1k_test_classifier against NFE. first, heun: -0.0052 at 17, -0.0051 at 35",
        "kid1k_test_classifier against seconds per image. first, heun: -0.0052 at 0.0225, -0.0051 at 0.045",
        "score/loss over training steps. Curves of first, trained",
    }
    one_point = [Run(name="one", folder=runs[0].folder, records=runs[0].records[:1])]
    assert "Quality against cost" not in render(one_point)[0]


def test_pictures_are_shown_with_captions(page, runs):
    shown = [image for image in page.images if image["src"].startswith("data:image/png")]
    assert [image["alt"] for image in shown] == [
        "Grid of samples of first, heun 9, step 5000", "Grid of samples of first, heun 18, step 5000",
        "Real beside generated. first, heun 9", "From noise (left) to image (right). first, heun 9",
        "Real beside generated. first, heun 18", "From noise (left) to image (right). first, heun 18",
    ]  # fmt: skip
    assert "made from the same draw (evaluation seed 0)" in page.text
    first, second = runs[0].records
    text = Page(render([replace(runs[0], records=[first, second | {"seed": 7}])])[0]).text
    assert "made from the same draw" not in text and "Evaluation seed 7" in text and "not comparable" in text


def test_configs_differ_where_they_do(page):
    cells = [[text for text, _ in row] for row in page.tables["Config fields that differ"]]
    assert cells == [["field", "first", "second", "trained"], ["network.depth", "absent", "4", "absent"],
                     ["network.width", "256", "512", "256"]]  # fmt: skip
    same = [[text for text, _ in row] for row in page.tables["Config fields that are the same"]]
    assert same == [["seed", "0"], ["training.steps", "5000"]]


def test_provenance_is_told(page):
    for fact in ("parameters_sha256", "e6cd8f", "1234567890abcdef", "2026-11-21T15:00:00Z", "num_samples", "b" * 64):
        assert fact in page.text.split("Provenance")[-1]


def test_the_page_needs_nothing_else(page, text):
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", text)
    assert "script" not in page.tags and "link" not in page.tags and "iframe" not in page.tags
    for name, value in page.attributes:
        assert not name.startswith("on")
        assert name != "src" or value.startswith("data:")
        assert name != "href" or f'id="{value[1:]}"' in text
    for image in page.images:
        content = base64.b64decode(image["src"].split("base64,")[1])
        assert not re.search(rb"(href|src)=\"[^#]", content.replace(b'xmlns:xlink="http://www.w3.org/1999/xlink"', b""))


def test_names_are_text_not_markup(runs):
    evil = "<script>alert(1)</script>\"'&"
    bad = record(5, {f"fd1k_{evil}": 1.0, f"kid_{evil}": 2.0}, experiment=evil, git_revision=evil, seed=evil,
                 sampler={"name": evil, "steps": evil, evil: evil}, environment={evil: [{evil: evil}]},
                 data={"test": {"name": evil, "sha256": 5}}, pictures={evil: evil})  # fmt: skip
    run = Run(name=evil, folder=runs[0].folder, records=[bad, bad | {"step": evil, "sampler": {"name": "x" + evil}}],
              curves={f"{evil}loss": {1: 1.0}}, config={evil: evil})  # fmt: skip
    text, warnings = render([run, runs[0]])
    page = Page(text)
    assert "<script" not in text and "script" not in page.tags and page.text.count(evil) > 10 and warnings
    assert {name for name, _ in page.attributes} <= {
        "lang", "charset", "name", "content", "http-equiv", "class", "style", "aria-label", "aria-hidden", "href", "id",
        "tabindex", "role", "colspan", "scope", "title", "src", "width", "height", "alt", "open"}  # fmt: skip


def test_the_same_runs_give_the_same_page(runs, text):
    assert render(runs) == (text, [])


def test_a_run_that_is_only_trained_has_its_curves():
    run = Run(name="trained", folder=Path("x"), records=[], curves={"loss": {1: 2.0}})
    page = Page(render([run])[0])
    assert "Summary" not in page.text and "Provenance" not in page.text and "Training" in page.text
    assert [image["alt"] for image in page.images] == ["loss over training steps. Curves of trained"]


def test_records_of_the_least_content_are_shown(tmp_path):
    """As another program's might be: whatever is missing is a dash or left out."""
    least = [{"metrics": {"fd5k_x": 1.5}}, {"metrics": {}, "sampler": {"name": "heun"}, "data": 5, "environment": "x",
             "details": {"a": 1, "b": {"features": 2}}, "pictures": ["a"], "seconds": 1.0, "num_samples": 0,
             "ranges": None}]  # fmt: skip
    page = Page(render([Run(name="all.jsonl", folder=tmp_path, is_workdir=False, records=least)])[0])
    first, second = page.summary().values()
    assert first["fd5k_x"][0] == "1.500" and second["fd5k_x"][0] == first["NFE"][0] == "\N{EN DASH}"


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
@pytest.mark.parametrize("width", [1280, 390, 360])
def test_nothing_overflows_in_a_browser(text, tmp_path, width):
    """The page in a frame of this width, with a script that tells how wide it came out and what sticks out."""
    script = """<script>addEventListener("load", () => {
      const out = [...document.querySelectorAll("main *")].filter(e => !e.closest(".scroll, .hidden")
        && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName + "." + e.className);
      parent.postMessage([innerWidth, document.documentElement.scrollWidth, out], "*"); });</script>"""
    text = re.sub("<meta http-equiv[^>]*>", "", text).replace("</body>", script + "</body>")
    text = text.replace("<details>", "<details open>")
    (tmp_path / "page.html").write_text(text)
    (tmp_path / "frame.html").write_text(
        f'<body><iframe src="page.html" width="{width}" height="900" style="border:0"></iframe><script>'
        'addEventListener("message", e => document.body.textContent = `=${JSON.stringify(e.data)}=`)</script>'
    )
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    command.append(f"file://{tmp_path}/frame.html")
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search("=(\\[.*\\])=", dom)
    assert found, dom
    inner, scroll, out = json.loads(found[1])
    assert (inner, out) == (width, []) and scroll <= width
