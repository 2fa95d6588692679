"""What the Poisson midpoint paper claims, and whether the small rows agree; and what it leaves open.

Comparisons are at equal numbers of network calls. Biases and moments of Gaussians are exact, so that one value decides;
figures of samples are compared in standard errors over seeds.
"""

from collections.abc import Callable, Sequence

from configs.tables.base import Claim, Values, compare

SURE = 2.0  # standard errors
_SOURCE = "section 4"
_EXACT = ("digits_empirical", "digits_gaussians")
_DISTANCE = "sliced_wasserstein"
_PAPER = "pmm_single"
Point = tuple[str, int]  # sampler and calls
Predicate = Callable[[Values], tuple[bool, str]]


def _place(target: str, sampler: str, calls: int) -> tuple[str, str]:
    """(row, figure) of a sampler's quality on a target; smaller is better."""
    if target.endswith("_learnt"):
        return target, f"fd_{sampler}_nfe{calls}"
    return f"{target}_{sampler}", f"{_DISTANCE}_nfe{calls}"


def rows_of(targets: Sequence[str], samplers: Sequence[str]) -> tuple[str, ...]:
    """The rows in which `_place` finds them, each once."""
    return tuple(dict.fromkeys(_place(target, sampler, 0)[0] for target in targets for sampler in samplers))


def compare_points(values: Values, target: str, one: Point, other: Point) -> tuple[float, str]:
    """As `compare`, of two samplers with their calls on one target."""
    names = [f"{sampler}({calls})" for sampler, calls in (one, other)]
    found = {name: {"f": list(values.get(*_place(target, *point)))} for name, point in zip(names, (one, other))}
    errors, text = compare(Values(found), "f", *names)
    return errors, f"{target}: {text}: {errors:+.1f} s.e."


def _less(targets: Sequence[str], pairs: Sequence[tuple[Point, Point]]) -> Predicate:
    """Holds where the first of each pair is better on every target, beyond `SURE` standard errors."""
    def predicate(values: Values) -> tuple[bool, str]:
        compared = [compare_points(values, target, *pair) for target in targets for pair in pairs]
        return all(errors < -SURE for errors, _ in compared), "; ".join(text for _, text in compared)

    return predicate


def _matches(targets: Sequence[str], one: Point, other: Point) -> Predicate:
    """Holds where the first is not worse on any target, beyond `SURE` standard errors."""
    def predicate(values: Values) -> tuple[bool, str]:
        compared = [compare_points(values, target, one, other) for target in targets]
        return all(errors <= SURE for errors, _ in compared), "; ".join(text for _, text in compared)

    return predicate


def _four_times(targets: Sequence[str]) -> Predicate:
    """Holds where on every target some number of calls is as good as DDPM with four times as many or more."""
    pairs = ((10, 40), (20, 80), (40, 200))

    def predicate(values: Values) -> tuple[bool, str]:
        holds, texts = [], []
        for target in targets:
            compared = [compare_points(values, target, (_PAPER, few), ("ddpm", many)) for few, many in pairs]
            best = min(compared, key=lambda found: found[0])
            holds.append(best[0] <= SURE)
            texts.append(best[1])
        return all(holds), "; ".join(texts)

    return predicate


def _degrades(targets: Sequence[str]) -> Predicate:
    """Holds where from 80 to 20 calls the distance grows by more than 2, and by more than DDIM's."""
    def predicate(values: Values) -> tuple[bool, str]:
        holds, texts = [], []
        for target in targets:
            ratios = [values.get(*_place(target, sampler, 20)).mean() / values.get(*_place(target, sampler, 80)).mean()
                      for sampler in (_PAPER, "ddim")]  # fmt: skip
            holds.append(ratios[0] > max(2, ratios[1]))
            texts.append(f"{target}: distance at 20 calls over that at 80 {ratios[0]:.3g}, of DDIM {ratios[1]:.3g}")
        return all(holds), "; ".join(texts)

    return predicate


