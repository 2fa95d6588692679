"""Moment matching on eight virtual CPU devices (this file run as a program) against pytest's single one."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.process import GaussianProcess
from diffusion.schedules import EDM
from distillation.base import Parts
from distillation.instant_moment_matching import InstantMomentMatching
from distillation.moment_matching import MomentMatching
from training.mesh import make_mesh, put_batch

DEVICES, BATCH = 8, 32


def perceptron(params):
    def denoise(x, t, label=None):
        seen = jnp.concatenate([x, t[:, None], label[:, None].astype(jnp.float32)], axis=-1)
        return 0.5 * x + jnp.tanh(seen @ params["in"]) @ params["out"]

    return denoise


def make_params(seed):
    draw = np.random.default_rng(seed)
    return {"in": np.float32(draw.normal(size=(5, 16))), "out": np.float32(0.5 * draw.normal(size=(16, 3)))}


def results():
    """{name: value} of both methods' losses and gradients, and of nu, for one global batch on all devices there are."""
    parts = Parts(network=lambda params, key: perceptron(params), teacher=perceptron, guide=lambda denoise: denoise,
                  process=GaussianProcess(EDM()), objective=lambda *arguments: None, num_classes=2)  # fmt: skip
    draw = np.random.default_rng(3)
    rows = {"image": np.float32(draw.normal(size=(BATCH, 3))), "label": np.arange(BATCH, dtype=np.int32) % 2}
    mesh, names, values = make_mesh(), ("generator", "auxiliary", "teacher", "preconditioner"), {}
    others = {name: make_params(seed) for seed, name in enumerate(names)}
    alternating, instant = (method(num_steps=4, weight="flat") for method in (MomentMatching, InstantMomentMatching))
    with jax.set_mesh(mesh):
        batch = put_batch(rows, mesh)
        assert len(batch["image"].sharding.device_set) == jax.device_count()
        for method in (alternating, instant):
            for update in method.updates(parts):
                run = jax.jit(jax.value_and_grad(lambda p, o, b, update=update: update.loss(p, o, b, jax.random.key(0)),
                                                 has_aux=True))  # fmt: skip
                (loss, metrics), gradient = run(others[update.role], others, batch)
                tree = {"loss": loss, "metrics": metrics, "gradient": gradient}
                values |= named(f"{type(method).__name__}/{update.role}", tree)

        def wish(params, batch):
            transition = instant.draw(perceptron(params), parts.process, batch["image"], batch["label"],
                                      jax.random.key(1))  # fmt: skip
            return instant.wish(parts, others["teacher"], transition, batch["label"])

        values |= named("wish", jax.jit(wish)(others["generator"], batch))
    return values


def named(prefix, tree):
    return {prefix + jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in
            jax.tree_util.tree_leaves_with_path(tree)}  # fmt: skip


@pytest.mark.usefixtures("quick_to_compile")
def test_eight_devices_are_as_one(tmp_path):
    """Losses, metrics, gradients and nu of the same global batch, to 1e-5 of their size."""
    assert jax.device_count() == 1
    root = str(Path(__file__).parents[2])
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": root,
                                "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # fmt: skip
    command = [sys.executable, __file__, str(tmp_path / "values.npz")]
    ended = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    one = results()
    with np.load(tmp_path / "values.npz") as many:
        assert set(many) == set(one) and len(one) > 15
        for name, value in one.items():
            size = max(np.linalg.norm(value), 1e-12)
            assert size > 1e-6 and np.linalg.norm(many[name] - value) < 1e-5 * size, name
            wrong = np.linalg.norm(many[name] / DEVICES - value)  # a mean over devices that was a sum, or the reverse
            assert wrong > 0.5 * size


if __name__ == "__main__":
    np.savez(sys.argv[1], **results())
