"""From a denoiser to samples: time grids and the solvers that walk them."""

from samplers.ancestral import Ancestral
from samplers.ddim import DDIM
from samplers.euler import Euler
from samplers.heun import Heun

SAMPLERS = {
    "ancestral": Ancestral,
    "ddim": DDIM,
    "euler": Euler,
    "heun": Heun,
}
