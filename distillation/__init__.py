"""Learning a few-step generator from a teacher: one file per method, and what they share."""

from distillation.consistency_distillation import ConsistencyDistillation
from distillation.instant_moment_matching import InstantMomentMatching
from distillation.moment_matching import MomentMatching
from distillation.progressive_distillation import ProgressiveDistillation
from distillation.score_implicit_matching import ScoreImplicitMatching

METHODS = {
    "score_implicit_matching": ScoreImplicitMatching,
    "moment_matching": MomentMatching,
    "instant_moment_matching": InstantMomentMatching,
    "progressive_distillation": ProgressiveDistillation,
    "consistency_distillation": ConsistencyDistillation,
}
