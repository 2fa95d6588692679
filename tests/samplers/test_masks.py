"""Fixed choices of steps: by hand, by enumeration and by brute force; and sampling with them, against plain numpy DDIM.

A held output of DDIM moves a state as one long step does. So a run with a mask is a run without one, on the grid of the
steps that call, and that is what `plain_ddim` does in float64.
"""

import re
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion.process import GaussianProcess
from diffusion.random import image_keys
from diffusion.schedules import EDM, RectifiedFlow, VPLinear
from samplers.adaptive import Adaptive
from samplers.ancestral import Ancestral
from samplers.ddim import DDIM
from samplers.dpm_solver import DPMSolver
from samplers.masks import greedy_masks, random_masks, sample_with_mask, uniform_mask

pytestmark = pytest.mark.usefixtures("quick_to_compile")

PROCESSES = {"vp": GaussianProcess(VPLinear()), "edm": GaussianProcess(EDM()), "flow": GaussianProcess(RectifiedFlow())}
D, N = 4, 12
CENTRES = np.array([[1.0, -0.5, 0.3, 0.0], [-0.8, 0.6, 0.1, 0.9]])
WIDTH = 0.3**2


def levels(process, t, xp):
    """alpha and sigma of the three processes, written out."""
    if process == "vp":
        alpha = xp.exp(-0.05 * t - 4.975 * t**2)
        return alpha, xp.sqrt(1 - alpha**2)
    if process == "edm":
        return 1 + 0 * t, (0.002 ** (1 / 7) + t * (80.0 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    return 1 - t, t


def denoiser(process, xp=jnp):
    """Two equal Gaussians; labels make them lean to one of them."""

    def denoise(x, t, label):
        alpha, sigma = (values[:, None] for values in levels(process, t, xp))
        centres = xp.asarray(CENTRES, x.dtype)
        spread = alpha**2 * WIDTH + sigma**2
        apart, middle = centres[0] - centres[1], (centres[0] + centres[1]) / 2
        towards = alpha * ((x - alpha * middle) @ apart)[:, None] / spread
        leaning = 0.0 if label is None else 1.0 - 2.0 * label[:, None]
        share = 1 / (1 + xp.exp(-towards - leaning))
        mean = share * centres[0] + (1 - share) * centres[1]
        return mean + alpha * WIDTH / spread * (x - alpha * mean)

    return denoise


def keys(count):
    return image_keys(0, jnp.arange(count))


def masks_of(*rows):
    return np.array([[letter == "#" for letter in row] for row in rows])


# --- Even ones --------------------------------------------------------------------------------------------------------


def test_uniform_mask_by_hand():
    """20 of 50: 0, 1, and 18 more steps of 48/18 = 2.67 each, to the nearest."""
    expected = [0, 1, 4, 6, 9, 12, 14, 17, 20, 22, 25, 28, 30, 33, 36, 38, 41, 44, 46, 49]
    assert list(np.flatnonzero(uniform_mask(50, 20))) == expected
    assert list(np.flatnonzero(uniform_mask(10, 4))) == [0, 1, 5, 9]
    assert list(np.flatnonzero(uniform_mask(50, 2))) == [0, 1]
    assert list(np.flatnonzero(uniform_mask(50, 3))) == [0, 1, 49]
    assert list(uniform_mask(2, 2)) == [True, True]


def test_uniform_mask_has_as_many_calls_as_asked_for():
    """Rounding makes no two of them one; gaps differ by one step at most, but for the first."""
    for steps in (2, 3, 7, 20, 50):
        for calls in range(2, steps + 1):
            mask = uniform_mask(steps, calls)
            assert mask.shape == (steps,) and mask.dtype == bool and mask.sum() == calls and mask[:2].all()
            gaps = np.diff(np.flatnonzero(mask))[1:]
            assert calls < 3 or (mask[-1] and np.ptp(gaps) <= 1)
        assert uniform_mask(steps, steps).all()


@pytest.mark.parametrize("steps, calls", [(50, 1), (50, 0), (50, -3), (50, 51), (1, 1), (1, 2)])
def test_uniform_mask_refuses(steps, calls):
    with pytest.raises(ValueError, match=f"calls = {calls} must lie between 2 and the {steps} steps"):
        uniform_mask(steps, calls)


# --- Random ones ------------------------------------------------------------------------------------------------------


def longest_run(mask):
    return max(len(run) for run in "".join(".#"[int(called)] for called in mask).split("#"))


def admissible(steps, calls, c_max, warmup):
    """All masks that may be drawn, by trying all."""
    everything = (np.array(bits, bool) for bits in product((False, True), repeat=steps))
    return [mask for mask in everything if mask.sum() == calls and mask[:warmup].all() and longest_run(mask) <= c_max]


@pytest.mark.parametrize("steps, calls, c_max, warmup", [(50, 20, 4, 4), (50, 13, 4, 4), (20, 11, 1, 2), (9, 9, 1, 3),
                                                         (30, 6, 24, 4), (8, 4, 4, 4)])  # fmt: skip
def test_random_masks_are_admissible(steps, calls, c_max, warmup):
    """Of the fewest calls that are possible, 13 of 50 (37 skips for 10 gaps of 4 at most), too, and of all."""
    masks = random_masks(np.random.default_rng(1), 100, steps, calls, c_max=c_max, warmup=warmup)
    assert masks.shape == (100, steps) and masks.dtype == bool
    assert (masks.sum(1) == calls).all() and masks[:, :warmup].all()
    assert max(longest_run(mask) for mask in masks) <= c_max
    # 50 steps with 13 calls leave 46 - 9 = 37 skips for 10 gaps of 4: three to spare.
    varying = masks[:, warmup:].mean(0) > 0
    if (steps, calls, c_max) == (50, 20, 4):
        assert varying.all() and (masks[:, warmup:].mean(0) < 1).all()
        assert max(longest_run(mask) for mask in masks) == c_max


def p_value(masks, choices):
    """Of a chi-square test that all choices are equally likely."""
    place = {mask.tobytes(): i for i, mask in enumerate(choices)}
    return stats.chisquare(np.bincount([place[mask.tobytes()] for mask in masks], minlength=len(choices))).pvalue


def one_by_one(draw, count, steps, calls, c_max, warmup):
    """The control: an even chance at every step that leaves one, so that masks are not equally likely."""
    choices, masks = admissible(steps, calls, c_max, warmup), []
    for _ in range(count):
        left = choices
        for step in range(steps):
            called = draw.choice(sorted({bool(mask[step]) for mask in left}))
            left = [mask for mask in left if mask[step] == called]
        masks.append(left[0])
    return masks


def test_random_masks_are_all_equally_likely():
    """Three of the last seven steps without three skips in a row: each of the 19 choices one time in 19."""
    choices = admissible(9, 5, 2, 2)
    # Four skips in four gaps of two at most: the coefficient of z^4 in (1 + z + z^2)^4.
    assert len(choices) == np.polynomial.polynomial.polypow([1, 1, 1], 4)[4] == 19
    masks = random_masks(np.random.default_rng(2), 3800, 9, 5, c_max=2, warmup=2)
    assert {mask.tobytes() for mask in masks} == {mask.tobytes() for mask in choices}
    assert p_value(masks, choices) > 1e-3
    assert p_value(one_by_one(np.random.default_rng(2), 1000, 9, 5, 2, 2), choices) < 1e-9


def test_random_masks_follow_their_generator():
    draws = [random_masks(np.random.default_rng(seed), 5, 20, 10, c_max=3) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any()
    one = np.random.default_rng(0)  # one after another, they are independent
    assert (random_masks(one, 5, 20, 10, c_max=3) != random_masks(one, 5, 20, 10, c_max=3)).any()


def test_random_masks_refuse_what_is_impossible():
    """Just those numbers of calls for which there is no mask, by trying all."""
    for c_max, warmup in ((1, 2), (2, 4), (3, 1), (9, 3)):
        for calls in range(12):
            draw = partial(random_masks, np.random.default_rng(0), 2, 9, calls, c_max=c_max, warmup=warmup)
            if admissible(9, calls, c_max, warmup):
                assert draw().sum() == 2 * calls
                continue
            message = f"calls = {calls} of 9 steps are not possible with warmup = {warmup} and c_max = {c_max}"
            with pytest.raises(ValueError, match=message):
                draw()


# --- Greedy ones ------------------------------------------------------------------------------------------------------


def recorded(error):
    """`error` of one mask as an error of many, and what it was asked."""
    asked = []

    def of_many(masks):
        asked.append(masks.copy())
        return np.array([error(mask) for mask in masks])

    return of_many, asked


def eliminated(error, steps):
    """{calls: mask}: of the masks with one call less, the best one, again and again; with sets of steps."""
    kept, found = frozenset(range(steps)), {steps: np.ones(steps, bool)}
    while len(kept) > 1:
        masks = {step: np.isin(np.arange(steps), list(kept - {step})) for step in kept - {0}}
        best = min(masks, key=lambda step: error(masks[step]))
        kept = kept - {best}
        found[len(kept)] = masks[best]
    return found


COSTS = np.random.default_rng(5).uniform(1, N, N)


def test_greedy_masks_of_costs_that_add_up_are_the_best_of_all():
    """The steps that cost most are kept, which is the optimum over all masks. Step 0 is, too, though it costs least."""
    costs = COSTS.copy()
    costs[0] = 0.0
    error, asked = recorded(lambda mask: costs[~mask].sum())
    found = greedy_masks(error, N, (3, 7, N))
    assert sorted(found) == [3, 7, N] and found[N].all()
    others = [np.append(True, bits) for bits in product((False, True), repeat=N - 1)]
    for calls in (3, 7):
        of_calls = [np.array(mask) for mask in others if sum(mask) == calls]
        best = min(of_calls, key=lambda mask: costs[~mask].sum())
        np.testing.assert_array_equal(found[calls], best)
    # The control, an error in reverse: the cheapest are kept.
    reverse = greedy_masks(lambda masks: -error(masks), N, (3, 7))
    for calls in (3, 7):
        cheapest = np.sort(costs[1:])[: calls - 1]
        np.testing.assert_array_equal(np.sort(costs[1:][reverse[calls][1:]]), cheapest)
        assert (reverse[calls] != found[calls]).any()
    assert len(asked) == 2 * (N - 3)


def neighbourly(mask):
    """A step that is skipped costs more the longer the run that it ends, so that what is dropped first matters."""
    run, total = 0, 0.0
    for step, called in enumerate(mask):
        run = 0 if called else run + 1
        total += COSTS[step] * run**2
    return total


def test_greedy_masks_are_backward_elimination():
    """Also of costs that depend on each other: step by step what brute force over sets gives, and not the cheapest."""
    error, asked = recorded(neighbourly)
    found, expected = greedy_masks(error, N, range(1, N + 1)), eliminated(neighbourly, N)
    assert sorted(found) == list(range(1, N + 1))
    for calls, mask in found.items():
        np.testing.assert_array_equal(mask, expected[calls])
        assert mask.sum() == calls and mask[0]
    # Nested, and not what costs that add up would keep.
    assert all((found[calls] <= found[calls + 1]).all() for calls in range(1, N))
    additive = eliminated(lambda mask: COSTS[~mask].sum(), N)
    assert any((found[calls] != additive[calls]).any() for calls in range(2, N))
    # What is asked for has one shape, one call less than before, and always step 0.
    assert len(asked) == N - 1
    for calls, masks in zip(range(N, 1, -1), asked):
        assert masks.shape == (N - 1, N) and masks.dtype == bool and masks[:, 0].all()
        assert (masks.sum(1) == calls - 1).all()
        assert {mask.tobytes() for mask in masks[: calls - 1]} == {
            np.where(np.arange(N) == step, False, expected[calls]).tobytes()
            for step in np.flatnonzero(expected[calls])[1:]
        }  # fmt: skip


def test_greedy_masks_do_not_look_at_what_only_fills_up():
    """An error that calls everything perfect behind the candidates of the round: the same masks."""
    rounds = iter(range(N - 1, 0, -1))

    def error(masks):
        errors = np.array([neighbourly(mask) for mask in masks])
        errors[next(rounds) :] = -1e9
        return errors

    np.testing.assert_array_equal(greedy_masks(error, N, [3])[3], eliminated(neighbourly, N)[3])


def test_greedy_masks_ask_for_no_more_than_they_need():
    """Nothing for all calls, and N - K rounds for K; the masks found do not change later."""
    error, asked = recorded(neighbourly)
    assert greedy_masks(error, N, [N])[N].all() and not asked
    for fewest in (9, 5):
        asked.clear()
        found = greedy_masks(error, N, [fewest, 10])
        assert len(asked) == N - fewest and sorted(found) == [fewest, 10]
        assert found[10].sum() == 10 and found[fewest].sum() == fewest


# --- Sampling with a mask ---------------------------------------------------------------------------------------------


@partial(jax.jit, static_argnames=("solver", "process", "reuse"))
def masked(solver, process, mask, keys, label, reuse):
    samples, report = sample_with_mask(solver, mask, denoiser(process), PROCESSES[process], keys, label, shape=(D,),
                                       reuse=reuse)  # fmt: skip
    return samples, report._replace(rows=jnp.array(report.rows))


LABEL = jnp.arange(3) % 2


@pytest.mark.parametrize("solver, process, reuse, batch", [
    (DDIM(steps=N), "vp", "hold", ()), (DDIM(steps=N, eta=0.5), "flow", "hold", (3,)),
    (DPMSolver(steps=N), "edm", "linear", ()), (DPMSolver(steps=N), "vp", "hold", (3,)),
    (Ancestral(steps=N), "vp", "linear", ()),
], ids=["ddim", "ddim-noise", "2m-edm", "2m", "ancestral"])  # fmt: skip
def test_all_steps_called_are_the_plain_solver(solver, process, reuse, batch):
    """One mask for all or one for each, and whatever the reuse, of which there is none."""
    plain = jax.jit(
        lambda keys: solver.sample(denoiser(process), PROCESSES[process], keys, LABEL, shape=(D,)).x0
    )(keys(3))  # fmt: skip
    samples, report = masked(solver, process, jnp.ones((*batch, N), bool), keys(3), LABEL, reuse)
    np.testing.assert_allclose(samples.x0, plain, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(samples.nfe, np.full(3, N))
    assert report.called.all() and report.dense_calls == N
    # And one skip is seen.
    but_one = jnp.broadcast_to(jnp.arange(N) != N // 2, (*batch, N))
    assert np.abs(masked(solver, process, but_one, keys(3), LABEL, reuse)[0].x0 - plain).max() > 1e-4


MASKS = masks_of("############", "##.#.#.#.#.#", "##....##...#", "####..#..#..", "#...........", "##.........#")


@pytest.mark.parametrize(
    "solver, reuse",
    [(DDIM(steps=N), "hold"), (DPMSolver(steps=N), "linear"), (Ancestral(steps=N), "linear")],
    ids=["ddim", "2m", "ancestral"],
)
def test_a_mask_for_each_image_gives_what_each_gives_alone(solver, reuse):
    """With its key, label and mask; the network is called where one image wants it, and each pays for its own."""
    count = len(MASKS)
    label = jnp.arange(count) % 2
    together, report = masked(solver, "vp", jnp.asarray(MASKS), keys(count), label, reuse)
    np.testing.assert_array_equal(report.called, MASKS)
    np.testing.assert_array_equal(together.nfe, MASKS.sum(1))
    np.testing.assert_array_equal(report.calls, MASKS.sum(1))
    assert report.dense_calls == N and report.rows == count
    for i, mask in enumerate(MASKS):
        only = slice(i, i + 1)
        alone, alone_report = masked(solver, "vp", jnp.asarray(mask), keys(count)[only], label[only], reuse)
        np.testing.assert_allclose(together.x0[only], alone.x0, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(alone_report.called, mask[None])
        assert alone.nfe[0] == alone_report.dense_calls == mask.sum()
    # The control: with masks that are swapped, images come out differently.
    swapped, _ = masked(solver, "vp", jnp.asarray(MASKS[::-1]), keys(count), label, reuse)
    assert (np.abs(swapped.x0 - together.x0).max(1) > 1e-3).all()


def test_calls_that_no_image_wants_are_saved():
    """Masks with common gaps: the steps at which anybody calls, and no more."""
    masks = masks_of("###..#..#...", "###.....#..#", "###..#......")
    _, report = masked(DPMSolver(steps=N), "vp", jnp.asarray(masks), keys(3), LABEL, "hold")
    assert report.dense_calls == 6 and list(report.calls) == [5, 5, 4]


def test_the_first_step_calls_whatever_the_mask_says():
    mask = masks_of(".#.#.#.#.#.#")[0]
    samples, report = masked(DDIM(steps=N), "vp", jnp.asarray(mask), keys(3), LABEL, "hold")
    same, _ = masked(DDIM(steps=N), "vp", jnp.asarray(mask | (np.arange(N) == 0)), keys(3), LABEL, "hold")
    np.testing.assert_array_equal(samples.x0, same.x0)
    assert list(report.called[0]) == [True, *mask[1:]]


def plain_ddim(process, t, x, label):
    """x0 in float64: x0_hat and the noise at each t, and the next state from both; the last x0_hat is the result."""
    denoise = denoiser(process, np)
    for now, then in zip(t, [*t[1:], None]):
        x0 = denoise(x, np.full(len(x), now), label)
        if then is None:
            return x0
        (alpha, sigma), (alpha_then, sigma_then) = levels(process, now, np), levels(process, then, np)
        x = alpha_then * x0 + sigma_then * (x - alpha * x0) / sigma


TIMES = {"vp": np.linspace(1.0, 1e-3, N), "edm": np.linspace(1.0, 0.0, N), "flow": np.linspace(1 - 1e-3, 1e-3, N)}


@pytest.mark.parametrize("process", TIMES)
def test_a_held_output_is_a_longer_step(process):
    """Of DDIM: a mask is a coarser grid. With the noise and with a flow's velocity; not with steps moved by one."""
    masks, label = MASKS[1:], np.asarray(LABEL)
    prior = np.asarray(PROCESSES[process].prior(keys(3), (D,)), np.float64)
    for mask in masks:
        samples, _ = masked(DDIM(steps=N), process, jnp.asarray(mask), keys(3), LABEL, "hold")
        expected = plain_ddim(process, TIMES[process][mask], prior, label)
        np.testing.assert_allclose(samples.x0, expected, rtol=1e-4, atol=2e-4)
        if mask.sum() > 2:
            moved = np.append(mask[0], np.roll(mask[1:], 1))
            assert np.abs(plain_ddim(process, TIMES[process][moved], prior, label) - expected).max() > 1e-3
    # A line through the last two outputs is another thing.
    linear, _ = masked(DDIM(steps=N), process, jnp.asarray(masks[0]), keys(3), LABEL, "linear")
    assert np.abs(linear.x0 - plain_ddim(process, TIMES[process][masks[0]], prior, label)).max() > 5e-3


@pytest.mark.parametrize("shape", [(N - 1,), (N + 1,), (3, N - 1), (3, 2 * N), (2, N)])
def test_a_mask_of_other_steps_or_images_is_refused(shape):
    with pytest.raises(ValueError, match=f"{re.escape(str(shape))} does not fit 3 images and the {N} steps of the sol"):
        sample_with_mask(DDIM(steps=N), jnp.ones(shape, bool), denoiser("vp"), PROCESSES["vp"], keys(3), None,
                         shape=(D,))  # fmt: skip


def test_a_solver_of_two_steps_and_a_long_one():
    """Fewer steps than any criterion looks back on, and more than Python would recurse."""
    samples, _ = sample_with_mask(DDIM(steps=2), np.array([True, False]), denoiser("vp"), PROCESSES["vp"], keys(3),
                                  LABEL, shape=(D,))  # fmt: skip
    assert np.isfinite(samples.x0).all()
    mask = random_masks(np.random.default_rng(0), 1, 1000, 500, c_max=4)[0]
    assert mask.sum() == 500


@pytest.mark.parametrize("calls", [(), (0,), (5, N + 1)])
def test_greedy_numbers_of_calls(calls):
    with pytest.raises(ValueError, match=f"must be numbers between 1 and the {N} steps"):
        greedy_masks(lambda masks: np.zeros(len(masks)), N, calls)


def test_greedy_takes_no_failed_candidate():
    """An error that is not a number is the worst, not the best."""
    def error(masks):
        return np.where(masks[:, 2], masks.sum(1) * 0.0 + 1, np.nan)

    assert greedy_masks(error, 6, (2,))[2][2]


def test_a_mask_repeats_what_adaptive_sampling_did():
    """The steps that `Adaptive` called for each image, as a mask: the same samples at the same cost."""
    solver = DDIM(steps=N)
    sampler = Adaptive(solver=solver, criterion="scalar", delta=0.1, mode="per_sample", slots=2)
    samples, called = jax.jit(
        lambda keys: (lambda samples, report: (samples, report.called))(
            *sampler.sample_with_report(denoiser("vp"), PROCESSES["vp"], keys, jnp.zeros(6, jnp.int32), shape=(D,)))
    )(keys(6))  # fmt: skip
    assert len({row.tobytes() for row in np.asarray(called)}) > 2
    again, _ = masked(solver, "vp", called, keys(6), jnp.zeros(6, jnp.int32), "hold")
    np.testing.assert_allclose(again.x0, samples.x0, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(again.nfe, samples.nfe)
