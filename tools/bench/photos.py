"""Photos to measure with, made from examples/: small ones of 224 pixels and large ones of 12 megapixels.

In: a folder of JPEGs. Out: OUT/small/*.jpg, 200 different crops; OUT/large/*.jpg, 4000 x 3000.
"""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image

SMALL, LARGE, SIDE, LARGE_SIZE = 200, 8, 224, (4000, 3000)


def make_photos(examples: Path, out: Path) -> tuple[list[str], list[str]]:
    """The paths of both kinds; made once."""
    small, large = out / "small", out / "large"
    sources = [Image.open(path).convert("RGB") for path in sorted(examples.glob("*.jpg"))]
    chance = random.Random(1)
    if not (large / f"{LARGE - 1:03}.jpg").is_file():
        small.mkdir(parents=True, exist_ok=True)
        large.mkdir(parents=True, exist_ok=True)
        for i in range(SMALL):
            image = sources[i % len(sources)]
            side = chance.randint(min(image.size) // 2, min(image.size))
            x, y = chance.randint(0, image.width - side), chance.randint(0, image.height - side)
            image.crop((x, y, x + side, y + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(small / f"{i:03}.jpg", quality=90)
        for i in range(LARGE):
            sources[i % len(sources)].resize(LARGE_SIZE, Image.Resampling.BICUBIC).save(large / f"{i:03}.jpg", quality=90)
    return [str(path) for path in sorted(small.glob("*.jpg"))], [str(path) for path in sorted(large.glob("*.jpg"))]
