"""Optimisers and learning-rate schedules: optax chains from the config.

  learning rate: linear warm-up from 0 over `warmup_steps`, then constant, cosine or linear to 0 at `total_steps`
  update:        clip the gradient by its global norm, then the optimiser

Adam without a first moment (beta1 = 0), as distillation wants it, keeps no copy of the parameters for one.
"""

import optax

SCHEDULES = ("constant", "cosine", "linear")


def _adam(
    rate: optax.Schedule, beta1: float, beta2: float, epsilon: float, weight_decay: float
) -> optax.GradientTransformation:
    if weight_decay:
        raise ValueError(f"config.optimizer.weight_decay = {weight_decay} has no effect with adam; choose adamw or 0")
    if beta1 == 0:
        scale = optax.scale_by_rms(decay=beta2, eps=epsilon, eps_in_sqrt=False, bias_correction=True)
        return optax.chain(scale, optax.scale_by_learning_rate(rate))
    return optax.adam(rate, b1=beta1, b2=beta2, eps=epsilon)


def _adamw(
    rate: optax.Schedule, beta1: float, beta2: float, epsilon: float, weight_decay: float
) -> optax.GradientTransformation:
    return optax.adamw(rate, b1=beta1, b2=beta2, eps=epsilon, weight_decay=weight_decay)


OPTIMIZERS = {"adam": _adam, "adamw": _adamw}


def make_learning_rate(*, learning_rate: float, schedule: str, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """step -> learning rate.

    Raises:
      ValueError: for an unknown schedule, or a warm-up longer than the run.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"config.optimizer.schedule = '{schedule}' is not known; choose from {', '.join(SCHEDULES)}")
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(f"config.optimizer.warmup_steps = {warmup_steps} must lie in [0, config.training.steps = "
                         f"{total_steps})")
    if not learning_rate > 0:  # so that NaN is refused, too
        raise ValueError(f"config.optimizer.learning_rate = {learning_rate} must be positive")
    after = {
        "constant": optax.constant_schedule(learning_rate),
        "cosine": optax.cosine_decay_schedule(learning_rate, total_steps - warmup_steps),
        "linear": optax.linear_schedule(learning_rate, 0.0, total_steps - warmup_steps),
    }[schedule]
    if warmup_steps == 0:
        return after
    # Step 0 already moves: the ramp ends at the full rate on step `warmup_steps`.
    ramp = optax.linear_schedule(learning_rate / warmup_steps, learning_rate, max(warmup_steps - 1, 1))
    return optax.join_schedules([ramp, after], [warmup_steps])


def make_optimizer(
    *, name: str, learning_rate: optax.Schedule, beta1: float, beta2: float, weight_decay: float, gradient_clip: float,
    epsilon: float = 1e-8,
) -> optax.GradientTransformation:
    """The optimiser of one role; `gradient_clip` is the largest global norm, 0 for none.

    Raises:
      ValueError: for an unknown name or a value out of range.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"config.optimizer.name = '{name}' is not known; choose from {', '.join(OPTIMIZERS)}")
    if gradient_clip < 0:
        raise ValueError(f"config.optimizer.gradient_clip = {gradient_clip} must be positive, or 0 for no clipping")
    for field, value in {"beta1": beta1, "beta2": beta2}.items():
        if not 0 <= value < 1:
            raise ValueError(f"config.optimizer.{field} = {value} must lie in [0, 1)")
    if not epsilon > 0:
        raise ValueError(f"config.optimizer.epsilon = {epsilon} must be positive")
    optimizer = OPTIMIZERS[name](learning_rate, beta1, beta2, epsilon, weight_decay)
    return optax.chain(optax.clip_by_global_norm(gradient_clip), optimizer) if gradient_clip else optimizer
