"""PyTorch reference of the LLM: GGUF's `llama` and `qwen2` architectures with LoRA, and greedy captioning.

In: llm.gguf, adapter.gguf, token ids and vision embeddings. Out: logits, captions with the margins of their choices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .gguf import GgufReader
from .lora import merge

LORA_LINEARS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def rotate(x: torch.Tensor, first: int, base: float, half_split: bool) -> torch.Tensor:
    """RoPE on [tokens, heads, head_dim]; pairs (2i, 2i+1), or (i, i + head_dim/2) where half_split."""
    tokens, _, size = x.shape
    frequencies = base ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = torch.arange(first, first + tokens, dtype=torch.float64)[:, None] * frequencies
    cos, sin = angles.cos().float()[:, None], angles.sin().float()[:, None]
    if half_split:
        a, b = x[..., :size // 2], x[..., size // 2:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)


class LanguageModel:
    """A decoder as llm.gguf describes it, f32; with an adapter file, its LoRA is merged."""

    def __init__(self, file: GgufReader, adapter: GgufReader | None = None):
        self.architecture = file.metadata["general.architecture"]
        if self.architecture not in ("llama", "qwen2"):
            raise ValueError(f"architecture {self.architecture} is not supported")
        self.tensors = {name: torch.from_numpy(file.array(name).copy()) for name in file}
        self.layer_count = self._setting(file, "block_count")
        self.heads = self._setting(file, "attention.head_count")
        self.kv_heads = self._setting(file, "attention.head_count_kv")
        self.epsilon = self._setting(file, "attention.layer_norm_rms_epsilon")
        self.rope_base = self._setting(file, "rope.freq_base")
        self.cache: list[tuple[torch.Tensor, torch.Tensor]] = []
        if adapter is not None:
            merge(self.tensors, adapter)

    def _setting(self, file: GgufReader, key: str) -> int | float:
        return file.metadata[f"{self.architecture}.{key}"]

    def embed(self, tokens: list[int]) -> torch.Tensor:
        """Token ids -> [tokens, width]."""
        return self.tensors["token_embd.weight"][torch.tensor(tokens, dtype=torch.long)]

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon) * self.tensors[f"{name}.weight"]

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias"))

    def _attention(self, x: torch.Tensor, layer: int, first: int) -> torch.Tensor:
        block, tokens, half_split = f"blk.{layer}", x.shape[0], self.architecture == "qwen2"
        q = rotate(self._linear(x, f"{block}.attn_q").view(tokens, self.heads, -1), first, self.rope_base, half_split)
        k = rotate(self._linear(x, f"{block}.attn_k").view(tokens, self.kv_heads, -1), first, self.rope_base, half_split)
        v = self._linear(x, f"{block}.attn_v").view(tokens, self.kv_heads, -1)
        if first:
            k, v = (torch.cat(pair) for pair in zip(self.cache[layer], (k, v)))
        self.cache[layer:layer + 1] = [(k, v)]
        group = self.heads // self.kv_heads
        keys, values = (part.repeat_interleave(group, dim=1).transpose(0, 1) for part in (k, v))
        scores = q.transpose(0, 1) @ keys.transpose(1, 2) / math.sqrt(q.shape[-1])
        seen = torch.ones(tokens, first + tokens, dtype=torch.bool).tril(first)
        weights = torch.softmax(scores.masked_fill(~seen, -math.inf), dim=-1)
        return self._linear((weights @ values).transpose(0, 1).reshape(tokens, -1), f"{block}.attn_output")

    @torch.no_grad()
    def forward(self, x: torch.Tensor, first: int = 0) -> torch.Tensor:
        """Embeddings [tokens, width] at positions first.. -> logits [tokens, vocab].

        first = 0 starts a sequence; else the positions before it must have gone through the previous calls.
        """
        if first == 0:
            self.cache = []
        for layer in range(self.layer_count):
            block = f"blk.{layer}"
            x = x + self._attention(self._norm(x, f"{block}.attn_norm"), layer, first)
            u = self._norm(x, f"{block}.ffn_norm")
            hidden = F.silu(self._linear(u, f"{block}.ffn_gate")) * self._linear(u, f"{block}.ffn_up")
            x = x + self._linear(hidden, f"{block}.ffn_down")
        head = self.tensors.get("output.weight", self.tensors["token_embd.weight"])
        return F.linear(self._norm(x, "output_norm"), head)


@dataclass(frozen=True)
class Prompt:
    """Token ids before and after the vision tokens."""

    before: list[int]
    after: list[int]


@dataclass(frozen=True)
class Greedy:
    """A greedy continuation: ids without the end token, and the smallest gap between the two best logits on the way."""

    tokens: list[int]
    margin_min: float


def greedy(model: LanguageModel, prompt: Prompt, vision: torch.Tensor, end_tokens: set[int], new_tokens_max: int) -> Greedy:
    """vision [N, width] is put in its place of the prompt; stops at an end token or after new_tokens_max tokens."""
    x = torch.cat([model.embed(prompt.before), vision, model.embed(prompt.after)])
    tokens: list[int] = []
    margin_min, first = math.inf, 0
    while len(tokens) < new_tokens_max:
        best = torch.topk(model.forward(x, first)[-1], 2)
        margin_min = min(margin_min, float(best.values[0] - best.values[1]))
        token = int(best.indices[0])
        if token in end_tokens:
            break
        tokens.append(token)
        first += x.shape[0]
        x = model.embed([token])
    return Greedy(tokens, margin_min)
