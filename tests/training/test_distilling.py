"""config.distillation becomes a method with its teacher, or is refused in one line before anything is trained."""

import json
import logging
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import main
from configs.digits import get_config as digits_config
from data.sources import toy2d
from diffusion import EDM
from diffusion.process import GaussianProcess
from distillation import METHODS
from training import components, distilling
from training.exact_target import GREY_LEVEL
from training.experiment import build_experiment
from training.loop import train
from training.manifest import state_hash
from training.mesh import put_batch
from training.teacher_run import TeacherRun, load_teacher
from training.workdir import write_json_atomic

pytestmark = pytest.mark.usefixtures("no_tensorboard")
SIM, INSTANT, MOMENTS = "score_implicit_matching", "instant_moment_matching", "moment_matching"
PROGRESSIVE, CONSISTENCY = "progressive_distillation", "consistency_distillation"
TOY = {"data.source": "toy2d:mixture", "sigma_data": 1.0, "evaluation.features": ("points",)}


@pytest.fixture(scope="module")
def student(tiny_config):
    """student(method, {"field": value}) -> the validated config of a student whose teacher nobody has looked for."""

    def make(name, changes=None):
        fields = {"distillation.name": name, "distillation.teacher": "/nowhere", "training.steps": 4,
                  "optimizer.warmup_steps": 0, "network.dropout": 0.0}  # fmt: skip
        if name == SIM:  # its default is for longer runs
            fields["distillation.auxiliary_warmup"] = 0
        own = {key if "." in key or key == "sigma_data" else f"distillation.{key}": value
               for key, value in (changes or {}).items()}  # fmt: skip
        return tiny_config(fields | own)

    return make


@pytest.fixture(scope="module")
def pipeline(tiny_config):
    return build_experiment(tiny_config()).pipeline


# --- what is refused before a teacher is looked for ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "parts"),
    [
        (SIM, {"teacher": ""}, ["config.distillation.teacher is missing", "workdir of the teacher's run, or exact"]),
        ("magic", {}, ["config.distillation.name = 'magic' is not known", *METHODS]),
        ("", {}, ["config.distillation.teacher = /nowhere has no meaning without config.distillation.name", SIM]),
        ("", {"teacher": "", "num_steps": 4}, ["config.distillation.num_steps = 4 has no meaning without"]),
        (SIM, {"num_steps": 4}, ["config.distillation.num_steps = 4 has no meaning", f"'{SIM}'", "auxiliary_updates"]),
        (PROGRESSIVE, {"distance": "l2"}, ["config.distillation.distance = l2 has no meaning", "are num_steps"]),
        (MOMENTS, {"centre_on_data": True}, ["config.distillation.centre_on_data = True has no meaning"]),
        (SIM, {"auxiliary_updates": 0}, ["config.distillation.auxiliary_updates = 0 must be at least 1"]),
        (SIM, {"auxiliary_warmup": -1}, ["config.distillation.auxiliary_warmup = -1 must be at least 0"]),
        (SIM, {"level": 100.0}, ["config.distillation.level = 100.0 must lie between the noise levels"]),
        (SIM, {"sid_coefficient": 1.2}, ["config.distillation.sid_coefficient = 1.2 goes with distance = 'l2'"]),
        *((name, {"num_steps": 0}, ["config.distillation.num_steps = 0 must be at least 1"])
          for name in METHODS if name != SIM),
        (CONSISTENCY, {"teacher_steps": 12}, ["config.distillation.teacher_steps = 12 must be a multiple of num_ste"]),
        (MOMENTS, {"data.batch_size": 33}, ["config.data.batch_size = 33", "must be even", MOMENTS]),
        (INSTANT, {"data.batch_size": 33}, ["config.data.batch_size = 33", "must be even", INSTANT]),
        (INSTANT, {"teacher": "exact"}, ["config.distillation.teacher = 'exact'", "a closed form has none"]),
        (INSTANT, {"centre_on_data": True, "guidance": 2.0},
         ["config.distillation.centre_on_data = True with config.distillation.guidance = 2.0", "choose one of them"]),
        (INSTANT, {"preconditioner": "magic"},
         ["config.distillation.preconditioner = 'magic' is not known", "adam_state, fresh, identity"]),
        (MOMENTS, {"preconditioner": "fresh"},
         ["config.distillation.preconditioner = 'fresh' has no meaning for config.distillation.name = 'moment_match"]),
        (MOMENTS, TOY | {"clip_teacher": True},
         ["config.distillation.clip_teacher = True is for images", "toy2d:mixture"]),
        (SIM, {"guidance": -1.0}, ["config.distillation.guidance = -1.0 must be at least 0 (1: no guidance)"]),
        (SIM, {"teacher_target": "gaussians"},
         ["config.distillation.teacher_target = 'gaussians' is for config.distillation.teacher = 'exact'"]),
        (SIM, {"auxiliary_learning_rate": 0.0}, ["config.distillation.auxiliary_learning_rate = 0.0 must be positive"]),
        (SIM, {"auxiliary_learning_rate": float("nan")}, ["config.distillation.auxiliary_learning_rate = nan must be"]),
        (SIM, {"process.name": "double_well"}, ["needs a process with a closed-form Gaussian kernel"]),
    ],
)  # fmt: skip
def test_a_setting_that_makes_no_sense(student, name, changes, parts):
    """One line, by the check that needs neither data nor teacher."""
    with pytest.raises(ValueError) as caught:
        student(name, changes)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (PROGRESSIVE, {"data.batch_size": 33}),
        (SIM, {"data.batch_size": 33}),
        (INSTANT, {"centre_on_data": True}),
        (INSTANT, {"centre_on_data": True, "guidance": 1.0}),
        (INSTANT, {"guidance": 2.0, "preconditioner": "identity"}),
        (MOMENTS, {"teacher": "exact", "teacher_target": "gaussians", "guidance": 0.0}),
    ],
)
def test_what_is_next_to_it_is_allowed(student, name, changes):
    assert distilling.make_method(student(name, changes)) is not None


