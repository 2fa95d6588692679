"""The exact trace against matrices, and the sliced estimates against the exact trace."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.kernel_free import Static
from scoring.ism import exact_trace
from scoring.ssm import PROBES

pytestmark = pytest.mark.usefixtures("quick_to_compile")

POINT = (0.3, -0.8, 1.1)
TRACE, NORM = -2.523129309915, 1.6723697834  # of the curved field at POINT; the norm smoothed by 0.01
DRAWS = 4000


def test_exact_trace_is_the_trace_of_the_jacobian(curved):
    """Of every example of a batch, times sigma^2, also where the columns come in several parts."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
    sigma = jnp.linspace(0.5, 2, 5)
    expected = [jnp.trace(jax.jacfwd(lambda y: curved(y[None])[0])(row)) for row in x]
    found = exact_trace(lambda y: sigma[:, None] * curved(y), x, sigma)
    np.testing.assert_allclose(found, sigma**2 * np.array(expected), rtol=1e-5)
    matrix = jnp.asarray(np.random.default_rng(1).normal(size=(70, 70)), jnp.float32)
    images = jnp.ones((2, 7, 5, 2))

    def linear(y):
        return (y.reshape(len(y), -1) @ matrix).reshape(y.shape)

    np.testing.assert_allclose(exact_trace(linear, images, jnp.ones(2)), jnp.trace(matrix), rtol=1e-4)


def test_ism_on_static_data(create, represent, curved):
    process = Static(scale=0.7)
    metrics = create("ism")(
        represent(process, curved), process, jnp.asarray([POINT]), None, jax.random.key(0)
    )[1]
    assert float(metrics["trace"]) == pytest.approx(TRACE, rel=1e-5)
    assert float(metrics["norm"]) == pytest.approx(0.5 * float((curved(jnp.asarray([POINT])) ** 2).sum()), rel=1e-5)
    assert float(metrics["norm"]) == pytest.approx(NORM, rel=1e-3)
    assert "dsm_equivalent" not in metrics  # no noise was added


@pytest.mark.parametrize("probe", PROBES)
def test_probes_have_unit_second_moment(probe):
    """E[v v'] = I, to 4 standard errors; the probes differ in the spread of |v|^2."""
    v = np.asarray(PROBES[probe](jax.random.key(0), (20_000, 3)), np.float64)
    second = v[:, :, None] * v[:, None, :]
    assert np.all(np.abs(second.mean(axis=0) - np.eye(3)) <= 4 * second.std(axis=0) / np.sqrt(20_000) + 1e-6)
    spread = (v**2).sum(axis=1).std()
    assert spread == pytest.approx({"rademacher": 0, "gaussian": np.sqrt(6), "sphere": 0}[probe], abs=0.05)
    assert len(np.unique(v.round(3))) == (2 if probe == "rademacher" else len(np.unique(v.round(3))))


@pytest.mark.parametrize("name", ["ssm", "ssm_vr"])
@pytest.mark.parametrize("probe", PROBES)
def test_sliced_terms_are_unbiased(name, probe, create, represent, of_key, curved):
    """T and N have the means of the exact terms, to 3 standard errors; `vr` has N without spread."""
    process = Static(scale=0.7)
    found = of_key(create(name, probe=probe), represent(process, curved), process, POINT)
    for term, expected in (("trace", TRACE), ("norm", 0.5 * float((curved(jnp.asarray([POINT])) ** 2).sum()))):
        error = found[term].std() / np.sqrt(DRAWS)
        assert abs(found[term].mean() - expected) < 3 * error + 1e-5
        assert (error < 1e-6) == (name == "ssm_vr" and term == "norm")
    jacobian = np.asarray(jax.jacfwd(lambda y: curved(y[None])[0])(jnp.array(POINT)), np.float64)
    symmetric = (jacobian + jacobian.T) / 2
    off = 2 * ((symmetric**2).sum() - (np.diag(symmetric) ** 2).sum())
    whole = 2 * (symmetric**2).sum()
    traceless = symmetric - np.trace(symmetric) / 3 * np.eye(3)
    variance = {"rademacher": off, "gaussian": whole, "sphere": 2 * 3 / 5 * (traceless**2).sum()}[probe]
    assert found["trace"].std() == pytest.approx(np.sqrt(variance), rel=0.05)


def test_more_probes_lower_the_variance(create, represent, of_key, curved):
    """As 1 / n."""
    process = Static(scale=0.7)
    one, eight = (
        of_key(create("ssm", num_probes=n), represent(process, curved), process, POINT)["loss"] for n in (1, 8)
    )
    assert one.var() / eight.var() == pytest.approx(8, rel=0.15)
    assert abs(one.mean() - eight.mean()) < 4 * np.sqrt((one.var() + eight.var()) / DRAWS)


def test_unknown_probe_lists_the_choices(create):
    with pytest.raises(ValueError, match=r"probe = 'uniform'.*rademacher, gaussian, sphere"):
        create("ssm", probe="uniform")
    for name in ("ssm", "ssm_vr", "fd_ssm", "fd_ssm_vr"):
        with pytest.raises(ValueError, match="num_probes = 0 must be at least 1"):
            create(name, num_probes=0)
