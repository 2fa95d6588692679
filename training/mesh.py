"""Devices: one mesh with the axes `data` and `fsdp`, from one CPU to many hosts.

The batch is split over both axes. Parameters are replicated over `data` and, where one of their axes divides, split
over `fsdp`; XLA inserts the communication.
"""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree


def make_mesh(fsdp: int = 1) -> Mesh:
    """All devices as [devices / fsdp, fsdp].

    Raises:
      ValueError: if fsdp does not divide the number of devices.
    """
    count = jax.device_count()
    if fsdp < 1 or count % fsdp:
        raise ValueError(f"config.mesh.fsdp = {fsdp} must divide the number of devices, {count}")
    # Auto on purpose: with the default (Explicit) axis types every operation would have to name its output sharding.
    return jax.make_mesh((count // fsdp, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def state_sharding(mesh: Mesh, abstract_state: PyTree) -> PyTree:
    """A sharding per leaf: the largest axis that divides over `fsdp`, else replicated."""
    size = mesh.shape["fsdp"]

    def leaf(x: jax.ShapeDtypeStruct) -> NamedSharding:
        axes = [i for i, n in enumerate(x.shape) if n % size == 0 and n >= size]
        if size == 1 or not axes:
            return NamedSharding(mesh, PartitionSpec())
        largest = max(axes, key=lambda i: x.shape[i])
        # Without trailing None, as jit names the layout of its results: another name would miss its cache at step 2.
        return NamedSharding(mesh, PartitionSpec(*[None] * largest, "fsdp"))

    return jax.tree.map(leaf, abstract_state)


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of the global batch -> global arrays. The copy is asynchronous."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
