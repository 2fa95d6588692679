"""Luo, Huang, Geng, Kolter, Qi, "One-Step Diffusion Distillation through Score Implicit Matching", NeurIPS 2024.

The rows that run here; `score_implicit_matching_paper.py` has the paper's own rows and
`score_implicit_matching_claims.py` what it claims.
"""

from typing import Any

from configs.tables.base import Row, Table
from configs.tables.distillation_rows import DIGITS_SIM, DIGITS_TEACHER, MNIST, MNIST_TEACHER, student
from configs.tables.score_implicit_matching_claims import CLAIMS
from configs.tables.score_implicit_matching_paper import DIFF_INSTRUCT, DMD, L2, PAPER_ROWS, SID_1_0, SID_1_2

DIGITS_CONFIG, MNIST_CONFIG = "configs/digits.py:sim", "configs/images.py:mnist5k_sim"
HIGH_RATE = {"optimizer.learning_rate": 1e-3}  # in place of 3e-4

# Suffix of the row: about, overrides, seeds.
_MEMBERS: dict[str, tuple[str, dict[str, Any], int]] = {
    "sim_power": ("Score Implicit Matching, distance |y|^1.5",
                  {"distillation.distance": "power", "distillation.power": 1.5}, 1),
    "sim_cauchy": ("Score Implicit Matching, distance log(1 + |y|^2 / c^2)", {"distillation.distance": "cauchy"}, 1),
    "sim_l2": ("Score Implicit Matching, distance |y|^2 without a normaliser", L2, 1),
    "sid_1.0": ("SiD, coefficient 1", SID_1_0, 3),
    "sid_1.2": ("SiD, coefficient 1.2", SID_1_2, 3),
    "diff_instruct": ("Diff-Instruct, the KL", DIFF_INSTRUCT, 3),
    "dmd": ("the KL with the normaliser of DMD, without its regression loss", DMD, 3),
    "sim_lr1e-3": ("Score Implicit Matching, learning rate 1e-3", HIGH_RATE, 1),
    "sid_1.0_lr1e-3": ("SiD, coefficient 1, learning rate 1e-3", SID_1_0 | HIGH_RATE, 1),
    "diff_instruct_lr1e-3": ("Diff-Instruct, learning rate 1e-3", DIFF_INSTRUCT | HIGH_RATE, 1),
    "sim_warmup0": ("Score Implicit Matching, no head start of the auxiliary network",
                    {"distillation.auxiliary_warmup": 0}, 1),
    "sim_beta0.9": ("Score Implicit Matching, Adam with momentum 0.9", {"optimizer.beta1": 0.9}, 1),
    "sim_adversarial": ("Score Implicit Matching with a discriminator, which sees the data",
                        {"distillation.adversarial_weight": 5.0}, 3),
}  # fmt: skip
_MNIST_MEMBERS = {"sim": ("Score Implicit Matching", {}), "sid_1.2": _MEMBERS["sid_1.2"][:2],
                  "diff_instruct": _MEMBERS["diff_instruct"][:2]}  # fmt: skip


def _rows() -> list[Row]:
    rows = [DIGITS_TEACHER, DIGITS_SIM]
    rows += [student(f"digits_{name}", f"8x8 digits, one step, {about}", DIGITS_CONFIG, overrides, seeds=seeds)
             for name, (about, overrides, seeds) in _MEMBERS.items()]  # fmt: skip
    rows.append(MNIST_TEACHER)
    rows += [student(f"mnist_{name}", f"28x28 digits, one step, {about}", MNIST_CONFIG, overrides, teacher=MNIST,
                     seeds=1) for name, (about, overrides) in _MNIST_MEMBERS.items()]  # fmt: skip
    return rows


SCORE_IMPLICIT_MATCHING = Table(
    name="score_implicit_matching",
    title="One-step distillation through score implicit matching (Luo et al., NeurIPS 2024)",
    rows=(*_rows(), *PAPER_ROWS),
    claims=CLAIMS,
)
