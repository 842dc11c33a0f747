"""The ViT's features of every image, computed once: training reads them, and never runs the ViT.

In: a data folder, vision.gguf. Out: CACHE/SPLIT.VIEW.npy, f16 [images, patches, width], in the order of the captions
file; views: plain, flip (mirrored), crop0, crop1.. (a random part of the image, 70 to 100% of each side, mirrored or not).
Run: python -m train.features --data DIR --model DIR --cache DIR [--views plain flip crop0]
"""

from __future__ import annotations

import argparse
import os
import time
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from tokenflex_tools.gguf import GgufReader
from tokenflex_tools.reference_vision import VisionModel, normalise

from . import data

BATCH = 16
CROP_SIDE_MIN = 0.7


class FastVision(VisionModel):
    """The reference ViT with its matrices in bf16 and fused attention where this PyTorch has it; the residual stays f32."""

    def __init__(self, file: GgufReader, dtype: torch.dtype):
        super().__init__(file)
        self.dtype = dtype
        for name, tensor in self.tensors.items():
            if ".blk." in name and (tensor.dim() == 2 or name.endswith(".bias") and ".norm" not in name):
                self.tensors[name] = tensor.to(dtype)

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x.to(self.dtype), self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])

    def _attention(self, x: torch.Tensor, block: str) -> torch.Tensor:
        if not hasattr(F, "scaled_dot_product_attention"):
            return super()._attention(x, block)
        batch, tokens, width = x.shape
        q, k, v = (self._linear(x, f"{block}.attn_{part}").view(batch, tokens, self.settings["head_count"], -1)
                   .transpose(1, 2) for part in "qkv")
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self._linear(mixed.transpose(1, 2).reshape(batch, tokens, width), f"{block}.attn_output")


def view(image: np.ndarray, name: str, file: str) -> np.ndarray:
    """[size, size, 3] -> the same picture seen in another way; crops depend on the file's name and the view's alone."""
    if name == "plain":
        return image
    if name == "flip":
        return np.ascontiguousarray(image[:, ::-1])
    if not name.startswith("crop"):
        raise SystemExit(f"features: no view {name}")
    random = np.random.default_rng(zlib.crc32(f"{name}/{file}".encode()))
    size = image.shape[0]
    sides = np.rint(random.uniform(CROP_SIDE_MIN, 1, 2) * size).astype(int)
    top, left = (int(random.integers(0, size - side + 1)) for side in sides)
    part = image[top:top + sides[0], left:left + sides[1]]
    part = part[:, ::-1] if random.random() < 0.5 else part
    return np.asarray(Image.fromarray(np.ascontiguousarray(part), "RGB").resize((size, size), Image.Resampling.BICUBIC))


def compute(vision: FastVision, images: list[np.ndarray]) -> np.ndarray:
    """[batch][size, size, 3] u8 -> [batch, patches, width] f16."""
    mean, std = vision.settings["image_mean"], vision.settings["image_std"]
    pixels = torch.stack([normalise(image, mean, std) for image in images])
    with torch.inference_mode():
        return vision.trace(pixels).output.float().numpy().astype(np.float16)


def write_view(vision: FastVision, files: dict[str, bytes], names: list[str], view_name: str, path: Path) -> None:
    """Writes one array; it appears under its name only when it is complete."""
    settings = vision.settings
    shape = (len(names), (settings["image_size"] // settings["patch_size"]) ** 2, settings["width"])
    partial = path.with_suffix(f".{os.getpid()}.partial")
    array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=shape)
    start = time.monotonic()
    for first in range(0, len(names), BATCH):
        batch = names[first:first + BATCH]
        images = [view(data.decode(files[name], settings["image_size"]), view_name, name) for name in batch]
        array[first:first + len(batch)] = compute(vision, images)
        if first // BATCH % 25 == 0:
            print(f"{path.name}: {first}/{len(names)}, {time.monotonic() - start:.0f} s", flush=True)
    array.flush()
    partial.rename(path)


class Cache:
    """Reads what this module wrote: features of one split in all the views that are there."""

    def __init__(self, folder: Path, split: str):
        paths = {path.name.split(".")[1]: path for path in sorted(folder.glob(f"{split}.*.npy"))}
        if "plain" not in paths:
            raise SystemExit(f"{folder}: no {split}.plain.npy; run train.features first")
        self.views = {name: np.load(path, mmap_mode="r") for name, path in paths.items()}

    def take(self, rows: list[int], views: list[str] | None = None) -> torch.Tensor:
        """Features [rows, patches, width] f32; `views` names one view for each row, plain without."""
        views = views or ["plain"] * len(rows)
        return torch.from_numpy(np.stack([self.views[name][row] for row, name in zip(rows, views)]).astype(np.float32))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Caches the ViT's features.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="model folder with vision.gguf")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--splits", nargs="+", default=["train", "dev"])
    parser.add_argument("--views", nargs="+", default=["plain", "flip"])
    parser.add_argument("--f32", action="store_true", help="compute in f32 rather than bf16")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    vision = FastVision(GgufReader(options.model / "vision.gguf"), torch.float32 if options.f32 else torch.bfloat16)
    files = dict(data.read_files(options.data))
    for name in options.views:
        for split in options.splits if name == "plain" else ["train"]:
            path = options.cache / f"{split}.{name}.npy"
            if not path.exists():
                write_view(vision, files, [example.file for example in data.read_captions(options.data, split)], name, path)


if __name__ == "__main__":
    main()
