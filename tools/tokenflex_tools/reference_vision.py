"""PyTorch reference of the encoder: preprocessing, ViT, pooling, projector. Written to be read, not to be fast.

In: Pillow images or pixel tensors, and the files vision.gguf and adapter.gguf. Out: f32 tensors, every stage of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from .gguf import GgufReader
from .lora import merge

LORA_LINEARS = ("attn_q", "attn_k", "attn_v", "attn_output", "mlp_up", "mlp_down")  # of a block
ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


def resize(rgb: np.ndarray, size: int) -> np.ndarray:
    """[h, w, 3] u8 -> [size, size, 3] u8: squashed to a square, Pillow's antialiased bicubic."""
    return np.asarray(Image.fromarray(rgb, "RGB").resize((size, size), Image.Resampling.BICUBIC))


def normalise(rgb: np.ndarray, mean: list[float], std: list[float]) -> torch.Tensor:
    """[size, size, 3] u8 -> [3, size, size] f32: scaled to 0..1, then (x - mean) / std."""
    pixels = torch.from_numpy(rgb.astype(np.float32) / np.float32(255))
    return ((pixels - torch.tensor(mean)) / torch.tensor(std)).permute(2, 0, 1).contiguous()


def bicubic_grid(positions: torch.Tensor, grid: int) -> torch.Tensor:
    """Position embeddings [G*G, width] of a square grid -> [grid*grid, width]; bicubic (a = -0.75), no antialiasing."""
    side = math.isqrt(positions.shape[0])
    if side == grid:
        return positions
    image = positions.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=(grid, grid), mode="bicubic", align_corners=False)
    return image.permute(0, 2, 3, 1).reshape(grid * grid, -1)


@dataclass
class VisionTrace:
    """What the ViT computed: embeddings, one entry a block (both [batch, tokens, width]), output [batch, patches, width]."""

    embeddings: torch.Tensor
    blocks: list[torch.Tensor] = field(default_factory=list)
    output: torch.Tensor = field(default_factory=lambda: torch.empty(0))


class VisionModel:
    """A ViT as vision.gguf describes it, with an adapter's LoRA: DINOv2, SigLIP and CLIP differ in the metadata only."""

    def __init__(self, file: GgufReader, adapter: GgufReader | None = None):
        self.settings = {key[len("tokenflex.vision."):]: value for key, value in file.metadata.items()
                         if key.startswith("tokenflex.vision.")}
        self.tensors = {name: torch.from_numpy(file.array(name).copy()) for name in file}
        if adapter is not None:
            merge(self.tensors, adapter)

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, self.settings["layer_norm_epsilon"])

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])

    def _attention(self, x: torch.Tensor, block: str) -> torch.Tensor:
        batch, tokens, width = x.shape
        heads = self.settings["head_count"]
        q, k, v = (self._linear(x, f"{block}.attn_{part}").view(batch, tokens, heads, -1).transpose(1, 2)
                   for part in "qkv")
        weights = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(width // heads), dim=-1)
        return self._linear((weights @ v).transpose(1, 2).reshape(batch, tokens, width), f"{block}.attn_output")

    def _block(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        block, layer_scale = f"vision.blk.{layer}", self.settings["layer_scale"]
        scales = [self.tensors[f"{block}.scale{i}"] if layer_scale else 1.0 for i in (1, 2)]
        x = x + scales[0] * self._attention(self._norm(x, f"{block}.norm1"), block)
        hidden = ACTIVATIONS[self.settings["activation"]](self._linear(self._norm(x, f"{block}.norm2"), f"{block}.mlp_up"))
        return x + scales[1] * self._linear(hidden, f"{block}.mlp_down")

    def _embed(self, pixels: torch.Tensor) -> torch.Tensor:
        weight = self.tensors["vision.patch.weight"]
        patches = F.conv2d(pixels, weight, self.tensors.get("vision.patch.bias"), stride=weight.shape[-1])
        grid = patches.shape[-1]
        x = patches.flatten(2).transpose(1, 2) + bicubic_grid(self.tensors["vision.position.patch"], grid)
        if self.settings["class_token"]:
            first = self.tensors["vision.class"] + self.tensors["vision.position.class"]
            x = torch.cat([first.expand(x.shape[0], 1, -1), x], dim=1)
        return x

    def _pass(self, pixels: torch.Tensor, block: Callable[[torch.Tensor, int], torch.Tensor]) -> VisionTrace:
        """Every stage, with `block` (input, its number) for the blocks."""
        x = self._embed(pixels)
        trace = VisionTrace(embeddings=x)
        if self.settings["pre_layer_norm"]:
            x = self._norm(x, "vision.pre_norm")
        for layer in range(self.settings["layer_count"]):
            x = block(x, layer)
            trace.blocks.append(x)
        if self.settings["final_layer_norm"]:
            x = self._norm(x, "vision.norm")
        trace.output = x[:, 1:] if self.settings["class_token"] else x
        return trace

    @torch.no_grad()
    def trace(self, pixels: torch.Tensor) -> VisionTrace:
        """pixels [batch, 3, size, size], normalised -> every stage."""
        return self._pass(pixels, self._block)

    def preprocess(self, rgb: np.ndarray) -> torch.Tensor:
        """[h, w, 3] u8 -> [3, size, size] f32."""
        return normalise(resize(rgb, self.settings["image_size"]), self.settings["image_mean"], self.settings["image_std"])


def pool(features: torch.Tensor, side: int, method: str) -> torch.Tensor:
    """Patch grid [H*H, d], row-major -> [side*side, d]; method `resize_average` or `adaptive_average`."""
    grid = math.isqrt(features.shape[0])
    image = features.reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
    if method == "adaptive_average":
        pooled = F.adaptive_avg_pool2d(image, side)
    elif method == "resize_average":
        resized = -(-grid // side) * side
        if resized != grid:
            image = F.interpolate(image, size=(resized, resized), mode="bilinear", align_corners=True)
        pooled = F.avg_pool2d(image, resized // side)
    else:
        raise ValueError(f"unknown pooling {method}")
    return pooled.permute(0, 2, 3, 1).reshape(side * side, -1)


class Projector:
    """TokenFLEX's projector from adapter.gguf: pools to N tokens, LayerNorm, SwiGLU."""

    def __init__(self, file: GgufReader):
        self.epsilon = file.metadata["tokenflex.layer_norm_epsilon"]
        self.pooling = file.metadata["tokenflex.pooling"]
        self.tensors = {name[len("projector."):]: torch.from_numpy(file.array(name).copy())
                        for name in file if name.startswith("projector.")}

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])

    @torch.no_grad()
    def __call__(self, features: torch.Tensor, vision_tokens: int) -> torch.Tensor:
        """[patches, vision width] -> [vision_tokens, LLM width]."""
        pooled = pool(features, math.isqrt(vision_tokens), self.pooling)
        weight, bias = self.tensors["norm.weight"], self.tensors["norm.bias"]
        u = F.layer_norm(pooled, weight.shape, weight, bias, self.epsilon)
        return self._linear(F.silu(self._linear(u, "gate")) * self._linear(u, "up"), "down")
