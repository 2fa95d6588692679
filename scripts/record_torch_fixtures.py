"""Record what torch writes: weight files in its two formats, and a tiny DINOv2 with the features it computes.

    pip install "torch==2.13.0" "transformers==5.23.0"
    python scripts/record_torch_fixtures.py                  # torch_files and dinov2
    python scripts/record_torch_fixtures.py dinov2           # or one of them

Writes to tests/evaluation/fixtures/; the tests need neither package. scripts/record_fixtures.py records the metrics.
"""

import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "evaluation" / "fixtures"


def torch_files(folder: Path) -> None:
    """torch_legacy.pth and torch_zip.pth: one state dict in PyTorch's two formats; test_torch_files.py has its arrays.

    Recorded with torch 2.13.
    """
    import torch

    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 2), torch.nn.BatchNorm2d(3))
    state = module.state_dict()  # an OrderedDict with `_metadata`, as published weights are
    with torch.no_grad():
        for number, tensor in enumerate(state.values()):
            tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape) + 100 * number)
    base = torch.arange(24, dtype=torch.float64)
    state["transposed"] = base.reshape(4, 6).T
    state["every third"] = base[5:17:3]
    state["tied"] = state["0.weight"]
    state["parameter"] = torch.nn.Parameter(torch.full((3,), 0.5))
    state["half"] = torch.tensor([1.5, -2.0], dtype=torch.float16)
    state["int"] = torch.tensor([[-1, 2]], dtype=torch.int32)
    state["byte"] = torch.tensor([0, 255], dtype=torch.uint8)
    state["bool"] = torch.tensor([True, False, True])
    state["empty"] = torch.zeros(0, 3)
    for name, zipped in (("torch_legacy.pth", False), ("torch_zip.pth", True)):
        torch.save(state, folder / name, _use_new_zipfile_serialization=zipped)


def dinov2(folder: Path) -> None:
    """dinov2_tiny.pth and dinov2_tiny.npz: a tiny DINOv2 with random weights under the public file's names; its
    interpolated positions, images, and their normalised class tokens by transformers' Dinov2Model.

    Recorded with torch 2.13 and transformers 5.23. Dinov2Model interpolates positions by its own rule, so it is given a
    16x16 table, interpolated beforehand as facebookresearch/dinov2 does: `scale_factor` = 16.1 / 37.
    """
    import torch
    from torch.nn.functional import interpolate
    from transformers import Dinov2Config, Dinov2Model

    width, depth, heads = 16, 2, 2
    random = np.random.default_rng(0)

    def normal(*shape, scale=1.0, mean=0.0):
        return torch.from_numpy((mean + scale * random.standard_normal(shape)).astype(np.float32))

    state = {
        "cls_token": normal(1, 1, width),
        "pos_embed": normal(1, 1 + 37**2, width),
        "mask_token": normal(1, width),
        "patch_embed.proj.weight": normal(width, 3, 14, 14, scale=588**-0.5),
        "patch_embed.proj.bias": normal(width, scale=0.2),
    }
    for i in range(depth):
        for name, rows, columns in (
            ("attn.qkv", 3 * width, width), ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width), ("mlp.fc2", width, 4 * width),
        ):  # fmt: skip
            state[f"blocks.{i}.{name}.weight"] = normal(rows, columns, scale=1.5 * columns**-0.5)
            state[f"blocks.{i}.{name}.bias"] = normal(rows, scale=0.2)
        for name in ("norm1", "norm2"):
            state[f"blocks.{i}.{name}.weight"] = normal(width, scale=0.2, mean=1.0)
            state[f"blocks.{i}.{name}.bias"] = normal(width, scale=0.2)
        for name in ("ls1", "ls2"):
            state[f"blocks.{i}.{name}.gamma"] = normal(width, scale=0.3, mean=0.6)
    state |= {"norm.weight": normal(width, scale=0.2, mean=1.0), "norm.bias": normal(width, scale=0.2)}
    torch.save(state, folder / "dinov2_tiny.pth")

    grid = state["pos_embed"][:, 1:].reshape(1, 37, 37, width).permute(0, 3, 1, 2)
    grid = interpolate(grid, scale_factor=(16.1 / 37, 16.1 / 37), mode="bicubic").permute(0, 2, 3, 1)
    table = torch.cat([state["pos_embed"][:, :1], grid.reshape(1, 256, width)], dim=1)
    theirs = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.mask_token": state["mask_token"],
        "embeddings.position_embeddings": table,
        "embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
        "layernorm.weight": state["norm.weight"],
        "layernorm.bias": state["norm.bias"],
    }
    for i in range(depth):
        for kind in ("weight", "bias"):
            ours, layer = f"blocks.{i}", f"encoder.layer.{i}"
            for letter, part in zip("qkv", state[f"{ours}.attn.qkv.{kind}"].chunk(3)):
                theirs[f"{layer}.attention.{letter}_proj.{kind}"] = part
            theirs[f"{layer}.attention.o_proj.{kind}"] = state[f"{ours}.attn.proj.{kind}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                theirs[f"{layer}.{name}.{kind}"] = state[f"{ours}.{name}.{kind}"]
        for number in (1, 2):
            theirs[f"{layer}.layer_scale{number}.lambda1"] = state[f"{ours}.ls{number}.gamma"]
    config = Dinov2Config(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, image_size=224, patch_size=14
    )
    model = Dinov2Model(config).eval()
    model.load_state_dict(theirs, strict=True)

    i, j = np.mgrid[0:20, 0:20]
    noise = random.integers(0, 256, (20, 20, 3))
    gradient = np.stack([13 * i, 13 * j, 6 * (i + j)], axis=-1)
    images = np.stack([noise, gradient, 255 * ((i + j) % 2)[:, :, None] * [1, 0, 1], 0 * noise]).astype(np.uint8)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    pixels = interpolate(pixels, size=(224, 224), mode="bicubic", antialias=True).clip(0, 255) / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        tokens = model((pixels - mean) / std).last_hidden_state
    recorded = {"images": images, "features": tokens[:, 0].numpy(), "positions": table[0].numpy()}
    np.savez_compressed(folder / "dinov2_tiny.npz", **recorded)


RECORDINGS = {"torch_files": torch_files, "dinov2": dinov2}

if __name__ == "__main__":
    names = sys.argv[1:] or list(RECORDINGS)
    if unknown := set(names) - set(RECORDINGS):
        raise SystemExit(f"unknown fixture {sorted(unknown)}: choose from {', '.join(RECORDINGS)}")
    for name in names:
        RECORDINGS[name](FOLDER)
