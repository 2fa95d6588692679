"""Finite differences: their order, their limit, and what they do in expectation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.kernel_free import Static

pytestmark = pytest.mark.usefixtures("quick_to_compile")

POINT = (0.3, -0.8, 1.1)
TRACE = -2.523129309915  # of the curved field at POINT
DRAWS = 4000


@pytest.mark.parametrize(("sliced", "differences"), [("ssm", "fd_ssm"), ("ssm_vr", "fd_ssm_vr")])
def test_they_tend_to_ssm_on_the_sphere_with_order_two(sliced, differences, create, represent, of_draw, curved):
    """Draw by draw, in T and in N: halving the step quarters the error."""
    z = jnp.asarray(np.random.default_rng(0).normal(size=(16, 3)))
    with jax.enable_x64(True):
        process = Static(scale=2.0)
        denoise = represent(process, curved)

        def terms(name, **options):
            metrics = jax.vmap(of_draw(create(name, **options), denoise, process, np.array(POINT)))(z)
            return np.array([metrics["trace"], metrics["norm"]], np.float64)

        limit = terms(sliced, probe="sphere")
        coarse, fine, finest = (np.linalg.norm(terms(differences, difference=e) - limit, axis=1)
                                for e in (0.2, 0.1, 0.001))  # fmt: skip
    assert np.all(coarse > 0.05)
    np.testing.assert_allclose(np.log2(coarse / fine), 2, atol=0.1)
    assert np.all(finest < 2e-4 * coarse + 1e-4)


@pytest.mark.parametrize("name", ["fd_ssm", "fd_ssm_vr"])
def test_small_steps_are_unbiased_for_the_exact_terms(name, create, represent, of_key, curved):
    """To 3 standard errors; the variant `vr` has N almost without spread."""
    process = Static(scale=1.0)
    norm = 0.5 * float((curved(jnp.asarray([POINT])) ** 2).sum())
    found = of_key(create(name, difference=0.02), represent(process, curved), process, POINT)
    for term, expected in (("trace", TRACE), ("norm", norm)):
        error = found[term].std() / np.sqrt(DRAWS)
        assert abs(found[term].mean() - expected) < 3 * error + 1e-3
    assert (found["norm"].std() < 0.01 * norm) == (name == "fd_ssm_vr")


def test_the_step_is_in_units_of_sigma(create, represent, one_level):
    """The field is asked for at x +- difference * sigma u, u of length one and another one for each example."""
    seen = []
    process = one_level(5.0)
    x0 = jnp.zeros((500, 4))
    create("fd_ssm", difference=0.3)(lambda x, t, label: seen.append(np.asarray(x)) or x, process, x0, None,
                                     jax.random.key(0))  # fmt: skip
    plus, minus = seen
    np.testing.assert_allclose(np.linalg.norm(plus - minus, axis=1), 2 * 0.3 * 5.0, rtol=1e-4)
    directions = (plus - minus) / 3.0
    assert np.abs(directions.mean(axis=0)).max() < 4 / np.sqrt(4 * 500)
    np.testing.assert_allclose(directions.T @ directions / 500, np.eye(4) / 4, atol=0.05)
    # The middle is x_t, at the noise level of the process, and independent of the direction.
    middle = (plus + minus) / 2
    assert middle.std() == pytest.approx(5.0, rel=0.08)
    assert abs(np.corrcoef(middle.ravel(), directions.ravel())[0, 1]) < 4 / np.sqrt(2000)


def test_more_probes_lower_the_variance(create, represent, of_key, curved):
    """As 1 / n."""
    process = Static(scale=1.0)
    one, four = (
        of_key(create("fd_ssm", num_probes=n), represent(process, curved), process, POINT)["loss"] for n in (1, 4)
    )
    assert one.var() / four.var() == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize("difference", [0.0, -0.1])
def test_bad_difference_is_refused(difference, create):
    with pytest.raises(ValueError, match=f"difference = {difference}"):
        create("fd_ssm_vr", difference=difference)
