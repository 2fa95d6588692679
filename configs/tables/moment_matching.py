"""Salimans, Mensink, Heek, Hoogeboom, "Multistep Distillation of Diffusion Models via Moment Matching", NeurIPS 2024.

The rows that run here; `moment_matching_paper.py` has the paper's own rows and `moment_matching_claims.py` what it
claims.
"""

from typing import Any

from configs.tables.base import Row, Table
from configs.tables.distillation_rows import DIGITS_SIM, DIGITS_TEACHER, MNIST, MNIST_TEACHER, student
from configs.tables.moment_matching_claims import CLAIMS
from configs.tables.moment_matching_paper import PAPER_ROWS

STEPS = (1, 2, 4, 8)
# Row: about, config.
_METHODS = {
    "alternating": ("moment matching, alternating", "configs/digits.py:moment_matching"),
    "instant": ("moment matching, instant", "configs/digits.py:instant_moment_matching"),
    "consistency": ("multistep consistency distillation", "configs/digits.py:consistency_distillation"),
}


def steps(k: int) -> dict[str, int]:
    """Overrides for a student of k steps."""
    return {"distillation.num_steps": k, "sampler.steps": k}


# Row: about, overrides, seeds.
_VARIANTS: dict[str, tuple[str, dict[str, Any], int]] = {
    "alternating_k8_renoise": ("images noised afresh in training, not by the sampler's kernel",
                               {"distillation.conditional_kernel": False}, 1),
    "alternating_k2_grid": ("trained at the sampler's own times", {"distillation.pairs": "grid", **steps(2)}, 1),
    "alternating_k8_grid": ("trained at the sampler's own times", {"distillation.pairs": "grid"}, 1),
    "alternating_k8_ddim": ("trained and sampled with DDIM in place of ancestral steps",
                            {"distillation.kernel_eta": 0.0, "sampler.name": "ddim",
                             "sampler.zero_terminal_snr": None}, 3),
    "alternating_k8_q0": ("auxiliary network without the teacher's term",
                          {"distillation.auxiliary_teacher_weight": 0.0}, 1),
    "instant_k8_identity": ("no preconditioner", {"distillation.preconditioner": "identity"}, 1),
    "instant_k8_fresh": ("preconditioner of fresh gradients", {"distillation.preconditioner": "fresh"}, 1),
}  # fmt: skip


def _rows() -> list[Row]:
    rows = [DIGITS_TEACHER, DIGITS_SIM]
    rows += [student(f"digits_{name}_k{k}", f"8x8 digits, {about}, {k} step{'s' * (k > 1)}", config, steps(k))
             for name, (about, config) in _METHODS.items() for k in STEPS]  # fmt: skip
    rows.append(student(
        "digits_progressive", "8x8 digits, progressive distillation, 16 steps of DDIM halved again and again",
        "configs/digits.py:progressive_distillation",
        stages=[(str(k), steps(k)) for k in reversed(STEPS)]))  # fmt: skip
    for name, (about, overrides, seeds) in _VARIANTS.items():
        family, k, _ = name.split("_")
        method, config = _METHODS[family]
        about = f"8x8 digits, {method}, {k[1:]} steps, {about}"
        rows.append(student(f"digits_{name}", about, config, overrides, seeds=seeds))
    rows.append(MNIST_TEACHER)
    # 3,000 steps in place of 6,000, which on two cores take an hour each.
    rows += [student(f"mnist_{name}_k8", f"28x28 digits, moment matching, {name}, 8 steps", config,
                     {"training.steps": 3000}, teacher=MNIST, seeds=1)
             for name, config in (("alternating", "configs/images.py:mnist5k_moment_matching"),
                                  ("instant", "configs/images.py:mnist5k_instant_moment_matching"))]  # fmt: skip
    return rows


MOMENT_MATCHING = Table(
    name="moment_matching",
    title="Multistep distillation via moment matching (Salimans et al., NeurIPS 2024)",
    rows=(*_rows(), *PAPER_ROWS),
    claims=CLAIMS,
)
