"""The ViT's features of every image, computed once: training reads them, and never runs the ViT. Where the ViT learns too
(vision.py), training reads the pixels.

In: a data folder, vision.gguf, an adapter where that changes the ViT. Out: CACHE/SPLIT.VIEW.npy, f16 [images, patches,
width], in the order of the captions file, with the name of the adapter's ViT behind VIEW; views: plain, flip (mirrored),
crop0, crop1.. (a random part of the image, 70 to 100% of each side, mirrored or not), pixels (pictures.py; no features).
Run: python -m train.features --data DIR --model DIR --cache DIR [--views plain flip crop0 pixels] [--adapter FILE]
"""

from __future__ import annotations

import argparse
import os
import re
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tokenflex_tools.gguf import GgufReader
from tokenflex_tools.reference_vision import normalise

from . import data, export, pictures, vision
from .model import Adapter

BATCH = 16
CROP_SIDE_MIN = 0.7
VIEW = re.compile("plain|flip|crop[0-9]+")


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


def compute(model: vision.Vision, images: list[np.ndarray]) -> np.ndarray:
    """[batch][size, size, 3] u8 -> [batch, patches, width] f16."""
    mean, std = model.settings["image_mean"], model.settings["image_std"]
    pixels = torch.stack([normalise(image, mean, std) for image in images])
    with torch.inference_mode():
        return model.features(pixels).float().numpy().astype(np.float16)


def write_view(model: vision.Vision, files: dict[str, bytes], names: list[str], view_name: str, path: Path) -> None:
    """Writes one array; it appears under its name only when it is complete."""
    settings = model.settings
    shape = (len(names), (settings["image_size"] // settings["patch_size"]) ** 2, settings["width"])
    partial = path.with_suffix(f".{os.getpid()}.partial")
    array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=shape)
    start = time.monotonic()
    for first in range(0, len(names), BATCH):
        batch = names[first:first + BATCH]
        images = [view(data.decode(files[name], settings["image_size"]), view_name, name) for name in batch]
        array[first:first + len(batch)] = compute(model, images)
        if first // BATCH % 25 == 0:
            print(f"{path.name}: {first}/{len(names)}, {time.monotonic() - start:.0f} s", flush=True)
    array.flush()
    partial.rename(path)


class Cache:
    """Reads what this module wrote: features of one split by the adapter's ViT, in all the views that are there."""

    def __init__(self, folder: Path, split: str, adapter: Adapter, metadata: dict[str, Any]):
        ending = f"{vision.tag(adapter, metadata)}.npy"
        self.views = {path.name[len(split) + 1:-len(ending)]: np.load(path, mmap_mode="r")
                      for path in sorted(folder.glob(f"{split}.*{ending}"))
                      if VIEW.fullmatch(path.name[len(split) + 1:-len(ending)])}
        if "plain" not in self.views:
            command = "train.features --adapter FILE" if vision.learns(adapter) else "train.features"
            raise SystemExit(f"{folder}: no {split}.plain{ending}; run {command} first")

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
    parser.add_argument("--adapter", type=Path, help="whose ViT it is, where the adapter changes that")
    parser.add_argument("--f32", action="store_true", help="compute in f32 rather than bf16")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    model = vision.Vision(GgufReader(options.model / "vision.gguf"), torch.float32 if options.f32 else torch.bfloat16)
    adapter, metadata = export.read(options.adapter) if options.adapter else ({}, {})
    model.merge(adapter, metadata)
    files = dict(data.read_files(options.data))
    for name in options.views:
        for split in options.splits if name == "plain" else ["train"]:
            path = options.cache / f"{split}.{name}{'' if name == pictures.NAME else vision.tag(adapter, metadata)}.npy"
            names = [example.file for example in data.read_captions(options.data, split)]
            if path.exists():
                continue
            if name == pictures.NAME:
                pictures.write(files, names, path, model.settings["image_size"])
            else:
                write_view(model, files, names, name, path)


if __name__ == "__main__":
    main()
