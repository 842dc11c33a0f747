"""Pixels of every image, kept once; training takes a part of a picture, another each time, and the ViT sees that.

In: a data folder. Out: CACHE/SPLIT.pixels.npy, u8 [images, side, side, 3], squashed to squares, in the order of the
captions file; batches of normalised pixels.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from . import cached, data

NAME = "pixels"
ROOM = 9 / 7  # sides against what the ViT sees: parts of a picture keep their detail


def write(files: dict[str, bytes], names: list[str], path: Path, image_size: int) -> None:
    """Decodes all images into one array for a ViT that sees `image_size`; it appears under its name only when it is complete."""
    side = round(image_size * ROOM)
    partial = cached.begin(path, {"pictures": cached.digest(names)})
    array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=(len(names), side, side, 3))
    for row, name in enumerate(names):
        array[row] = data.decode(files[name], side, name)
    array.flush()
    partial.rename(path)


def retone(pixels: torch.Tensor, views: random.Random, most: float) -> torch.Tensor:
    """[3, size, size], 0 to 255 -> the same in other light: brightness, contrast and colour times 1 - most to 1 + most."""
    light, contrast, colour = (1 + most * views.uniform(-1, 1) for _ in range(3))
    gray, middle = pixels.mean(0, keepdim=True), pixels.mean()
    return light * (middle + contrast * (gray + colour * (pixels - gray) - middle))


class Pictures:
    """Reads what this module wrote, of one split with these images, for a ViT with these settings."""

    def __init__(self, folder: Path, split: str, settings: dict[str, Any], names: list[str]):
        path = folder / f"{split}.{NAME}.npy"
        if not path.exists():
            raise SystemExit(f"{path} is not there: run train.features --views {NAME} first")
        side = round(settings["image_size"] * ROOM)
        self._pixels = cached.load(path, {"pictures": cached.digest(names)}, (len(names), side, side, 3))
        self._size = settings["image_size"]
        self._mean, self._std = (torch.tensor(settings[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))

    def take(self, rows: list[int], views: random.Random, least: float, tone: float = 0.0) -> torch.Tensor:
        """Normalised pixels [rows, 3, size, size] of a part of each picture, at least `least` of its sides, mirrored or not;
        brightness, contrast and colour changed by at most the share `tone`."""
        return torch.stack([self._one(row, views, least, tone) for row in rows])

    def _one(self, row: int, views: random.Random, least: float, tone: float) -> torch.Tensor:
        pixels = torch.from_numpy(np.array(self._pixels[row])).permute(2, 0, 1).float()
        height, width = (round(pixels.shape[1] * views.uniform(least, 1)) for _ in range(2))
        top, left = views.randint(0, pixels.shape[1] - height), views.randint(0, pixels.shape[2] - width)
        pixels = pixels[:, top:top + height, left:left + width]
        pixels = pixels.flip(2) if views.random() < 0.5 else pixels
        pixels = F.interpolate(pixels[None], (self._size, self._size), mode="bicubic", antialias=True, align_corners=False)[0]
        pixels = retone(pixels, views, tone)
        return (pixels.clamp(0, 255) / 255 - self._mean) / self._std
