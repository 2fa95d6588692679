"""Inception Score (Salimans et al. 2016) from a classifier's logits, in float64.

    p(y|x) = softmax(logits)                                                                                  (1)
    IS = exp(mean_x KL(p(y|x) || mean_x p(y|x)))                                                              (2)

Each split of the samples has a score (2); reported are their mean and their standard deviation with divisor `splits`.
The published numbers are of the 1008 logits of the 2015 Inception network without their bias. Two rules of splitting
are in use. They differ by noise for samples in random order; for samples in the order of their classes the second rule
is wrong by far, since a split then holds few of the classes.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float
from scipy.special import log_softmax, logsumexp

from evaluation.moments import checked_features


def _score(logits: np.ndarray) -> float:
    """(2) of one split."""
    log_p = log_softmax(logits.astype(np.float64), axis=1)  # (1)
    log_mean = logsumexp(log_p, axis=0) - np.log(len(log_p))  # stays finite where every p(y|x) underflows
    return float(np.exp((np.exp(log_p) * (log_p - log_mean)).sum(axis=1).mean()))


def _mean_and_deviation(splits: Iterable[np.ndarray]) -> tuple[float, float]:
    scores = [_score(split) for split in splits]
    return float(np.mean(scores)), float(np.std(scores))


def inception_score(
    logits: Float[np.ndarray, "n c"], *, splits: int = 10, seed: int | None = 2020
) -> tuple[float, float]:
    """(mean, standard deviation) of the score over equal parts of the shuffled samples, as torch-fidelity does it.

    With the default seed the shuffle is torch-fidelity's (numpy's RandomState), so that both give one value.

    Args:
      splits: number of parts; they differ by at most one sample.
      seed: of the shuffle; None keeps the order.

    Raises:
      ValueError: for logits that are not [N, C] and finite, fewer than 2 samples, or splits outside 1 ... N.
    """
    count = len(checked_features(logits, "logits"))
    if not 1 <= splits <= count:
        raise ValueError(f"splits must lie in 1 ... {count}, the number of samples; got {splits}")
    order = np.arange(count) if seed is None else np.random.RandomState(seed).permutation(count)
    return _mean_and_deviation(logits[order[i * count // splits : (i + 1) * count // splits]] for i in range(splits))


def inception_score_of_blocks(logits: Float[np.ndarray, "n c"], *, block: int = 5000) -> tuple[float, float]:
    """(mean, standard deviation) of the score over consecutive blocks, as ADM (guided-diffusion) does it.

    The last block holds what is left over, and counts as much as the others.

    Raises:
      ValueError: for logits that are not [N, C] and finite, fewer than 2 samples, or a block of less than 1.
    """
    count = len(checked_features(logits, "logits"))
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    return _mean_and_deviation(logits[start : start + block] for start in range(0, count, block))
