"""The rows of the LCSS paper: tables 1 to 4 and the numbers of its text, with its settings, and what we lack for them.

The cells of its tables could not be read in the copy at hand; the numbers of the text could.
"""

from configs.tables.base import Figure, PaperValue, Row

_OBJECTIVES = {"ssm": "SSM", "fd_ssm": "FD-SSM", "dsm": "DSM", "lcss": "LCSS"}
_HARDWARE = {"hardware": "8 A100, 32 CPU cores, 128 GB of memory"}
_CHECKERBOARD = {
    "network": "scalar, two hidden layers of 300; score = its gradient", "optimizer": "SGD", "learning_rate": 1e-3,
    "batch_size": 10_000, "epochs": 200, "sampling": "Langevin, step 0.1, 1000 steps, uniform start, 250M points",
    "not stated": "noise level, activation, size of the data set, momentum"}  # fmt: skip
_COMMON = {"optimizer": "Adam", "learning_rate": 2e-4, "warmup_steps": 5000, "gradient_clip": 1.0, "flip": True}
_NCSNPP = _COMMON | {"process": "VE up to 50", "width": 128, "channel_multipliers": (1, 2, 2, 2), "batch_size": 128,
                     "ema": 0.999, "sampler": "predictor-corrector, snr 0.16"}  # fmt: skip
_DDPMPP = _COMMON | {"process": "sub-VP, beta 0.1 to 20", "width": 128, "channel_multipliers": (1, 2, 2, 2),
                     "batch_size": 128, "ema": 0.9999, "sampler": "Euler-Maruyama"}  # fmt: skip
_TABLE_3 = {
    "ncsnpp": ("NCSN++", "VE", _NCSNPP | {"blocks_per_level": 4, "steps": 1_300_000}),
    "ncsnpp_deep": ("NCSN++ deep", "VE", _NCSNPP | {"blocks_per_level": 8, "steps": 950_000}),
    "ddpmpp": ("DDPM++", "sub-VP", _DDPMPP | {"blocks_per_level": 4}),
    "ddpmpp_deep": ("DDPM++ deep", "sub-VP", _DDPMPP | {"blocks_per_level": 8}),
}
_NCSNV2 = {"network": "NCSNv2", "process": "discrete VE levels, weighted by sigma^2", "optimizer": "Adam",
           "learning_rate": 1e-4, "width": 128, "ema": 0.999}  # fmt: skip
_CIFAR = _NCSNV2 | {"levels": 232, "sigma": (0.01, 50), "batch_size": 128, "steps": 300_000, "langevin_steps": 5}
_CELEBA = _NCSNV2 | {"levels": 500, "sigma": (0.01, 90), "batch_size": 128, "steps": 210_000}
_FACES = _NCSNV2 | {"levels": 2311, "sigma": (0.01, 348), "batch_size": 16, "steps": 600_000, "langevin_steps": 3}
# Number of the text: what, its value, where, settings, what is missing.
_TEXT = {
    "cifar_ssm_collapse": ("step from which SSM yields black images", 95_000, "section 4.2.3", _CIFAR, "CIFAR-10"),
    "cifar_fdssm_collapse": ("the same of FD-SSM", 495_000, "section 4.2.3", _CIFAR, "CIFAR-10"),
    "cifar_snapshots": ("steps at which samples are compared", "5,000 and 90,000", "figure 2", _CIFAR, "CIFAR-10"),
    "celeba_snapshots": ("steps at which samples are compared",
                         "10,000; 210,000 (FD-SSM, LCSS), 60,000 (SSM)", "figure 3", _CELEBA, "CelebA"),
    "celeba_ssm_collapse": ("step after which SSM yields black images", 65_000, "section 4.2.3", _CELEBA, "CelebA"),
    "ffhq_fail": ("faces after 600,000 steps of batch 16", "with DSM and LCSS, not with SSM and FD-SSM", "figure 4",
                  _FACES, "FFHQ"),
    "ffhq_dsm_decline": ("step at which DSM's loss spikes and its samples decline", "about 210,000", "section 4.2.3",
                         _FACES, "FFHQ"),
    "afhq_dsm_fail": ("realistic samples after 600,000 steps of batch 16", "with LCSS, not with DSM", "figure 5",
                      _FACES, "AFHQ"),
    "mixed_dsm_worse": ("better samples after 600,000 steps of batch 16", "with LCSS", "figure 6",
                        _FACES, "FFHQ and AFHQ"),
    "hq1024_iters": ("steps of training", "1.3M (NCSN++), 0.3M (DDPM++), batch 16", "section 4.3",
                     _COMMON | {"batch_size": 16}, "CelebA-HQ"),
    "gamma_low": ("samples with gamma = 0.5", "only noise", "section 4.4, figure 7", _FACES, "FFHQ"),
    "gamma_high": ("samples with gamma = 10", "contours without texture", "section 4.4, figure 7", _FACES, "FFHQ"),
}  # fmt: skip


