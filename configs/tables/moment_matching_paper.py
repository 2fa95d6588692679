"""The rows of the paper of moment matching: its three tables, with its settings; and what else is known of the task.

The cells of its tables could not be read in the copy at hand. Values that other papers quote are cited from there, and
which rows its tables have is known of few.
"""

from typing import Any

from configs.tables.base import Figure, PaperValue, Row

# --- The paper's tables -----------------------------------------------------------------------------------------------

_ADAM = "Adam, betas 0 and 0.99, epsilon 1e-12, warm-up 1000, linearly to 0, clip 1; no average, decay or dropout"
_NOT_STATED = "learning rate, reduction of the loss, epsilon of the preconditioner, reference size of the shift"
_IMAGENET = {
    "network": "UViT of simple diffusion, small, about 400M parameters, predicts v",
    "base model": "1M steps, batch 2048; sampled with 512 steps, guidance 0.1, tuned noise",
    "distillation": "at most 200,000 steps, batch 2048", "optimizer": _ADAM,
    "times": "EDM's test-time schedule, rho 7, sigma 0.002 to 80, shifted with the resolution",
    "student": "no guidance, ancestral steps", "metric": "FID, best checkpoint of every 5000 steps, fixed seeds",
    "hardware": "256 TPU v5e; base model 2 days (64x64)", "not stated": _NOT_STATED}  # fmt: skip
_COCO = {
    "network": "UViT in pixels, shifted schedule, T5-XXL", "base model": "1M steps, batch 512, licensed data",
    "distillation": "at most 50,000 steps, batch 512", "optimizer": _ADAM,
    "metric": "zero-shot FID and CLIP score, COCO", "hardware": "256 TPU v5e; base model 2 weeks",
    "not stated": _NOT_STATED}  # fmt: skip
_LACKS = "ImageNet; UViT teacher; Inception weights"
_QUOTED = {  # (table, steps) of the alternating variant
    (1, 1): (3.00, "quoted by the paper of sCM, variant not stated"),
    (1, 2): (3.86, "quoted by the paper of sCM, variant not stated"),
    (1, 8): (1.24, "quoted, by way of Dual-Rate Diffusion; variant by context"),
    (2, 8): (1.49, "quoted by a listing of benchmarks; the paper's best"),
}


def _tables() -> list[Row]:
    rows = []
    for table, size in ((1, 64), (2, 128)):
        unread = PaperValue(None, f"table {table}")
        scores = {"is": Figure("Inception Score", unread)}
        rows.append(Row(
            name=f"table{table}_base", about=f"ImageNet {size}x{size}, base model, 512 steps, two calls each",
            figures={"fid": Figure("FID", unread)} | scores, settings=_IMAGENET, missing=_LACKS))  # fmt: skip
        for variant in ("alternating", "instant"):
            for k in (1, 2, 4, 8, 16):
                quoted = _QUOTED.get((table, k)) if variant == "alternating" else None
                value = PaperValue(quoted[0], f"table {table}, {quoted[1]}") if quoted else PaperValue(
                    None, f"table {table}, if it has this row")
                rows.append(Row(
                    name=f"table{table}_{variant}_k{k}", settings=_IMAGENET | {"steps": k}, missing=_LACKS,
                    about=f"ImageNet {size}x{size}, {variant}, {k} step{'s' * (k > 1)}",
                    figures={"fid": Figure("FID", value)} | scores))  # fmt: skip
    unread = PaperValue(None, "table 3")
    figures = {name: Figure(label, unread) for name, label in (("guidance", "guidance"), ("fid", "FID"),
                                                               ("clip", "CLIP score"))}  # fmt: skip
    for name, about in (("base", "base model"), ("alternating_k8", "alternating, 8 steps"),
                        ("instant_k8", "instant, 8 steps"), ("literature", "rows of other papers")):  # fmt: skip
        rows.append(Row(name=f"table3_{name}", about=f"text-to-image 512x512, {about}", figures=figures, settings=_COCO,
                        missing="text-to-image data and teacher; T5-XXL; COCO; CLIP"))  # fmt: skip
    return rows


# --- Other papers' numbers --------------------------------------------------------------------------------------------


def _row(name: str, about: str, values: dict[str, tuple[str, float]], source: str, data: str, **more: Any) -> Row:
    """`values`: figure -> label, FID."""
    figures = {key: Figure(label, PaperValue(value, f"not this paper's: {source}"))
               for key, (label, value) in values.items()}  # fmt: skip
    return Row(name=name, about=about, figures=figures, settings={"data": data, **more},
               missing=f"{data} with a network of this size and its teacher; weights of the metric")  # fmt: skip


def _by_steps(values: dict[int, float]) -> dict[str, tuple[str, float]]:
    return {f"fid_steps{k}": (f"FID, {k} step{'s' * (k > 1)}", value) for k, value in values.items()}


