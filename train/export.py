"""adapter.gguf: reading and writing.

In: a training checkpoint's adapter and its metadata. Out: GGUF with matrices in F16 and vectors in F32.
Run: python -m train.export CHECKPOINT OUT
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch

from tokenflex_tools.gguf import GgufReader, GgufWriter

from .model import Adapter


def read(path: Path) -> tuple[Adapter, dict[str, Any]]:
    """adapter.gguf -> f32 tensors by name, and its metadata. What can't be read ends the program."""
    try:
        file = GgufReader(path)
    except (OSError, ValueError) as error:
        raise SystemExit(f"no adapter can be read: {error}") from None
    return {name: torch.from_numpy(file.array(name).copy()) for name in file}, dict(file.metadata)


def write(path: Path, adapter: Adapter, metadata: dict[str, Any]) -> None:
    """Writes adapter.gguf as a whole: a reader sees the old file or the new one."""
    writer = GgufWriter()
    for key, value in metadata.items():
        writer.set(key, value)
    for name, tensor in adapter.items():
        writer.tensor(name, tensor.detach().cpu().numpy(), "F16" if tensor.dim() == 2 else "F32")
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    writer.write(partial)
    partial.rename(path)


def metadata_of(vision: GgufReader, llm: GgufReader, counts: list[int], hidden: int, alpha: float, name: str,
                prompt: str, pooling: str = "resize_average") -> dict[str, Any]:
    """The metadata of a new adapter between two models."""
    size = vision.metadata["tokenflex.vision.image_size"]
    return {
        "general.architecture": "tokenflex", "general.type": "adapter", "general.name": name, "adapter.type": "lora",
        "adapter.lora.alpha": float(alpha), "tokenflex.token_counts": counts,
        "tokenflex.grid": size // vision.metadata["tokenflex.vision.patch_size"], "tokenflex.image_size": size,
        "tokenflex.pooling": pooling, "tokenflex.vision_width": vision.metadata["tokenflex.vision.width"],
        "tokenflex.llm_width": llm.metadata[f"{llm.metadata['general.architecture']}.embedding_length"], "tokenflex.hidden": hidden,
        "tokenflex.layer_norm_epsilon": 1e-5, "tokenflex.prompt": prompt,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Writes adapter.gguf from a checkpoint.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--last", action="store_true", help="the last weights rather than their running average")
    options = parser.parse_args()
    state = torch.load(options.checkpoint, map_location="cpu")
    write(options.out, state["adapter" if options.last else "average"], state["metadata"])


if __name__ == "__main__":
    main()
