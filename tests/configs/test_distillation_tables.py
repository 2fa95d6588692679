"""The rows of the distillation tables: what they train and how it is sampled, what the papers say, and the verdicts."""

import math

import numpy as np
import pytest

from configs.base import validate
from configs.overrides import identity, resolve
from configs.tables import TABLES
from configs.tables.base import Check, NotRunError, Run, Values
from configs.tables.distillation_checks import student_figures, teacher_figures
from configs.tables.distillation_rows import (
    TEACHER_SAMPLERS,
    below,
    best_sampler,
    difference,
    less,
    not_above,
    ratio,
    similar,
)
from training import components
from training.distilling import make_method

SIM, MOMENTS = TABLES["score_implicit_matching"], TABLES["moment_matching"]
SMALL = {row.name: row for table in (SIM, MOMENTS) for row in table.rows if row.small}
STUDENTS = {name: row for name, row in SMALL.items() if row.small.measure is student_figures}

# --- Rows -------------------------------------------------------------------------------------------------------------


def configs_of(row):
    """[(label, config)] of the students of a row, as `student_figures` makes them."""
    options = row.small.options
    return [(label, resolve(options["config"], {**options["overrides"], **more, "seed": 0}))
            for label, more in options.get("stages", (("", {}),))]  # fmt: skip


@pytest.mark.parametrize("name", STUDENTS)
def test_students_can_be_trained_and_are_sampled_as_they_are_trained(name):
    row = STUDENTS[name]
    for label, config in configs_of(row):
        validate(config)
        given = components.sampler_settings(config)
        wanted = make_method(config).sampler
        assert {key: given[key] for key in wanted} == wanted
        figures = {f"{figure}_{label}" if label else figure for figure in ("fd", "kid", "accuracy")}
        assert figures <= set(row.figures)
    # A student has the network of its teacher, but for dropout, and is of as many images.
    teacher = resolve(row.small.options["teacher"], row.small.options["teacher_overrides"])
    for section in ("network", "process"):
        one, other = (dict(each[section].to_dict(), dropout=None) for each in (config, teacher))
        assert one == other
    assert config.evaluation.num_samples == teacher.evaluation.num_samples and config.network.dropout == 0


def test_rows_train_different_students():
    """Of every table; rows that two tables share are the same in both."""
    for table in (SIM, MOMENTS):
        identities = [row.small.identity(0) for row in table.rows if row.small]
        assert len(set(identities)) == len(identities)
        assert all(isinstance(row.small, Check) for row in table.rows if row.small)
    shared = {row.name for row in SIM.rows if row.small} & {row.name for row in MOMENTS.rows if row.small}
    assert shared == {"digits_teacher", "digits_sim", "mnist_teacher"}
    assert all(SIM.row(name) == MOMENTS.row(name) for name in shared)
    made = [identity(config) for row in STUDENTS.values() for _, config in configs_of(row)]
    assert len(set(made)) == len(made) == len(STUDENTS) + 3


def test_seeds():
    one = {name for name, row in SMALL.items() if row.seeds == 1}
    assert {name for name in SMALL if name.startswith("mnist_")} <= one
    assert {row.seeds for row in SMALL.values()} == {1, 3}
    many = {"digits_sid_1.0", "digits_sid_1.2", "digits_diff_instruct", "digits_dmd", "digits_progressive"}
    many |= {f"digits_{name}_k{k}" for name in ("alternating", "instant", "consistency") for k in (1, 2, 4, 8)}
    many |= {"digits_sim_adversarial", "digits_alternating_k8_ddim"}
    assert many == set(SMALL) - one - {"digits_teacher", "digits_sim"}


def test_the_chain_of_progressive_distillation_halves_its_steps():
    options = SMALL["digits_progressive"].small.options
    assert [label for label, _ in options["stages"]] == ["8", "4", "2", "1"]
    for label, config in configs_of(SMALL["digits_progressive"]):
        assert config.distillation.num_steps == config.sampler.steps == int(label)


def test_members_of_the_family():
    """Each by the options of its method: distance, normaliser, coefficient, and whether scores carry gradients."""
    options = {
        "digits_sim": ("pseudo_huber", "none", 1.0, True), "digits_sim_power": ("power", "none", 1.0, True),
        "digits_sim_cauchy": ("cauchy", "none", 1.0, True), "digits_sim_l2": ("l2", "none", 1.0, True),
        "digits_sid_1.0": ("l2", "l1", 1.0, True), "digits_sid_1.2": ("l2", "l1", 1.2, True),
        "digits_diff_instruct": ("l2", "none", 1.0, False), "digits_dmd": ("l2", "l1", 1.0, False),
    }  # fmt: skip
    for name, known in options.items():
        (_, config), = configs_of(SMALL[name])
        method = make_method(config)
        assert (method.distance, method.normalizer, method.sid_coefficient, method.through_scores) == known, name
    for name, rate in (("digits_sim", 3e-4), ("digits_sim_lr1e-3", 1e-3), ("mnist_sim", 3e-4)):
        assert configs_of(SMALL[name])[0][1].optimizer.learning_rate == rate


