"""The rows of the paper of Score Implicit Matching, with its settings, and what we lack for them.

Of its CIFAR-10 tables only its own two values could be read in the copy at hand. The values of other methods are cited
from where their source says, which is not this paper.
"""

from collections.abc import Mapping
from typing import Any

from configs.tables.base import Figure, PaperValue, Row, Run

L2 = {"distillation.distance": "l2"}
SID_1_0 = L2 | {"distillation.normalizer": "l1"}
SID_1_2 = SID_1_0 | {"distillation.sid_coefficient": 1.2}
DIFF_INSTRUCT = L2 | {"distillation.through_scores": False}
DMD = DIFF_INSTRUCT | {"distillation.normalizer": "l1"}

# --- CIFAR-10 ---------------------------------------------------------------------------------------------------------

_CONFIG, _FID = "configs/images.py:cifar10_sim", {"evaluation.features": ("inception",)}
_LACKS = "CIFAR-10 with a teacher (EDM's, or the run of images.py:cifar10); Inception weights for FID"
_OTHERS = "this method with its network; CIFAR-10; Inception weights"
_UNLABELLED = "CIFAR-10 without labels, with a teacher (EDM's checkpoint); Inception weights for FID"
_SETTINGS = {
    "teacher": "EDM, CIFAR-10 32x32", "data": "none, only noise and labels", "metric": "FID of 50,000 images",
    "not stated": "scale c of the pseudo-Huber distance",
    "not read": "hyper-parameter table: generator's noise level, learning rates, batch, betas, noise laws, GPUs; and "
                "the number of images"}  # fmt: skip
Cited = tuple[float, str]

# Method: about, without and with labels (None: no value), overrides of our config where we have the method.
_METHODS: dict[str, tuple[str, Cited | None, Cited | None, Mapping[str, Any] | None]] = {
    "sim": ("Score Implicit Matching, one step", (2.06, "abstract"), (1.96, "abstract, figure 6"), {}),
    "edm": ("EDM's VP teacher, 35 calls", (1.97, "RealUID; 2.05 in IMM, 2.04 in SCT"), (1.79, "RealUID"), None),
    "sid_1.0": ("SiD, coefficient 1, one step", (2.03, "RealUID, SCT"), (1.93, "RealUID, SCT"), SID_1_0),
    "sid_1.2": ("SiD, coefficient 1.2, one step", (1.923, "README of SiD, RealUID"),
                (1.710, "README of SiD, RealUID; 1.98 in SCT"), SID_1_2),
    "diff_instruct": ("Diff-Instruct, one step", (4.53, "RealUID, SCT"), (4.19, "RealUID, SCT"), DIFF_INSTRUCT),
    "dmd": ("DMD, one step", (3.77, "IMM"), (2.66, "RealUID, assignment uncertain"), None),
    "dmd_no_kl": ("DMD without its KL loss, one step", None, (3.82, "RealUID, assignment uncertain"), None),
    "dmd_no_regression": ("DMD without its regression loss, one step", None, (5.58, "RealUID, assignment uncertain"),
                          DMD),
    "dmd2": ("DMD2, one step", None, (2.13, "README of FastGen; its own run 1.99"), None),
    "f_distill": ("f-distill with the KL, one step", None, (1.92, "README of FastGen; its own run 1.85"), None),
    "ctm": ("CTM, one step", (1.98, "RealUID, IMM, SCT"), (1.73, "RealUID, uncertain"), None),
    "ctm_2": ("CTM, two steps", (1.87, "RealUID, IMM, SCT"), None, None),
    "fgm": ("FGM, the flow version of SIM, one step", (3.08, "RealUID"), (2.58, "RealUID"), None),
    "real_uid": ("RealUID with fine-tuning on data, one step", (1.98, "RealUID"), (1.87, "RealUID"), None),
    "mean_flow": ("MeanFlow, one step", (2.92, "RealUID"), None, None),
    "facm": ("FACM, one step", (2.69, "RealUID"), None, None),
    "scd": ("sCD, one step", (3.66, "RealUID, FastGen"), None, None),
    "sct": ("sCT, one step", (2.85, "RealUID, FastGen"), None, None),
    "tcm": ("TCM, one step", (2.46, "RealUID, FastGen"), None, None),
    "ict_deep": ("iCT-deep, one step", (2.51, "IMM, SCT"), None, None),
    "ect": ("ECT, one step", (3.60, "IMM, SCT"), None, None),
    "imm": ("IMM, one step", (3.20, "IMM, SCT"), None, None),
    "sida": ("SiDA, coefficient 1, one step, with data", (1.52, "RealUID"), (1.44, "RealUID"), None),
    "sid2a": ("SiDA begun from SiD, one step, with data", (1.499, "abstract of SiDA"), (1.396, "abstract of SiDA"),
              None),
    "d2o": ("D2O, one step, with data", (1.54, "its abstract"), None, None),
    "uni_instruct": ("Uni-Instruct, one step", (1.46, "its abstract"), (1.38, "its abstract"), None),
    "stylegan2_di": ("StyleGAN2-ADA, tuned, with Diff-Instruct", (2.71, "RealUID"), (2.27, "RealUID"), None),
    "stylegan_xl": ("StyleGAN-XL", None, (1.85, "RealUID"), None),
    "stylesan_xl": ("StyleSAN-XL", None, (1.36, "RealUID"), None),
}  # fmt: skip


