"""An adversarial term for a student of Score Implicit Matching [SiDA: Zhou, Zheng, Gu, Wang & Huang 2025].

A discriminator D looks at noised images, some of them data, others the student's. It is a small head on features h of
the auxiliary network, which knows the student's images already:

  1. discriminator   E softplus(-D(h(x_t of data))) + E softplus(D(h(x_t of images)))     gradient to the head alone
  2. student         E softplus(-D(h(x_t)))                                               gradient through x_t

D has a value at every position of h, over which 1 and 2 are means, too. In the source D is a part of the auxiliary
network, which learns from 1 as well; here it keeps to the score of the student's images, and D has parameters of its
own. At the optimal D the gradient of 2 for data p and images q is that of -log(p / q), weighted by q / (p + q).

Unlike what it is added to, this term needs data, and knows things that the teacher does not.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

NORM_EPSILON = 1e-6


def initial_head(key: Key[Array, ""], width: int) -> PyTree:
    """Parameters of D for features of this width: a hidden layer of the same, and zeros that say 0 to everything."""
    return {
        "hidden": {"kernel": jax.random.normal(key, (width, width)) / width**0.5, "bias": jnp.zeros(width)},
        "out": {"kernel": jnp.zeros((width, 1)), "bias": jnp.zeros(1)},
    }


def logits(head: PyTree, features: Float[Array, "batch *shape width"]) -> Float[Array, "batch *shape"]:
    """D(h), positive for what it takes for data: of h with mean 0 and variance 1 over its width."""
    mean, variance = features.mean(axis=-1, keepdims=True), features.var(axis=-1, keepdims=True)
    h = (features - mean) * jax.lax.rsqrt(variance + NORM_EPSILON)
    hidden = jax.nn.silu(h @ head["hidden"]["kernel"] + head["hidden"]["bias"])
    return (hidden @ head["out"]["kernel"] + head["out"]["bias"])[..., 0]


def discriminator_loss(
    of_data: Float[Array, "batch *shape"], of_images: Float[Array, "batch *shape"]
) -> Float[Array, ""]:
    """Equation 1 from the values of D."""
    return jnp.mean(jax.nn.softplus(-of_data)) + jnp.mean(jax.nn.softplus(of_images))


def student_losses(of_images: Float[Array, "batch *shape"]) -> Float[Array, " batch"]:
    """Equation 2 for each image, from the values of D."""
    return jnp.mean(jax.nn.softplus(-of_images).reshape(len(of_images), -1), axis=-1)
