"""Networks, all with one call signature, and the one bridge from modules to pure functions.

    network(x, noise_level, label, key=None) -> output

x [B, ...] is scaled to about unit variance; noise_level [B] is -logsnr / 8, about in [-3, 3]; label [B] is in
[0, num_classes], where num_classes means "no class", or None for "no class" everywhere; key turns dropout on. The
output is float32 of x's shape, and zero for freshly created parameters.

    network.features(x, noise_level, label, key=None) -> features [B, ..., width], for a network on top of this one
"""

from dataclasses import dataclass

import jax
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from diffusion.networks.dit import DiT
from diffusion.networks.energy import Energy
from diffusion.networks.mlp import MLP
from diffusion.networks.unet import UNet

NETWORKS = {"mlp": MLP, "energy": Energy, "unet": UNet, "dit": DiT}

Params = dict  # nested, with string keys and array leaves


@dataclass(frozen=True)
class Apply:
    """A network without its parameters: a pure function of them, and another one for its features."""

    graphdef: nnx.GraphDef

    def __call__(
        self,
        params: Params,
        x: Float[Array, "batch *shape"],
        noise_level: Float[Array, " batch"],
        label: Int[Array, " batch"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch *shape"]:
        return nnx.merge(self.graphdef, params)(x, noise_level, label, key)

    def features(
        self,
        params: Params,
        x: Float[Array, "batch *shape"],
        noise_level: Float[Array, " batch"],
        label: Int[Array, " batch"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch *hidden"]:
        return nnx.merge(self.graphdef, params).features(x, noise_level, label, key)


def split(network: nnx.Module) -> tuple[Apply, Params]:
    """A network as a pure function and its parameters.

    Returns:
      (apply, params): params is a nested dict with string keys, and apply(params, x, noise_level, label, key=None)
      is what network(x, noise_level, label, key) would be with those parameters.

    Raises:
      ValueError: the network holds state that is not a parameter (a random stream, running statistics): a pure
        function could not update it.
    """
    graphdef, params, rest = nnx.split(network, nnx.Param, ...)
    if jax.tree.leaves(rest):
        names = ["/".join(map(str, path)) for path, _ in nnx.to_flat_state(rest)]
        raise ValueError(f"{type(network).__name__} holds state that is not a parameter: {', '.join(names)}")
    # Parameters are numpy arrays until here; one transfer moves them all.
    return Apply(graphdef), jax.device_put(nnx.to_pure_dict(params))


def initialise(network: str | type[nnx.Module], key: Key[Array, ""], **options) -> tuple[Apply, Params]:
    """Creates a network and splits it: `split(NETWORKS[network](**options, rngs=nnx.Rngs(key)))`.

    Args:
      network: a name in NETWORKS, or a module class with the same call signature.
      key: decides the initial parameters, which are the same on every backend.
      **options: the class's keyword arguments, `shape` among them, without `rngs`.

    Returns:
      (apply, params), as `split` does.

    Raises:
      ValueError: the name is unknown, or an option is refused by the class.
    """
    if isinstance(network, str):
        if network not in NETWORKS:
            raise ValueError(f"config.network.name is {network!r}; known networks: {', '.join(NETWORKS)}")
        network = NETWORKS[network]
    return split(network(**options, rngs=nnx.Rngs(key)))
