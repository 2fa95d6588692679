"""`--config.sampler=NAME` or `NAME:PRESET`: the whole sampler section at once, from the sampler's own defaults.

A preset is a set of options, such as those of a paper. Every sampler has "default", which sets none of them.
"""

from typing import Any

from ml_collections import ConfigDict

# Sampler -> preset -> fields of the section.
# How a few-step student of moment matching is sampled.
_STUDENT = {"grid": "trailing", "zero_terminal_snr": True, "steps": 8}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "ancestral": {"default": {}, "student": _STUDENT},
    "ddpm": {"default": {}, "student": _STUDENT},
    "heun": {
        "default": {},
        # Karras et al. 2022, table 5, ImageNet 64.
        "edm_imagenet64": {"steps": 256, "grid": "karras", "churn": 40.0, "churn_min": 0.05, "churn_max": 50.0,
                           "churn_noise": 1.003},
    },
    "poisson_midpoint": {
        "default": {},
        # Kandasamy & Nagaraj 2024: 40 equal macro steps of DDPM's thousand, epsilon frozen.
        "paper": {"freeze": "epsilon", "spacing": 1.0, "variant": "2", "mode": "single", "steps": 40,
                  "fine_steps": 1000},
    },
}  # fmt: skip

# What belongs to the denoiser rather than to the sampler, and stays as it is.
_KEPT = ("guidance", "guidance_interval")


def choose_sampler(config: ConfigDict, choice: Any) -> None:
    """Resets config.sampler to the defaults of a sampler, and sets the options of a preset; guidance stays.

    Args:
      choice: "NAME", whose preset is "default", or "NAME:PRESET". An unknown NAME is found by `validate`.

    Raises:
      ValueError: for anything else, listing the presets.
    """
    from configs.base import get_config

    name, colon, preset = choice.partition(":") if isinstance(choice, str) else ("", "", "")
    preset = preset if colon else "default"
    presets = {"default": {}} | PRESETS.get(name, {})
    if not name or preset not in presets:
        raise ValueError(f"config.sampler = '{choice}' is not known; choose the name of a sampler, or one of "
                         f"{', '.join(known_presets())}")
    for field, value in get_config().sampler.items():
        if field not in _KEPT:
            config.sampler[field] = value
    config.sampler.update({"name": name} | presets[preset])


def known_presets() -> list[str]:
    """"NAME:PRESET" of all presets but the defaults."""
    return [f"{name}:{preset}" for name, presets in PRESETS.items() for preset in presets if preset != "default"]
