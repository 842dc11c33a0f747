"""Images and captions.

In: a folder with captions.tsv (split, file, caption) and the images in tar files or folders; or a Karpathy JSON beside an
image folder. Out: `Example`s, images as [size, size, 3] u8 arrays, captions tidied into sentences.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterable, Iterator

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
TARS = (".tar", ".tar.gz", ".tgz")
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
    """The examples of a split ("train", "dev"), in the order of the file; there is at least one. Every image has a caption."""
    if (folder / "captions.tsv").exists():
        rows = _rows_of_tsv(folder / "captions.tsv")
    elif paths := sorted(folder.glob("dataset*.json")):
        rows = [row for path in paths for row in _rows_of_json(path)]
    else:
        raise SystemExit(f"{folder}: neither captions.tsv nor dataset*.json")
    examples: dict[str, Example] = {}
    for name, file, caption in rows:
        if name == split and caption.strip():
            examples.setdefault(file, Example(file)).captions.append(caption)
    if not examples:
        there = ", ".join(sorted({row[0] for row in rows})[:10])
        raise SystemExit(f"{folder}: no captions of split {split}; those it has: {there or 'none'}")
    return list(examples.values())


def _rows_of_tsv(path: Path) -> list[tuple[str, str, str]]:
    """Split, file name, caption of each line."""
    rows = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        parts = line.rstrip("\r").split("\t")
        if len(parts) == 3:
            rows.append((parts[0], Path(parts[1]).name, parts[2]))
        elif parts != [""]:
            raise SystemExit(f"{path}:{number}: not split, file, caption ({len(parts)} columns)")
    return rows


def _rows_of_json(path: Path) -> list[tuple[str, str, str]]:
    """The same of Karpathy's file."""
    try:
        return [(SPLITS.get(image["split"], image["split"]), Path(image["filename"]).name, sentence["raw"])
                for image in json.loads(_text(path))["images"] for sentence in image["sentences"]]
    except (ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{path}: not Karpathy's form (images: split, filename, sentences: raw): "
                         f"{type(error).__name__} {error}") from None


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise SystemExit(f"{path}: not UTF-8 ({error})") from None


def read_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every image under the folder, in tar files too: file name without folders, bytes."""
    for path in sorted(folder.rglob("*")):
        if path.name.lower().endswith(TARS):
            try:
                with tarfile.open(path) as tar:
                    for member in tar:
                        if member.isfile() and Path(member.name).suffix.lower() in SUFFIXES:
                            yield Path(member.name).name, tar.extractfile(member).read()
            except (tarfile.TarError, EOFError, zlib.error) as error:
                raise SystemExit(f"{path}: a damaged tar file ({error})") from None
        elif path.suffix.lower() in SUFFIXES and path.is_file():
            yield path.name, path.read_bytes()


def load(folder: Path, names: Iterable[str]) -> dict[str, bytes]:
    """The images of these names, wherever they lie in the folder; each must be there, and be one picture."""
    wanted, files = set(names), {}
    for name, content in read_files(folder):
        if name in wanted and files.setdefault(name, content) != content:
            raise SystemExit(f"{folder}: there are different images of the name {name}")
    if missing := wanted - files.keys():
        raise SystemExit(f"{folder}: {len(missing)} of {len(wanted)} images are missing, {min(missing)} for one")
    return files


def decode(data: bytes, size: int, name: str = "an image") -> np.ndarray:
    """An image file -> [size, size, 3] u8, turned as EXIF says, over white, squashed to a square, as the encoder does it."""
    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow raises for broken files
        raise SystemExit(f"{name} can't be decoded: {error}") from None
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)
