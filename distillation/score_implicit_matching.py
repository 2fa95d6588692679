"""Score Implicit Matching [Luo et al. 2024], with its relatives: a one-step generator from a teacher, without data.

The generator g makes x0 = g(z) in one call (`samplers/one_step.py`); its images, noised, have the score s_p. The
teacher has the score s_q. With a distance d(y) >= 0 and u = d'(y) the divergence

  1. D = E_t E_{x_t ~ sg[p_t]} d(s_p(x_t) - s_q(x_t))

has a gradient that does not need d s_p / d theta [theorem 3.1]: it is that of

  2. L = E -u(y)^T (s_psi(x_t) - grad log q(x_t | x0)),   y = s_psi - s_phi,   x0 = g(z),   x_t = alpha x0 + sigma noise

where psi, the auxiliary network, is trained on the generator's images to have the score s_p. psi and phi, the
teacher, are constants; x0 and x_t are not, nor are the inputs of both networks, nor u. In terms of denoisers, with

  3. delta = f_phi(x_t) - f_psi(x_t),   R = f_psi(x_t) - x0,   y = -(alpha / sigma^2) delta

and u = y h(|y|^2), and with distances of delta instead of y (another weight of each t), the loss of one image is

  4. l = h(|delta|^2) delta^T R
       l2            d = r^2 / 2                     h = 1
       pseudo_huber  d = sqrt(r^2 + c^2) - c         h = (r^2 + c^2)^(-1/2)      so that |u| < 1
       power         d = (r^2 + c^2)^(m/2) / m       h = (r^2 + c^2)^(m/2 - 1)
       cauchy        d = c^2 / 2 log(1 + r^2 / c^2)  h = 1 / (1 + r^2 / c^2)
     c is in the units of x0 and proportional to sqrt(d) by default: 0.03 at d = 3072 [the rule of Song & Dhariwal 2024;
     the paper does not state its own].
  5. SiD [Zhou et al. 2024]: l = (delta^T R + (1 - k) |delta|^2) / omega, omega = sg max(mean |x0 - f_phi|, 1e-5), with
     `distance` l2, `normalizer` l1 and `sid_coefficient` k. k = 1 is equation 4; k = 1/2 the gradient of E_p |y|^2 with
     p moving, too; k = 1.2 was best in the source.
  6. KL: l = w sg(f_psi - f_phi)^T x0, `through_scores` False. w = 1 is Diff-Instruct [Luo et al. 2023], w = 1 / omega
     is DMD [Yin et al. 2024].

Training alternates: psi by the objective of the config on fresh images, K times; then theta by equation 4, 5 or 6.
At the start psi = phi, so that delta = 0 and every loss is flat: psi has `auxiliary_warmup` steps before theta moves.
With an `adversarial_weight` theta's loss has a further term, and a discriminator is trained in between, on noised data
and images at the same t (`distillation/adversarial.py`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from diffusion.base import Denoiser, Process
from diffusion.denoiser import difference
from distillation import adversarial
from distillation.base import (
    AUXILIARY,
    DISCRIMINATOR,
    GENERATOR,
    TEACHER,
    Parts,
    random_labels,
    root_mean_square,
    square,
    through_images,
)
from samplers.one_step import one_step
from scoring.base import Metrics, Update
from scoring.terms import dot
from scoring.time_samplers import KarrasTimes

REFERENCE_C, REFERENCE_SIZE = 0.03, 3072
SMALLEST_OMEGA = 1e-5

# h(r^2) of equation 4, from (r^2, c, m).
DISTANCES: dict[str, Callable[[Array, float, float], Array]] = {
    "l2": lambda r2, c, m: jnp.ones_like(r2),
    "pseudo_huber": lambda r2, c, m: (r2 + c**2) ** -0.5,
    "power": lambda r2, c, m: (r2 + c**2) ** (m / 2 - 1),
    "cauchy": lambda r2, c, m: 1 / (1 + r2 / c**2),
}
NORMALIZERS = ("none", "l1")


@dataclass(frozen=True, kw_only=True)
class ScoreImplicitMatching:
    """Equations 4 to 6.

    Attributes:
      time_upper: the generator is judged at noise levels uniform on Karras' scale, up to this part of it.
      level: noise level at which the network is called to generate.
      distance: a name of DISTANCES.
      huber_c: c; None for 0.03 sqrt(d / 3072).
      power: m, of the distance "power".
      detach_denominator: leave h out of the gradient; its share is of the order 1 / d.
      normalizer: "none", or "l1" for 1 / omega.
      sid_coefficient: k of equation 5, for the distance "l2".
      through_scores: False for equation 6.
      auxiliary_updates: K, updates of the auxiliary network for each of the generator.
      auxiliary_warmup: training steps in which the generator waits.
      adversarial_weight: of the adversarial term; 0 for none, and no data are needed then.

    Raises:
      ValueError: for an unknown name, a number out of range, or options that do not go together.
    """

    level: float = 2.5
    distance: str = "pseudo_huber"
    huber_c: float | None = None
    power: float = 1.5
    detach_denominator: bool = False
    normalizer: str = "none"
    sid_coefficient: float = 1.0
    through_scores: bool = True
    auxiliary_updates: int = 1
    auxiliary_warmup: int = 100
    adversarial_weight: float = 0.0
    time_upper: float = 0.8

    def __post_init__(self) -> None:
        for name, choices in (("distance", DISTANCES), ("normalizer", NORMALIZERS)):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"{name} = '{value}' is not known; choose from {', '.join(choices)}")
        if self.huber_c is not None and not self.huber_c > 0:
            raise ValueError(f"huber_c = {self.huber_c} must be positive: at 0 the gradient of delta = 0 is 0 / 0")
        if not 0 < self.power <= 2:
            raise ValueError(f"power = {self.power} must lie in (0, 2]")
        KarrasTimes(upper=self.time_upper)
        if not self.level > 0:
            raise ValueError(f"level = {self.level} must be positive")
        if self.auxiliary_updates < 1:
            raise ValueError(f"auxiliary_updates = {self.auxiliary_updates} must be at least 1")
        if self.auxiliary_warmup < 0:
            raise ValueError(f"auxiliary_warmup = {self.auxiliary_warmup} must be at least 0")
        if not self.adversarial_weight >= 0:
            raise ValueError(f"adversarial_weight = {self.adversarial_weight} must be at least 0")
        if not math.isfinite(self.adversarial_weight):
            raise ValueError(f"adversarial_weight = {self.adversarial_weight} must be finite")
        if self.distance != "l2" and self.sid_coefficient != 1:
            raise ValueError(f"sid_coefficient = {self.sid_coefficient} goes with distance = 'l2' alone, not with "
                             f"'{self.distance}'")
        if not self.through_scores and (self.distance, self.sid_coefficient) != ("l2", 1.0):
            raise ValueError(f"through_scores = False takes distance = 'l2' and sid_coefficient = 1, and not "
                             f"'{self.distance}' and {self.sid_coefficient}: the KL has neither")
        if self.detach_denominator and (self.distance == "l2" or not self.through_scores):
            raise ValueError("detach_denominator = True has no meaning for distance = 'l2', which has no denominator")
        if self.distance != "l2" and self.normalizer != "none":
            raise ValueError(f"normalizer = '{self.normalizer}' goes with distance = 'l2' alone: '{self.distance}' has "
                             "a denominator of its own")

    @property
    def sampler(self) -> dict[str, Any]:
        return {"name": "one_step", "level": self.level}

    def image_losses(
        self, teacher: Denoiser, auxiliary: Denoiser, x0: Float[Array, "batch *shape"],
        x_t: Float[Array, "batch *shape"], t: Float[Array, " batch"], label: Int[Array, " batch"] | None,
    ) -> tuple[Float[Array, " batch"], Float[Array, "batch *shape"]]:
        """Equation 4, 5 or 6 for each image, and delta.

        Args:
          teacher, auxiliary: f_phi and f_psi, with constant parameters.
          x0: generated images; x_t: the same, noised to t. The gradient goes through both.
        """
        f_phi, f_psi, delta = difference(teacher, auxiliary, x_t, t, label)  # (3)
        residual = x0 - f_phi
        omega = jnp.maximum(jnp.mean(jnp.abs(residual).reshape(len(x0), -1), axis=-1), SMALLEST_OMEGA)
        weight = jax.lax.stop_gradient(1 / omega) if self.normalizer == "l1" else 1.0
        if not self.through_scores:
            return weight * dot(jax.lax.stop_gradient(-delta), x0), delta  # (6)
        r2 = square(delta)
        c = self.huber_c or REFERENCE_C * (x0[0].size / REFERENCE_SIZE) ** 0.5
        h = DISTANCES[self.distance](r2, c, self.power)
        h = jax.lax.stop_gradient(h) if self.detach_denominator else h
        projected = dot(delta, f_psi - x0)
        if self.sid_coefficient != 1:
            projected = projected + (1 - self.sid_coefficient) * r2  # (5)
        return weight * h * projected, delta  # (4)

    def updates(self, parts: Parts) -> tuple[Update, ...]:
        process = parts.process

        def generate(
            params: PyTree, like: Array, key: Key[Array, ""], key_dropout: Key[Array, ""] | None
        ) -> tuple[Array, Array | None]:
            """Fresh images of the size and number of a batch, with their labels."""
            key_label, key_noise = jax.random.split(key)
            label = random_labels(key_label, len(like), parts.num_classes)
            noise = jax.random.normal(key_noise, like.shape)
            return one_step(parts.network(params, key_dropout), process, self.level, noise, label), label

        def auxiliary_loss(
            params: PyTree, others: dict[str, PyTree], batch: dict[str, Array], key: Key[Array, ""]
        ) -> tuple[Float[Array, ""], Metrics]:
            key_images, key_dropout, key_objective = jax.random.split(key, 3)
            x0, label = generate(others[GENERATOR], batch["image"], key_images, None)
            x0 = jax.lax.stop_gradient(x0)
            return parts.objective(parts.network(params, key_dropout), process, x0, label, key_objective)

        def discriminator_loss(
            params: PyTree, others: dict[str, PyTree], batch: dict[str, Array], key: Key[Array, ""]
        ) -> tuple[Float[Array, ""], Metrics]:
            key_images, key_time, key_data_noise, key_noise = jax.random.split(key, 4)
            images, label = generate(others[GENERATOR], batch["image"], key_images, None)
            t = KarrasTimes(upper=self.time_upper)(process, key_time, len(images))
            auxiliary = parts.network(others[AUXILIARY], None)

            def judge(x0: Array, label: Array | None, key: Key[Array, ""]) -> Array:
                x_t = process.corrupt(x0, jax.random.normal(key, x0.shape), t)
                return adversarial.logits(params, jax.lax.stop_gradient(auxiliary.features(x_t, t, label)))

            of_data = judge(batch["image"], batch.get("label"), key_data_noise)
            of_images = judge(images, label, key_noise)
            loss = adversarial.discriminator_loss(of_data, of_images)
            return loss, {"loss": loss, "accuracy": (jnp.mean(of_data > 0) + jnp.mean(of_images < 0)) / 2}

        def generator_loss(
            params: PyTree, others: dict[str, PyTree], batch: dict[str, Array], key: Key[Array, ""]
        ) -> tuple[Float[Array, ""], Metrics]:
            key_images, key_dropout, key_time, key_noise = jax.random.split(key, 4)
            x0, label = generate(params, batch["image"], key_images, key_dropout)
            teacher = parts.guide(parts.teacher(others[TEACHER]))
            auxiliary = parts.network(others[AUXILIARY], None)
            head = others.get(DISCRIMINATOR)
            return self.generator_loss(teacher, auxiliary, process, x0, label, key_time, key_noise, head)

        updates = (Update(role=AUXILIARY, loss=auxiliary_loss, repeats=self.auxiliary_updates),
                   Update(role=DISCRIMINATOR, loss=discriminator_loss),
                   Update(role=GENERATOR, loss=generator_loss, start=self.auxiliary_warmup))  # fmt: skip
        return updates if self.adversarial_weight else (updates[0], updates[2])

    def generator_loss(
        self, teacher: Denoiser, auxiliary: Denoiser, process: Process, x0: Float[Array, "batch *shape"],
        label: Int[Array, " batch"] | None, key_time: Key[Array, ""], key_noise: Key[Array, ""],
        head: PyTree = None,
    ) -> tuple[Float[Array, ""], Metrics]:
        """The mean of `image_losses` over times and noise, with its gradient through x0.

        With the head of a discriminator, plus the adversarial term. Metrics: `delta`, how far the auxiliary network is
        from the teacher, `pull`, the gradient at the images, and `adversarial`, that term without its weight. The loss
        itself says little.
        """
        t = KarrasTimes(upper=self.time_upper)(process, key_time, len(x0))
        noise = jax.random.normal(key_noise, x0.shape)

        def losses(x0: Float[Array, "batch *shape"]) -> tuple[Array, dict[str, Array]]:
            x_t = process.corrupt(x0, noise, t)
            of_image, delta = self.image_losses(teacher, auxiliary, x0, x_t, t, label)
            if head is None:
                return of_image, {"delta": root_mean_square(delta)}
            added = adversarial.student_losses(adversarial.logits(head, auxiliary.features(x_t, t, label)))
            metrics = {"delta": root_mean_square(delta), "adversarial": jnp.mean(added)}
            return of_image + self.adversarial_weight * added, metrics

        loss, pull, metrics = through_images(losses, x0)
        return loss, {"loss": loss, "pull": pull, **metrics}
