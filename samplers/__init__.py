"""From a denoiser to samples: time grids and the solvers that walk them."""

from samplers.ancestral import Ancestral
from samplers.ddim import DDIM
from samplers.dpm_solver import DPMSolver
from samplers.euler import Euler
from samplers.euler_maruyama import EulerMaruyama
from samplers.heun import Heun
from samplers.langevin import Langevin, UnderdampedLangevin
from samplers.one_step import OneStep
from samplers.poisson_midpoint import PoissonMidpoint
from samplers.predictor_corrector import PredictorCorrector
from samplers.randomized_midpoint import RandomizedMidpoint
from samplers.sa_solver import SASolver

# Two of them go by two names, the general and the one by which papers know it.
SAMPLERS = {
    "ancestral": Ancestral,
    "ddpm": Ancestral,
    "ddim": DDIM,
    "euler": Euler,
    "euler_maruyama": EulerMaruyama,
    "heun": Heun,
    "langevin": Langevin,
    "lmc": Langevin,
    "ulmc": UnderdampedLangevin,
    "poisson_midpoint": PoissonMidpoint,
    "dpm_solver": DPMSolver,
    "sa_solver": SASolver,
    "randomized_midpoint": RandomizedMidpoint,
    "predictor_corrector": PredictorCorrector,
    "one_step": OneStep,
}
