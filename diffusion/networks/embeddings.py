"""What every network is told besides its input: the noise level and the label.

The noise level is c = -logsnr / 8 = ln(sigma) / 4, EDM's c_noise (Karras et al. 2022, "Elucidating the Design Space
of Diffusion-Based Generative Models", Table 1), which lies about in [-3, 3].

(1) w_i      = w_min (w_max / w_min)^(i / (m - 1)),  i = 0 .. m - 1      geometric frequencies, radians per unit of c
(2) f(c)     = [cos(w_i c)], [sin(w_i c)]                                sinusoidal features
(3) e(c, y)  = W_2 silu(W_1 f(c) + b_1) + b_2 + E[y]                     y = num_classes: "no class"
(4) output   = silu(e)                                                   what each block's modulation layer reads

Source: (2) Vaswani et al. 2017, section 3.5; (3) Dhariwal & Nichol 2021, section 3.1 (class embedding added to that of
time); the extra row of E: Ho & Salimans 2022, Algorithm 1.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from diffusion.networks.layers import host_normal, linear

NUM_FREQUENCIES = 32
# The slowest wave has a period of 12.6: it does not wrap on [-3, 3]. The fastest has a period of 0.1, that is 0.8 in
# logsnr; faster ones, customary where the input counts a thousand steps, make the output rough in the noise level.
MIN_FREQUENCY = 0.5
MAX_FREQUENCY = 64.0


def sinusoidal_features(noise_level: Float[Array, " batch"]) -> Float[Array, "batch features"]:
    """Equations (1) and (2): float32 features of width 2 * NUM_FREQUENCIES."""
    frequencies = np.geomspace(MIN_FREQUENCY, MAX_FREQUENCY, NUM_FREQUENCIES, dtype=np.float32)
    angles = noise_level.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class ConditioningEmbedding(nnx.Module):
    """Equations (1) to (4): noise level and label to one vector per image.

    It works in float32 whatever the body's dtype: it costs next to nothing, and bfloat16 (8 bits) would round the
    noise level itself.

    Args:
      num_classes: size of the label set; 0 makes an embedding without a label table.
      width: size of the vector.
      rngs: source of the initial parameters.
    """

    def __init__(self, *, num_classes: int, width: int, rngs: nnx.Rngs):
        if num_classes < 0:
            raise ValueError(f"num_classes is {num_classes}; it must be 0 (no labels) or positive")
        self.num_classes = num_classes
        self.hidden = linear(2 * NUM_FREQUENCIES, width, rngs=rngs)
        self.out = linear(width, width, rngs=rngs)
        if num_classes:
            # About the spread of the noise level's term (0.4 at creation), so that neither drowns the other.
            self.labels = nnx.Embed(
                num_classes + 1,
                width,
                embedding_init=lambda key, shape, dtype: host_normal(key, shape, 0.5),
                rngs=rngs,
            )

    def __call__(
        self, noise_level: Float[Array, " batch"], label: Int[Array, " batch"] | None
    ) -> Float[Array, "batch width"]:
        """Embeds a batch.

        Args:
          noise_level: [B], -logsnr / 8.
          label: [B] in [0, num_classes], where num_classes means "no class"; None means "no class" for all. A label
            outside that range gives NaN, so that it cannot pass for a class.

        Returns:
          float32 [B, width].

        Raises:
          ValueError: a label is given to a network made with num_classes=0.
        """
        embedding = self.out(jax.nn.silu(self.hidden(sinusoidal_features(noise_level))))
        if self.num_classes:
            if label is None:
                label = jnp.full(noise_level.shape, self.num_classes, jnp.int32)
            # Negative indices would wrap around to the last rows.
            label = jnp.where(label < 0, self.num_classes + 1, label)
            embedding = embedding + self.labels(label)
        elif label is not None:
            raise ValueError(
                "a label was given to a network without label embedding (num_classes=0); "
                "pass label=None or create the network with num_classes > 0"
            )
        return jax.nn.silu(embedding)
