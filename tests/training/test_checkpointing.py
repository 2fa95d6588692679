"""Checkpoints against kills, damaged files, foreign entries and runs that do not fit. The oracle is the saved bytes."""

import functools
import hashlib
import json
import logging
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from training import checkpointing, manifest
from training.checkpointing import Checkpoints

ROOT = Path(__file__).parents[2]
KEPT = (5, 10, 15)
# After a failed read, orbax leaves coroutines behind that were never awaited.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
# What these files tell is not used for reading; damage to them changes nothing that is restored.
DESCRIPTIVE = ("commit_success.txt", "_CHECKPOINT_METADATA", "_sharding", "array_metadatas/process_0",
               "ocdbt.process_0/manifest.ocdbt")  # fmt: skip


ADAM = optax.adam(1e-3)


def make_state(step, learner=ADAM):
    draw = np.random.default_rng(step)
    params = {
        "score": {
            "kernel": jnp.asarray(draw.normal(size=(70, 80)), jnp.float32),  # large enough for a file of its own
            "bias": jnp.asarray(draw.normal(size=3), jnp.bfloat16),
            "0.5": {"scale": jnp.asarray(draw.normal(), jnp.float32)},
        }
    }
    opt_state = {"score": optax.chain(optax.clip(1.0), learner).init(params["score"])}
    ema = {"score": {"0.999": jax.tree.map(lambda leaf: leaf + 1, params["score"])}}
    return {"step": jnp.asarray(step, jnp.int32), "params": params, "opt_state": opt_state, "ema": ema}


def leaf_bytes(state):
    return [(leaf.dtype, leaf.shape, np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(state)]


@functools.cache
def expected_bytes(step):
    return leaf_bytes(make_state(step))


@functools.cache
def abstract_state():
    return jax.eval_shape(lambda: make_state(0))


def save(checkpoints, step, state=None):
    state = make_state(step) if state is None else state
    return checkpoints.save(step, state, data={"position": 8 * step}, config={"steps": 80})


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    directory = tmp_path_factory.mktemp("template") / "checkpoints"
    checkpoints = Checkpoints(directory, keep=len(KEPT))
    for step in KEPT:
        assert save(checkpoints, step)
    return directory


@pytest.fixture
def directory(template, tmp_path):
    shutil.copytree(template, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def restore(directory, **kwargs):
    return Checkpoints(directory).restore(abstract_state(), **kwargs)


def assert_restored(restored, step):
    assert restored.step == step
    assert leaf_bytes(restored.state) == expected_bytes(step)
    assert jax.tree.structure(restored.state) == jax.tree.structure(abstract_state())
    assert restored.data == {"position": 8 * step} and restored.config == {"steps": 80}


def value_file(step_folder):
    """The file with the bytes of the large kernel."""
    kernel = np.asarray(make_state(int(step_folder.name))["params"]["score"]["kernel"]).tobytes()
    return next(path for path in step_folder.rglob("*") if path.is_file() and kernel[:64] in path.read_bytes())


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 0xFF
    path.write_bytes(content)


# Round trip and hashes.


def test_everything_comes_back_bit_for_bit(directory):
    restored = restore(directory)
    assert_restored(restored, 15)
    assert manifest.state_hash(restored.state) == manifest.state_hash(make_state(15))
    assert_restored(restore(directory, step=5), 5)
    with pytest.raises(RuntimeError, match=r"checkpoint 7 .* cannot be used.*Complete steps: \[5, 10, 15\]"):
        restore(directory, step=7)


def test_the_saved_state_can_be_used_and_donated_afterwards(tmp_path):
    state = make_state(1)
    save(Checkpoints(tmp_path), 1, state)
    jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0, tree), donate_argnums=0)(state)
    assert_restored(restore(tmp_path), 1)


