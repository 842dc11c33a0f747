"""An adapter's LoRA taken into the weights it changes.

In: a model's tensors by name, adapter.gguf. Out: the same dict, with W + alpha / rank * B A where the adapter has A and B of W.
"""

from __future__ import annotations

import torch

from .gguf import GgufReader


def merge(tensors: dict[str, torch.Tensor], adapter: GgufReader) -> None:
    """Changes the tensors in place; A is [rank, in], B [out, rank]."""
    for name in tensors:
        if f"{name}.lora_a" in adapter:
            a, b = (torch.from_numpy(adapter.array(f"{name}.lora_{part}").copy()) for part in "ab")
            tensors[name] += adapter.metadata["adapter.lora.alpha"] / a.shape[0] * (b @ a)