def _table_1_and_2() -> list[Row]:
    rows = []
    for key, label in _OBJECTIVES.items():
        density = {"density": Figure("picture of the learnt density", PaperValue("a picture", "table 1"))}
        toy = {"seconds": Figure("time per epoch, mean of 100", PaperValue(None, "table 2"))}
        faces = {"seconds": Figure("time per step, mean of 1000", PaperValue(None, "table 2"))}
        sgd = "plain SGD; 250M Langevin points; noise level, activation and data size, which are not stated"
        ncsn = "NCSNv2 network; FFHQ"
        rows += [
            Row(name=f"table1_{key}", about=f"checkerboard, {label}", figures=density, settings=_CHECKERBOARD,
                missing=sgd),
            Row(name=f"table2_checkerboard_{key}", about=f"checkerboard, {label}", figures=toy,
                settings=_CHECKERBOARD | _HARDWARE, missing=f"{sgd}; A100 GPUs"),
            Row(name=f"table2_ffhq256_{key}", about=f"FFHQ 256x256, {label}", figures=faces,
                settings=_FACES | _HARDWARE, missing=f"{ncsn}; A100 GPUs"),
        ]  # fmt: skip
    return rows


def _table_3() -> list[Row]:
    unread = PaperValue(None, "table 3")
    figures = {"fid50k_train_tf1": Figure("FID", unread), "is50k_tf1": Figure("Inception Score", unread),
               "bits_per_dimension": Figure("bits per dimension", unread)}  # fmt: skip
    return [
        Row(name=f"table3_{key}_{objective}", about=f"CIFAR-10, {label}, {process}, {objective.upper()}",
            figures=figures, settings=settings, missing=f"{label} network; CIFAR-10; likelihoods")
        for key, (label, process, settings) in _TABLE_3.items() for objective in ("dsm", "lcss")
    ]  # fmt: skip


def _table_4() -> list[Row]:
    verdict = {"verdict": Figure("quality, in words", PaperValue(None, "table 4"))}
    cases = {"case1": "the easier case", "case2": "the harder case"}
    return [
        Row(name=f"table4_{case}_{objective}", about=f"{about}, {objective.upper()}", figures=verdict, settings=_FACES,
            missing="NCSNv2 network; FFHQ and AFHQ")
        for case, about in cases.items() for objective in ("dsm", "lcss")
    ]  # fmt: skip


def _text() -> list[Row]:
    # Names that a small row has too (gamma_...) are told apart by the prefix.
    return [
        Row(name=f"text_{name}", about=about, figures={"value": Figure(about, PaperValue(value, source))},
            settings=settings, missing=f"{'NCSN++ and DDPM++' if name == 'hq1024_iters' else 'NCSNv2'} network; {data}")
        for name, (about, value, source, settings, data) in _TEXT.items()
    ]  # fmt: skip


PAPER_ROWS = (*_table_1_and_2(), *_table_3(), *_table_4(), *_text())
