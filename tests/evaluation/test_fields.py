"""Pictures of score fields: what is compared with what is seen in the pixels."""

import numpy as np
import pytest
from PIL import Image

from evaluation.fields import SIDE, Field, grid_over, save_fields


def field(learnt, exact, scale=1.0):
    points = grid_over(np.random.default_rng(0).uniform(-1, 1, (500, 2)))
    return Field("t = 0.5", 0.1, points, learnt * np.ones_like(points), exact * np.ones_like(points), scale, points[:5])


def pixels(path, fields):
    save_fields(path, fields)
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def halves(picture):
    """The panels, without the frame between them and the bar of colours."""
    width = picture.shape[1]
    return picture[:, : int(0.48 * width)], picture[:, int(0.48 * width) : int(0.87 * width)]


def near(picture, colour):
    return (np.abs(picture - colour).max(-1) < 30).sum()


YELLOW, PURPLE = (253, 231, 37), (68, 1, 84)  # both ends of the colours: no error, an error as large as the score


def test_the_grid_covers_the_points():
    points = np.random.default_rng(0).normal(size=(20_000, 2)) * [1, 3] + [5, 0]
    grid = grid_over(points)
    assert grid.shape == (SIDE * SIDE, 2)
    steps = np.diff(np.unique(grid[:, 0].round(9))), np.diff(np.unique(grid[:, 1].round(9)))
    np.testing.assert_allclose(np.concatenate(steps), steps[0][0], rtol=1e-6)  # squares
    inside = (np.abs(points - grid.mean(axis=0)) < np.ptp(grid[:, 0]) / 2 + steps[0][0]).all(axis=1)
    assert 0.985 < inside.mean() < 1


def test_colours_say_how_large_the_error_is(tmp_path):
    right, _ = halves(pixels(tmp_path / "right.png", [field(1.0, 1.0)]))
    wrong, _ = halves(pixels(tmp_path / "wrong.png", [field(-1.0, 1.0)]))
    assert near(right, YELLOW) > 3000 and near(right, PURPLE) < 50
    assert near(wrong, PURPLE) > 3000 and near(wrong, YELLOW) < 50
    # The error is relative to the score's size over p_t: a hundredth of it is hardly any.
    slight, _ = halves(pixels(tmp_path / "slight.png", [field(-1.0, 1.0, scale=200.0)]))
    assert near(slight, PURPLE) < 50


def test_both_panels_have_one_scale(tmp_path):
    """Half as long an arrow at the left is half as much ink there, the right one unchanged."""
    whole, half = (pixels(tmp_path / "f.png", [field(length, 1.0)]) for length in (1.0, 0.5))
    (left, right), (left_half, right_half) = halves(whole), halves(half)
    ink = [(picture.min(-1) < 160).sum() for picture in (right, right_half)]
    assert ink[0] == ink[1]
    coloured = [(np.ptp(picture, axis=-1) > 60).sum() for picture in (left, left_half)]
    assert coloured[1] < 0.8 * coloured[0]


def test_a_row_for_each_field(tmp_path):
    one, three = (pixels(tmp_path / "f.png", [field(1.0, 1.0)] * count) for count in (1, 3))
    assert three.shape[1] == one.shape[1] and three.shape[0] > 2.5 * one.shape[0]
    with pytest.raises(ValueError, match="no fields to draw"):
        save_fields(tmp_path / "none.png", [])
