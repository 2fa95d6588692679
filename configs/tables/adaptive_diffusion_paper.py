"""Rows of the paper of AdaptiveDiffusion and of those it is compared with, as far as they are known to us.

The cells of its tables could not be read in the copy at hand; that it has these tables is known. What others measured
of it is cited from there.
"""

from typing import Any

from configs.tables.base import Figure, PaperValue, Row

_UNREAD = "tables of section 4"
_METRICS = {"psnr": "PSNR to the full sampler's images", "lpips": "LPIPS to them", "fid": "FID, most likely to them",
            "latency": "seconds an image", "speedup": "speed-up"}  # fmt: skip
_SETTINGS = {"code": "scalar criterion, hold, 4 first steps called", "precision": "fp16", "steps": 50, "batch": 1,
             "metrics": "torchmetrics' PSNR and LPIPS, clean-fid between the two folders of images"}  # fmt: skip
_IMAGES = {"delta": 0.01, "c_max": 4, "prompts": "COCO 2017"}
_VIDEO = {"delta": 0.008, "c_max": 4, "frames": "in the batch, one decision for a clip"}


def _row(name: str, about: str, settings: dict[str, Any], missing: str, metrics: dict[str, str] = _METRICS) -> Row:
    figures = {key: Figure(label, PaperValue(None, _UNREAD)) for key, label in metrics.items()}
    return Row(name=name, about=about, figures=figures, settings=_SETTINGS | settings, missing=missing)


def _paper() -> list[Row]:
    rows = []
    for model, title in (("sd15", "Stable Diffusion 1.5"), ("sdxl", "SDXL")):
        lacks = f"{title}; COCO 2017; LPIPS; Inception weights"
        for solver in ("ddim", "dpm_solver", "euler"):
            rows += [_row(f"{model}_{solver}_{method}", f"{title}, {solver}, {method}",
                          _IMAGES | {"solver": solver, "method": method}, lacks)
                     for method in ("deepcache", "adaptive")]  # fmt: skip
    rows += [
        _row("ldm4_imagenet", "ImageNet 256x256, LDM-4, with labels", {"delta": "not stated", "c_max": "not stated"},
             "LDM-4's checkpoint and autoencoder; ImageNet; Inception weights"),
        *(_row(f"pixels_{name}", f"{title}, appendix", {"delta": "not stated"}, f"{title}'s network; Inception weights")
          for name, title in (("cifar10", "CIFAR-10"), ("lsun", "LSUN"))),
        _row("sd15_sde", "Stable Diffusion 1.5, a solver of the SDE (2M), appendix", _IMAGES | {"solver": "sde_2m"},
             "Stable Diffusion 1.5; COCO 2017; LPIPS; Inception weights"),
        *(_row(f"video_{name}", f"video, {title}", _VIDEO, f"{title}; its prompts; a network for FVD",
               _METRICS | {"fvd": "FVD"})
          for name, title in (("i2vgen_xl", "I2VGen-XL, 100 samples of AIGCBench"), ("modelscope", "ModelScopeT2V"))),
        *(_row(f"sdxl_euler_n{steps}", f"SDXL, euler, {steps} steps, ablation", _IMAGES | {"steps": steps},
               "SDXL; COCO 2017; LPIPS; Inception weights") for steps in (25, 15, 10)),
        _row("sdxl_euler_delta", "SDXL, euler, 50 steps, ablation of delta and c_max", {"delta": "several"},
             "SDXL; COCO 2017; LPIPS; Inception weights"),
    ]  # fmt: skip
    summary = {
        "speedup_low": Figure("average speed-up, the lowest", PaperValue(2, "abstract")),
        "speedup_high": Figure("average speed-up, the highest", PaperValue(5, "abstract")),
        "speedup_best": Figure("best speed-up", PaperValue(5.6, "second-hand, the task is not named")),
        "calls_low": Figure("calls of 50 that SDXL nearly keeps its images with, an easy prompt",
                            PaperValue(20, "figure 1")),
        "calls_high": Figure("the same, a harder prompt", PaperValue(26, "figure 1")),
    }  # fmt: skip
    rows.append(Row(name="summary", about="what the abstract and figure 1 say", figures=summary, settings=_SETTINGS,
                    missing="Stable Diffusion 1.5, SDXL; COCO 2017; LPIPS; Inception weights"))  # fmt: skip
    return rows