def test_leaf_hashes_are_those_of_the_bytes():
    tree = {"a": jnp.asarray([1.5, -0.0], jnp.float32), "b": np.arange(6, dtype=np.int16).reshape(2, 3).T}
    leaves = manifest.leaf_manifest(tree)
    assert leaves["a"]["sha256"] == hashlib.sha256(struct.pack("<2f", 1.5, -0.0)).hexdigest()
    assert leaves["b"]["sha256"] == hashlib.sha256(struct.pack("<6h", 0, 3, 1, 4, 2, 5)).hexdigest()
    assert leaves["b"]["shape"] == [3, 2] and leaves["b"]["dtype"] == "int16"


def test_state_hash_sees_every_bit_and_nothing_else():
    base = {"a": np.zeros(2, np.float32), "b": np.ones(1, np.float32)}
    same = {"b": jnp.ones(1), "a": jnp.zeros(2)}
    others = [
        {**base, "a": np.array([0, -0.0], np.float32)},
        {**base, "b": np.nextafter(base["b"], 2)},
        {**base, "a": np.zeros(2, np.int32)},
        {**base, "a": np.zeros((2, 1), np.float32)},
        {"a": base["a"], "c": base["b"]},
    ]
    assert manifest.state_hash(same) == manifest.state_hash(base)
    assert len({manifest.state_hash(tree) for tree in [base, *others]}) == 6


def test_a_state_holds_arrays_only(tmp_path):
    with pytest.raises(ValueError, match="'params/a' is a float"):
        save(Checkpoints(tmp_path), 1, {"params": {"a": 1.0}})
    with pytest.raises(ValueError, match="'key' is a key<fry>: keys are folded"):
        save(Checkpoints(tmp_path), 1, {"key": jax.random.key(0)})
    with pytest.raises(ValueError, match="the config item of a checkpoint must be JSON"):
        Checkpoints(tmp_path).save(1, {"a": jnp.ones(1)}, data={}, config={"path": tmp_path})
    assert list(tmp_path.iterdir()) == []


# Reading without knowing the structure.


def test_read_returns_every_byte_without_knowing_the_structure(directory):
    """Paths, shapes, types and hashes of all leaves; dictionaries stay what they are."""
    before = sorted(directory.rglob("*"))
    read = Checkpoints(directory).read()
    assert manifest.leaf_manifest(read.state) == manifest.leaf_manifest(make_state(15))
    assert manifest.state_hash(read.state) == manifest.state_hash(make_state(15))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(read.state))
    assert read.state["params"]["score"]["0.5"].keys() == {"scale"} and read.state["params"].keys() == {"score"}
    assert (read.step, read.data, read.config) == (15, {"position": 120}, {"steps": 80})
    assert sorted(directory.rglob("*")) == before



@pytest.mark.parametrize("name", ["values", "data/metadata", "state/manifest.ocdbt"])
def test_read_refuses_a_damaged_step_and_renames_nothing(directory, name):
    """Nor does it take the step before."""
    flip(value_file(directory / "15") if name == "values" else directory / "15" / name, 0.5)
    before = sorted(directory.rglob("*"))
    with pytest.raises(RuntimeError, match=r"checkpoint 15 of .* cannot be used: "):
        Checkpoints(directory).read()
    assert sorted(directory.rglob("*")) == before


def test_read_without_hashes_lets_a_flipped_byte_through(directory, monkeypatch):
    """The negative control of the test above."""
    flip(value_file(directory / "15"), 0.5)
    monkeypatch.setattr(manifest, "differences", lambda *args, **kwargs: [])
    assert manifest.state_hash(Checkpoints(directory).read().state) != manifest.state_hash(make_state(15))


def test_read_refuses_a_newest_step_whose_meta_item_is_damaged(directory):
    (directory / "15" / "meta" / "metadata").write_text("{")
    with pytest.raises(RuntimeError, match="checkpoint 15"):
        Checkpoints(directory).read()


def test_there_may_be_nothing_to_read(tmp_path):
    assert Checkpoints(tmp_path / "missing").read() is None
    (tmp_path / "5.orbax-checkpoint-tmp").mkdir()
    assert Checkpoints(tmp_path).read() is None and list(tmp_path.iterdir()) == [tmp_path / "5.orbax-checkpoint-tmp"]


# Damage: F9, F10, F12, F16.