def _cifar() -> list[Row]:
    rows = []
    for name, (about, without, labels, overrides) in _METHODS.items():
        for kind, title, cited in (("uncond", "without labels", without), ("cond", "with labels", labels)):
            if cited is None:
                continue
            ours = overrides is not None
            value, source = cited
            source = source if name == "sim" else f"not this paper's: {source}"
            full = Run(_CONFIG, _FID | overrides) if overrides is not None and kind == "cond" else None
            missing = _OTHERS if not ours else _LACKS if full else _UNLABELLED
            rows.append(Row(name=f"cifar10_{kind}_{name}", about=f"CIFAR-10 {title}, {about}", full=full,
                            figures={"fid50k_train_tf1": Figure("FID", PaperValue(value, source))},
                            settings=_SETTINGS if ours else {"data": "CIFAR-10 32x32"}, missing=missing))  # fmt: skip
    unread = PaperValue(None, "tables of CIFAR-10")
    rows.append(Row(
        name="cifar10_baselines", about="CIFAR-10, other methods in the paper's tables, some of them run anew",
        figures={"fid_uncond": Figure("FID without labels", unread), "fid_cond": Figure("FID with labels", unread)},
        settings=_SETTINGS, missing=_OTHERS))  # fmt: skip
    return rows


def _figure_2() -> list[Row]:
    figures = {"fid50k_train_tf1": Figure("FID", PaperValue(None, "curves of figure 2")),
               "is50k_tf1": Figure("Inception Score", PaperValue(None, "curves of figure 2"))}  # fmt: skip
    metrics = {"evaluation.metrics": ("fd", "inception_score")}
    return [
        Row(name=f"figure2_{name}_lr{rate}", about=f"CIFAR-10, {label} at learning rate {rate}, batch 256",
            figures=figures, missing=_LACKS, settings=_SETTINGS | {"learning_rate": float(rate), "batch_size": 256},
            full=Run(_CONFIG, _FID | metrics | overrides | {"optimizer.learning_rate": float(rate)}))
        for name, label, overrides in (("sim", "SIM", {}), ("sid", "SiD (its coefficient is not known to us)", SID_1_2),
                                       ("diff_instruct", "Diff-Instruct", DIFF_INSTRUCT))
        for rate in ("1e-4", "1e-5")
    ]  # fmt: skip


# --- Text-to-image ----------------------------------------------------------------------------------------------------

