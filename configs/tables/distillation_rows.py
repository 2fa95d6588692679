"""What the tables of the distillation papers share: teachers, the form of students' rows, and ways to compare two rows.

A place is (row, figure). Rows of several seeds are compared in standard errors; where one of the two has a single seed
only the means are, and a difference of less than a tenth counts as none.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from configs.tables.base import Check, Figure, Row, Values, compare, mean_and_spread
from configs.tables.distillation_checks import student_figures, teacher_figures

Place = tuple[str, str]
Predicate = Callable[[Values], tuple[bool, str]]

SURE = 2.0  # standard errors
TENTH = 0.9  # smaller by a tenth
DIGITS, MNIST = "configs/digits.py:dsm", "configs/images.py:mnist5k_mlp"
LABELS = {"fd": "Fréchet distance to test images, classifier features", "kid": "kernel distance, the same features",
          "accuracy": "share of the images that are of the class asked for"}  # fmt: skip

# --- Rows -------------------------------------------------------------------------------------------------------------

# The number in a label is that of network calls.
TEACHER_SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"heun{2 * steps - 1}": ("heun", {"steps": steps, "grid": "karras"}) for steps in (18, 4, 2)},
    **{f"dpm_solver{k}": ("dpm_solver", {"steps": k, "grid": "logsnr"}) for k in (2, 4, 8)},
    **{f"ddim{k}": ("ddim", {"steps": k, "grid": "trailing"}) for k in (1, 2, 4, 8)},
    **{f"ancestral{k}": ("ancestral", {"steps": k, "grid": "trailing", "zero_terminal_snr": True})
       for k in (1, 2, 4, 8, 64)},
}  # fmt: skip
_SHOWN_IN_FULL = ("heun35", "ancestral8", "ancestral64")  # the ledger has all figures of all samplers


def teacher(name: str, about: str, config: str, *, seeds: int = 3) -> Row:
    """A teacher with all of TEACHER_SAMPLERS."""
    figures = {f"fd_{label}": Figure(f"{LABELS['fd']}, {label}") for label in TEACHER_SAMPLERS}
    figures |= {f"{figure}_{label}": Figure(f"{LABELS[figure]}, {label}")
                for figure in ("kid", "accuracy") for label in _SHOWN_IN_FULL}  # fmt: skip
    options = {"teacher": config, "teacher_overrides": {}, "samplers": TEACHER_SAMPLERS}
    return Row(name=name, about=about, figures=figures, seeds=seeds, small=Check(teacher_figures, options))


def student(
    name: str, about: str, config: str, overrides: Mapping[str, Any] | None = None, *, teacher: str = DIGITS,
    seeds: int = 3, stages: Sequence[tuple[str, Mapping[str, Any]]] = (),
) -> Row:
    """A student of a teacher of the same seed; with stages a chain of them, as `student_figures` has it."""
    figures = {f"{figure}_{stage}" if stage else figure: Figure(f"{label}, {stage} steps" if stage else label)
               for stage in ([stage for stage, _ in stages] or [""]) for figure, label in LABELS.items()}  # fmt: skip
    options = {"config": config, "overrides": dict(overrides or {}), "teacher": teacher, "teacher_overrides": {}}
    options |= {"stages": tuple(stages)} if stages else {}
    return Row(name=name, about=about, figures=figures, seeds=seeds, small=Check(student_figures, options))


DIGITS_TEACHER = teacher("digits_teacher", "8x8 digits, the teacher: its images by sampler and calls", DIGITS)
MNIST_TEACHER = teacher("mnist_teacher", "28x28 digits, the teacher: its images by sampler and calls", MNIST, seeds=1)
DIGITS_SIM = student("digits_sim", "8x8 digits, one step by Score Implicit Matching, pseudo-Huber distance",
                     "configs/digits.py:sim")  # fmt: skip

# --- Comparisons ------------------------------------------------------------------------------------------------------


def best_sampler(values: Values, row: str) -> Place:
    """Where the smallest Fréchet distance of a teacher is. Raises NotRunError unless all samplers are there."""
    means = {label: values.get(row, f"fd_{label}").mean() for label in TEACHER_SAMPLERS}
    return row, f"fd_{min(means, key=means.__getitem__)}"


def _place(values: Values, place: Place) -> Place:
    return best_sampler(values, place[0]) if place[1] == "best" else place


def _name(place: Place) -> str:
    row, figure = place
    return row if figure == "fd" else f"{row}.{figure}"


def difference(values: Values, one: Place, other: Place, factor: float = 1.0) -> tuple[float, str]:
    """How many standard errors place `one` lies above `factor` times place `other`, and the figures.

    The figure "best" is that of a teacher's best sampler. Raises NotRunError for fewer than two seeds.
    """
    one, other = _place(values, one), _place(values, other)
    name = _name(other) if factor == 1 else f"{factor:.3g} x {_name(other)}"
    found = {_name(one): {"f": list(values.get(*one))}, name: {"f": list(factor * values.get(*other))}}
    errors, text = compare(Values(found), "f", _name(one), name)
    return errors, f"{text}: {errors:+.1f} s.e."


def ratio(values: Values, one: Place, other: Place) -> tuple[float, str]:
    """The mean of place `one` over that of place `other`, and the figures."""
    places = [_place(values, place) for place in (one, other)]
    samples = [values.get(*place) for place in places]
    (a, spread_a), (b, spread_b) = (mean_and_spread(sample) for sample in samples)
    text = ", ".join(f"{_name(place)} {mean:.4g}" + (f" ± {spread:.2g}" if len(sample) > 1 else "")
                     + f" (n={len(sample)})"
                     for place, sample, mean, spread in zip(places, samples, (a, b), (spread_a, spread_b)))  # fmt: skip
    # A student whose images are not finite is no match for anything, nor is anything beaten that is infinite as well.
    quotient = a / b if a < float("inf") else float("inf")
    return quotient, f"{text}: ratio {quotient:.3g}"


def less(*pairs: tuple[Place, Place]) -> Predicate:
    """Holds where the first of each pair lies below the second, beyond `SURE` standard errors."""
    def predicate(values: Values) -> tuple[bool, str]:
        compared = [difference(values, *pair) for pair in pairs]
        return all(errors < -SURE for errors, _ in compared), "; ".join(text for _, text in compared)

    return predicate


def not_above(one: Place, other: Place, factor: float = 1.0) -> Predicate:
    """Holds where `one` does not lie above `factor` times `other`, beyond `SURE` standard errors."""
    def predicate(values: Values) -> tuple[bool, str]:
        errors, text = difference(values, one, other, factor)
        finite = bool(values.get(*one).max() < float("inf"))
        return finite and errors <= SURE, text

    return predicate


def below(*pairs: tuple[Place, Place], factor: float = TENTH) -> Predicate:
    """Holds where the mean of the first of each pair is less than `factor` times that of the second."""
    def predicate(values: Values) -> tuple[bool, str]:
        compared = [ratio(values, *pair) for pair in pairs]
        return all(quotient < factor for quotient, _ in compared), "; ".join(text for _, text in compared)

    return predicate


def similar(*pairs: tuple[Place, Place], factor: float = 1.2) -> Predicate:
    """Holds where the means of each pair differ by less than `factor`, either way."""
    def predicate(values: Values) -> tuple[bool, str]:
        compared = [ratio(values, *pair) for pair in pairs]
        return all(1 / factor < q < factor for q, _ in compared), "; ".join(text for _, text in compared)

    return predicate
