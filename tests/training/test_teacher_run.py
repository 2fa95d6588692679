"""The teacher of a student: whose parameters they are, what Adam knows of them, what is refused, and that it stays."""

import contextlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from training import components, inference, loop, metric_writers
from training.checkpointing import Checkpoints
from training.ema import EMA
from training.experiment import build_experiment
from training.loop import train
from training.manifest import named_leaves, state_hash
from training.mesh import put_batch
from training.state import create_state
from training.teacher_run import load_teacher
from training.workdir import read_json_lines, write_json_atomic

pytestmark = [
    pytest.mark.usefixtures("no_tensorboard"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # orbax, after a failed read
]
STUDENT = {
    "experiment": "student",
    "distillation.name": "score_implicit_matching",
    "distillation.auxiliary_updates": 2,
    "distillation.auxiliary_warmup": 1,
    "network.dropout": 0.0,
    "optimizer.beta1": 0.0,
    "optimizer.warmup_steps": 1,
    "ema.half_lives": (50,),
    "training.steps": 4,
    "training.checkpoint_every": 2,
    "sampler.name": "one_step",
    "sampler.steps": None,
}


@pytest.fixture(scope="module")
def teacher(trained, tmp_path_factory):
    """The tiny run, where this module's students look for their teacher."""
    return shutil.copytree(trained, tmp_path_factory.mktemp("teacher") / "run")


@pytest.fixture(scope="module")
def make_config(teacher, tiny_config):
    """make({"field": value}) -> the config of a student of `teacher`, with fields changed."""
    return lambda changes=None: tiny_config(STUDENT | {"distillation.teacher": str(teacher)} | (changes or {}))


@pytest.fixture(scope="module")
def student(make_config, tmp_path_factory):
    """The workdir of a student that was trained in one go."""
    workdir = tmp_path_factory.mktemp("student") / "run"

    def missing(directory):
        raise ImportError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metric_writers, "_clu_writer", missing)
        patch.setattr(loop, "draw_samples", lambda *arguments: None)
        assert train(make_config(), str(workdir)) == 0
    return workdir


@pytest.fixture
def no_pictures(monkeypatch):
    """Compiling a sampler takes as long as all the rest."""
    monkeypatch.setattr(loop, "draw_samples", lambda *arguments: None)


@contextlib.contextmanager
def away(folder):
    """The folder is not there; whatever was put in its place is removed at the end."""
    aside = folder.with_name("aside")
    folder.rename(aside)
    try:
        yield aside
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)


def saved(workdir):
    return Checkpoints(workdir / "checkpoints").read()


SHAPE = (8, 8, 1)


def handmade(folder, config, params, *, optimizer=None, gradients=(), step=3):
    """A run with these parameters, whose optimiser has seen these gradients; the averages are 2 and 3 times them."""
    optimizer = components.optimizer(config) if optimizer is None else optimizer
    ema = EMA(half_lives=tuple(config.ema.half_lives))
    state = create_state({"score": params}, {"score": optimizer}, ema, ("score",))
    for gradient in gradients:
        _, state.opt_state["score"] = optimizer.update(gradient, state.opt_state["score"], params)
    for number, name in enumerate(ema.names):
        state.ema["score"][name] = jax.tree.map(lambda leaf, n=number: leaf * (2 + n), params)
    Checkpoints(folder / "checkpoints").save(step, state, data={"image_shape": SHAPE}, config={})
    write_json_atomic(folder / "config.json", config.to_dict())
    return folder


def network_params(config, shape, num_classes):
    """Random parameters, also where a fresh network has zeros."""
    _, params = components.make_network(config, shape, num_classes, jax.random.key(0))
    draw = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: np.float32(draw.normal(size=leaf.shape)), params)


@pytest.fixture(scope="module")
def params(tiny_config):
    return network_params(tiny_config(), (8, 8, 1), 10)


# --- whose parameters ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("index", "factor"), [(None, 2), (0, 2), (1, 3), (-1, 1)])
def test_student_and_auxiliary_begin_as_the_chosen_average_to_the_bit(make_config, tiny_config, params, tmp_path,
                                                                      index, factor):  # fmt: skip
    """The averages of this teacher are 2 and 3 times its live parameters, so that they are told apart."""
    run = handmade(tmp_path / "run", tiny_config(), params, gradients=random_gradients(params, 1))
    config = make_config({"distillation.teacher": str(run), "distillation.teacher_ema": index})
    experiment, expected = build_experiment(config), state_hash(jax.tree.map(lambda leaf: factor * leaf, params))
    assert set(experiment.params) == {"auxiliary", "generator"}
    for tree in (*experiment.params.values(), experiment.frozen["teacher"]):
        assert state_hash(tree) == expected
    assert experiment.teacher == {"sha256": expected, "step": 3, "workdir": str(run)}


