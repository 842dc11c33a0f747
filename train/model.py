"""The trainable model: projector and LoRA in f32 over a frozen LLM in bf16.

In: llm.gguf, features, token ids. Out: hidden states and logits with gradients for the adapter; batched generation.

An adapter is a dict of f32 tensors under the names of adapter.gguf. Two things make training fast on a CPU:
- W + s B A is merged once a step, so that the forward pass is one plain product a linear group (q, k, v are one group;
  gate, up another), and only the backward pass knows of A and B: with G the gradient of the output and X the input,
  dA = s (G B)^T X and dB = s G^T (X A^T). The frozen W never gets a gradient.
- fast.py goes through the layers and back by hand, where a compiler and bf16 are at hand; what is here is its reference.
Rows of q and k are permuted here from GGUF's interleaved rotation to the half-split one, which vectorises.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from tokenflex_tools.gguf import GgufReader
from tokenflex_tools.reference_llm import LORA_LINEARS, Prompt
from tokenflex_tools.reference_vision import pool

from .fast import CrossEntropy, Pass

Adapter = dict[str, torch.Tensor]
GROUPS = (("attn_q", "attn_k", "attn_v"), ("attn_output",), ("ffn_gate", "ffn_up"), ("ffn_down",))


def add_device(parser: argparse.ArgumentParser) -> None:
    """The option of every phase: where it computes."""
    parser.add_argument("--device", default="cpu", help="cpu, or a GPU as PyTorch names it: cuda, cuda:1")


def device_of(options: argparse.Namespace) -> torch.device:
    """What --device names; the program ends where there is no such thing."""
    try:
        device = torch.device(getattr(options, "device", "cpu"))
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter: a PyTorch without CUDA
        raise SystemExit(f"--device {options.device}: {str(error).splitlines()[0]}") from None
    if device.type != "cpu" and (getattr(options, "fast", False) or getattr(options, "workers", 1) > 1):
        raise SystemExit("--fast and --workers are for --device cpu")
    return device


def check_fit(adapter: Adapter, metadata: dict[str, Any], vision: GgufReader, llm: GgufReader) -> None:
    """Ends the program where an adapter is not one for these two models, or has no LoRA for the LLM to learn with."""
    settings, architecture = vision.metadata, llm.metadata["general.architecture"]
    pairs = {"vision_width": settings["tokenflex.vision.width"], "image_size": settings["tokenflex.vision.image_size"],
             "llm_width": llm.metadata[f"{architecture}.embedding_length"]}
    for name, value in pairs.items():
        if metadata.get(f"tokenflex.{name}") != value:
            raise SystemExit(f"the adapter is for another model: {name} {metadata.get(f'tokenflex.{name}')}, not {value}")
    loras = [name for name in adapter if name.endswith(".lora_a")]
    for name in loras:
        weight, file = name.removesuffix(".lora_a"), vision if name.startswith("vision.") else llm
        rows, columns = adapter[f"{weight}.lora_b"].shape[0], adapter[name].shape[1]
        if file.shapes.get(weight) != (rows, columns):
            raise SystemExit(f"the adapter is for another model: its LoRA of {weight} is {[rows, columns]}, not "
                             f"{list(file.shapes.get(weight, ()))}")
    layers = range(llm.metadata[f"{architecture}.block_count"])
    if missing := {f"blk.{i}.{name}.weight.lora_a" for i in layers for name in LORA_LINEARS} - set(loras):
        raise SystemExit(f"the adapter has no LoRA for {len(missing)} of the LLM's linears, {min(missing)} for one: begin with "
                         "train.words")
    if {"tokenflex.system", "tokenflex.image_start"} & metadata.keys():
        raise SystemExit("the adapter's prompt has a system turn or tokens around the image, which training doesn't know")


def lora_scale(adapter: Adapter, metadata: dict[str, Any]) -> float:
    """alpha / rank of the LLM's LoRA."""
    rank = next(tensor.shape[0] for name, tensor in adapter.items() if name.startswith("blk.") and name.endswith("lora_a"))
    return metadata["adapter.lora.alpha"] / rank