def files_of_a_step():
    state = "state/"
    return ["meta/metadata", "data/metadata", "config/metadata", state + "manifest.ocdbt", state + "_METADATA",
            state + "_sharding", state + "commit_success.txt", state + "array_metadatas/process_0",
            state + "ocdbt.process_0/manifest.ocdbt", "_CHECKPOINT_METADATA", "commit_success.txt"]  # fmt: skip


def check_damaged(directory, path, caplog):
    """After damage to one file of step 15: the step before, loudly, or the very same content, for descriptive files."""
    name = path.relative_to(directory / "15").as_posix()
    restored = restore(directory)
    if restored.step == 15:
        assert name.endswith(DESCRIPTIVE), f"damage to {name} was not noticed"
        assert_restored(restored, 15)
        return
    assert_restored(restored, 10)
    assert "step 15 is replaced by step 10" in caplog.text
    assert (directory / "damaged-15").is_dir() and not (directory / "15").exists()
    assert_restored(restore(directory), 10)  # and it stays so


def test_the_list_of_files_is_complete(template):
    found = {path.relative_to(template / "15").as_posix() for path in (template / "15").rglob("*") if path.is_file()}
    rest = {name for name in found - set(files_of_a_step()) if not name.endswith("/commit_success.txt")}
    assert set(files_of_a_step()) <= found
    assert rest and all(Path(name).parent.name == "d" for name in rest)


