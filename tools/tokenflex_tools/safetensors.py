"""safetensors files in numpy: one file, or many with an index.

In: a Hugging Face model folder. Out: names, shapes and dtypes from the headers; tensors as f32 arrays, read when they are
asked for. Format: 8 bytes of header length, a JSON header (name -> dtype, shape, data_offsets), data. Needs numpy alone.
"""

from __future__ import annotations

import json
import math
import mmap
import re
import struct
from pathlib import Path
from typing import Any, Iterator

import numpy as np

HEADER_BYTES_MAX = 100_000_000
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The JSON header of one file, and where its data begin."""
    with open(path, "rb") as file:
        size = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0]
        if not 2 <= size <= HEADER_BYTES_MAX:
            raise ValueError(f"{path}: not a safetensors file")
        try:
            header = json.loads(file.read(size))
            header.pop("__metadata__", None)
            for entry in header.values():
                first, last = entry["data_offsets"]
                if not 0 <= first <= last or not all(isinstance(n, int) and n >= 0 for n in entry["shape"]) or not entry["dtype"]:
                    raise ValueError("a tensor has no place")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path}: its header is damaged ({error})") from None
    return header, 8 + size


class SafeTensors:
    """The tensors of a folder. Data may be missing until one is read: names and shapes come from the headers alone."""

    def __init__(self, folder: Path):
        index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
        if single.exists():  # transformers, too, takes it before an index
            files = [single.name]
        elif index.exists():
            files = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        else:
            raise ValueError(f"{folder}: neither model.safetensors nor model.safetensors.index.json")
        self.used: set[str] = set()       # names that a converter took
        self.unread: dict[str, str] = {}  # tensors of other types than SIZES: counters and the like
        self._places: dict[str, tuple[Path, str, tuple[int, ...], int]] = {}
        self._maps: dict[Path, mmap.mmap] = {}
        for name in files:
            header, data = _header(folder / name)
            for tensor, entry in header.items():
                first, last = entry["data_offsets"]
                if entry["dtype"] not in SIZES:
                    self.unread[tensor] = entry["dtype"]
                    continue
                if last - first != math.prod(entry["shape"]) * SIZES[entry["dtype"]]:
                    raise ValueError(f"{folder / name}: {tensor} does not fit its place")
                self._places[tensor] = folder / name, entry["dtype"], tuple(entry["shape"]), data + first

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return self._places[name][2]

    def dtype(self, name: str) -> str:
        """"F32", "F16", "BF16" or "F64"."""
        return self._places[name][1]

    def leave(self, pattern: str) -> None:
        """Names that match the regular expression count as used."""
        self.used |= {name for name in (*self._places, *self.unread) if re.fullmatch(pattern, name)}

    def rest(self) -> list[str]:
        """Names that were not used, of whatever type."""
        return sorted({*self._places, *self.unread} - self.used)

    def array(self, name: str) -> np.ndarray:
        """A tensor as f32."""
        path, dtype, shape, offset = self._places[name]
        if path not in self._maps:
            with open(path, "rb") as file:
                self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        size = math.prod(shape) * SIZES[dtype]
        if offset + size > len(self._maps[path]):
            raise ValueError(f"{path}: ends before {name} does")
        data = np.frombuffer(self._maps[path], np.uint8, size, offset)
        if dtype == "BF16":
            values = (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            values = data.view({"F64": np.float64, "F32": np.float32, "F16": np.float16}[dtype]).astype(np.float32)
        return values.reshape(shape)
