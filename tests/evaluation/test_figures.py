"""Pictures are checked pixel by pixel where they are our own, and by size and ink where matplotlib draws them."""

import numpy as np
import pytest
from PIL import Image

from evaluation.figures import denoising_strip, image_grid, real_beside_generated, save_grid, scatter_2d


def levels(n, height=8, width=8, channels=1):
    """Images of one grey level each: image i is 10 i + 5."""
    values = (10 * np.arange(n) + 5).astype(np.uint8)
    return np.broadcast_to(values[:, None, None, None], (n, height, width, channels)).copy()


def test_the_grid_holds_every_image_enlarged_in_reading_order_on_white():
    images = np.random.default_rng(0).integers(0, 250, (5, 6, 4, 1), dtype=np.uint8)
    grid = image_grid(images, 3, scale=2)
    margin = 2
    assert grid.shape == (2 * (12 + margin) + margin, 3 * (8 + margin) + margin, 3)
    seen = np.zeros(grid.shape[:2], bool)
    for i, image in enumerate(images):
        top, left = margin + (i // 3) * (12 + margin), margin + (i % 3) * (8 + margin)
        block = grid[top : top + 12, left : left + 8]
        for dy in range(2):
            for dx in range(2):
                np.testing.assert_array_equal(block[dy::2, dx::2], np.repeat(image, 3, axis=2))
        seen[top : top + 12, left : left + 8] = True
    assert (grid[~seen] == 255).all()


def test_colours_keep_their_channels():
    red = np.zeros((1, 4, 4, 3), np.uint8)
    red[..., 0] = 200
    grid = image_grid(red, 1, scale=1)
    np.testing.assert_array_equal(grid[4, 4], [200, 0, 0])


def test_small_images_are_enlarged_to_be_visible_and_large_ones_are_left():
    assert image_grid(levels(1), 1).shape[0] >= 64
    assert image_grid(levels(1, 128, 128), 1).shape[0] < 128 + 32


@pytest.mark.parametrize(
    ("images", "columns", "message"),
    [(levels(0), 2, "at least one image"), (levels(2, channels=2), 2, "channels"), (levels(2), 0, "columns")],
)
def test_grids_that_cannot_be_drawn_are_refused(images, columns, message):
    with pytest.raises(ValueError, match=message):
        image_grid(images, columns)


def test_save_grid_writes_the_grid_and_no_partial_file(tmp_path):
    path = tmp_path / "deep" / "grid.png"
    save_grid(path, levels(5), 2)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), image_grid(levels(5), 2))
    assert [p.name for p in path.parent.iterdir()] == ["grid.png"]


def test_a_failed_write_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "grid.png"
    save_grid(path, levels(1), 1)
    before = path.read_bytes()

    def fail(self, file, **options):
        file.write(b"half a picture")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_grid(path, levels(2), 1)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["grid.png"]


def grey_centres(path, rows, columns, left, top, pitch):
    """Grey levels at the centres of a regular grid of cells, all in inches."""
    picture = np.asarray(Image.open(path).convert("L")).astype(int)
    y = np.round((top + (np.arange(rows) + 0.5) * pitch) * 160).astype(int)  # 160 dots per inch
    x = np.round((left + (np.arange(columns) + 0.5) * pitch) * 160).astype(int)
    return picture[np.ix_(y, x)]


def test_real_beside_generated_puts_each_class_in_its_row(tmp_path):
    path = tmp_path / "figure.png"
    labels = np.array([2, 0, 1, 2, 0, 1])
    images = (labels * 40 + 20).astype(np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 1), np.uint8)
    real_beside_generated(path, images, images[::-1] + np.uint8(10), labels, labels[::-1], columns=2, title="digits")
    # Margins as in the module: 0.35 left, 0.72 top with a title, 0.42 a column, 0.25 between.
    left = grey_centres(path, 3, 2, 0.35, 0.72, 0.42)
    right = grey_centres(path, 3, 2, 0.35 + 2 * 0.42 + 0.25, 0.72, 0.42)
    np.testing.assert_array_equal(left, np.array([[20, 20], [60, 60], [100, 100]]))
    np.testing.assert_array_equal(right, left + 10)


def test_real_beside_generated_without_labels_keeps_the_order_and_one_size(tmp_path):
    path = tmp_path / "figure.png"
    real_beside_generated(path, levels(8), levels(2), columns=4)
    np.testing.assert_array_equal(
        grey_centres(path, 2, 4, 0.12, 0.42, 0.42), [[5, 15, 25, 35], [45, 55, 65, 75]]
    )
    np.testing.assert_array_equal(grey_centres(path, 1, 4, 0.12 + 4 * 0.42 + 0.25, 0.42, 0.42), [[5, 15, 255, 255]])


def test_labels_must_fit(tmp_path):
    labels = np.array([0, 1])
    with pytest.raises(ValueError, match="or of neither"):
        real_beside_generated(tmp_path / "f.png", levels(2), levels(2), labels)
    with pytest.raises(ValueError, match="3 generated images have 2"):
        real_beside_generated(tmp_path / "f.png", levels(2), levels(3), labels, labels)


def test_denoising_strip_runs_from_left_to_right(tmp_path):
    path = tmp_path / "strip.png"
    trajectory = levels(12).reshape(4, 3, 8, 8, 1)  # step s of image n: level 10 (3 s + n) + 5
    denoising_strip(path, trajectory, [80.0, 1.0, 0.1, 0.0])
    expected = [[10 * (3 * s + n) + 5 for s in range(4)] for n in range(3)]
    np.testing.assert_array_equal(grey_centres(path, 3, 4, 0.1, 0.5, 0.6), expected)
    with pytest.raises(ValueError, match="4 states but 3 noise levels"):
        denoising_strip(path, trajectory, [1.0, 0.5, 0.0])


def test_scatter_draws_real_left_and_generated_right_in_one_frame(tmp_path):
    path = tmp_path / "points.png"
    random = np.random.default_rng(0)
    scatter_2d(path, random.uniform(-1, 1, (500, 2)), random.uniform(-3, -2, (500, 2)), title="toy")
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    half = picture.shape[1] // 2
    blue = picture[..., 2] - picture[..., 0]
    assert (blue[:, :half] > 80).sum() > 500
    assert not (abs(blue[:, half:]) > 80).any()  # every generated point lies outside the frame of the real ones