@pytest.mark.parametrize("position", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("name", [*files_of_a_step(), "values", "state/d", "state/ocdbt.process_0/d"])
def test_a_flipped_byte_never_gets_through(directory, name, position, caplog):
    path = value_file(directory / "15") if name == "values" else directory / "15" / name
    paths = sorted(path.iterdir()) if path.is_dir() else [path]
    for path in paths:
        flip(path, position)
    if len(paths) == 1:
        check_damaged(directory, paths[0], caplog)
    else:
        assert_restored(restore(directory), 10)


@pytest.mark.parametrize("damage", ["truncate", "empty", "delete"])
@pytest.mark.parametrize("name", [*files_of_a_step(), "values"])
def test_a_shortened_or_missing_file_never_gets_through(directory, name, damage, caplog):
    path = value_file(directory / "15") if name == "values" else directory / "15" / name
    if damage == "delete":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size // 2 if damage == "truncate" else 0)
    check_damaged(directory, path, caplog)


def test_negative_control_without_hashes_a_flipped_byte_gets_through(directory, monkeypatch):
    flip(value_file(directory / "15"), 0.5)
    monkeypatch.setattr(manifest, "differences", lambda *args, **kwargs: [])
    restored = restore(directory)
    assert restored.step == 15 and leaf_bytes(restored.state) != leaf_bytes(make_state(15))


def test_items_of_different_steps_do_not_mix(directory):
    shutil.rmtree(directory / "15" / "data")
    shutil.copytree(directory / "10" / "data", directory / "15" / "data")
    assert_restored(restore(directory), 10)


def test_an_edited_meta_item_is_noticed(directory, caplog):
    path = directory / "15" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    meta["environment"]["cpu_count"] += 1
    path.write_text(json.dumps(meta))
    assert_restored(restore(directory), 10)
    assert "step 15 has a meta item that was altered" in caplog.text


def test_a_device_that_is_too_small_is_no_damage(directory, monkeypatch):
    def fail(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    checkpoints = Checkpoints(directory)
    monkeypatch.setattr(checkpoints._orbax, "restore", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="out of memory"):
        checkpoints.restore(abstract_state())
    assert checkpoints.good_steps() == list(KEPT)


def test_an_explicit_step_is_never_replaced(directory):
    flip(value_file(directory / "15"), 0.5)
    with pytest.raises(RuntimeError, match=r"checkpoint 15 .* other content than was saved"):
        restore(directory, step=15)
    assert (directory / "15").is_dir()


def test_several_damaged_steps_in_a_row(directory):
    flip(value_file(directory / "15"), 0.5)
    (directory / "10" / "meta" / "metadata").write_text("{")
    assert_restored(restore(directory), 5)
    assert sorted(path.name for path in directory.iterdir()) == ["5", "damaged-10", "damaged-15"]


def test_lost_checkpoints_are_no_fresh_start(directory):
    for step in KEPT:
        flip(value_file(directory / str(step)), 0.5)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"no usable checkpoint is left.*step 10 has other.*Not starting from"):
            restore(directory)
    assert Checkpoints(directory).good_steps() == list(KEPT)  # nothing was renamed
    for step in KEPT:
        (directory / str(step)).rename(directory / f"damaged-{step}")
    with pytest.raises(RuntimeError, match="all were set aside as damaged earlier"):
        restore(directory)


def test_a_fresh_start_is_one(tmp_path):
    assert restore(tmp_path / "missing") is None
    assert Checkpoints(tmp_path).latest_good_step() is None
    (tmp_path / "5.orbax-checkpoint-tmp").mkdir()  # killed in the very first save
    assert restore(tmp_path) is None


# Foreign entries: F11.


def test_foreign_entries_are_ignored_with_a_warning(directory, tmp_path, caplog):
    (directory / "90").mkdir()
    (directory / "91.orbax-checkpoint-tmp").mkdir()
    (directory / "abc").mkdir()
    (directory / "notes.txt").write_text("mine")
    shutil.copytree(directory / "15", directory / "92")
    shutil.copytree(directory / "15", directory / "0093")
    shutil.move(directory / "10", tmp_path / "elsewhere")
    (directory / "10").symlink_to(tmp_path / "elsewhere")
    checkpoints = Checkpoints(directory)
    before = sorted(directory.iterdir())
    assert checkpoints.latest_good_step() == 15 and checkpoints.good_steps() == [5, 15]
    assert sorted(directory.iterdir()) == before
    for words in ["step 90 has no readable meta item", "91.orbax-checkpoint-tmp is not a step, but an interrupted save",
                  "abc is not a step", "notes.txt", "step 92 was saved as step 15", "0093 is not a step",
                  "10 is or contains a symbolic link"]:  # fmt: skip
        assert words in caplog.text
    assert_restored(restore(directory), 15)


def test_a_symbolic_link_inside_a_step_is_refused(directory, tmp_path):
    target = value_file(directory / "15")
    shutil.move(target, tmp_path / "elsewhere")
    target.symlink_to(tmp_path / "elsewhere")
    assert Checkpoints(directory).latest_good_step() == 10


def test_steps_are_ordered_by_number(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (9, 10, 100):
        save(checkpoints, step)
    os.utime(tmp_path / "10")  # neither by name nor by time
    assert checkpoints.good_steps() == [10, 100]
    assert_restored(restore(tmp_path), 100)


# Runs that do not fit: F13, F28.


def changed(**parts):
    return {**make_state(0), **parts}


def without_ema():
    return {name: part for name, part in make_state(0).items() if name != "ema"}


@pytest.mark.parametrize(
    ("abstract", "message"),
    [
        (changed(step=jnp.zeros((), jnp.int16)), "step: dtype int32 in the checkpoint, int16 in this run"),
        (changed(step=jnp.zeros((1,), jnp.int32)), r"step: shape \[\] in the checkpoint, \[1\] in this run"),
        (changed(extra=jnp.zeros(1)), "extra: in this run, not in the checkpoint"),
        (without_ema(), "ema/score/0.999/bias: in the checkpoint, not in this run"),
        (make_state(0, optax.sgd(0.1)), "opt_state/score/1/0/mu/kernel: in the checkpoint, not in this run"),
    ],
)
def test_another_state_is_refused_path_by_path(directory, abstract, message):
    with pytest.raises(ValueError, match=message):
        Checkpoints(directory).restore(abstract)
    assert Checkpoints(directory).good_steps() == list(KEPT)


def test_another_schema_is_refused_by_version(directory, monkeypatch):
    monkeypatch.setattr(checkpointing, "SCHEMA_VERSION", 2)
    with pytest.raises(ValueError, match="has schema version 1; this code reads 2"):
        restore(directory)
    assert (directory / "15").is_dir()


def test_another_environment_is_told(directory, monkeypatch, caplog):
    assert_restored(restore(directory), 15)
    assert "bit for bit" not in caplog.text
    monkeypatch.setenv("XLA_FLAGS", "--other")
    assert_restored(restore(directory), 15)
    assert "not bit for bit. XLA_FLAGS: " in caplog.text and "-> '--other'" in caplog.text


# Saving: F2, F6, F7, F18, F24.


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("part", "path"), [("params", ("score", "bias")), ("ema", ("score", "0.999", "kernel"))])
def test_weights_that_are_not_finite_are_not_saved(directory, part, path, value):
    state = make_state(20)
    node = state[part]
    for name in path[:-1]:
        node = node[name]
    node[path[-1]] = node[path[-1]].at[0].set(value)
    with pytest.raises(ValueError, match=f"not saved: NaN or infinity in {part}/{'/'.join(path)}"):
        save(Checkpoints(directory), 20, state)
    assert_restored(restore(directory), 15)


def test_an_infinity_of_the_optimiser_is_saved(tmp_path):
    state = {"opt_state": {"best": jnp.asarray(np.inf)}}
    save(Checkpoints(tmp_path), 1, state)
    assert np.isposinf(Checkpoints(tmp_path).restore(state).state["opt_state"]["best"])


def test_saving_a_step_again(directory):
    checkpoints = Checkpoints(directory, keep=3)
    before = (directory / "15" / "meta" / "metadata").stat().st_mtime_ns
    assert save(checkpoints, 15) is False
    assert (directory / "15" / "meta" / "metadata").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"step 15 is already saved.*first params/score/.*does another run write"):
        save(checkpoints, 15, {**make_state(15), "params": make_state(16)["params"]})
    with pytest.raises(ValueError, match=r"step 15 is already saved.*data position"):
        checkpoints.save(15, make_state(15), data={"position": 0}, config={"steps": 80})
    assert_restored(restore(directory), 15)


