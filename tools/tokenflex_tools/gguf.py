"""GGUF files in numpy: a reader and a writer of the part of the format that tokenflex uses.

In: paths, metadata values, arrays. Out: `GgufReader` (metadata as Python values, tensors as f32 arrays in PyTorch's
shape order) and `GgufWriter`. Formats: GGUF v2/v3 as ggml's docs/gguf.md describes them. Needs numpy alone.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator

import numpy as np

ALIGNMENT = 32
U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
SCALAR_FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
NUMPY_KINDS = {"uint8": 0, "int8": 1, "uint16": 2, "int16": 3, "uint32": 4, "int32": 5, "float32": 6, "bool": 7,
               "uint64": 10, "int64": 11, "float64": 12}


# Block formats: 32 values share an f16 scale (and, Q4_1, an f16 minimum); 4-bit values lie as in ggml: value i in the
# low half of byte i, value i + 16 in its high half.
def _nibbles(packed: np.ndarray) -> np.ndarray:
    return np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)


def _pack_nibbles(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.uint8)
    return values[:, :16] | (values[:, 16:] << 4)


def _scales(blocks: np.ndarray, at: int) -> np.ndarray:
    return blocks[:, at:at + 2].copy().view(np.float16).astype(np.float32)


def _halves(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16).view(np.uint8).reshape(-1, 2)


def _read_bf16(blocks: np.ndarray) -> np.ndarray:
    return (blocks.reshape(-1, 2).view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _write_bf16(x: np.ndarray) -> np.ndarray:
    bits = x.view(np.uint32)  # to the nearest, ties to even
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).view(np.uint8)


def _inverse(scale: np.ndarray) -> np.ndarray:
    return np.divide(1.0, scale, out=np.zeros_like(scale), where=scale != 0)


def _read_q4_0(blocks: np.ndarray) -> np.ndarray:
    return (_nibbles(blocks[:, 2:]) - 8) * _scales(blocks, 0)


def _read_q4_1(blocks: np.ndarray) -> np.ndarray:
    return _nibbles(blocks[:, 4:]) * _scales(blocks, 0) + _scales(blocks, 2)


def _read_q8_0(blocks: np.ndarray) -> np.ndarray:
    return blocks[:, 2:].view(np.int8).astype(np.float32) * _scales(blocks, 0)


def _write_q4_0(x: np.ndarray) -> np.ndarray:
    extreme = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)
    scale = extreme / -8
    return np.concatenate([_halves(scale), _pack_nibbles(np.clip(np.floor(x * _inverse(scale) + 8.5), 0, 15))], axis=1)


def _write_q4_1(x: np.ndarray) -> np.ndarray:
    low = x.min(axis=1, keepdims=True)
    scale = (x.max(axis=1, keepdims=True) - low) / 15
    values = np.clip(np.floor((x - low) * _inverse(scale) + 0.5), 0, 15)
    return np.concatenate([_halves(scale), _halves(low), _pack_nibbles(values)], axis=1)


def _write_q8_0(x: np.ndarray) -> np.ndarray:
    scale = np.abs(x).max(axis=1, keepdims=True) / 127
    return np.concatenate([_halves(scale), np.rint(x * _inverse(scale)).astype(np.int8).view(np.uint8)], axis=1)


@dataclass(frozen=True)
class BlockType:
    """A tensor type: its number in GGUF, its block's size, and, where blocks are packed, how to read and write them."""

    number: int
    elements: int
    bytes: int
    read: Callable[[np.ndarray], np.ndarray] | None = None
    write: Callable[[np.ndarray], np.ndarray] | None = None


TYPES = {
    "F32": BlockType(0, 1, 4),
    "F16": BlockType(1, 1, 2),
    "Q4_0": BlockType(2, 32, 18, _read_q4_0, _write_q4_0),
    "Q4_1": BlockType(3, 32, 20, _read_q4_1, _write_q4_1),
    "Q8_0": BlockType(8, 32, 34, _read_q8_0, _write_q8_0),
    "BF16": BlockType(30, 1, 2, _read_bf16, _write_bf16),
}
PLAIN = {"F32": np.float32, "F16": np.float16}


def encode(array: np.ndarray, dtype: str) -> bytes:
    """The bytes of an array in a tensor type; the last axis must be a multiple of the type's block."""
    kind = TYPES[dtype]
    if dtype in PLAIN:
        return np.ascontiguousarray(array, dtype=PLAIN[dtype]).tobytes()
    if array.shape[-1] % kind.elements:
        raise ValueError(f"{dtype} needs rows of a multiple of {kind.elements}, not {array.shape}")
    return kind.write(np.ascontiguousarray(array, dtype=np.float32).reshape(-1, kind.elements)).tobytes()


def decode(data: np.ndarray, dtype: str) -> np.ndarray:
    """Flat f32 values of a tensor's bytes."""
    kind = TYPES[dtype]
    if dtype in PLAIN:
        return data.view(PLAIN[dtype]).astype(np.float32)
    return kind.read(data.reshape(-1, kind.bytes)).reshape(-1)


