"""The ViT's features of every image, computed once: training reads them, and never runs the ViT. Where the ViT learns too
(vision.py), training reads the pixels.

In: a data folder, vision.gguf, an adapter where that changes the ViT. Out: CACHE/SPLIT.VIEW.npy, f16 [images, patches,
width], in the order of the captions file, with the name of the adapter's ViT behind VIEW; views: plain, flip (mirrored),
crop0, crop1.. (a random part of the image, 70 to 100% of each side, mirrored or not), pixels (pictures.py; no features).
Run: python -m train.features --data DIR --model DIR --cache DIR [--views plain flip crop0 pixels] [--adapter FILE]
"""

from __future__ import annotations

import argparse
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

from . import cached, data, export, pictures, vision
from .model import Adapter, add_device, device_of

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
        return model.features(pixels).float().cpu().numpy().astype(np.float16)


def note_of(model: vision.Vision, names: list[str]) -> cached.Note:
    """What features are of, beside the adapter's ViT, which is in the array's name."""
    return {"pictures": cached.digest(names), "vision": cached.digest_of_file(model.path)}


def shape_of(settings: dict[str, Any], names: list[str]) -> tuple[int, int, int]:
    """[images, patches, width] of a split by a ViT with these settings."""
    return len(names), (settings["image_size"] // settings["patch_size"]) ** 2, settings["width"]


def write_view(model: vision.Vision, files: dict[str, bytes], names: list[str], view_name: str, path: Path) -> None:
    """Writes one array; it appears under its name only when it is complete."""
    settings, shape = model.settings, shape_of(model.settings, names)
    partial = cached.begin(path, note_of(model, names))
    array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=shape)
    start = time.monotonic()
    for first in range(0, len(names), BATCH):
        batch = names[first:first + BATCH]
        images = [view(data.decode(files[name], settings["image_size"], name), view_name, name) for name in batch]
        array[first:first + len(batch)] = compute(model, images)
        if first // BATCH % 25 == 0:
            print(f"{path.name}: {first}/{len(names)}, {time.monotonic() - start:.0f} s", flush=True)
    array.flush()
    partial.rename(path)


class Cache:
    """Reads what this module wrote: features of one split by the adapter's ViT, in all the views that are there."""

    def __init__(self, folder: Path, split: str, adapter: Adapter, metadata: dict[str, Any], names: list[str], file: Path):
        """names: the split's images; file: vision.gguf. An array of others is refused."""
        ending = f"{vision.tag(adapter, metadata)}.npy"
        paths = {path.name[len(split) + 1:-len(ending)]: path for path in sorted(folder.glob(f"{split}.*{ending}"))}
        if "plain" not in paths:
            command = "train.features --adapter FILE" if vision.learns(adapter) else "train.features"
            raise SystemExit(f"{folder}: no {split}.plain{ending}; run {command} first")
        settings = {key.removeprefix("tokenflex.vision."): value for key, value in GgufReader(file).metadata.items()}
        note, shape = {"pictures": cached.digest(names), "vision": cached.digest_of_file(file)}, shape_of(settings, names)
        self.views = {name: cached.load(path, note, shape) for name, path in paths.items() if VIEW.fullmatch(name)}

    def take(self, rows: list[int], views: list[str] | None = None) -> torch.Tensor:
        """Features [rows, patches, width] f32; `views` names one view for each row, plain without."""
        views = views or ["plain"] * len(rows)
        return torch.from_numpy(np.stack([self.views[name][row] for row, name in zip(rows, views)]).astype(np.float32))


def check_view(model: vision.Vision, names: list[str], name: str, path: Path) -> None:
    """Ends the program where the array that is there is not the one that would be written."""
    if name == pictures.NAME:
        pictures.Pictures(path.parent, path.name.split(".")[0], model.settings, names)
    else:
        cached.load(path, note_of(model, names), shape_of(model.settings, names))


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
    add_device(parser)
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    model = vision.Vision(GgufReader(options.model / "vision.gguf"), torch.float32 if options.f32 else torch.bfloat16,
                          device_of(options))
    adapter, metadata = export.read(options.adapter) if options.adapter else ({}, {})
    model.merge(adapter, metadata)
    splits = {split: [example.file for example in data.read_captions(options.data, split)]
              for split in ({*options.splits, "train"} if set(options.views) - {"plain"} else options.splits)}
    wanted = [(name, split) for name in options.views for split in (options.splits if name == "plain" else ["train"])]
    paths = {(name, split): options.cache / f"{split}.{name}{'' if name == pictures.NAME else vision.tag(adapter, metadata)}.npy"
             for name, split in wanted}
    for (name, split), path in paths.items():
        if path.exists():
            check_view(model, splits[split], name, path)
    missing = {key: path for key, path in paths.items() if not path.exists()}
    files = data.load(options.data, {file for _, split in missing for file in splits[split]}) if missing else {}
    for (name, split), path in missing.items():
        if name == pictures.NAME:
            pictures.write(files, splits[split], path, model.settings["image_size"])
        else:
            write_view(model, files, splits[split], name, path)


if __name__ == "__main__":
    main()
