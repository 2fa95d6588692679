"""What the methods of distillation share: the gradient at generated images, labels, halves of a batch."""


import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from distillation.base import halves, random_labels, through_images

pytestmark = pytest.mark.usefixtures("quick_to_compile")



def test_through_images_is_the_plain_mean_with_its_gradient():
    """Value and gradient in the generator's parameters; the pull by hand; the rest without a gradient."""
    draw = np.random.default_rng(11)
    z, a = jnp.asarray(draw.normal(size=(6, 4)), jnp.float32), jnp.asarray(draw.uniform(1, 3, 6), jnp.float32)
    theta = jnp.asarray(draw.normal(size=4), jnp.float32)

    def losses(x):
        return 0.5 * a * jnp.sum(x**2, axis=-1), 2 * x

    @jax.jit
    def shared(theta):
        x0 = jnp.tanh(z * theta)
        return through_images(losses, x0)

    def plain(theta):
        return jnp.mean(losses(jnp.tanh(z * theta))[0])

    (loss, pull, more), x0 = shared(theta), np.tanh(np.asarray(z * theta))
    np.testing.assert_allclose(loss, plain(theta), rtol=1e-6)
    np.testing.assert_allclose(more, 2 * x0, rtol=1e-5)
    of_loss, of_pull, of_more = jax.jacrev(shared)(theta)
    np.testing.assert_allclose(of_loss, jax.grad(plain)(theta), rtol=1e-5)
    assert np.abs(of_pull).max() == 0 == np.abs(of_more).max()
    # d / dx of a |x|^2 / 2 is a x; of the mean over the batch it would be six times less.
    by_hand = np.mean(np.asarray(a) * np.linalg.norm(x0, axis=-1))
    np.testing.assert_allclose(pull, by_hand, rtol=1e-5)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(pull, by_hand / 6, rtol=1e-5)


def test_random_labels_are_uniform_over_the_classes():
    labels = np.asarray(random_labels(jax.random.key(0), 9000, 3))
    assert stats.chisquare(np.bincount(labels, minlength=3)).pvalue > 0.01 and labels.shape == (9000,)
    assert set(labels) == {0, 1, 2}
    assert random_labels(jax.random.key(0), 10, 0) is None


def test_halves_are_the_even_and_the_odd_rows():
    batch = {"image": jnp.arange(8.0)[:, None] * jnp.ones(2), "label": jnp.arange(8)}
    even, odd = halves(batch)
    assert even["label"].tolist() == [0, 2, 4, 6] and odd["label"].tolist() == [1, 3, 5, 7]
    np.testing.assert_array_equal(odd["image"][:, 1], [1, 3, 5, 7])
    with pytest.raises(ValueError, match=r"config\.data\.batch_size: 7 images cannot be split"):
        halves({"image": jnp.zeros((7, 2))})
