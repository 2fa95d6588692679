"""Numbered images: the same whatever batch makes them, made once, made again only where they are damaged."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.images import to_uint8
from diffusion.denoiser import NetworkDenoiser
from diffusion.networks import initialise
from diffusion.process import GaussianProcess
from diffusion.random import image_keys
from diffusion.schedules import EDM
from evaluation.generate import generate, labels_of
from evaluation.one_pass import Interrupted
from samplers.ancestral import Ancestral
from samplers.base import Samples

SHAPE, CLASSES, SEED = (4, 4, 1), 3, 11


class Fake:
    """What `jax.jit` returns, for images that are given by number; it remembers what it was asked for."""

    def __init__(self, images=None):
        self.images, self.calls = images, []

    def lower(self, *arguments):
        return self

    def compile(self):
        return self

    def __call__(self, params, keys, labels):
        self.calls.append(jax.random.key_data(keys).tolist())
        first = (len(self.calls) - 1) * len(keys) if self.images is not None else 0
        level = (jax.random.key_data(keys)[:, 0] % 100).astype(jnp.float32) / 100
        x0 = jnp.broadcast_to(level[:, None, None, None], (len(keys), *SHAPE))
        if self.images is not None:
            x0 = jnp.asarray(self.images[first : first + len(keys)])
        return Samples(x0, jnp.arange(len(keys), dtype=jnp.int32))


def make(sample, folder, **changes):
    settings = {"seed": SEED, "num_samples": 10, "batch_size": 4, "num_classes": CLASSES} | changes
    return generate(sample, {}, folder, **settings)


def pixels(generated):
    return generated.read(0, len(generated))


@pytest.fixture(scope="module")
def network_sample():
    """Four ancestral steps of a small random network, whose matrix products round by the batch they are in."""
    apply, params = initialise("mlp", jax.random.key(0), shape=SHAPE, num_classes=CLASSES, width=16, depth=1)
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda p: p + 0.3 * draw.normal(size=p.shape).astype(np.float32), params)
    process = GaussianProcess(EDM())

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def sample(params, keys, labels):
        denoise = NetworkDenoiser(lambda *args: apply(params, *args), process, prediction="edm", sigma_data=0.5)
        return Ancestral(steps=4, grid="karras").sample(denoise, process, keys, labels, shape=SHAPE)

    return sample, params


def test_an_image_is_the_same_in_any_batch(network_sample, tmp_path):
    sample, params = network_sample
    count = 40
    runs = {
        size: generate(sample, params, tmp_path / str(size), seed=SEED, num_samples=count, batch_size=size,
                       num_classes=CLASSES)
        for size in (7, 16)
    }  # fmt: skip
    first, second = (pixels(runs[size]).astype(int) for size in (7, 16))
    assert first.shape == (count, *SHAPE) and pixels(runs[7]).dtype == np.uint8
    difference = np.abs(first - second)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01
    assert len(np.unique(first.reshape(count, -1), axis=0)) == count and first.std() > 20  # they are not all alike
    other = generate(sample, params, tmp_path / "other", seed=SEED + 1, num_samples=count, batch_size=16,
                     num_classes=CLASSES)  # fmt: skip
    assert (pixels(other) != pixels(runs[16])).mean() > 0.5
    assert (runs[7].nfe == 4).all() and runs[7].nfe.shape == (count,) and runs[7].seconds > 0


def test_image_i_has_key_and_label_i(tmp_path):
    """Batches of 4 for 10 images: 12 keys are drawn, those of the images 0 ... 11, and two images dropped."""
    sample = Fake()
    generated = make(sample, tmp_path)
    keys = jax.random.key_data(image_keys(SEED, jnp.arange(12))).tolist()
    assert [key for call in sample.calls for key in call] == keys
    assert generated.labels.tolist() == [i % CLASSES for i in range(10)] and len(generated) == 10
    assert generated.nfe.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    levels = np.float32([key[0] % 100 / 100 for key in keys[:10]])
    assert np.array_equal(pixels(generated)[:, 0, 0, 0], to_uint8(levels[:, None, None, None])[:, 0, 0, 0])


def test_any_part_can_be_read(tmp_path):
    """Across the borders of files, and of a part of its own: that is what ranges of images are."""
    whole = make(Fake(), tmp_path)
    every = pixels(whole)
    for start, stop in ((0, 1), (3, 5), (4, 8), (2, 10), (9, 10)):
        assert np.array_equal(whole.read(start, stop), every[start:stop])
    part = whole.part(3, 9)
    assert len(part) == 6 and part.labels.tolist() == whole.labels[3:9].tolist()
    assert np.array_equal(part.read(1, 6), every[4:9]) and part.nfe.tolist() == whole.nfe[3:9].tolist()
    assert part.seconds == pytest.approx(0.6 * whole.seconds)


def test_labels():
    assert labels_of(np.arange(5, 9), 3).tolist() == [2, 0, 1, 2] and labels_of(np.arange(4), 0) is None


def test_unlabelled_points_stay_what_they_are(tmp_path):
    points = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    generated = make(Fake(points), tmp_path, num_samples=7, num_classes=0)
    assert generated.labels is None and np.array_equal(pixels(generated), points[:7])


def test_an_interrupted_generation_goes_on_where_it_stopped(tmp_path):
    whole = make(Fake(), tmp_path / "whole")
    sample, answers, done = Fake(), iter([False, True]), []
    with pytest.raises(Interrupted, match="4 of 10 images are in"):
        make(sample, tmp_path / "cut", stopped=lambda: next(answers), progress=done.append)
    assert len(sample.calls) == 1 and done == [4]
    again = Fake()
    generated = make(again, tmp_path / "cut", progress=done.append)
    assert len(again.calls) == 2 and again.calls[0] != sample.calls[0] and done == [4, 4, 8, 10]
    assert np.array_equal(pixels(generated), pixels(whole)) and np.array_equal(generated.nfe, whole.nfe)
    nothing = Fake()
    assert np.array_equal(pixels(make(nothing, tmp_path / "cut")), pixels(whole)) and nothing.calls == []
    more = Fake()  # what is there is part of a larger set
    assert np.array_equal(pixels(make(more, tmp_path / "cut", num_samples=16))[:10], pixels(whole))
    assert len(more.calls) == 1


def test_a_stop_before_the_first_batch_makes_nothing(tmp_path):
    sample = Fake()
    with pytest.raises(Interrupted, match="0 of 10"):
        make(sample, tmp_path, stopped=lambda: True)
    assert sample.calls == [] and list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_made_again(tmp_path):
    """Cut anywhere, empty, or with any byte flipped: never another image, never an error. A flip that nothing reads (a
    time stamp of the archive, say) may leave the file in use."""
    sample = Fake()
    whole = make(sample, tmp_path)
    paths = sorted(tmp_path.iterdir())
    content = paths[1].read_bytes()
    damaged = [content[:length] for length in (0, 1, 100, len(content) // 2, len(content) - 1)]
    positions = [*range(0, len(content), 11), *range(len(content) - 120, len(content))]
    damaged += [content[:i] + bytes([content[i] ^ 0xFF]) + content[i + 1 :] for i in positions]
    redone = 0
    for bad in damaged:
        paths[1].write_bytes(bad)
        sample.calls.clear()
        generated = make(sample, tmp_path)
        assert np.array_equal(pixels(generated), pixels(whole)) and np.array_equal(generated.nfe, whole.nfe)
        assert len(sample.calls) <= 1
        redone += len(sample.calls)
    assert redone > 0.6 * len(damaged)
    assert sorted(tmp_path.iterdir()) == paths  # no leftovers


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_images_that_are_not_finite_are_refused(bad, tmp_path):
    images = np.zeros((12, *SHAPE), np.float32)
    images[6, 1, 2] = images[7, 0, 0] = bad
    with pytest.raises(FloatingPointError, match=r"image 6 is not finite \(2 of this batch of 4\): the sampler"):
        make(Fake(images), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["00000000-00000004.npz"]
