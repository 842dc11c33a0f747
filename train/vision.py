"""The ViT with a LoRA of its own: it learns with the rest where an adapter has one.

In: vision.gguf, an adapter with tensors `vision.blk.L.NAME.weight.lora_a` and `.lora_b`, pixels. Out: features, with
gradients for the LoRA. As in model.py, W + s B A is merged once a step and the frozen W never gets a gradient.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
import torch.nn.functional as F

from tokenflex_tools.gguf import GgufReader
from tokenflex_tools.reference_vision import ACTIVATIONS, LORA_LINEARS, VisionModel

from .model import Adapter, MergedLinear

GROUPS = (("attn_q", "attn_k", "attn_v"), ("attn_output",), ("mlp_up",), ("mlp_down",))


def learns(adapter: Adapter) -> bool:
    """Whether the adapter changes the ViT."""
    return any(name.startswith("vision.") for name in adapter)


def tag(adapter: Adapter, metadata: dict[str, Any]) -> str:
    """Names the ViT that the adapter makes; the empty text where it leaves that as it is."""
    digest = hashlib.sha256(str(metadata.get("adapter.lora.alpha")).encode())
    for name in sorted(adapter):
        if name.startswith("vision."):
            digest.update(name.encode() + adapter[name].detach().half().cpu().numpy().tobytes())
    return f"-{digest.hexdigest()[:8]}" if learns(adapter) else ""


def new_lora(file: GgufReader, rank: int, seed: int) -> Adapter:
    """Random A, zero B, for every linear of every block."""
    random, lora = torch.Generator().manual_seed(seed), {}
    for layer in range(file.metadata["tokenflex.vision.layer_count"]):
        for name in LORA_LINEARS:
            weight = f"vision.blk.{layer}.{name}.weight"
            rows, columns = file.shapes[weight]
            lora[f"{weight}.lora_a"] = torch.randn(rank, columns, generator=random) / math.sqrt(columns)
            lora[f"{weight}.lora_b"] = torch.zeros(rows, rank)
    return lora


class Vision(VisionModel):
    """The reference ViT in `dtype`, its residual in f32; several linears over one input are one product."""

    def __init__(self, file: GgufReader, dtype: torch.dtype, device: torch.device = torch.device("cpu")):
        super().__init__(file)
        self.device = device
        self.tensors = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        self.alpha, self.dtype, self.path = 0.0, dtype, file.path
        blocks = range(self.settings["layer_count"])

        def joined(layer: int, group: tuple[str, ...], part: str) -> torch.Tensor:
            return torch.cat([self.tensors[f"vision.blk.{layer}.{name}.{part}"] for name in group]).to(dtype)

        self.base = [[joined(layer, group, "weight") for group in GROUPS] for layer in blocks]
        self.biases = [[joined(layer, group, "bias") for group in GROUPS] for layer in blocks]
        self.merged = [[weight.clone() for weight in layer] for layer in self.base]

    def factors(self, adapter: Adapter, layer: int, group: int) -> list[torch.Tensor]:
        """A of each linear of a group, then B of each."""
        return [adapter[f"vision.blk.{layer}.{name}.weight.lora_{which}"].to(self.device, self.dtype)
                for which in "ab" for name in GROUPS[group]]

    @torch.no_grad()
    def merge(self, adapter: Adapter, metadata: dict[str, Any]) -> None:
        """Takes the adapter's present LoRA into the weights; call it after each change of the adapter."""
        if not learns(adapter):
            return
        wanted = {f"vision.blk.{layer}.{name}.weight.lora_{which}" for layer in range(len(self.base))
                  for name in LORA_LINEARS for which in "ab"}
        if missing := wanted - adapter.keys():
            raise SystemExit(f"the adapter's LoRA leaves out {len(missing)} of the ViT's linears, {min(missing)} for one")
        self.alpha = metadata["adapter.lora.alpha"]
        for layer, (base, merged) in enumerate(zip(self.base, self.merged)):
            for group, (source, target) in enumerate(zip(base, merged)):
                factors = self.factors(adapter, layer, group)
                count = len(factors) // 2
                update = torch.cat([b @ a for a, b in zip(factors[:count], factors[count:])])
                torch.add(source, update, alpha=self.alpha / factors[0].shape[0], out=target)

    def features(self, pixels: torch.Tensor, adapter: Adapter | None = None) -> torch.Tensor:
        """pixels [batch, 3, size, size], normalised -> [batch, patches, width] f32; with `adapter` gradients reach its LoRA."""
        return self._pass(pixels.to(self.device), lambda x, layer: self._learning_block(x, layer, adapter)).output

    def _learning_block(self, x: torch.Tensor, layer: int, adapter: Adapter | None) -> torch.Tensor:
        block, (batch, tokens, width) = f"vision.blk.{layer}", x.shape
        heads = self.settings["head_count"]

        def linear(u: torch.Tensor, group: int) -> torch.Tensor:
            weight, bias = self.merged[layer][group], self.biases[layer][group]
            if adapter is None:
                return F.linear(u, weight, bias)
            factors = self.factors(adapter, layer, group)
            return MergedLinear.apply(u, weight, self.alpha / factors[0].shape[0], *factors) + bias

        def scaled(y: torch.Tensor, name: str) -> torch.Tensor:
            return y * self.tensors[f"{block}.{name}"] if self.settings["layer_scale"] else y

        qkv = linear(self._norm(x, f"{block}.norm1").to(self.dtype), 0).view(batch, tokens, 3, heads, -1)
        q, k, v = (part.contiguous() for part in qkv.permute(2, 0, 3, 1, 4))
        weights = torch.softmax((q * (width // heads) ** -0.5) @ k.transpose(2, 3), dim=-1)
        x = x + scaled(linear((weights @ v).transpose(1, 2).reshape(batch, tokens, width), 1), "scale1")
        hidden = ACTIVATIONS[self.settings["activation"]](linear(self._norm(x, f"{block}.norm2").to(self.dtype), 2))
        return x + scaled(linear(hidden, 3), "scale2")