def test_training_moves_each_role_and_never_the_teacher(make_config):
    """Donated steps: every role has buffers of its own, and the teacher's bits stay what they were."""
    experiment = build_experiment(make_config())
    before, state = state_hash(experiment.frozen), experiment.initial_state()
    trees = [*state.params.values(), *state.ema["generator"].values(), experiment.frozen["teacher"]]
    pointers = [leaf.unsafe_buffer_pointer() for tree in trees for leaf in jax.tree.leaves(tree)]
    assert len(set(pointers)) == len(pointers)
    step, rows = jax.jit(experiment.step(), donate_argnums=0), experiment.pipeline.batch(0)
    batch = put_batch({name: rows[name] for name in ("image", "label")}, experiment.mesh)
    with jax.set_mesh(experiment.mesh):
        for _ in range(3):
            state, metrics = step(state, experiment.frozen, batch)
    assert state_hash(experiment.frozen) == before and int(metrics["skipped_updates"]) == 0
    assert len({state_hash(tree) for tree in (*state.params.values(), experiment.frozen["teacher"])}) == 3


def test_the_checkpoint_names_the_teacher(student, make_config):
    assert saved(student).data["teacher"] == build_experiment(make_config()).teacher
    assert "teacher" not in saved(student).state["params"]


def test_a_student_is_the_teacher_of_another(student, tiny_config):
    """Its generator is taken, not its auxiliary network."""
    state = saved(student).state
    experiment = build_experiment(tiny_config(STUDENT | {"distillation.teacher": str(student)}))
    assert state_hash(experiment.params["generator"]) == state_hash(state["ema"]["generator"]["50"])
    assert state_hash(state["params"]["generator"]) != state_hash(state["params"]["auxiliary"])
    live = tiny_config(STUDENT | {"distillation.teacher": str(student), "distillation.teacher_ema": -1})
    assert state_hash(build_experiment(live).frozen["teacher"]) == state_hash(state["params"]["generator"])


# --- resume and sampling ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_pictures")
def test_a_student_in_two_pieces_is_the_student_in_one_to_the_bit(student, make_config, tmp_path, monkeypatch):
    """An error comes after step 3; the second piece starts from step 2, where both roles have moved."""
    placed, put = [], loop.put_batch

    def failing(batch, mesh):
        placed.append(batch)
        if len(placed) == 4:
            raise IndexError("as when the power fails")
        return put(batch, mesh)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "put_batch", failing)
        with pytest.raises(IndexError):
            train(make_config(), str(tmp_path))
    assert Checkpoints(tmp_path / "checkpoints").latest_good_step() == 2
    assert train(make_config(), str(tmp_path)) == 0
    assert saved(tmp_path).step == 4 and saved(tmp_path).meta["leaves"] == saved(student).meta["leaves"]


@pytest.mark.usefixtures("no_pictures")
def test_going_on_with_a_teacher_that_was_trained_further_is_refused(student, teacher, make_config, tiny_config,
                                                                      tmp_path):  # fmt: skip
    """Both hashes are named, nothing is written; the student can still be sampled."""
    workdir, stored = shutil.copytree(student, tmp_path / "run"), saved(student).data["teacher"]["sha256"]
    with away(teacher) as aside:
        shutil.copytree(aside, teacher)
        assert train(tiny_config({"training.steps": 26}), str(teacher), allow_config_change=True) == 0
        now = state_hash(saved(teacher).state["ema"]["score"]["100"])
        before = (workdir / "metrics.jsonl").read_bytes()
        with pytest.raises(ValueError) as caught:
            train(make_config({"training.steps": 6}), str(workdir), allow_config_change=True)
        assert (workdir / "metrics.jsonl").read_bytes() == before and saved(workdir).step == 4
    message = str(caught.value)
    assert now != stored and now in message and stored in message and "\n" not in message
    assert f"config.distillation.teacher = '{teacher}'" in message and "Take another workdir" in message
    assert train(make_config(), str(workdir)) == 0  # the negative control: the old teacher is back


def test_a_student_is_sampled_after_its_teacher_was_deleted(student, teacher, make_config, tmp_path):
    workdir, config = shutil.copytree(student, tmp_path / "run"), make_config()
    with away(teacher):
        _, params, step, identity = inference.load_run(config, str(workdir))
        assert inference.sample(config, str(workdir)) == 0
        with pytest.raises(FileNotFoundError, match=r"config\.distillation\.teacher = .* there is no run in this fold"):
            train(config, str(workdir))
    assert step == 4 and identity == state_hash(saved(student).state["ema"]["generator"]["50"]) == state_hash(params)
    (path,) = workdir.glob("generated/*/samples.npz")
    with np.load(path) as file:
        assert file["arr_0"].shape == (20, 8, 8, 1) and file["arr_0"].std() > 1