def test_samplers_of_teachers_make_the_calls_they_go_by():
    import jax
    import jax.numpy as jnp

    from diffusion.random import image_keys
    from samplers import SAMPLERS

    assert SMALL["digits_teacher"].small.measure is teacher_figures
    process, keys = components.make_process(resolve("configs/digits.py:dsm", {})), image_keys(0, jnp.arange(1))
    for label, (name, options) in SMALL["digits_teacher"].small.options["samplers"].items():
        sample = SAMPLERS[name](**options).sample
        made = jax.jit(lambda keys, sample=sample: sample(
            lambda x, t, label: 0 * x, process, keys, None, shape=(2,)).nfe)(keys)  # fmt: skip
        assert int(made[0]) == int(label.lstrip("abcdefghijklmnopqrstuvwxyz_")), label


# --- The papers' rows -------------------------------------------------------------------------------------------------


def test_values_of_the_papers():
    """Some of each table, typed again; a value that another paper reports says so, and what is not known has none."""
    sim = {"cifar10_uncond_sim": 2.06, "cifar10_cond_sim": 1.96, "cifar10_uncond_edm": 1.97, "cifar10_cond_edm": 1.79,
           "cifar10_uncond_sid_1.2": 1.923, "cifar10_cond_sid_1.2": 1.71, "cifar10_cond_diff_instruct": 4.19,
           "cifar10_uncond_dmd": 3.77, "cifar10_cond_dmd_no_regression": 5.58, "cifar10_uncond_ctm_2": 1.87,
           "cifar10_cond_uni_instruct": 1.38, "cifar10_cond_stylesan_xl": 1.36}  # fmt: skip
    for name, value in sim.items():
        paper = SIM.row(name).figures["fid50k_train_tf1"].paper
        assert paper.value == value and (name.endswith("_sim") != paper.source.startswith("not this paper's")), name
    text = {"text_sim": (6.42, 0.67, 0.223), "text_sdxl_tcd_4": (5.42, 0.67, 0.226),
            "text_sd15_lcm": (5.66, -0.37, 0.212), "text_pixart_sam": (5.93, 0.53, 0.223, 54.88)}  # fmt: skip
    for name, values in text.items():
        assert tuple(figure.paper.value for figure in SIM.row(name).figures.values()) == values
    moments = {"table1_alternating_k1": 3.0, "table1_alternating_k2": 3.86, "table1_alternating_k8": 1.24,
               "table2_alternating_k8": 1.49, "table1_alternating_k4": None, "table2_instant_k8": None,
               "table1_base": None, "table3_alternating_k8": None}  # fmt: skip
    for name, value in moments.items():
        assert MOMENTS.row(name).figures["fid"].paper.value == value, name
    assert all(figure.paper.value is None for row in MOMENTS.rows if row.name.startswith("table")
               for key, figure in row.figures.items() if key != "fid")  # fmt: skip
    others = {"other_pd": (10.7, 4.7, 2.4, 1.7), "other_multistep_cd": (3.2, 1.9, 1.6, 1.4),
              "other_multistep_cd_128": (3.1, 2.3, 2.1), "elsewhere_latents": (2.86, 2.8, 2.87, 2.99, 3.15, 3.21),
              "elsewhere_dual_rate": (1.17,), "other_scd": (2.44, 1.66)}  # fmt: skip
    for name, values in others.items():
        papers = [figure.paper for figure in MOMENTS.row(name).figures.values()]
        assert tuple(paper.value for paper in papers) == values
        assert all(paper.source.startswith("not this paper's: ") for paper in papers)
    assert len([row for row in SIM.rows if row.name.startswith("text_")]) == 17


def test_runs_in_full_are_the_papers_as_far_as_it_states_them():
    full = {row.name: row for row in SIM.rows if row.full}
    assert set(full) == {*(f"cifar10_cond_{name}" for name in ("sim", "sid_1.0", "sid_1.2", "diff_instruct",
                                                               "dmd_no_regression")),
                         *(f"figure2_{name}_lr{rate}" for name in ("sim", "sid", "diff_instruct")
                           for rate in ("1e-4", "1e-5"))}  # fmt: skip
    assert all(row.missing and isinstance(row.full, Run) for row in full.values())
    for row in full.values():
        config = resolve(row.full.config, row.full.overrides)
        validate(config)
        assert config.optimizer.learning_rate == (1e-4 if row.name.endswith("1e-4") else 1e-5)
        assert (config.data.batch_size, config.optimizer.beta1, config.optimizer.beta2) == (256, 0, 0.999)
        assert config.training.steps * config.data.batch_size == 100_000_000
        assert 0 <= config.distillation.auxiliary_warmup * config.data.batch_size - 100_000 < 256


