"""A Hugging Face folder as the converters see it: configuration, files, tensors by name, checked on the way out.

In: a folder (or a part of one: tensors under a prefix, a part of the configuration). Out: `Source`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Callable

import numpy as np

from .gguf import GgufWriter, encode
from .safetensors import SafeTensors

F32_MAX, LARGEST = float(np.finfo(np.float32).max), {"F16": 65504.0, "Q8_0": 65504.0 * 127}
BLOCK_TYPES = {"q8_0": "Q8_0", "f16": "F16", "bf16": "BF16", "f32": "F32"}


class Unsupported(Exception):
    """The model is of a kind that tokenflex doesn't run; the text says which and why."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object; {} where there is none."""
    try:
        content = json.loads(path.read_text("utf-8")) if path.exists() else {}
    except ValueError as error:
        raise Unsupported(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise Unsupported(f"{path} is damaged: it holds no JSON object")
    return content


class Source:
    """One model (or part of one) in a folder."""

    def __init__(self, folder: Path, tensors: SafeTensors, config: dict[str, Any], prefixes: tuple[str, ...]):
        self.folder, self.config, self.tensors = folder, config, tensors
        self.prefix = next((p for p in prefixes if any(name.startswith(p) for name in tensors)), None)
        if self.prefix is None:
            raise Unsupported(f"{folder}: no tensor begins with {' or '.join(prefixes)}")

    def need(self, key: str, default: Any = None) -> Any:
        """A value of the configuration."""
        value = self.config.get(key, default)
        if value is None:
            raise Unsupported(f"{self.folder}: the configuration has no {key}")
        return value

    def has(self, name: str) -> bool:
        """Whether a tensor is there."""
        return self.prefix + name in self.tensors

    def leave(self, *patterns: str) -> None:
        """Tensors of these names (regular expressions, behind the prefix) are known, and not needed."""
        self.tensors.leave(re.escape(self.prefix) + f"(?:{'|'.join(patterns)})")

    def add(self, writer: GgufWriter, target: str, name: str, shape: tuple[int, ...], dtype: str,
            change: Callable[[np.ndarray], np.ndarray] = lambda x: x, out_shape: tuple[int, ...] | None = None) -> None:
        """Puts tensor `name`, which must have `shape`, into the file as `target`; read when it is written.

        Vectors stay F32 whatever `dtype` ("keep" or a type of GGUF) says; so do rows that don't fit a block type.
        """
        full = self.prefix + name
        if full in self.tensors.unread:
            raise Unsupported(f"{self.folder}: {full} is of type {self.tensors.unread[full]}, which is not supported")
        if full not in self.tensors:
            raise Unsupported(f"{self.folder}: no tensor {full}")
        if self.tensors.shape(full) != shape:
            raise Unsupported(f"{self.folder}: {full} is {list(self.tensors.shape(full))}, expected {list(shape)}")
        self.tensors.used.add(full)
        shape = out_shape or shape
        kind = self.tensors.dtype(full).replace("F64", "F32") if dtype == "keep" else dtype
        if len(shape) == 1 or kind == "Q8_0" and shape[-1] % 32:
            kind = "F32"
        writer.lazy(target, shape, kind, lambda: encode(change(self._read(full, kind)).reshape(shape), kind))

    def _read(self, name: str, kind: str) -> np.ndarray:
        """A tensor's values, all of which the type can hold."""
        values = self.tensors.array(name)
        largest = max(float(values.max()), -float(values.min()))
        if not largest <= LARGEST.get(kind, F32_MAX):  # so that NaN is refused, too
            raise Unsupported(f"{self.folder}: {name} has values up to {largest}, which {kind} can't hold")
        return values


def check_rest(folder: Path, tensors: SafeTensors) -> None:
    """Every tensor is used or known: what is left over belongs to another model than the configuration says."""
    if rest := tensors.rest():
        raise Unsupported(f"{folder}: {len(rest)} tensors have no place in such a model, {rest[0]} for one: not supported")


def check_unquantised(folder: Path, *configs: dict[str, Any]) -> None:
    """The weights are plain numbers."""
    for config in configs:
        if config.get("quantization_config"):
            raise Unsupported(f"{folder}: quantised weights ({config['quantization_config']}) are not supported; take those "
                              "they were made of (--dtype q8_0 makes them small)")
