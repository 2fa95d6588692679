"""From a denoiser to samples: time grids and the solvers that walk them."""

from samplers.ancestral import Ancestral
from samplers.ddim import DDIM
from samplers.euler import Euler
from samplers.euler_maruyama import EulerMaruyama
from samplers.heun import Heun
from samplers.langevin import Langevin

SAMPLERS = {
    "ancestral": Ancestral,
    "ddim": DDIM,
    "euler": Euler,
    "euler_maruyama": EulerMaruyama,
    "heun": Heun,
    "langevin": Langevin,
}