# --- Comparisons ------------------------------------------------------------------------------------------------------

A, B, C = ("a", "fd"), ("b", "fd"), ("c", "fd")


def numbers(a, b, c=(1.0,)):
    return Values({"a": {"fd": a}, "b": {"fd": b}, "c": {"fd": c}})


def test_comparisons_of_several_seeds():
    near = numbers([1.0, 1.1, 0.9], [1.05, 1.15, 0.95], [2.0, 2.1, 1.9])
    assert difference(near, C, A)[0] == pytest.approx(1 / math.sqrt(2 * 0.01 / 3))
    assert less((A, C), (B, C))(near)[0] and not less((A, C), (A, B))(near)[0]
    assert not_above(A, B)(near)[0] and not_above(B, A)(near)[0] and not not_above(C, A)(near)[0]
    assert not_above(C, A, 1.95)(near)[0] and not not_above(C, A, 1.5)(near)[0]
    for predicate in (less((A, B)), not_above(A, B)):
        with pytest.raises(NotRunError, match="1 seed"):
            predicate(numbers([1.0], [1.0, 2.0]))


def test_comparisons_of_one_seed():
    one = numbers([1.0], [1.05], [1.3])
    assert ratio(one, C, A)[0] == pytest.approx(1.3)
    assert below((A, C))(one)[0] and not below((A, B))(one)[0] and below((C, A), factor=1.31)(one)[0]
    assert similar((A, B))(one)[0] and not similar((A, B), (A, C))(one)[0] and not similar((C, A))(one)[0]


def test_images_that_are_not_finite_are_worse_than_all_others():
    lost = numbers([math.inf, math.inf], [1.0, 1.1], [math.inf, math.inf])
    assert below((B, A))(lost)[0] and less((B, A))(lost)[0]
    for predicate in (below((A, B)), below((A, C)), less((A, B)), less((A, C)), not_above(A, B), not_above(A, C),
                      similar((A, C)), similar((A, B)), similar((B, A))):  # fmt: skip
        assert not predicate(lost)[0]


def test_best_sampler():
    means = {f"fd_{label}": [3.0 + 0.1 * k, 3.0] for k, label in enumerate(TEACHER_SAMPLERS)}
    values = Values({"teacher": means | {"fd_ddim4": [2.0, 2.5]}, "a": {"fd": [2.25, 2.25]}})
    assert best_sampler(values, "teacher") == ("teacher", "fd_ddim4")
    assert ratio(values, A, ("teacher", "best"))[0] == 1
    with pytest.raises(NotRunError, match="no fd_heun35"):
        best_sampler(Values({"teacher": {"fd_ddim4": [2.0]}}), "teacher")


# --- Claims -----------------------------------------------------------------------------------------------------------


def made_up(teachers, students, accuracy=0.97):
    """As many seeds as the rows have, two per mille apart; samplers of teachers that are not given are at 20."""
    rng, rows = np.random.default_rng(0), {}
    near = lambda row, value: list(value * (1 + 0.002 * rng.standard_normal(SMALL[row].seeds)))  # noqa: E731
    for row, given in teachers.items():
        rows[row] = {f"fd_{label}": near(row, given.get(label, 20.0)) for label in TEACHER_SAMPLERS}
    for row, value in students.items():
        values = value if isinstance(value, dict) else {"fd": value}
        rows[row] = {figure: near(row, mean) for figure, mean in values.items()} | {"accuracy": near(row, accuracy)}
    return Values(rows)


def verdicts(table, values):
    return {claim.name: claim.verdict(values)[0] for claim in table.claims}


