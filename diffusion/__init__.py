"""What a diffusion is: schedules, processes, predictions, denoisers, guidance, exact distributions and networks."""

from diffusion.schedules import EDM, Cosine, RectifiedFlow, VPLinear

SCHEDULES = {
    "vp_linear": VPLinear,
    "cosine": Cosine,
    "edm": EDM,
    "rectified_flow": RectifiedFlow,
}