class GgufReader:
    """A file, mapped: `metadata` (key -> Python value), `shapes` (name -> shape), and tensors as f32 on demand."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        with open(self.path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._at = 0
        if self._map[:4] != b"GGUF":
            raise ValueError(f"{path}: not a GGUF file")
        self._at = 4
        version, tensor_count, metadata_count = self._unpack("<I"), self._unpack("<Q"), self._unpack("<Q")
        if version not in (2, 3):
            raise ValueError(f"{path}: GGUF version {version} is not supported")
        self.metadata: dict[str, Any] = {self._string(): self._value(self._unpack("<I")) for _ in range(metadata_count)}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._tensors: dict[str, tuple[str, int]] = {}
        names = {kind.number: name for name, kind in TYPES.items()}
        for _ in range(tensor_count):
            name = self._string()
            rank = self._unpack("<I")
            self.shapes[name] = tuple(self._unpack("<Q") for _ in range(rank))[::-1]
            number, offset = self._unpack("<I"), self._unpack("<Q")
            if number not in names:
                raise ValueError(f"{path}: tensor {name} has type {number}, which is not supported")
            self._tensors[name] = (names[number], offset)
        alignment = self.metadata.get("general.alignment", ALIGNMENT)
        self._data = -(-self._at // alignment) * alignment

    def _unpack(self, layout: str) -> Any:
        value = struct.unpack_from(layout, self._map, self._at)[0]
        self._at += struct.calcsize(layout)
        return value

    def _string(self) -> str:
        size = self._unpack("<Q")
        self._at += size
        return self._map[self._at - size:self._at].decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            return self._unpack(SCALAR_FORMATS[kind])
        element, count = self._unpack("<I"), self._unpack("<Q")
        return [self._value(element) for _ in range(count)]

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def dtype(self, name: str) -> str:
        """The tensor's type by name, e.g. "Q4_1"."""
        return self._tensors[name][0]

    def array(self, name: str) -> np.ndarray:
        """The tensor as f32, outermost axis first."""
        dtype, offset = self._tensors[name]
        kind, shape = TYPES[dtype], self.shapes[name]
        size = int(np.prod(shape)) // kind.elements * kind.bytes
        return decode(np.frombuffer(self._map, np.uint8, size, self._data + offset), dtype).reshape(shape)


class GgufWriter:
    """Collects metadata and tensors; `write` makes the file. The order of the calls is the order in the file."""

    def __init__(self, **general: str):
        self._metadata: list[bytes] = []
        self._tensors: list[tuple[str, tuple[int, ...], str, Callable[[], bytes]]] = []
        for key, value in general.items():
            self.set(f"general.{key}", value)

    def set(self, key: str, value: Any) -> None:
        """Adds metadata: str, bool, int (u32), float (f32), numpy scalars of their own type; lists and arrays of these."""
        kind, body = _metadata_value(value)
        self._metadata.append(_string_bytes(key) + struct.pack("<I", kind) + body)

    def tensor(self, name: str, array: Any, dtype: str = "F32") -> None:
        """Adds a tensor from an array in PyTorch's shape order."""
        array = np.asarray(array)
        data = encode(array, dtype)
        self.lazy(name, array.shape, dtype, lambda: data)

    def lazy(self, name: str, shape: tuple[int, ...], dtype: str, produce: Callable[[], bytes]) -> None:
        """Adds a tensor whose bytes are made while the file is written, one tensor at a time."""
        if not 1 <= len(shape) <= 4:
            raise ValueError(f"{name}: rank {len(shape)} does not fit GGUF")
        self._tensors.append((name, tuple(shape), dtype, produce))

    def sizes(self) -> dict[str, int]:
        """Bytes of each tensor in the file."""
        return {name: math.prod(shape) // TYPES[dtype].elements * TYPES[dtype].bytes
                for name, shape, dtype, _ in self._tensors}

    def elements(self) -> dict[str, int]:
        """Values of each tensor."""
        return {name: math.prod(shape) for name, shape, _, _ in self._tensors}

    def listing(self) -> list[tuple[str, tuple[int, ...], str]]:
        """Name, shape and type of each tensor."""
        return [(name, shape, dtype) for name, shape, dtype, _ in self._tensors]

    def write(self, path: Path | str) -> None:
        """Writes the file (GGUF v3, alignment 32)."""
        head = [b"GGUF", struct.pack("<IQQ", 3, len(self._tensors), len(self._metadata)), *self._metadata]
        offset, bytes_of = 0, self.sizes()
        for name, shape, dtype, _ in self._tensors:
            sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
            head.append(_string_bytes(name) + sizes + struct.pack("<IQ", TYPES[dtype].number, offset))
            offset += bytes_of[name] + -bytes_of[name] % ALIGNMENT
        header = b"".join(head)
        with open(path, "wb") as file:
            file.write(header + bytes(-len(header) % ALIGNMENT))
            for name, _, _, produce in self._tensors:
                data = produce()
                if len(data) != bytes_of[name]:
                    raise ValueError(f"{name}: {len(data)} bytes, {bytes_of[name]} expected")
                file.write(data + bytes(-len(data) % ALIGNMENT))


def _string_bytes(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _metadata_value(value: Any) -> tuple[int, bytes]:
    """GGUF's type number and the bytes of one metadata value."""
    if isinstance(value, str):
        return STRING, _string_bytes(value)
    if isinstance(value, bool):
        return BOOL, struct.pack("<?", value)
    if isinstance(value, int):
        return U32, struct.pack("<I", value)
    if isinstance(value, float):
        return F32, struct.pack("<f", value)
    if isinstance(value, np.generic):
        return NUMPY_KINDS[value.dtype.name], value.tobytes()
    if isinstance(value, np.ndarray):
        return ARRAY, struct.pack("<IQ", NUMPY_KINDS[value.dtype.name], value.size) + value.tobytes()
    if isinstance(value, list) and value:
        parts = [_metadata_value(item) for item in value]
        return ARRAY, struct.pack("<IQ", parts[0][0], len(parts)) + b"".join(body for _, body in parts)
    raise TypeError(f"no GGUF type for {type(value).__name__}")