# (model, method) -> PSNR, LPIPS, FID, speed-up; COCO 2017, 50 steps, DPM-Solver++.
_MEASURED_AGAIN = {
    ("SD-2", "deepcache"): (17.70, 0.271, 7.83, 1.43), ("SD-2", "adaptive"): (24.30, 0.100, 4.35, 1.45),
    ("SD-2", "sada"): (26.34, 0.094, 4.02, 1.80), ("SDXL", "deepcache"): (21.30, 0.255, 8.48, 1.74),
    ("SDXL", "adaptive"): (26.10, 0.125, 4.59, 1.65), ("SDXL", "sada"): (29.36, 0.084, 3.51, 1.86),
    ("Flux", "teacache"): (19.14, 0.216, 4.89, 2.00), ("Flux", "sada"): (29.44, 0.060, 1.95, 2.02),
}  # fmt: skip
# name -> model, what it reports. None of them is in JAX but where it says so.
_OTHERS = {
    "deepcache_ldm4": ("LDM-4, ImageNet", {"speedup": 4.1, "fid_rise": 0.22}, "DeepCache's README"),
    "deepcache_sd15": ("Stable Diffusion 1.5", {"speedup": 2.3}, "DeepCache's README"),
    "teacache_hunyuan": ("HunyuanVideo", {"speedup": 1.67, "psnr": 23.9}, "EasyCache's README"),
    "easycache_hunyuan": ("HunyuanVideo", {"speedup": 2.21, "psnr": 32.7, "lpips": 0.053}, "EasyCache's README"),
    "easycache_wan": ("Wan 1.3B", {"speedup": 2.54, "psnr": 25.2}, "EasyCache's README"),
    "dbcache_flux": ("Flux, 50 steps", {"speedup": 1.80, "psnr": 33.8}, "cache-dit's benchmark"),
    "first_block_cache_flux": ("Flux, 28 steps", {"speedup": 1.40, "lpips": 0.08}, "unslothai/unsloth#6703"),
    "taylorseer_hunyuan": ("HunyuanVideo", {"speedup": 4.65}, "TaylorSeer's README"),
    "magcache_maxdiffusion": ("Wan, JAX", {"speedup": 1.82, "psnr": 21.8, "ssim": 0.72}, "maxdiffusion"),
    "sencache_maxdiffusion": ("Wan, JAX", {"speedup": 1.4}, "maxdiffusion"),
}  # fmt: skip
_LABELS = _METRICS | {"fid_rise": "rise of FID", "ssim": "SSIM to the full sampler's images"}


def _others() -> list[Row]:
    rows = []
    for (model, method), values in _MEASURED_AGAIN.items():
        source = "measured again by the paper of SADA, second-hand"
        figures = {key: Figure(_METRICS[key], PaperValue(value, source))
                   for key, value in zip(("psnr", "lpips", "fid", "speedup"), values)}  # fmt: skip
        rows.append(Row(
            name=f"again_{model.lower().replace('-', '')}_{method}", about=f"{model}, DPM-Solver++, 50 steps, {method}",
            figures=figures, settings={"prompts": "COCO 2017", "steps": 50, "solver": "DPM-Solver++"},
            missing=f"{model}; COCO 2017; LPIPS; Inception weights"))  # fmt: skip
    for name, (model, values, source) in _OTHERS.items():
        figures = {key: Figure(_LABELS[key], PaperValue(value, source)) for key, value in values.items()}
        rows.append(Row(name=f"other_{name}", about=f"{model}, {name.split('_')[0]}", figures=figures,
                        settings={"model": model}, missing=f"this method; {model}"))  # fmt: skip
    return rows


PAPER_ROWS = (*_paper(), *_others())