def test_without_a_name_there_is_no_method(tiny_config):
    assert distilling.make_method(tiny_config()) is None


@pytest.mark.parametrize("name", [MOMENTS, INSTANT])
def test_the_teachers_values_are_clipped_for_images_alone(student, name):
    """Points may lie anywhere: those of toy2d:three_modes reach 1.7."""
    points = student(name, TOY | {"data.source": "toy2d:three_modes"})
    assert distilling.make_method(student(name)).clip_teacher and not distilling.make_method(points).clip_teacher


def test_options_arrive(student):
    method = distilling.make_method(student(MOMENTS, {"num_steps": 4, "kernel_eta": 0.5, "weight": "flat"}))
    assert (method.num_steps, method.kernel_eta, method.weight) == (4, 0.5, "flat")
    assert method.sigma_data == 0.7  # the config's


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """command(changes) -> (exit code, stderr) of main.py on configs/digits.py:sim with these fields changed."""
    cache = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs

    def call(changes):
        config = digits_config("sim")
        config.update_from_flattened_dict({"distillation.teacher": str(tmp_path / "teacher")} | changes)
        flags = {"_CONFIG": config, "_WORKDIR": str(tmp_path / "run"), "_MODE": "train", "_ALLOW": False,
                 "_LIST": False, "_MULTIHOST": False}  # fmt: skip
        for name, value in flags.items():
            monkeypatch.setattr(main, name, SimpleNamespace(value=value))
        return main.main(["main.py"]), capsys.readouterr().err

    yield call
    jax.config.update("jax_compilation_cache_dir", cache[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", cache[1])


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"distillation.teacher": ""}, ["error: config.distillation.teacher is missing"]),
        ({}, ["error: config.distillation.teacher = '", "there is no run in this folder; train the teacher first"]),
        ({"distillation.auxiliary_updates": 0}, ["error: config.distillation.auxiliary_updates = 0 must be at least"]),
        ({"distillation.teacher": "exact", "distillation.auxiliary_warmup": 3000},
         ["config.distillation.auxiliary_warmup = 3000 must be less than config.training.steps = 3000"]),
    ],
)  # fmt: skip
def test_the_command_line_answers_with_one_line_and_exit_code_2(command, tmp_path, changes, parts):
    code, error = command(changes)
    assert code == 2 and error.count("\n") == 1, error
    for part in parts:
        assert part in error
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_another_kind_on_the_command_line(command, tmp_path, tiny_config):
    (tmp_path / "teacher").mkdir()
    write_json_atomic(tmp_path / "teacher" / "config.json", tiny_config().to_dict())
    code, error = command({})
    assert code == 2 and error.startswith("error: config.distillation.teacher = ")
    assert "\n  network.width: 16 (stored) != 256 (now)" in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()


# --- what shows only with data or teacher ----------------------------------------------------------------------------


def refused(make_config, workdir):
    """The message with which a config, or its training, is refused before anything is written."""
    with pytest.raises(ValueError) as caught:
        train(make_config(), str(workdir))
    assert not workdir.exists(), str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("warmup", [4, 7])