def test_what_lies_in_the_way_is_moved_aside(directory):
    (directory / "20").mkdir()
    (directory / "20" / "mine.txt").write_text("mine")
    (directory / "damaged-20").mkdir()
    assert save(Checkpoints(directory), 20)
    assert_restored(restore(directory), 20)
    assert (directory / "damaged-20.1" / "mine.txt").read_text() == "mine"


class Kill(BaseException):
    """Stands for a kill: no handler of the program sees it, and the disk stays as it is."""


def test_a_kill_before_the_rename_leaves_no_step(directory, monkeypatch):
    checkpoints = Checkpoints(directory)

    def kill(self, folder):
        assert (folder / "meta").exists() or list(folder.glob("meta*"))
        raise Kill

    with monkeypatch.context() as patch:
        patch.setattr(type(checkpoints._orbax._handler), "finalize", kill)
        with pytest.raises(Kill):
            save(checkpoints, 20)
    assert (directory / "20.orbax-checkpoint-tmp").is_dir()
    assert_restored(restore(directory), 15)
    assert save(Checkpoints(directory), 20)
    assert_restored(restore(directory), 20)
    assert sorted(path.name for path in directory.iterdir()) == ["15", "20"]


@pytest.mark.parametrize("point", ["before", "inside"])
def test_a_kill_between_commit_and_deletion_leaves_the_new_step(directory, monkeypatch, point):
    def kill(*args, **kwargs):
        raise Kill

    checkpoints = Checkpoints(directory, keep=1)
    with monkeypatch.context() as patch:
        patch.setattr(*((checkpoints, "_delete", kill) if point == "before" else (shutil, "rmtree", kill)))
        with pytest.raises(Kill):
            save(checkpoints, 20)
    assert_restored(restore(directory), 20)
    assert save(Checkpoints(directory, keep=1), 25)
    assert [path.name for path in directory.iterdir()] == ["25"]