# --- Exact rows -------------------------------------------------------------------------------------------------------

# Row -> where its slope should lie: of the bias for the first three, of the excess over the fine chain for the others.
_SLOPES = {"lmc": (0.95, 1.1), "ulmc": (0.95, 1.1), "plmc_bernoulli_inverse": (1.9, 2.2),
           "plmc_bernoulli_k32": (1.9, 2.2), "pulmc_bernoulli_k32": (2.8, 3.1)}  # fmt: skip


def _speed_up(values: Values) -> tuple[bool, str]:
    slopes = {row: float(values.get(row, "slope").mean()) for row in _SLOPES}
    text = ", ".join(f"{row} {slope:.3g}" for row, slope in slopes.items())
    return all(low <= slopes[row] <= high for row, (low, high) in _SLOPES.items()), f"slopes: {text}"


def _single_slopes(values: Values) -> tuple[bool, str]:
    over, under = (float(values.get(row, "slope").mean()) for row in ("plmc_single_k32", "pulmc_single_k32"))
    return 2.9 <= over <= 3.2 and 4.7 <= under <= 5.1, f"slopes of the excess {over:.3g}, underdamped {under:.3g}"


def _equal_calls(values: Values) -> tuple[bool, str]:
    """Two calls a step, against two steps of half the length."""
    holds, texts = [], []
    for mode in ("bernoulli", "single"):
        for a in (0.4, 0.2, 0.1):
            ours = float(values.get(f"plmc_{mode}_k32", f"bias_a{a:g}").mean())
            plain = float(values.get("lmc", f"bias_a{a / 2:g}").mean())
            holds.append(ours < plain)
            texts.append(f"{mode}, a = {a:g}: {ours:.3g} against {plain:.3g}")
    return all(holds), "; ".join(texts)


def _mixture(values: Values) -> tuple[bool, str]:
    holds, texts = [], []
    for row in ("mixture_m0.9", "mixture_m1.5"):
        excess = {(name, h): float(values.get(row, f"excess_{name}_a{h:g}").mean())
                  for name in ("lmc", "bernoulli", "single") for h in (0.4, 0.2, 0.1)}  # fmt: skip
        ratio = excess["bernoulli", 0.2] / excess["bernoulli", 0.1]
        smaller = [2 * abs(excess["single", h]) < excess["bernoulli", h] < excess["lmc", h] for h in (0.4, 0.2)]
        holds.append(3.5 <= ratio <= 6 and all(smaller))
        at = ", ".join(f"{name} {excess[name, 0.2]:.3g}" for name in ("lmc", "bernoulli", "single"))
        texts.append(f"{row}: bernoulli from step 0.2 to 0.1 falls by {ratio:.3g}; at 0.2 {at}")
    return all(holds), "; ".join(texts)


def _excess(values: Values, mode: str, k: int, s: float) -> float:
    return float(values.get(f"moments_{mode}", f"excess_K{k}_s{s:g}").mean())


def _which_mode(values: Values) -> tuple[bool, str]:
    """Few calls: K = 25. Many: K = 4 of bernoulli, 437.5 calls, against the 400 of single with K = 5."""
    few = all(_excess(values, "single", 25, s) < _excess(values, "bernoulli", 25, s) for s in (1.0, 0.5))
    many = all(_excess(values, "bernoulli", 4, s) < _excess(values, "single", 5, s) for s in (1.0, 0.5))
    numbers = [_excess(values, mode, k, 0.5) for mode, k in (("single", 25), ("bernoulli", 25), ("bernoulli", 4),
                                                             ("single", 5))]  # fmt: skip
    text = ("excess of the deviation, data of 0.5: K = 25 single {:.3g}, bernoulli {:.3g}; bernoulli with 437.5 calls "
            "{:.3g}, single with 400 {:.3g}").format(*numbers)  # fmt: skip
    return few and many, text