def test_a_generator_that_would_never_start(student, tmp_path, warmup):
    message = refused(lambda: student(SIM, {"teacher": "exact", "auxiliary_warmup": warmup}), tmp_path / "run")
    assert message == (f"config.distillation.auxiliary_warmup = {warmup} must be less than config.training.steps = 4")


def test_adams_state_of_a_run_that_kept_none(student, pipeline):
    config = student(INSTANT, {"preconditioner": "adam_state"})
    run = TeacherRun(params={"w": np.ones(2, np.float32)}, second_moment=None, facts={})
    for choice in ("adam_state", None):  # the default
        config.distillation.preconditioner = choice
        with pytest.raises(ValueError) as caught:
            distilling.preconditioner(config, run, None, pipeline, GaussianProcess(EDM()))
        assert "config.distillation.preconditioner = 'adam_state'" in str(caught.value)
        assert "'/nowhere' has no second moment of Adam; choose fresh or identity" in str(caught.value)


LATE = [
    pytest.param(SIM, TOY | {"teacher": "exact", "guidance": 2.0, "data.source": "toy2d:checkerboard"},
                 "config.distillation.guidance = 2.0", id="guidance on unlabelled data"),
    pytest.param(SIM, {"teacher": "exact", "teacher_target": "magic"},
                 "config.distillation.teacher_target = 'magic'", id="unknown target"),
    pytest.param(PROGRESSIVE, {"teacher": "exact", "data.pad_to": 10}, "config.data.pad_to = 10", id="padding"),
    pytest.param(INSTANT, {"teacher": "exact", "data.batch_size": 6, "training.accumulation": 2, "name": MOMENTS},
                 "config.training.accumulation = 2", id="odd slices of an even batch"),
    pytest.param(SIM, {"teacher": "exact", "auxiliary_warmup": 3, "optimizer.warmup_steps": 2},
                 "config.training.steps = 4", id="a ramp longer than what is left"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "part"), LATE)
def test_what_does_not_go_together_is_named_before_anything_is_written(student, tmp_path, name, changes, part):
    assert part in refused(lambda: student(name, changes), tmp_path / "run")


@pytest.mark.parametrize("changes", [{"data.flip": True}, {"data.shift": 1}, {"data.dequantise": True},
                                     TOY | {"teacher_target": "gaussians"}])  # fmt: skip
def test_what_does_not_go_with_a_closed_form(student, changes):
    """As config.network.name = 'exact' has it (training/exact_target.py)."""
    with pytest.raises(ValueError, match=r"config\.(data|distillation)\."):
        build_experiment(student(PROGRESSIVE, {"teacher": "exact"} | changes))


# --- the student's sampler -------------------------------------------------------------------------------------------

ONE_STEP = {"sampler.name": "one_step", "sampler.steps": None}
ANCESTRAL = {"sampler.name": "ancestral", "sampler.grid": "trailing", "sampler.zero_terminal_snr": True}
DDIM = {"sampler.name": "ddim", "sampler.grid": "trailing"}


@pytest.mark.parametrize(
    ("name", "changes", "quiet"),
    [
        (SIM, ONE_STEP, True),
        (SIM, {"level": 1.0} | ONE_STEP, False),
        (SIM, {"level": 1.0, "sampler.level": 1.0} | ONE_STEP, True),
        (SIM, {}, False),
        (MOMENTS, {"num_steps": 4, "sampler.steps": 4} | ANCESTRAL, True),
        (MOMENTS, {"num_steps": 4, "sampler.steps": 4} | ANCESTRAL | {"sampler.name": "ddpm"}, True),
        (MOMENTS, {"num_steps": 4, "sampler.steps": 5} | ANCESTRAL, False),
        (MOMENTS, {"num_steps": 4, "sampler.steps": 4} | ANCESTRAL | {"sampler.zero_terminal_snr": False}, False),
        (MOMENTS, {"num_steps": 4, "sampler.steps": 4, "kernel_eta": 0.5, "sampler.eta": 0.5} | DDIM, True),
        (PROGRESSIVE, {"num_steps": 4, "sampler.steps": 4} | DDIM, True),
        (PROGRESSIVE, {"num_steps": 4, "sampler.steps": 8} | DDIM, False),
        (CONSISTENCY, {"num_steps": 4, "sampler.steps": 4} | DDIM | {"sampler.grid": "uniform"}, False),
    ],
)
def test_another_sampler_than_the_students_is_warned_of(student, caplog, name, changes, quiet):
    with caplog.at_level(logging.WARNING, logger="absl"):
        student(name, changes)
    said = [record.getMessage() for record in caplog.records if "was made for" in record.getMessage()]
    assert len(said) == (0 if quiet else 1)
    assert quiet or (f"This student of {name} was made for config.sampler.name = " in said[0])


