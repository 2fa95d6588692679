"""What a diffusion is: schedules, processes, predictions, denoisers, guidance, exact distributions and networks."""

from diffusion.discrete import Discrete
from diffusion.kernel_free import DoubleWell, Static
from diffusion.phi4 import Phi4
from diffusion.schedules import EDM, Constant, Cosine, RectifiedFlow, VPLinear
from diffusion.sde_schedules import VE, SubVP

# Schedules of a GaussianProcess: processes with a kernel in closed form.
SCHEDULES = {
    "vp_linear": VPLinear,
    "sub_vp": SubVP,
    "ve": VE,
    "cosine": Cosine,
    "edm": EDM,
    "rectified_flow": RectifiedFlow,
    "discrete": Discrete,
    "constant": Constant,
}

# Processes that can only be simulated.
PROCESSES = {
    "static": Static,
    "double_well": DoubleWell,
    "phi4": Phi4,
}
