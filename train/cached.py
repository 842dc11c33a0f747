"""What a cached array is of: a note beside it, so that the array of other pictures or of another model is refused.

In: the array's path, what it is wanted of. Out: CACHE/NAME.json, or the end of the program with the reason.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np

Note = dict[str, str]


def digest(names: list[str]) -> str:
    """Names the pictures of a split, in their order."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def digest_of_file(path: Path) -> str:
    """Names a model by its file."""
    whole = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            whole.update(part)
    return whole.hexdigest()[:16]


def note_of(path: Path) -> Path:
    """Where the note on an array lies."""
    return path.with_suffix(".json")


def _is_running(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def begin(path: Path, note: Note) -> Path:
    """Notes what the array at `path` is going to be of; where to write it until it is complete. What processes that were
    killed have left is removed."""
    for left in path.parent.glob(f"{path.stem}.*.partial"):
        if not _is_running(left.name.split(".")[-2]):
            left.unlink(missing_ok=True)
    note_of(path).write_text(json.dumps(note) + "\n")
    return path.with_suffix(f".{os.getpid()}.partial")


def load(path: Path, note: Note, shape: tuple[int, ...]) -> np.ndarray:
    """The array, mapped; the program ends where it is of other pictures or another model. One without a note is known by its
    shape alone."""
    advice = "remove it and run train.features, or name another --cache"
    try:
        array = np.load(path, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise SystemExit(f"{path} is damaged ({error}): {advice}") from None
    if array.shape != shape:
        raise SystemExit(f"{path} is of other pictures or of another model ({list(array.shape)}, not {list(shape)}): {advice}")
    kept = json.loads(note_of(path).read_text()) if note_of(path).exists() else note
    for what, value in note.items():
        if kept.get(what) != value:
            raise SystemExit(f"{path} is of other {what} ({note_of(path).name}: {kept.get(what)}, not {value}): {advice}")
    return array