def _closer(values: Values) -> tuple[bool, str]:
    holds, texts = [], []
    for s in (1.0, 0.5):
        ours = float(values.get("moments_single", f"std_error_K25_s{s:g}").mean())
        others = [float(values.get("moments_respaced", f"std_error_{name}_nfe100_s{s:g}").mean())
                  for name in ("ddpm", "ddim")]  # fmt: skip
        holds.append(abs(ours) < min(map(abs, others)))
        texts.append(f"s = {s:g}: {ours:+.3g} with 80 calls; DDPM {others[0]:+.3g}, DDIM {others[1]:+.3g} with 100")
    return all(holds), "; ".join(texts)


def _narrow(values: Values) -> tuple[bool, str]:
    """Equal macro steps with frozen epsilon are off by the data's own width, the others by a tenth of it at most."""
    names = ("linear_epsilon_p1", "linear_epsilon_p2", "linear_x0_p2", "linear_v_p2")
    found = {name: float(values.get("moments_grids", f"excess_{name}_s0.1").mean()) for name in names}
    text = ", ".join(f"{name} {value:+.3g}" for name, value in found.items())
    return found[names[0]] > 1 and all(abs(found[name]) < 0.1 for name in names[1:]), f"excess, data of 0.1: {text}"


_BREAKS = ("In Gaussian directions narrower than the noise at which the last macro step starts, equal macro steps with "
           "frozen epsilon make the deviation too large; in wider ones the error is that of DDPM-1000 but for a "
           "percent.")  # fmt: skip
_ALIKE = ("From 40 calls on all of them are as good as many steps of the chain, or as exact draws, but for the spread "
          "between seeds.")  # fmt: skip
_PEERS = ("sa_solver", "sde_dpm_solver", "randomized_midpoint")
_LEARNT = ("digits_learnt",)
_RIVALS = [((_PAPER, calls), (rival, calls)) for calls in (40, 80) for rival in ("ddim", "dpm_solver")]
_AT_TEN = [(("dpm_solver", 10), (rival, 10)) for rival in (_PAPER, "ddim", "ddpm")]
_AGAINST_PEERS = [(("pmm_v", calls), (rival, calls)) for calls in (40, 80) for rival in _PEERS]
_WITHOUT = "With the exact denoiser in place of a network: "