# --- preconditioners -------------------------------------------------------------------------------------------------


class Pixels:
    """A teacher of one factor per pixel, D(x) = w x, and an objective whose gradient needs no automatic one."""

    params = {"w": np.linspace(0.2, 1.5, 64, dtype=np.float32).reshape(8, 8, 1)}  # noqa: RUF012

    @staticmethod
    def network(params, key):
        return lambda x, t, label: params["w"] * x

    @staticmethod
    def objective(denoise, process, x0, label, key):
        """The batch's mean of sum (D(x0) - 1)^2: no noise, no draw."""
        return jnp.sum((denoise(x0, None, label) - 1) ** 2) / len(x0), {}

    @classmethod
    def gradient(cls, images):
        w = np.float64(cls.params["w"])
        return np.mean(2 * (w * images - 1) * images, axis=0)


def test_the_fresh_second_moment_is_the_mean_of_squared_gradients(student, pipeline, monkeypatch):
    """A quadratic problem in float64 numpy, over the batches that training would begin with."""
    monkeypatch.setattr(distilling, "FRESH_BATCHES", 5)
    moment = distilling.fresh_second_moment(student(INSTANT), Pixels.params, Pixels.network, Pixels.objective, pipeline,
                                            GaussianProcess(EDM()))  # fmt: skip
    gradients = np.stack([Pixels.gradient(np.float64(pipeline.batch(n)["image"])) for n in range(5)])
    np.testing.assert_allclose(moment["w"], np.mean(gradients**2, axis=0), rtol=1e-4)
    assert np.abs(moment["w"] / np.mean(gradients, axis=0) ** 2 - 1).max() > 0.01  # not the square of the mean


def test_preconditioners_are_what_they_are_called(student, pipeline, monkeypatch):
    """1 / (sqrt(v) + 1e-8): of Adam's v, of the fresh one; identity is ones, whatever v is."""
    moment = {"w": np.float32([4.0, 0.25, 0.0])}
    run = TeacherRun(params={"w": np.zeros(3, np.float32)}, second_moment=moment, facts={})
    monkeypatch.setattr(distilling, "fresh_second_moment", lambda *arguments: {"w": np.float32([100.0, 1.0, 9.0])})
    expected = {"adam_state": [0.5, 2.0, 1e8], "fresh": [0.1, 1.0, 1 / 3], "identity": [1.0, 1.0, 1.0],
                None: [0.5, 2.0, 1e8]}  # fmt: skip
    config = student(INSTANT)
    for choice, values in expected.items():
        config.distillation.preconditioner = choice
        made = distilling.preconditioner(config, run, None, pipeline, GaussianProcess(EDM()))
        assert made["w"].dtype == np.float32
        np.testing.assert_allclose(made["w"], values, rtol=1e-5)


def few_steps(experiment, count=2):
    """The state after some compiled steps, which leave what is frozen as it is."""
    before, state = state_hash(experiment.frozen), experiment.initial_state()
    first = state_hash(state.params)
    step = jax.jit(experiment.step(), donate_argnums=0)
    for number in range(count):
        rows = experiment.pipeline.batch(number)
        del rows["index"]
        with jax.set_mesh(experiment.mesh):
            state, metrics = step(state, experiment.frozen, put_batch(rows, experiment.mesh))
    assert state_hash(experiment.frozen) == before and state_hash(state.params) != first
    assert int(state.skipped) == 0 and all(np.isfinite(value) for value in metrics.values())
    return state


def test_instant_moment_matching_from_a_run(trained, student):
    """The preconditioner that is frozen is that of the run's Adam, beside its parameters; a few steps run."""
    config = student(INSTANT, {"teacher": str(trained)})
    experiment = build_experiment(config)
    run = load_teacher(config, experiment.params["generator"], experiment.image_shape)
    assert set(experiment.frozen) == {"teacher", "preconditioner"} and set(experiment.params) == {"generator"}
    jax.tree.map(lambda made, v: np.testing.assert_allclose(made, 1 / (np.sqrt(np.float64(v)) + 1e-8), rtol=1e-5),
                 experiment.frozen["preconditioner"], run.second_moment)  # fmt: skip
    few_steps(experiment)
    assert build_experiment(config, with_teacher=False).frozen == {}


# --- the exact teacher -----------------------------------------------------------------------------------------------