def test_a_deletion_that_fails_does_not_stop_the_run(directory, monkeypatch, caplog):
    def fail(self, target):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(checkpointing.Checkpoints, "_prepare", lambda self, nbytes: None)
        patch.setattr(shutil, "rmtree", lambda *args: fail(None, None))
        assert save(Checkpoints(directory, keep=2), 20)
    assert "could not be deleted" in caplog.text
    assert_restored(restore(directory), 20)


def test_a_disk_that_is_too_small_is_told_before_writing(directory, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**30, 2**30 - 2**16, 2**16))
    with pytest.raises(OSError, match="0 MiB needed for a checkpoint, 0 MiB free"):
        save(Checkpoints(directory), 20)
    assert sorted(path.name for path in directory.iterdir()) == ["10", "15", "5"]


def test_a_write_that_fails_leaves_the_older_steps(directory):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**13, hard))
    try:
        with pytest.raises(OSError, match=r"20 could not be written .*older steps are intact: \[5, 10, 15\]"):
            save(Checkpoints(directory), 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_restored(restore(directory), 15)
    assert save(Checkpoints(directory), 20)  # the room came back
    assert_restored(restore(directory), 20)


def test_keep_is_at_least_one():
    with pytest.raises(ValueError, match="keep = 0"):
        Checkpoints("anywhere", keep=0)


# Real processes: one is killed while it writes, one ends without any clean-up right after a sharded save.

CHILD = """
import os, sys
import jax, jax.numpy as jnp, numpy as np
from training.checkpointing import Checkpoints

checkpoints = Checkpoints(sys.argv[1])
mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
small = {"params": {"a": jax.device_put(np.arange(6, dtype=np.float32), sharding)}}
checkpoints.save(1, small, data={}, config={})
if sys.argv[2] == "exit":
    os._exit(0)
print("saved", flush=True)
checkpoints.save(2, {"params": {"a": jnp.ones(2**26)}}, data={}, config={})
"""


def child(directory, mode):
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", CHILD, str(directory), mode]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def test_a_killed_process_and_one_that_ends_at_once(tmp_path, caplog):
    killed, ended = child(tmp_path / "killed", "write"), child(tmp_path / "ended", "exit")
    temporary = tmp_path / "killed" / "2.orbax-checkpoint-tmp"
    deadline = time.monotonic() + 60
    while not temporary.exists():
        assert time.monotonic() < deadline and killed.poll() is None
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(30) == -signal.SIGKILL and ended.wait(60) == 0
    killed.stdout.close(), ended.stdout.close()
    assert temporary.exists()
    wanted = {"params": {"a": jax.ShapeDtypeStruct((6,), jnp.float32)}}
    for name in ("killed", "ended"):
        checkpoints = Checkpoints(tmp_path / name)
        restored = checkpoints.restore(wanted)
        assert restored.step == 1
        np.testing.assert_array_equal(restored.state["params"]["a"], np.arange(6))
        assert "device_count: 2 -> 1" in caplog.text  # saved from two devices
        caplog.clear()
        assert checkpoints.save(2, {"params": {"a": jnp.ones(3)}}, data={}, config={})
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["1", "2"]


def test_reading_changes_nothing(directory):
    (directory / "20.orbax-checkpoint-tmp").mkdir()  # another process may be saving just now
    before = sorted(path.as_posix() for path in directory.rglob("*"))
    assert_restored(restore(directory), 15)
    assert sorted(path.as_posix() for path in directory.rglob("*")) == before


def test_orbax_does_not_flood_the_log(directory, caplog):
    with caplog.at_level(logging.INFO):
        save(Checkpoints(directory), 20)
        restore(directory)
    assert len(caplog.records) == 0, caplog.text


def test_meta_tells_what_a_run_depends_on(directory):
    meta = json.loads((directory / "15" / "meta" / "metadata").read_text())
    assert meta["environment"]["jax"] == jax.__version__
    assert meta["environment"]["cpu_count"] == len(os.sched_getaffinity(0))
    assert meta["leaves"]["params/score/bias"] == {
        "shape": [3], "dtype": "bfloat16",
        "sha256": hashlib.sha256(np.asarray(make_state(15)["params"]["score"]["bias"]).tobytes()).hexdigest(),
    }  # fmt: skip