_SD, _SDXL, _PIXART = "860M", "2.6B", "610M"
_SIM_TEXT = {
    "teacher": "PixArt-alpha XL/2 at 512x512, latents of 64x64x4, T5 with 120 tokens", "generator level": 2.5,
    "prompts in training": "SAM-LLaVA-Captions10M, no images", "hardware": "4 A100, 2 days",
    "not stated": "guidance scale, learning rate, batch"}  # fmt: skip
# Row: model, calls, parameters, aesthetic score, ImageReward, PickScore, more settings.
_TEXT: dict[str, tuple[str, int, str, float, float, float, dict[str, Any]]] = {
    "sd15": ("Stable Diffusion 1.5", 25, _SD, 5.26, 0.18, 0.217, {}),
    "sd15_lcm": ("SD15-LCM", 4, _SD, 5.66, -0.37, 0.212, {"hardware": "8 A100, 4 days"}),
    "sd15_tcd": ("SD15-TCD", 4, _SD, 5.45, -0.15, 0.214, {"hardware": "8 A800, 5.8 days"}),
    "perflow": ("PeRFlow", 4, _SD, 5.64, -0.35, 0.208, {}),
    "hyper_sd15": ("Hyper-SD15", 1, _SD, 5.79, 0.29, 0.215, {"hardware": "32 A100"}),
    "sdxl": ("SDXL", 25, _SDXL, 5.54, 0.87, 0.229, {}),
    "sdxl_lcm_4": ("SDXL-LCM", 4, _SDXL, 5.42, 0.48, 0.224, {}),
    "sdxl_tcd_4": ("SDXL-TCD", 4, _SDXL, 5.42, 0.67, 0.226, {}),
    "sdxl_lightning_4": ("SDXL-Lightning", 4, _SDXL, 5.63, 0.72, 0.229, {}),
    "sdxl_hyper_4": ("SDXL-Hyper", 4, _SDXL, 5.74, 0.93, 0.232, {}),
    "sdxl_turbo": ("SDXL-Turbo", 1, _SDXL, 5.33, 0.78, 0.228, {}),
    "sdxl_lightning": ("SDXL-Lightning", 1, _SDXL, 5.34, 0.54, 0.223, {"hardware": "64 A100"}),
    "sdxl_hyper": ("SDXL-Hyper", 1, _SDXL, 5.85, 1.19, 0.231, {"hardware": "32 A100"}),
    "pixart": ("PixArt-alpha, the teacher", 30, _PIXART, 5.97, 0.82, 0.226, {}),
    "sim": ("SIM-DiT-600M", 1, _PIXART, 6.42, 0.67, 0.223, _SIM_TEXT),
    "pixart_sam": ("PixArt-alpha, the teacher", 30, _PIXART, 5.93, 0.53, 0.223, {}),
    "sim_sam": ("SIM-DiT-600M", 1, _PIXART, 5.91, 0.44, 0.223, _SIM_TEXT),
}  # fmt: skip
_PREFERENCE = {"pixart_sam": 54.88, "sim_sam": 45.12}


def _text() -> list[Row]:
    rows = []
    for name, (model, calls, size, aesthetic, reward, pick, more) in _TEXT.items():
        sam = name in _PREFERENCE
        source = "table of section 4.2" + (", prompts by its description" if sam else "")
        found = {"aesthetic": ("aesthetic score", aesthetic), "image_reward": ("ImageReward", reward),
                 "pick_score": ("PickScore", pick)}  # fmt: skip
        found |= {"preference": ("preferred by users, %", _PREFERENCE[name])} if sam else {}
        prompts = "SAM-LLaVA-Captions10M" if sam else "COCO-2017, validation"
        rows.append(Row(
            name=f"text_{name}", about=f"text-to-image, {model}, {calls} call{'s' * (calls > 1)}, prompts of {prompts}",
            figures={key: Figure(label, PaperValue(value, source)) for key, (label, value) in found.items()},
            settings={"parameters": size, "calls": calls, "prompts": prompts} | more,
            missing="text-to-image models (PixArt-alpha, T5, autoencoder); prompts; models that score"))  # fmt: skip
    return rows


PAPER_ROWS = (*_cifar(), *_figure_2(), *_text())
