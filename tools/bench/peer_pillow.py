"""JPEG to the ViT's input by Pillow, as the other runtimes' users do it: DCT scaling, bicubic, numpy.

Usage: peer_pillow.py    Command: `picture FILE CALLS`.
"""

from __future__ import annotations

from common import Samples, milliseconds, serve

import numpy as np
from PIL import Image

SIDE = 224
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


def load(path: str) -> np.ndarray:
    """[3, 224, 224]"""
    image = Image.open(path)
    image.draft("RGB", (2 * SIDE, 2 * SIDE))
    image = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return ((np.asarray(image, np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1).copy()


def picture(path: str, calls: str) -> Samples:
    """File to pixels, on one thread."""
    load(path)
    return {"units": 1, "ms": milliseconds(lambda: load(path), int(calls))}


if __name__ == "__main__":
    serve({"picture": picture})