# --- what does not fit -----------------------------------------------------------------------------------------------


def refused(config, workdir, kind=ValueError):
    """The message of a training that is refused, and that left nothing behind."""
    with pytest.raises(kind) as caught:
        train(config, str(workdir))
    assert not workdir.exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"process.sigma_max": 20.0}, "process.sigma_max: null (stored) != 20.0 (now)"),
        ({"process.name": "cosine"}, 'process.name: "edm" (stored) != "cosine" (now)'),
        ({"prediction": "v"}, 'prediction: "edm" (stored) != "v" (now)'),
        ({"sigma_data": 0.5}, "sigma_data: 0.7 (stored) != 0.5 (now)"),
        ({"network.width": 8}, "network.width: 16 (stored) != 8 (now)"),
        ({"data.pad_to": 10}, "data.pad_to: 0 (stored) != 10 (now)"),
    ],
)
def test_a_teacher_of_another_kind(make_config, teacher, tmp_path, changes, line):
    """One field is named, with both values."""
    heading, *lines = refused(make_config(changes), tmp_path / "run").splitlines()
    assert lines == [f"  {line}"]
    assert heading.startswith(f"config.distillation.teacher = '{teacher}' is a teacher of another kind")


def test_dropout_and_number_format_are_the_students_own(make_config):
    experiment = build_experiment(make_config({"network.dropout": 0.5, "network.dtype": "bfloat16"}))
    assert experiment.teacher["step"] == 24


@pytest.mark.parametrize(("side", "classes", "array"), [(6, 10, "inputs/kernel"), (8, 3, "embedding/labels/embedding")])
def test_a_teacher_of_other_images_or_classes(make_config, tmp_path, side, classes, array):
    labels = np.arange(60) % classes
    np.savez(tmp_path / "data.npz", images=np.zeros((60, side, side, 1), np.uint8), labels=labels)
    message = refused(make_config({"data.source": f"npz:{tmp_path / 'data.npz'}"}), tmp_path / "run")
    assert "is a network for other images or classes" in message and array in message and "\n" not in message


NETWORKS = {
    "unet": {"num_heads": 2, "channel_multipliers": (1, 1), "blocks_per_level": 1, "attention_resolutions": ()},
    "dit": {"num_heads": 2, "depth": 1, "patch_size": 4},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_teacher_of_images_of_another_side_is_noticed_whatever_the_network(tiny_config, tmp_path, name):
    """Also where no array of the network has the shape of an image."""
    network = {"network.name": name, "network.width": 8, "network.depth": None, "network.dropout": None} | {
        f"network.{option}": value for option, value in NETWORKS[name].items()
    }
    config = tiny_config(network)
    params = network_params(config, (8, 8, 1), 10)
    run = handmade(tmp_path / "run", config, params, optimizer=optax.sgd(0.1))
    student = tiny_config(STUDENT | network | {"distillation.teacher": str(run)})
    assert load_teacher(student, network_params(student, SHAPE, 10), SHAPE).facts["step"] == 3
    with pytest.raises(ValueError, match=r"config\.distillation\.teacher = .* is a network for other images"):
        load_teacher(student, network_params(student, (16, 16, 1), 10), (16, 16, 1))


@pytest.mark.parametrize("index", [2, -2])
def test_an_average_that_the_teacher_does_not_have(make_config, tmp_path, index):
    message = refused(make_config({"distillation.teacher_ema": index}), tmp_path / "run")
    assert message.startswith(f"config.distillation.teacher_ema = {index}: must be -1 or an index into the half-lives")
    assert "[100, 1000]" in message


def test_a_teacher_that_is_not_there(make_config, tiny_config, tmp_path):
    """No folder, a folder without a run, a run without a checkpoint: each with the folder's name."""
    folder = tmp_path / "teacher"
    config = make_config({"distillation.teacher": str(folder)})
    for _ in range(2):
        message = refused(config, tmp_path / "run", FileNotFoundError)
        assert message.startswith(f"config.distillation.teacher = '{folder}': there is no run in this folder; train ")
        folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(tiny_config().to_dict(), default=str))
    message = refused(config, tmp_path / "run", FileNotFoundError)
    assert message == f"config.distillation.teacher = '{folder}': this run has no checkpoint yet"


@pytest.fixture
def damaged(teacher, make_config, tmp_path):
    """A config whose teacher has one flipped bit in its weights, and the teacher's checkpoints."""
    folder = shutil.copytree(teacher, tmp_path / "damaged")
    kernel = np.asarray(saved(folder).state["params"]["score"]["inputs"]["kernel"]).tobytes()
    (path,) = [path for path in (folder / "checkpoints" / "24").rglob("*")
               if path.is_file() and kernel[:64] in path.read_bytes()]  # fmt: skip
    content = bytearray(path.read_bytes())
    content[content.index(kernel[:64]) + 40] ^= 1
    path.write_bytes(content)
    return make_config({"distillation.teacher": str(folder)}), folder / "checkpoints"