@pytest.fixture
def spied(monkeypatch):
    """spied(config) -> (experiment, the Parts that its method was given)."""

    def build(config):
        seen, updates = [], METHODS[config.distillation.name].updates
        monkeypatch.setattr(METHODS[config.distillation.name], "updates",
                            lambda self, parts: seen.append(parts) or updates(self, parts))  # fmt: skip
        experiment = build_experiment(config)
        return experiment, seen[0]

    return build


def points(count, shape):
    return np.random.default_rng(1).normal(size=(count, *shape)) * 0.6


def test_an_exact_teacher_of_points(student, spied, mixture):
    """The mixture by matrix inverses in float64: each class alone, and all of them where the label is hidden."""
    experiment, parts = spied(student(CONSISTENCY, TOY | {"teacher": "exact"}))
    x, t, labels = points(16, (2,)), 0.4, np.arange(16) % 8
    sigma = float(experiment.process.sigma(np.float64(t)))
    covariance = toy2d.MIXTURE_STD**2 * np.eye(2)
    whole = type(mixture)(np.full(8, 1 / 8), toy2d.MIXTURE_MEANS, np.broadcast_to(covariance, (8, 2, 2)))
    denoise = jax.jit(parts.teacher(experiment.frozen["teacher"]))
    at, times = jnp.asarray(x, jnp.float32), jnp.full(16, t)
    np.testing.assert_allclose(denoise(at, times, None), whole.denoise(x, 1.0, sigma), atol=1e-4)
    alone = [type(mixture)(np.ones(1), mean[None], covariance[None]).denoise(x[n : n + 1], 1.0, sigma)
             for n, mean in enumerate(toy2d.MIXTURE_MEANS[labels])]  # fmt: skip
    np.testing.assert_allclose(denoise(at, times, jnp.asarray(labels)), np.concatenate(alone), atol=1e-4)
    assert experiment.teacher["workdir"] == "exact" and len(experiment.teacher["sha256"]) == 64
    few_steps(experiment)


def test_an_exact_teacher_of_images(student, spied, mixture):
    """A Gaussian per class, fitted by numpy; its means are the posterior's without an iteration."""
    config = student(PROGRESSIVE, {"teacher": "exact", "teacher_target": "gaussians"})
    experiment, parts = spied(config)
    flat = experiment.train.images.reshape(-1, 64) / 127.5 - 1.0
    x, t = points(10, (64,)), 0.4
    sigma = float(experiment.process.sigma(np.float64(t)))
    made = jax.jit(parts.teacher(experiment.frozen["teacher"]))(
        jnp.asarray(x.reshape(10, 8, 8, 1), jnp.float32), jnp.full(10, t), jnp.arange(10)
    )
    for label in range(10):
        rows = flat[experiment.train.labels == label]
        covariance = np.cov(rows, rowvar=False, ddof=0) + GREY_LEVEL**2 * np.eye(64)
        # E[x0 | x] = m + C (C + sigma^2)^-1 (x - m)
        gain = np.linalg.solve(covariance + sigma**2 * np.eye(64), x[label] - rows.mean(0))
        np.testing.assert_allclose(made[label].reshape(-1), rows.mean(0) + covariance @ gain, atol=1e-4)
    few_steps(experiment)


def test_the_empirical_target_is_another_teacher(student):
    hashes = {build_experiment(student(PROGRESSIVE, {"teacher": "exact", "teacher_target": target})).teacher["sha256"]
              for target in ("empirical", "gaussians", None)}  # fmt: skip
    assert len(hashes) == 2  # None is empirical


def test_a_config_is_stored_and_read_with_its_distillation(student):
    """Students are told apart by workdir and config: every option is in it."""
    config = json.loads(json.dumps(student(SIM, {"auxiliary_updates": 3}).to_dict(), default=str))
    assert config["distillation"]["auxiliary_updates"] == 3 and config["distillation"]["num_steps"] is None


def test_each_role_has_the_optimiser_of_its_update(student, monkeypatch):
    """As many optimisers as roles, made of the updates themselves."""
    seen, config = [], student(SIM, {"teacher": "exact", "auxiliary_updates": 3, "auxiliary_warmup": 2})
    monkeypatch.setattr(components, "optimizer", lambda config, update: seen.append(update) or optax.sgd(0.1))
    experiment = build_experiment(config)
    assert set(experiment.optimizers) == {"auxiliary", "generator"} == set(experiment.params)
    assert [(update.role, update.repeats, update.start) for update in seen] == [("auxiliary", 3, 0),
                                                                                ("generator", 1, 2)]  # fmt: skip
