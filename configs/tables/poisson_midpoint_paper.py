"""The rows of the Poisson midpoint paper: tables 3 to 7 and its plots, with its settings, and what we lack for them.

No value of its tables could be read in the copy at hand.
"""

from configs.tables.base import Figure, PaperValue, Row

_COMMON = {
    "model": "latent diffusion of CompVis, official checkpoint, unconditional, 256x256", "training levels": 1000,
    "images": 50_000,
    "hardware": "8 A100 of 40 GB, about 16 hours for 50,000 images at 1000 calls, batch 50"}  # fmt: skip
_FID = {"metric": "FID, Clean-FID, mode clean"}
_CLIP = {"metric": "CLIP-FID, clip_vit_b_32, by Clean-FID, mode clean"}
# Name, title, table, settings, what is missing besides the checkpoints.
_DATA = {
    "celebahq": ("CelebA-HQ", "table 3", _CLIP | {"reference": "30,000 images of train and val at 1024"},
                 "CLIP features; CelebA-HQ"),
    "churches": ("LSUN Churches", "table 4", _FID | {"reference": "trainfull, as published"},
                 "Clean-FID's resizing and statistics; LSUN"),
    "bedrooms": ("LSUN Bedrooms", "table 5", _FID | {"reference": "3,033,042 training images"},
                 "Clean-FID's resizing; LSUN"),
    "ffhq": ("FFHQ", "table 6", _CLIP | {"reference": "trainval70k at 1024, as published"}, "CLIP features; FFHQ"),
}  # fmt: skip
_LACKS = "latent-diffusion checkpoint and autoencoder"
_MACRO_STEPS = (20, 25, 40, 50, 100, 125, 200, 250, 500)
_VARIANTS = ("1", "1b", "1c", "1d", "2", "3")
_SKIPS = {"logsnr": "uniform in log-SNR", "uniform": "uniform in time", "quadratic": "quadratic in time"}


def _rows_of(name: str) -> list[Row]:
    title, table, settings, lacks = _DATA[name]
    settings, missing = _COMMON | settings, f"{_LACKS}; {lacks}"
    metric = settings["metric"].split(",")[0]

    def row(suffix: str, about: str, source: str, points: dict[str, str], more: dict) -> Row:
        figures = {key: Figure(f"{metric}, {label}", PaperValue(None, source)) for key, label in points.items()}
        return Row(name=f"{name}_{suffix}", about=f"{title}, {about}", figures=figures, settings=settings | more,
                   missing=missing)  # fmt: skip

    def calls(counts: tuple[int, ...]) -> dict[str, str]:
        return {f"fid_nfe{count}": f"{count} calls" for count in counts}

    macro = {f"fid_steps{steps}": f"{steps} macro steps, K = {1000 // steps}" for steps in _MACRO_STEPS}
    law = {"mode": "bernoulli for K = 2 to 4, single for larger K", "calls": "40 to 750", "freeze": "epsilon"}
    rows = [row(f"pmm_{variant}", f"Poisson midpoint, variant {variant}", table, macro, law | {"variant": variant})
            for variant in _VARIANTS]  # fmt: skip
    rows += [
        row(f"dpm_solver{order}_{skip}", f"DPM-Solver of order {order}, {about}", "table 7",
            calls((10, 20, 40, 50, 100)), {"solver": "multistep, dpmsolver (not ++)", "order": order, "grid": about})
        for order in (2, 3) for skip, about in _SKIPS.items()
    ]  # fmt: skip
    rows += [
        row("ddpm", "DDPM, the best of variants 1 to 3 at every point", "plots of table 2, figure 1",
            calls((50, 100, 200, 500, 1000)), {"sampler": "DDPM, variants 1 to 3"}),
        row("ddim", "DDIM", "plots of table 2", calls((20, 40, 50, 100, 200, 500)), {"sampler": "DDIM, eta = 0"}),
    ]  # fmt: skip
    return rows


PAPER_ROWS = tuple(row for name in _DATA for row in _rows_of(name))