def test_a_damaged_teacher_is_refused_and_left_alone(damaged, tmp_path):
    """Nor is the step before it taken in its place."""
    config, checkpoints = damaged
    before = sorted(checkpoints.rglob("*"))
    message = refused(config, tmp_path / "run", RuntimeError)
    assert "cannot be used" in message and str(checkpoints) in message and "\n" not in message
    assert sorted(checkpoints.rglob("*")) == before


def test_a_damaged_teacher_names_the_field(damaged, tmp_path):
    assert "config.distillation.teacher = " in refused(damaged[0], tmp_path / "run", RuntimeError)


# --- Adam's second moment --------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "adam": {},
    "without a first moment": {"optimizer.beta1": 0.0},
    "adamw": {"optimizer.name": "adamw", "optimizer.weight_decay": 0.1},
    "without clipping": {"optimizer.gradient_clip": 0.0, "optimizer.beta1": 0.0},
}


def random_gradients(params, count):
    """Of very different sizes from leaf to leaf, and small enough not to be clipped."""
    draw = np.random.default_rng(3)
    scales = jax.tree.map(lambda leaf: 10.0 ** draw.uniform(-5, -3), params)
    return [jax.tree.map(lambda leaf, scale: np.float32(scale * draw.normal(size=leaf.shape)), params, scales)
            for _ in range(count)]  # fmt: skip


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_second_moment_is_the_corrected_average_of_squared_gradients(make_config, tiny_config, params, tmp_path,
                                                                         name):  # fmt: skip
    """In float64 from the gradients themselves, by the definition of Adam; and where each leaf belongs."""
    gradients, beta2 = random_gradients(params, 4), 0.9
    config = tiny_config(OPTIMIZERS[name] | {"optimizer.beta2": beta2})
    run = handmade(tmp_path / "run", config, params, gradients=gradients)
    # The student's own beta2 is another one.
    loaded = load_teacher(make_config({"distillation.teacher": str(run), "optimizer.beta2": 0.5}), params, SHAPE)
    weights = np.array([(1 - beta2) * beta2 ** (3 - k) for k in range(4)])
    weights /= 1 - beta2**4
    assert weights.sum() == pytest.approx(1)
    expected = jax.tree.map(lambda *g: sum(w * np.float64(x) ** 2 for w, x in zip(weights, g)), *gradients)
    assert named_leaves(loaded.second_moment).keys() == named_leaves(params).keys()
    for path, leaf in named_leaves(expected).items():
        np.testing.assert_allclose(named_leaves(loaded.second_moment)[path], leaf, rtol=1e-4, err_msg=path)


def test_the_second_moment_of_a_real_run_is_that_of_its_state(teacher, trained, make_config, tiny_config, params):
    state = Checkpoints(trained / "checkpoints").restore(build_experiment(tiny_config()).initial_state()).state
    nu = named_leaves(optax.tree.get(state.opt_state["score"], "nu"))
    loaded = named_leaves(load_teacher(make_config(), params, SHAPE).second_moment)
    assert loaded.keys() == nu.keys()
    for path, leaf in nu.items():
        np.testing.assert_allclose(loaded[path], np.float64(leaf) / (1 - 0.99**24), rtol=1e-5)


def test_an_optimiser_that_kept_no_second_moment(make_config, tiny_config, params, tmp_path):
    run = handmade(tmp_path / "run", tiny_config(), params, optimizer=optax.sgd(0.1, momentum=0.9))
    assert load_teacher(make_config({"distillation.teacher": str(run)}), params, SHAPE).second_moment is None


@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")
def test_a_teacher_before_its_first_step_has_no_second_moment_or_a_finite_one(make_config, tiny_config, params,
                                                                               tmp_path):  # fmt: skip
    run = handmade(tmp_path / "run", tiny_config(), params, step=0)
    moment = load_teacher(make_config({"distillation.teacher": str(run)}), params, SHAPE).second_moment
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(moment))


def test_the_rows_of_metrics_are_those_of_both_roles(student):
    """Before its start the generator's metrics are 0, afterwards they are not."""
    lines = {line["step"]: line for line in read_json_lines(student / "metrics.jsonl")}
    assert list(lines) == [1, 2, 3, 4]
    assert lines[1]["generator/gradient_norm"] == 0 < lines[2]["generator/gradient_norm"]
    assert all(line["auxiliary/gradient_norm"] > 0 and jnp.isfinite(line["auxiliary/loss"]) for line in lines.values())
