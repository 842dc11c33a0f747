"""Images and captions.

In: a folder with captions.tsv (split, file, caption) and the images in tar files or folders; or a Karpathy JSON beside an
image folder. Out: `Example`s, images as [size, size, 3] u8 arrays, captions tidied into sentences.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterator

import numpy as np
from PIL import Image

SUFFIXES = {".jpg", ".jpeg", ".png"}
SPLITS = {"restval": "train", "val": "dev"}  # Karpathy's names -> ours


@dataclass
class Example:
    """One image: its file name and what people said about it, as they wrote it."""

    file: str
    captions: list[str] = field(default_factory=list)


def tidy(caption: str) -> str:
    """One sentence in ordinary spelling: "A dog runs ." -> "A dog runs." """
    text = re.sub(r"\s+", " ", caption).strip().strip('"').strip()
    text = re.sub(r"\s+([.,!?;:'])", r"\1", text).rstrip(" .") + "."
    return text[:1].upper() + text[1:]


def read_captions(folder: Path, split: str) -> list[Example]:
    """The examples of a split ("train", "dev"), in the order of the file."""
    examples: dict[str, Example] = {}
    if (folder / "captions.tsv").exists():
        for number, line in enumerate((folder / "captions.tsv").read_text("utf-8").splitlines(), 1):
            parts = line.split("\t")
            if len(parts) != 3:
                raise SystemExit(f"{folder}/captions.tsv:{number}: not split, file, caption")
            if parts[0] == split and parts[2].strip():
                examples.setdefault(parts[1], Example(parts[1])).captions.append(parts[2])
        return list(examples.values())
    for path in sorted(folder.glob("dataset*.json")):
        for image in json.loads(path.read_text("utf-8"))["images"]:
            if SPLITS.get(image["split"], image["split"]) == split:
                captions = [sentence["raw"] for sentence in image["sentences"] if sentence["raw"].strip()]
                examples[image["filename"]] = Example(image["filename"], captions)
        return list(examples.values())
    raise SystemExit(f"{folder}: neither captions.tsv nor dataset*.json")


def read_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every image under the folder, in tar files too: file name without folders, bytes."""
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".tar":
            with tarfile.open(path) as tar:
                for member in tar:
                    if member.isfile() and Path(member.name).suffix.lower() in SUFFIXES:
                        yield Path(member.name).name, tar.extractfile(member).read()
        elif path.suffix.lower() in SUFFIXES:
            yield path.name, path.read_bytes()


def decode(data: bytes, size: int) -> np.ndarray:
    """An image file -> [size, size, 3] u8, squashed to a square as the encoder does it."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)