_MSCM, _SCM, _EDM2 = "multistep consistency models, table 5", "paper of sCM", "README of edm2_sCM"
_I64, _I128 = "ImageNet 64x64", "ImageNet 128x128"
# Row: about, FID by steps, source, data.
_BASELINES: dict[str, tuple[str, dict[int, float], str, str]] = {
    "pd": ("progressive distillation, run anew with aDDIM", {1: 10.7, 2: 4.7, 4: 2.4, 8: 1.7}, _MSCM, _I64),
    "stochastic_pd": ("progressive distillation, stochastic", {1: 18.5, 2: 5.81, 4: 2.24, 8: 2.31}, _MSCM, _I64),
    "tract": ("TRACT", {1: 7.43, 2: 4.97, 4: 2.93, 8: 2.41}, _MSCM, _I64),
    "multistep_cd": ("multistep consistency distillation", {1: 3.2, 2: 1.9, 4: 1.6, 8: 1.4}, _MSCM, _I64),
    "multistep_ct": ("multistep consistency training", {1: 3.2, 2: 2.3, 4: 1.6, 8: 1.5}, _MSCM, _I64),
    "cd_lpips": ("consistency distillation, LPIPS", {1: 6.20, 2: 4.70}, _MSCM, _I64),
    "ict_deep": ("iCT-deep", {1: 3.25, 2: 2.77}, _MSCM, _I64),
    "ctm": ("CTM", {1: 1.9, 2: 1.7}, _MSCM, _I64),
    "diff_instruct": ("Diff-Instruct", {1: 5.57}, _MSCM, _I64),
    "dfno": ("DFNO", {1: 7.83}, _MSCM, _I64),
    "dmd": ("DMD", {1: 2.6}, _MSCM, _I64),
    "emd": ("EM distillation", {1: 2.20}, _SCM, _I64),
    "dmd2": ("DMD2", {1: 1.28}, _SCM, _I64),
    "sid": ("SiD", {1: 1.52}, _SCM, _I64),
    "scd": ("sCD", {1: 2.44, 2: 1.66}, _SCM, _I64),
    "sct": ("sCT", {1: 2.04, 2: 1.48}, _SCM, _I64),
    "ect": ("ECT", {1: 2.49, 2: 1.67}, _SCM, _I64),
    "scd_edm2s": ("sCD on EDM2-S", {1: 3.59, 2: 2.66}, _EDM2, _I64),
    "ms_scd_edm2s": ("MS-sCD on EDM2-S", {2: 2.53, 4: 2.26, 8: 2.08}, _EDM2, _I64),
    "mscd_edm2s": ("MSCD on EDM2-S", {2: 3.44, 4: 2.32, 8: 1.79}, _EDM2, _I64),
    "pd_128": ("progressive distillation", {2: 8.0, 4: 3.8, 8: 2.5}, _MSCM, _I128),
    "multistep_ct_128": ("multistep consistency training", {2: 4.2, 4: 2.7, 8: 2.2}, _MSCM, _I128),
    "multistep_cd_128": ("multistep consistency distillation", {2: 3.1, 4: 2.3, 8: 2.1}, _MSCM, _I128),
}
_CALLS = (4, 8, 16, 32, 64, 128)
_D_MMD = "notes in the sources of the paper of D-MMD, informal"


def _elsewhere() -> list[Row]:
    """Moment matching in the hands of others."""
    latents = "ImageNet 512x512, latents, DiT-M of 0.5B, no guidance"
    teacher = dict(zip(_CALLS, (135.30, 41.07, 12.73, 6.49, 4.93, 4.56)))
    student = dict(zip(_CALLS, (2.86, 2.80, 2.87, 2.99, 3.15, 3.21)))
    variants = {"schedule": ("interpolated schedule", 1.91), "guidance": ("with the teacher's guidance, too", 1.82),
                "teacher": ("with a larger teacher, too", 1.57),
                "kd": ("with KD initialisation, too", 1.54)}  # fmt: skip
    rmmd = {"plain": ("plain", 1.35, 2.0), "dropout": ("dropout", 1.37, 1.66), "shift": ("dropout, shift", 1.26, 1.40)}
    return [
        _row("elsewhere_edm2", f"{_I64}, moment matching of EDM's ADM network", _by_steps({8: 1.4}), _EDM2, _I64,
             batch_size=2048, learning_rate=2e-6, images="about 213M, best of several seeds"),
        *(_row(f"elsewhere_rmmd_{name}", f"{_I64}, moment matching run anew, {about}", _by_steps({8: eight, 2: two}),
               "RMMD, at second hand", _I64, teacher="FID 1.19") for name, (about, eight, two) in rmmd.items()),
        _row("elsewhere_dual_rate", f"{_I64}, moment matching, x_t by the student's own steps", _by_steps({8: 1.17}),
             "Dual-Rate Diffusion, at second hand", _I64, teacher="FID 2.38"),
        _row("elsewhere_dual_rate_data", f"{_I64}, the same, x_t by noising data", _by_steps({8: 1.61}),
             "Dual-Rate Diffusion, at second hand", _I64, teacher="FID 2.38"),
        _row("elsewhere_latents_teacher", f"{latents}: teacher", _by_steps(teacher), _D_MMD, latents),
        _row("elsewhere_latents", f"{latents}: moment matching", _by_steps(student), _D_MMD, latents),
        *(_row(f"elsewhere_latents_plus_{name}", f"{latents}: moment matching, {about}", _by_steps({8: value}), _D_MMD,
               latents) for name, (about, value) in variants.items()),
        _row("elsewhere_discrete", "CIFAR-10, D-MMD on discrete pixels, uniform noise", _by_steps({32: 3.7}),
             "paper of D-MMD", "CIFAR-10, discrete", teacher="FID 7.5 with 1024 steps"),
    ]  # fmt: skip


PAPER_ROWS = (
    *_tables(),
    *(_row(f"other_{name}", f"{data}, {about}", _by_steps(values), source, data)
      for name, (about, values, source, data) in _BASELINES.items()),
    *_elsewhere(),
)  # fmt: skip
