"""An oracle of the Poisson midpoint method, in float64 numpy: the recursion by which it is defined, step by step.

Besides, what makes tests of many small programs quick (`loops_in_python`, `quick_to_compile`). The oracle:

With a frozen drift q0 = q(x, 0), H from {0, 1}^K and the same noise N_i in both lines, i = 0 ... K - 1:

    y_{i+1}  = A_i y_i  + G_i (q0 + w H_i (q(xh_i, i) - q0)) + N_i        the result is y_K
    xh_{i+1} = A_i xh_i + G_i q0 + N_i                                    y_0 = xh_0 = x

Where q is linear, the step is linear in (x, Z_0 ... Z_{K-1}) and affine in H. Fed with unit vectors it gives the matrix
R(H) of that map, and all R give second moments without sampling: no random number is drawn here.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest


def times(matrix, x):
    """matrices [S, S] or [B, S, S] on states [B, S]."""
    return np.einsum("...ij,...j->...i", matrix, x)


def recursion(x, noise, fired, weight, drift, a, g):
    """y_K of states x [B, S]; noise [K, B, S], fired [K] or [K, B], a and g [K, S, S] or [K, B, S, S]."""
    start, fired = drift(x, 0), np.asarray(fired, np.float64)
    y = midpoint = x
    for i in range(len(a)):
        change = drift(midpoint, i) - start
        y = times(a[i], y) + times(g[i], start + weight * fired[i][..., None] * change) + noise[i]
        midpoint = times(a[i], midpoint) + times(g[i], start) + noise[i]
    return y


def unit_vectors(factors):
    """States [S + K S, S] and noises [K, S + K S, S] whose rows are the unit vectors of (x, Z_0 ... Z_{K-1})."""
    k, s, _ = factors.shape
    x, noise = np.zeros((s + k * s, s)), np.zeros((k, s + k * s, s))
    x[:s] = np.eye(s)
    for i in range(k):
        noise[i, s + i * s : s + (i + 1) * s] = factors[i].T
    return x, noise


def patterns(mode, k):
    """[n, K] the H whose responses determine the law: none and one each, for one-hot modes those that can be drawn."""
    if k == 1:
        return np.zeros((1, 1))
    one_hot = np.eye(k)
    if mode == "bernoulli":
        return np.concatenate([np.zeros((1, k)), one_hot[1:]])
    return one_hot[0 if mode == "single0" else 1 :]


def terms(mode, k, responses):
    """[(p, R)]: the second moments after a step are sum p (R_x' V R_x + R_z' R_z); `responses` are of `patterns`."""
    if mode == "bernoulli":  # affine in independent H: the mean, and the variance of every H on its own
        changes = [response - responses[0] for response in responses[1:]]
        return [(1.0, responses[0] + sum(changes) / k)] + [((k - 1) / k**2, change) for change in changes]
    return [(1 / len(responses), response) for response in responses]


def propagate(terms, v):
    """Second moments [S, S] after one step."""
    s = len(v)
    return sum(p * (r[:s].T @ v @ r[:s] + r[s:].T @ r[s:]) for p, r in terms)


def stationary(terms):
    """The second moments that a step leaves as they are."""
    s = terms[0][1].shape[1]
    grows = sum(p * np.kron(r[:s].T, r[:s].T) for p, r in terms)
    added = sum(p * (r[s:].T @ r[s:]) for p, r in terms)
    return np.linalg.solve(np.eye(s * s) - grows, added.ravel()).reshape(s, s)


def segments(fired, noise, a, covariances):
    """The noise of every micro step as a walk asks for it: offsets [B, C] and standard draws [C, B, S], C calls a row.

    Args:
      fired: [B, K].
      noise: [K, B, S] of every micro step.
      a: [K, S, S] or [K, B, S, S].
      covariances: [K, S, S] or [K, B, S, S] of the noise of every micro step.

    The draw of a segment with noise N of covariance C = L L', L lower triangular, is L^-1 N.
    """
    rows, k, s = *fired.shape, noise.shape[-1]
    order = np.where(fired[:, 1:] > 0, np.arange(1, k), k)
    calls = int((fired[:, 1:] > 0).sum(1).max()) + 1
    offsets = np.concatenate([np.sort(order, axis=1), np.full((rows, 1), k)], axis=1)[:, :calls]
    begins = np.concatenate([np.zeros((rows, 1), int), offsets[:, :-1]], axis=1)
    total, spread = np.zeros((calls, rows, s)), np.zeros((calls, rows, s, s))
    for i in range(k):
        inside = ((begins <= i) & (i < offsets)).T
        total = np.where(inside[..., None], times(a[i], total) + noise[i], total)
        carried = np.einsum("...ij,...jk,...lk->...il", a[i], spread, a[i]) + covariances[i]
        spread = np.where(inside[..., None, None], carried, spread)
    # A segment may have no noise, and there is none after the last: the tiny covariance gives zero for these.
    root = np.linalg.cholesky(spread + 1e-200 * np.eye(s))
    return offsets, np.linalg.solve(root, total[..., None])[..., 0]


def python_while(condition, body, carry):
    while condition(carry):
        carry = body(carry)
    return carry


def python_scan(body, carry, rows):
    outputs = []
    for i in range(len(jax.tree.leaves(rows)[0])):
        carry, output = body(carry, jax.tree.map(lambda table, i=i: table[i], rows))
        outputs.append(output)
    return carry, jax.tree.map(lambda *parts: jnp.stack(parts), *outputs)


@pytest.fixture
def loops_in_python(monkeypatch):
    """What the two loops of JAX mean, run op by op: for many short programs that would each take a compilation."""
    monkeypatch.setattr(jax.lax, "while_loop", python_while)
    monkeypatch.setattr(jax.lax, "scan", python_scan)


@pytest.fixture(scope="session")
def micro():
    """The functions of the oracle."""
    names = ("recursion", "unit_vectors", "patterns", "terms", "propagate", "stationary", "segments")
    return SimpleNamespace(**{name: globals()[name] for name in names})
