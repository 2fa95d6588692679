"""The contract of a sampler, and what all of them share.

A sampler is a frozen dataclass with one method:

    sample(denoise, process, keys, label, shape=...) -> Samples

`keys` holds one key per image, folded from (seed, image index); all noise of image i is drawn from keys[i] and the
index of the step, so image i is the same for any batch size and any number of devices. The loop is one `lax.scan` over
tables made on the host in float64, and network evaluations are counted in its carry.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion.base import Denoiser, Process, network_calls


class Samples(NamedTuple):
    """What a sampler returns.

    Attributes:
      x0: [B, ...] the samples, in the range of the data, not clipped.
      nfe: [B] network evaluations spent on each image.
      x0_steps: [calls, B, ...] the denoiser's output at every network call, if it was asked for, else None.
      t_steps: [calls] the times of these calls, likewise.
    """

    x0: Float[Array, "batch *shape"]
    nfe: Int[Array, " batch"]
    x0_steps: Float[Array, "calls batch *shape"] | None = None
    t_steps: Float[Array, " calls"] | None = None


@runtime_checkable
class Sampler(Protocol):
    """A solver of the reverse process; `steps` is the number of grid intervals, the last of which ends at x0."""

    steps: int

    def sample(
        self,
        denoise: Denoiser,
        process: Process,
        keys: Key[Array, " batch"],
        label: Int[Array, " batch"] | None,
        *,
        shape: tuple[int, ...],
        keep_steps: bool = False,
    ) -> Samples: ...


def scan_tables(**tables: np.ndarray) -> dict[str, Array]:
    """Host tables in float64 -> what `lax.scan` walks over: float32 on the device, with the index of the row."""
    rows = {name: jnp.asarray(np.asarray(table, np.float32)) for name, table in tables.items()}
    return rows | {"index": jnp.arange(len(next(iter(tables.values()))))}


def run_scan(
    body: Any, denoise: Denoiser, x: Float[Array, "batch *shape"], extra: Any, rows: dict[str, Array],
    label: Int[Array, " batch"] | None, *, keep_steps: bool,
) -> Samples:
    """Scans `body` over `rows`, with the one network call of each row made and counted here.

    Args:
      body: (x, extra, x0_hat, row) -> (x, extra), the update of one row.
      denoise: called at (x, row["t"], label) before each `body`.
      x: [B, ...] state at the first row.
      extra: whatever else the method carries from row to row.
      rows: tables from `scan_tables`, with a column "t".
      label: [B] or None.
      keep_steps: also return every x0_hat.
    """

    def step(carry: Any, row: dict[str, Array]) -> tuple[Any, Any]:
        x, extra, nfe = carry
        t = jnp.full(x.shape[:1], row["t"])
        x0_hat = denoise(x, t, label)
        nfe = nfe + network_calls(denoise, t, label)
        x, extra = body(x, extra, x0_hat, row)
        return (x, extra, nfe), (x0_hat if keep_steps else None)

    (x, _, nfe), x0_steps = jax.lax.scan(step, (x, extra, jnp.zeros(x.shape[0], jnp.int32)), rows)
    return Samples(x, nfe, x0_steps, rows["t"] if keep_steps else None)