def test_verdicts_of_score_implicit_matching():
    teachers = {"digits_teacher": {"heun35": 3.0, "ancestral64": 3.2}, "mnist_teacher": {"heun35": 4.0}}
    good = {"digits_sim": 3.05, "digits_sim_power": 3.2, "digits_sim_cauchy": 3.0, "digits_sim_l2": 4.5,
            "digits_sid_1.0": 3.6, "digits_sid_1.2": 3.4, "digits_diff_instruct": 4.5, "digits_dmd": 4.6,
            "digits_sim_lr1e-3": 3.2, "digits_sid_1.0_lr1e-3": 5.0, "digits_diff_instruct_lr1e-3": math.inf,
            "digits_sim_warmup0": 3.6, "digits_sim_beta0.9": 6.0, "mnist_sim": 4.5, "mnist_sid_1.2": 4.4,
            "mnist_diff_instruct": 6.0, "digits_sim_adversarial": 2.5}  # fmt: skip
    assert set(verdicts(SIM, made_up(teachers, good)).values()) == {"holds"}
    bad = {"digits_sim": 4.7, "digits_sim_power": 9.0, "digits_sim_cauchy": 4.7, "digits_sim_l2": 4.7,
           "digits_sid_1.0": 4.0, "digits_sid_1.2": 4.2, "digits_diff_instruct": 3.5, "digits_dmd": 3.4,
           "digits_sim_lr1e-3": math.inf, "digits_sid_1.0_lr1e-3": 5.0, "digits_diff_instruct_lr1e-3": 5.0,
           "digits_sim_warmup0": 4.5, "digits_sim_beta0.9": 4.8, "mnist_sim": 5.5, "mnist_sid_1.2": 5.4,
           "mnist_diff_instruct": 5.6, "digits_sim_adversarial": 4.8}  # fmt: skip
    assert set(verdicts(SIM, made_up(teachers, bad, accuracy=0.9)).values()) == {"fails"}
    # One condition each that alone decides.
    for change, claim in (({"digits_sid_1.2": 4.55}, "score_over_kl"), ({"digits_sid_1.0": 3.0}, "converges_better"),
                          ({"digits_sim_lr1e-3": 4.9}, "stable_at_a_high_rate"),
                          ({"digits_sim": 2.0, "digits_sid_1.0": 4.4}, "stable_at_a_high_rate"),
                          ({"digits_sim": 3.3}, "matches_its_teacher"), ({"mnist_sid_1.2": 5.8}, "score_over_kl_mnist"),
                          ({"digits_sim_cauchy": 2.4}, "other_distances")):  # fmt: skip
        assert verdicts(SIM, made_up(teachers, good | change))[claim] == "fails", (change, claim)


def test_verdicts_of_moment_matching():
    teachers = {"digits_teacher": {"heun35": 3.0, "ancestral64": 3.2, "ancestral8": 9.0, "ddim8": 8.0},
                "mnist_teacher": {"ancestral64": 5.0, "ancestral8": 10.0}}  # fmt: skip
    good = {"digits_alternating_k8": 2.5, "digits_alternating_k4": 3.0, "digits_alternating_k2": 4.0,
            "digits_alternating_k1": 9.0, "digits_instant_k8": 2.7, "digits_instant_k4": 4.0, "digits_instant_k2": 7.0,
            "digits_instant_k1": 20.0, "digits_sim": 3.0, "digits_consistency_k1": 6.0, "digits_consistency_k8": 4.0,
            "digits_progressive": {"fd_8": 5.0, "fd_1": 30.0}, "digits_alternating_k8_renoise": 3.5,
            "digits_alternating_k8_grid": 3.0, "digits_alternating_k8_ddim": 2.9, "digits_alternating_k8_q0": 2.6,
            "digits_instant_k8_fresh": 2.8, "digits_instant_k8_identity": 5.0, "mnist_alternating_k8": 3.0,
            "mnist_instant_k8": 3.3, "digits_alternating_k2_grid": 3.0}  # fmt: skip
    assert set(verdicts(MOMENTS, made_up(teachers, good)).values()) == {"holds"}
    bad = {"digits_alternating_k8": 6.0, "digits_alternating_k4": 7.0, "digits_alternating_k2": 8.0,
           "digits_alternating_k1": 9.0, "digits_instant_k8": 4.0, "digits_instant_k4": 6.0, "digits_instant_k2": 8.0,
           "digits_instant_k1": 9.0, "digits_sim": 9.5, "digits_consistency_k1": 8.0, "digits_consistency_k8": 5.0,
           "digits_progressive": {"fd_8": 5.0, "fd_1": 30.0}, "digits_alternating_k8_renoise": 6.1,
           "digits_alternating_k8_grid": 5.0, "digits_alternating_k8_ddim": 8.0, "digits_alternating_k8_q0": 3.0,
           "digits_instant_k8_fresh": 9.0, "digits_instant_k8_identity": 4.1, "mnist_alternating_k8": 6.0,
           "mnist_instant_k8": 9.0, "digits_alternating_k2_grid": 7.9}  # fmt: skip
    assert set(verdicts(MOMENTS, made_up(teachers, bad)).values()) == {"fails"}
    for change, claim in (({"digits_instant_k2": 4.0}, "alternating_below_eight"),
                          ({"digits_sim": 9.0}, "others_at_one_step"),
                          ({"digits_consistency_k8": 2.5}, "better_than_baselines"),
                          ({"digits_alternating_k8": 3.1}, "as_good_as_the_best"),
                          ({"digits_alternating_k8_ddim": 3.1}, "as_good_with_ddim"),
                          ({"digits_alternating_k8": 2.0}, "similar_at_eight")):  # fmt: skip
        assert verdicts(MOMENTS, made_up(teachers, good | change))[claim] == "fails", (change, claim)