class MergedLinear(torch.autograd.Function):
    """x [..., in] @ W^T with W = merged weights [out, in] of a group of linears; gradients for x and for each A and B."""

    @staticmethod
    def forward(ctx, x, weight, scale, *factors):
        """factors: A of each linear ([rank, in]), then B of each ([out_i, rank])."""
        ctx.scale = scale
        ctx.save_for_backward(x, weight, *factors)
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx, gradient):
        """See the module's head."""
        x, weight, *factors = ctx.saved_tensors
        count = len(factors) // 2
        down, up = factors[:count], factors[count:]
        g, flat = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])
        parts = g.split([b.shape[0] for b in up], dim=1)
        narrow = (flat @ torch.cat(down).t()) * ctx.scale
        wide = torch.cat([part @ b for part, b in zip(parts, up)], dim=1) * ctx.scale
        d_down = (wide.t() @ flat).split([a.shape[0] for a in down])
        d_up = [part.t() @ n for part, n in zip(parts, narrow.split([a.shape[0] for a in down], dim=1))]
        return (g @ weight).view_as(x), None, None, *d_down, *d_up


@dataclass(frozen=True)
class LayerShape:
    """What a block needs beside its tensors."""

    heads: int
    kv_heads: int
    head_dim: int
    epsilon: float
    scale: float  # of the LoRA: alpha / rank


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float, dtype: torch.dtype) -> torch.Tensor:
    """RMSNorm of the f32 residual, result in the dtype of the products."""
    return (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * weight).to(dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RoPE, half-split, on [batch, tokens, heads, head_dim]; cos and sin [batch, tokens, 1, head_dim/2] f32."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


def swiglu(x: torch.Tensor) -> torch.Tensor:
    """[..., gate | up] -> SiLU(gate) * up."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """q [batch, heads, t, d], k and v [batch, kv_heads, s, d] -> as q; mask bool [.., 1, t, s], True is seen; None: all.

    Plain products: at these lengths they are several times faster backwards than PyTorch's fused attention on a CPU. The
    query heads of one key head are rows of one product.
    """
    batch, heads, tokens, size = q.shape
    kv_heads, group = k.shape[1], heads // k.shape[1]
    scores = (q.reshape(batch, kv_heads, group * tokens, size) * size ** -0.5) @ k.transpose(2, 3)
    scores = scores.view(batch, kv_heads, group, tokens, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask[:, :, None], -math.inf)
    weights = torch.softmax(scores, dim=-1).view(batch, kv_heads, group * tokens, -1)
    return (weights @ v).view(batch, heads, tokens, size)


def layer_forward(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor | None,
                  norms: tuple[torch.Tensor, torch.Tensor], weights: list[torch.Tensor],
                  factors: list[list[torch.Tensor]], bias: torch.Tensor | None,
                  past: tuple[torch.Tensor, torch.Tensor] | None,
                  shape: LayerShape) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One block: residual x [batch, tokens, width] f32 -> the next one, and this call's k and v behind those of `past`."""
    batch, tokens, _ = x.shape

    def linear(u: torch.Tensor, group: int) -> torch.Tensor:
        if not factors:
            return F.linear(u, weights[group])
        return MergedLinear.apply(u, weights[group], shape.scale, *factors[group])

    u = rms_norm(x, norms[0], shape.epsilon, weights[0].dtype)
    qkv = linear(u, 0) if bias is None else linear(u, 0) + bias
    qkv = qkv.view(batch, tokens, shape.heads + 2 * shape.kv_heads, shape.head_dim)
    qk = rotate(qkv[:, :, :shape.heads + shape.kv_heads], cos, sin).transpose(1, 2)
    q, k, v = qk[:, :shape.heads], qk[:, shape.heads:], qkv[:, :, shape.heads + shape.kv_heads:].transpose(1, 2)
    if past is not None:
        k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
    x = x + linear(attend(q, k, v, mask).transpose(1, 2).reshape(batch, tokens, -1), 1)
    u = rms_norm(x, norms[1], shape.epsilon, weights[0].dtype)
    return x + linear(swiglu(linear(u, 2)), 3), k, v


class Projector:
    """TokenFLEX's projector, batched; pooling is a matrix [N, patches], taken from the reference."""

    def __init__(self, metadata: dict[str, Any]):
        self.epsilon = metadata["tokenflex.layer_norm_epsilon"]
        self.method, self.grid = metadata["tokenflex.pooling"], metadata["tokenflex.grid"]
        self._pools: dict[int, torch.Tensor] = {}

    def __call__(self, adapter: Adapter, features: torch.Tensor, count: int, dtype: torch.dtype) -> torch.Tensor:
        """features [batch, patches, vision width] f32 -> [batch, count, LLM width] f32."""
        if count not in self._pools:
            self._pools[count] = pool(torch.eye(self.grid ** 2), math.isqrt(count), self.method).to(features.device)
        x = self._pools[count] @ features

        def linear(x: torch.Tensor, name: str) -> torch.Tensor:
            return F.linear(x, adapter[f"projector.{name}.weight"].to(dtype), adapter[f"projector.{name}.bias"].to(dtype))

        weight, bias = adapter["projector.norm.weight"], adapter["projector.norm.bias"]
        u = F.layer_norm(x, weight.shape, weight, bias, self.epsilon).to(dtype)
        return linear(F.silu(linear(u, "gate")) * linear(u, "up"), "down").float()


class Language:
    """The frozen LLM (GGUF's llama and qwen2 architectures) with merged LoRA. fast: the folder of fast.py's compiled kernels."""

    def __init__(self, file: GgufReader, scale: float, dtype: torch.dtype, fast: Path | None = None,
                 device: torch.device = torch.device("cpu")):
        architecture = file.metadata["general.architecture"]
        if architecture not in ("llama", "qwen2"):
            raise SystemExit(f"{file.path}: architecture {architecture} is not supported")
        setting = {key: file.metadata[f"{architecture}.{key}"] for key in (
            "block_count", "attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon",
            "rope.freq_base", "embedding_length")}
        self.layer_count, self.width = setting["block_count"], setting["embedding_length"]
        heads, self.epsilon = setting["attention.head_count"], setting["attention.layer_norm_rms_epsilon"]
        self.head_dim = file.metadata.get(f"{architecture}.attention.key_length", self.width // heads)
        self.is_interleaved, self.rope_base = architecture == "llama", setting["rope.freq_base"]
        self.shape = LayerShape(heads, setting["attention.head_count_kv"], self.head_dim, self.epsilon, scale)
        self.dtype = dtype
        self.device = device
        self.embedding = torch.from_numpy(file.array("token_embd.weight").copy()).to(device)
        output = "output.weight" if "output.weight" in file else "token_embd.weight"  # the latter: tied
        self.head = torch.from_numpy(file.array(output).copy()).to(device, dtype)
        self.norms = {name: torch.from_numpy(file.array(name).copy()).to(device) for name in file if name.endswith("norm.weight")}
        self.base = [[torch.cat([self._rows(name, torch.from_numpy(file.array(f"blk.{layer}.{name}.weight").copy()))
                                 for name in group]).to(device, dtype) for group in GROUPS] for layer in range(self.layer_count)]
        self.biases = [self._biases(file, layer) for layer in range(self.layer_count)]
        if fast is not None and any(bias is not None for bias in self.biases):
            raise SystemExit("the fast pass knows no biases, which this LLM has: leave out --fast")
        self.merged = self.base
        self.packed: list[list[tuple[torch.Tensor, torch.Tensor]]] = []  # A and B of each layer and group, merged last
        self.rows_of = {name: file.shapes[f"blk.0.{name}.weight"][0] for group in GROUPS for name in group}
        self.fast = None if fast is None else Pass(self, fast)

    def _biases(self, file: GgufReader, layer: int) -> torch.Tensor | None:
        """Those of q, k and v in one, where there are any."""
        names = [(name, f"blk.{layer}.{name}.bias") for name in GROUPS[0]]
        if not any(full in file for _, full in names):
            return None
        parts = [self._rows(name, torch.from_numpy(file.array(full).copy())) for name, full in names]
        return torch.cat(parts).to(self.device, self.dtype)

    def _rows(self, name: str, matrix: torch.Tensor, back: bool = False) -> torch.Tensor:
        """Rows from GGUF's order to the half-split one where the matrix makes q or k; `back`: the other way."""
        if name not in ("attn_q", "attn_k") or not self.is_interleaved:
            return matrix
        split = (2, self.head_dim // 2) if back else (self.head_dim // 2, 2)
        return matrix.reshape(-1, *split, *matrix.shape[1:]).transpose(1, 2).reshape(matrix.shape)

    @staticmethod
    def factor_names(layer: int, group: tuple[str, ...]) -> list[str]:
        """The A of each linear of a group, then the B."""
        return [f"blk.{layer}.{name}.weight.lora_{which}" for which in "ab" for name in group]

    def factors(self, adapter: Adapter, layer: int, group: tuple[str, ...]) -> list[torch.Tensor]:
        """Those of `factor_names`, in this model's dtype and row order."""
        tensors = [adapter[name].to(self.dtype) for name in self.factor_names(layer, group)]
        return [*tensors[:len(group)], *(self._rows(name, up) for name, up in zip(group, tensors[len(group):]))]

    @torch.no_grad()
    def merge(self, adapter: Adapter) -> None:
        """Takes the adapter's present LoRA into the weights; call it after each change of the adapter."""
        if self.merged is self.base:
            self.merged = [[weight.clone() for weight in layer] for layer in self.base]
        self.packed = [[self._pack(self.factors(adapter, layer, group)) for group in GROUPS]
                       for layer in range(self.layer_count)]
        for base, merged, packed in zip(self.base, self.merged, self.packed):
            for source, target, (down, up) in zip(base, merged, packed):
                torch.addmm(source, up, down, alpha=self.shape.scale, out=target)

    @staticmethod
    def _pack(factors: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """A of all linears of a group on top of each other, B of all in a block diagonal."""
        count = len(factors) // 2
        return torch.cat(factors[:count]), torch.block_diag(*factors[count:])

    def unpack(self, d_down: torch.Tensor, d_up: torch.Tensor, layer: int, group: int) -> list[torch.Tensor]:
        """Of `packed`, for gradients before the scale, B's transposed: f32, in the order of `factor_names`."""
        names, scale = GROUPS[group], self.shape.scale
        rank, ups, at = d_down.shape[0] // len(names), [], 0
        for i, name in enumerate(names):
            rows = self.rows_of[name]
            ups.append(self._rows(name, (d_up[i * rank:(i + 1) * rank, at:at + rows].float() * scale).t(), back=True))
            at += rows
        return [*(d_down.float() * scale).split(rank), *ups]

    def angles(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """positions [batch, tokens] -> cos, sin [batch, tokens, 1, head_dim/2]."""
        frequencies = torch.arange(0, self.head_dim, 2, dtype=torch.float64, device=positions.device)
        frequencies = self.rope_base ** (-frequencies / self.head_dim)
        angles = positions.double()[..., None, None] * frequencies
        return angles.cos().float(), angles.sin().float()

    def forward(self, x: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None,
                adapter: Adapter | None = None, cache: list | None = None) -> torch.Tensor:
        """Embeddings [batch, tokens, width] f32 at positions [batch, tokens] -> normed hidden states in the model's dtype.

        With `adapter` gradients reach its LoRA; without, the merged weights are constants. `cache` holds one (k, v) a
        layer, [batch, kv_heads, s, head_dim]: this call's are put behind them.
        """
        if adapter is not None and self.fast is not None:
            return self.fast(x, positions, mask, [adapter[name] for layer in range(self.layer_count) for group in GROUPS
                                                  for name in self.factor_names(layer, group)])
        cos, sin = self.angles(positions)
        for layer in range(self.layer_count):
            block = f"blk.{layer}"
            norms = self.norms[f"{block}.attn_norm.weight"], self.norms[f"{block}.ffn_norm.weight"]
            factors = [] if adapter is None else [self.factors(adapter, layer, group) for group in GROUPS]
            past = cache[layer] if cache is not None and len(cache) > layer else None
            x, k, v = layer_forward(x, cos, sin, mask, norms, self.merged[layer], factors, self.biases[layer], past,
                                    self.shape)
            if cache is not None:
                cache[layer:layer + 1] = [(k, v)]
        return rms_norm(x, self.norms["output_norm.weight"], self.epsilon, self.dtype)

    def loss(self, hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor,
             smoothing: float = 0.0) -> torch.Tensor:
        """Sum of weights x cross-entropies: hidden [rows, width], head [vocabulary, width], targets and weights [rows]."""
        if self.fast is not None:
            return CrossEntropy.apply(hidden, head, targets, weights, smoothing, self.fast)
        losses = F.cross_entropy(F.linear(hidden, head).float(), targets, reduction="none", label_smoothing=smoothing)
        return (losses * weights).sum()

    def prefix(self, prompt: Prompt, vision: torch.Tensor) -> torch.Tensor:
        """vision [batch, N, width] -> embeddings of the whole prompt [batch, tokens, width] f32."""
        before, after = (self.embedding[ids].expand(vision.shape[0], -1, -1) for ids in (prompt.before, prompt.after))
        return torch.cat([before, vision, after], dim=1)


def draw(logits: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """One index a row of [rows, choices] by softmax; several times faster on a CPU than torch.multinomial."""
    below = torch.softmax(logits, -1).cumsum(-1)
    place = torch.rand(len(logits), 1, generator=generator).to(below) * below[:, -1:]
    return torch.searchsorted(below, place, right=True)[:, 0].clamp_(max=logits.shape[1] - 1)


@torch.no_grad()
def generate(model: Language, prefix: torch.Tensor, end: int, tokens_max: int, samples: int = 0,
             generator: torch.Generator | None = None, allowed: torch.Tensor | None = None) -> torch.Tensor:
    """Continues prompts [batch, tokens, width]: greedily, or `samples` draws of each at temperature 1.

    Gives ids [batch * max(samples, 1), <= tokens_max]; what follows `end` is `end`. `allowed` restricts the vocabulary
    (sorted ids).
    """
    copies = max(samples, 1)
    cache: list = []
    length = prefix.shape[1]
    if model.fast is not None:
        hidden = model.fast.start(prefix, copies, tokens_max)
    else:
        positions = torch.arange(length, device=prefix.device).expand(prefix.shape[0], -1)
        causal = torch.ones(1, 1, length, length, dtype=torch.bool, device=prefix.device).tril()
        hidden = model.forward(prefix, positions, causal, cache=cache)[:, -1].repeat_interleave(copies, dim=0)
        cache = [tuple(x.repeat_interleave(copies, dim=0) for x in pair) for pair in cache]
    head = model.head if allowed is None else model.head[allowed]
    done = torch.zeros(hidden.shape[0], dtype=torch.bool, device=hidden.device)
    out: list[torch.Tensor] = []
    while True:
        logits = F.linear(hidden, head).float()
        pick = draw(logits, generator) if samples else logits.argmax(-1)
        tokens = (pick if allowed is None else allowed[pick]).masked_fill(done, end)
        done = done | (tokens == end)
        out.append(tokens)
        if bool(done.all()) or len(out) == tokens_max:
            return torch.stack(out, dim=1)
        x, at = model.embedding[tokens], len(out) - 1
        if model.fast is not None:
            hidden = model.fast.step(x, at)
        else:
            place = torch.full((len(x), 1), length + at, device=x.device)
            hidden = model.forward(x[:, None], place, None, cache=cache)[:, 0]


def new_adapter(file: GgufReader, vision_width: int, hidden: int, rank: int, seed: int) -> Adapter:
    """Random projector and A, zero B."""
    random = torch.Generator().manual_seed(seed)
    architecture = file.metadata["general.architecture"]
    width = file.metadata[f"{architecture}.embedding_length"]

    def matrix(rows: int, columns: int, gain: float = 1.0) -> torch.Tensor:
        return torch.randn(rows, columns, generator=random) * gain / math.sqrt(columns)

    adapter = {"projector.norm.weight": torch.ones(vision_width), "projector.norm.bias": torch.zeros(vision_width)}
    for name, rows, columns in (("gate", hidden, vision_width), ("up", hidden, vision_width), ("down", width, hidden)):
        adapter[f"projector.{name}.weight"] = matrix(rows, columns)
        adapter[f"projector.{name}.bias"] = torch.zeros(rows)
    for layer in range(file.metadata[f"{architecture}.block_count"]):
        for linear in LORA_LINEARS:
            name = f"blk.{layer}.{linear}.weight"
            rows, columns = file.shapes[name]
            adapter[f"{name}.lora_a"] = matrix(rank, columns)
            adapter[f"{name}.lora_b"] = torch.zeros(rows, rank)
    return adapter