CLAIMS = (
    Claim(name="matches_ddpm1000", text="The method is as good as DDPM with 1000 calls, with 50 to 80 (here 80).",
          source="abstract", rows=_LEARNT, predicate=_matches(_LEARNT, (_PAPER, 80), ("ddpm", 1000))),
    Claim(name="matches_ddpm1000_exact", text=_WITHOUT + "as good as DDPM with 1000 calls, with 80.",
          source="abstract", rows=rows_of(_EXACT, (_PAPER, "ddpm")),
          predicate=_matches(_EXACT, (_PAPER, 80), ("ddpm", 1000)), explanation=_BREAKS),
    Claim(name="four_times", text="Up to four times fewer calls than DDPM for the same quality.",
          source="contributions", rows=_LEARNT, predicate=_four_times(_LEARNT)),
    Claim(name="four_times_exact", text=_WITHOUT + "up to four times fewer calls than DDPM.",
          source="contributions", rows=rows_of(_EXACT, (_PAPER, "ddpm")), predicate=_four_times(_EXACT),
          explanation=_BREAKS),
    Claim(name="better_than_odes", text="Better than DDIM and DPM-Solver with as many calls, 40 to 100 (here 40, 80).",
          source=_SOURCE, rows=_LEARNT, predicate=_less(_LEARNT, _RIVALS),
          explanation="Our DPM-Solver is DPM-Solver++(2M), the paper's the older one. With 40 calls the method is "
                      "better than DDIM and as good as DPM-Solver++, which has no more to gain after 10 calls."),
    Claim(name="better_than_odes_exact", text=_WITHOUT + "better than DDIM and DPM-Solver with 40 and 80 calls.",
          source=_SOURCE, rows=rows_of(_EXACT, (_PAPER, "ddim", "dpm_solver")), predicate=_less(_EXACT, _RIVALS),
          explanation=_BREAKS),
    Claim(name="dpm_solver_at_ten", text="DPM-Solver is best at about 10 calls.", source=_SOURCE, rows=_LEARNT,
          predicate=_less(_LEARNT, _AT_TEN)),
    Claim(name="degrades", text="Below 40 to 50 calls the quality of the method falls fast.", source=_SOURCE,
          rows=_LEARNT, predicate=_degrades(_LEARNT)),
    Claim(name="degrades_exact", text=_WITHOUT + "below 40 to 50 calls the quality falls fast.", source=_SOURCE,
          rows=rows_of(_EXACT, (_PAPER, "ddim")), predicate=_degrades(_EXACT), explanation=_BREAKS),
    Claim(name="quadratic_speed_up", text="With K of the order 1 / step the error falls quadratically in the step, "
          "where that of Langevin Monte Carlo falls linearly.", source="theorems 2 and 3",
          rows=tuple(_SLOPES), predicate=_speed_up,
          explanation="Of the variance of a Gaussian, exactly; of the underdamped chain the excess falls with the "
                      "third power."),
    Claim(name="single_cancels", text="Ours: on a Gaussian what mode single adds falls with the third power, and with "
          "the fifth underdamped.", source="not in the paper", rows=("plmc_single_k32", "pulmc_single_k32"),
          predicate=_single_slopes),
    Claim(name="better_at_equal_calls", text="Ours: two calls in the midpoint form serve better than two steps of half "
          "the length.", source="not in the paper", rows=("lmc", "plmc_bernoulli_k32", "plmc_single_k32"),
          predicate=_equal_calls, explanation="Where a / 3 + 1 / (2 K) < 1 / 4, mode bernoulli; a = step times "
          "precision."),
    Claim(name="mixture", text="Ours: on a mixture bernoulli is of second order, single adds less than half as much.",
          source="not in the paper", rows=("mixture_m0.9", "mixture_m1.5"), predicate=_mixture),
    Claim(name="which_mode", text="Single for few calls, bernoulli for many (K = 2 to 4).", source=_SOURCE,
          rows=("moments_single", "moments_bernoulli"), predicate=_which_mode,
          explanation="On Gaussian data single adds 3 to 7 times less than bernoulli at every K from 4 to 50, and with "
                      "400 calls less than bernoulli with 437.5."),
    Claim(name="closer_to_the_data", text="80 calls are closer to the data than 100 of DDPM and DDIM on fewer levels.",
          source=_SOURCE, rows=("moments_single", "moments_respaced"), predicate=_closer,
          explanation="Gaussian data as wide as the noise or half as wide. Judged by the deviation alone, the excess "
                      "of the method hides a part of what DDPM-1000 lacks."),
    Claim(name="narrow_directions", text="Ours: 40 calls double narrow directions on equal macro steps; ends that are "
          "closer near the data mend it.", source="not in the paper", rows=("moments_grids",), predicate=_narrow,
          explanation=_BREAKS),
    Claim(name="better_than_peers", text="Ours: with v frozen and closer ends it is better than the strongest samplers "
          "with noise, with 40 and 80 calls.", source="not compared in the paper", rows=_LEARNT,
          predicate=_less(_LEARNT, _AGAINST_PEERS), explanation=_ALIKE),
    Claim(name="better_than_peers_exact", text=_WITHOUT + "ours, with v frozen and closer ends, is better than the "
          "strongest samplers with noise.", source="not compared in the paper",
          rows=rows_of(_EXACT, ("pmm_v", *_PEERS)), predicate=_less(_EXACT, _AGAINST_PEERS), explanation=_ALIKE),
)  # fmt: skip
