"""Small random models for tests: a whole model folder, a SigLIP-like and a CLIP-like ViT, a qwen2 LLM.

In: a folder. Out: GGUF files there, the same bytes each time (seeds are fixed).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .gguf import GgufWriter
from .reference_llm import LORA_LINEARS
from .reference_vision import LORA_LINEARS as VISION_LORA_LINEARS

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CONTROL, NORMAL = 3, 1
MERGE_TEXT = """user assistant Describe this image. Describe the photo in one short sentence.
A brown dog is running through the green grass with a red ball in its mouth. A man in a blue shirt is riding a bicycle
down the street. Two children are playing on the beach near the water. A group of people are standing in front of a
large building. A woman wearing a white dress is walking along the path. A young boy jumps into the swimming pool.
The mountain is covered with snow and the sky is clear. A cat sits on the window and looks outside at the birds."""


@dataclass(frozen=True)
class VisionShape:
    """One ViT's configuration, as vision.gguf's metadata say it."""

    family: str
    image_size: int
    patch_size: int
    width: int
    layer_count: int
    head_count: int
    mlp_width: int
    position_grid: int
    activation: str
    layer_norm_epsilon: float = 1e-6
    class_token: bool = False
    pre_layer_norm: bool = False
    layer_scale: bool = False
    final_layer_norm: bool = True
    patch_bias: bool = True
    image_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: tuple[float, ...] = (0.229, 0.224, 0.225)


DINOV2 = VisionShape("dinov2", 56, 14, 48, 3, 3, 96, 5, "gelu", class_token=True, layer_scale=True)
SIGLIP = VisionShape("siglip", 32, 8, 32, 1, 4, 64, 4, "gelu_tanh", image_mean=(0.5,) * 3, image_std=(0.5,) * 3)
CLIP = VisionShape("clip", 32, 8, 32, 2, 2, 64, 4, "quick_gelu", layer_norm_epsilon=1e-5, class_token=True,
                   pre_layer_norm=True, final_layer_norm=False, patch_bias=False,
                   image_mean=(0.48145466, 0.4578275, 0.40821073), image_std=(0.26862954, 0.26130258, 0.27577711))


class Weights:
    """Random tensors of a fixed seed, written as they are drawn."""

    def __init__(self, writer: GgufWriter, seed: int):
        self.writer = writer
        self._random = np.random.default_rng(seed)

    def normal(self, name: str, shape: tuple[int, ...], scale: float, mean: float = 0.0, dtype: str = "F32") -> None:
        """One tensor of normal values."""
        self.writer.tensor(name, (self._random.standard_normal(shape) * scale + mean).astype(np.float32), dtype)

    def matrix(self, name: str, rows: int, columns: int, dtype: str = "F32", gain: float = 1.0) -> None:
        """A weight that keeps the size of its input, times gain."""
        self.normal(name, (rows, columns), gain / math.sqrt(columns), dtype=dtype)

    def norm(self, name: str, width: int) -> None:
        """Weight around 1 and bias around 0."""
        self.normal(f"{name}.weight", (width,), 0.2, 1.0)
        self.normal(f"{name}.bias", (width,), 0.2)

    def linear(self, name: str, rows: int, columns: int, dtype: str = "F32") -> None:
        """Weight and bias."""
        self.matrix(f"{name}.weight", rows, columns, dtype)
        self.normal(f"{name}.bias", (rows,), 0.1)


def write_vision(path: Path, shape: VisionShape, seed: int) -> None:
    """A ViT of that shape."""
    writer = GgufWriter(architecture="tokenflex", type="vision", name=f"tiny random {shape.family}")
    for key, value in vars(shape).items():
        if key != "patch_bias":
            writer.set(f"tokenflex.vision.{key}", list(value) if isinstance(value, tuple) else value)
    weights, width, patch = Weights(writer, seed), shape.width, shape.patch_size
    weights.normal("vision.patch.weight", (width, 3, patch, patch), 1 / patch)
    if shape.patch_bias:
        weights.normal("vision.patch.bias", (width,), 0.1)
    if shape.class_token:
        weights.normal("vision.class", (width,), 0.5)
        weights.normal("vision.position.class", (width,), 0.5)
    weights.normal("vision.position.patch", (shape.position_grid**2, width), 0.5)
    if shape.pre_layer_norm:
        weights.norm("vision.pre_norm", width)
    for layer in range(shape.layer_count):
        block = f"vision.blk.{layer}"
        weights.norm(f"{block}.norm1", width)
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            weights.linear(f"{block}.{part}", width, width)
        weights.norm(f"{block}.norm2", width)
        weights.linear(f"{block}.mlp_up", shape.mlp_width, width)
        weights.linear(f"{block}.mlp_down", width, shape.mlp_width)
        if shape.layer_scale:
            weights.normal(f"{block}.scale1", (width,), 0.2, 0.5)
            weights.normal(f"{block}.scale2", (width,), 0.2, 0.5)
    if shape.final_layer_norm:
        weights.norm("vision.norm", width)
    writer.write(path)


def byte_letters() -> list[str]:
    """The printable letter that stands for each byte in GPT-2's vocabularies."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [letters[byte] for byte in range(256)]


def learn_merges(text: str, count: int) -> list[tuple[str, str]]:
    """Byte-pair merges of a text, most frequent pair first, ties by the pair's letters."""
    letters = byte_letters()
    words = Counter(text.replace("\n", " ").split(" "))
    pieces = {tuple(letters[byte] for byte in f" {word}".encode()): n for word, n in words.items() if word}
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for piece, n in pieces.items():
            for pair in zip(piece, piece[1:]):
                pairs[pair] += n
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        pieces = {_merged(piece, best): n for piece, n in pieces.items()}
    return merges


def _merged(piece: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    for letter in piece:
        if out and (out[-1], letter) == pair:
            out[-1] += letter
        else:
            out.append(letter)
    return tuple(out)


def vocabulary(pre: str, merge_count: int) -> dict[str, Any]:
    """`tokenizer.ggml.*` metadata: three special tokens, 256 bytes, merges."""
    merges = learn_merges(MERGE_TEXT, merge_count)
    tokens = SPECIAL_TOKENS + byte_letters() + ["".join(pair) for pair in merges]
    types = [CONTROL] * len(SPECIAL_TOKENS) + [NORMAL] * (len(tokens) - len(SPECIAL_TOKENS))
    return {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": np.array(types, np.int32),
            "merges": [" ".join(pair) for pair in merges], "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0,
            "padding_token_id": 2, "add_bos_token": False, "add_space_prefix": False}


@dataclass(frozen=True)
class LanguageShape:
    """One LLM's configuration; dtypes: of the embedding, of attention, of the gate and up linears, of the down linear."""

    architecture: str
    pre: str
    width: int
    layer_count: int
    head_count: int
    kv_head_count: int
    ffn_width: int
    rope_base: float
    merge_count: int
    dtypes: tuple[str, str, str, str]
    context: int = 512
    epsilon: float = 1e-5


LLAMA = LanguageShape("llama", "smollm", 64, 2, 4, 2, 128, 100000.0, 200, ("Q8_0", "Q4_1", "Q4_0", "Q8_0"))
QWEN2 = LanguageShape("qwen2", "qwen2", 64, 1, 4, 2, 96, 10000.0, 20, ("F16", "F16", "Q8_0", "F16"), epsilon=1e-6)


def write_llm(path: Path, shape: LanguageShape, seed: int) -> None:
    """An LLM of that shape; qwen2 has biases on q, k, v and an output matrix of its own."""
    name, words, qwen2 = shape.architecture, vocabulary(shape.pre, shape.merge_count), shape.architecture == "qwen2"
    writer = GgufWriter(architecture=name, type="model", name=f"tiny random {name}")
    for key, value in {
        "block_count": shape.layer_count, "context_length": shape.context, "embedding_length": shape.width,
        "feed_forward_length": shape.ffn_width, "attention.head_count": shape.head_count,
        "attention.head_count_kv": shape.kv_head_count, "attention.layer_norm_rms_epsilon": shape.epsilon,
        "rope.freq_base": shape.rope_base, "rope.dimension_count": shape.width // shape.head_count,
        "vocab_size": len(words["tokens"]),
    }.items():
        writer.set(f"{name}.{key}", value)
    for key, value in words.items():
        writer.set(f"tokenizer.ggml.{key}", value)
    weights, width, kv = Weights(writer, seed), shape.width, shape.width // shape.head_count * shape.kv_head_count
    embedding, attention, up, down = shape.dtypes
    weights.normal("token_embd.weight", (len(words["tokens"]), width), 0.5, dtype=embedding)
    for layer in range(shape.layer_count):
        block = f"blk.{layer}"
        weights.normal(f"{block}.attn_norm.weight", (width,), 0.2, 1.0)
        for part, rows in (("attn_q", width), ("attn_k", kv), ("attn_v", kv)):
            weights.matrix(f"{block}.{part}.weight", rows, width, attention, gain=1.4)
            if qwen2:
                weights.normal(f"{block}.{part}.bias", (rows,), 0.3)
        weights.matrix(f"{block}.attn_output.weight", width, width, attention)
        weights.normal(f"{block}.ffn_norm.weight", (width,), 0.2, 1.0)
        weights.matrix(f"{block}.ffn_gate.weight", shape.ffn_width, width, up)
        weights.matrix(f"{block}.ffn_up.weight", shape.ffn_width, width, up)
        weights.matrix(f"{block}.ffn_down.weight", width, shape.ffn_width, down)
    weights.normal("output_norm.weight", (width,), 0.2, 1.0)
    if qwen2:
        weights.matrix("output.weight", len(words["tokens"]), width, "Q8_0", gain=3.0)
    writer.write(path)


def write_adapter(path: Path, vision: VisionShape, llm: LanguageShape, seed: int) -> None:
    """Projector and rank-4 LoRA between the two, a rank-2 LoRA for the ViT; token counts 4, 9, 16 on a 4 x 4 patch grid."""
    hidden, rank, alpha = 96, 4, 8.0
    writer = GgufWriter(architecture="tokenflex", type="adapter", name="tokenflex tiny random adapter")
    writer.set("adapter.type", "lora")
    writer.set("adapter.lora.alpha", alpha)
    for key, value in {
        "token_counts": [4, 9, 16], "grid": vision.image_size // vision.patch_size, "image_size": vision.image_size,
        "pooling": "resize_average", "vision_width": vision.width, "llm_width": llm.width, "hidden": hidden,
        "layer_norm_epsilon": 1e-5, "prompt": "Describe this image.",
    }.items():
        writer.set(f"tokenflex.{key}", value)
    weights = Weights(writer, seed)
    weights.norm("projector.norm", vision.width)
    weights.linear("projector.gate", hidden, vision.width, "F16")
    weights.linear("projector.up", hidden, vision.width, "F16")
    weights.linear("projector.down", llm.width, hidden, "F16")
    kv = llm.width // llm.head_count * llm.kv_head_count
    sizes = {"attn_k": (kv, llm.width), "attn_v": (kv, llm.width), "ffn_gate": (llm.ffn_width, llm.width),
             "ffn_up": (llm.ffn_width, llm.width), "ffn_down": (llm.width, llm.ffn_width)}
    for layer in range(llm.layer_count):
        for linear in LORA_LINEARS:
            rows, columns = sizes.get(linear, (llm.width, llm.width))
            weights.matrix(f"blk.{layer}.{linear}.weight.lora_a", rank, columns, "F16")
            weights.matrix(f"blk.{layer}.{linear}.weight.lora_b", rows, rank, "F16", gain=0.2)
    widths = {"mlp_up": (vision.mlp_width, vision.width), "mlp_down": (vision.width, vision.mlp_width)}
    for layer in range(vision.layer_count):
        for linear in VISION_LORA_LINEARS:
            rows, columns = widths.get(linear, (vision.width, vision.width))
            weights.matrix(f"vision.blk.{layer}.{linear}.weight.lora_a", rank // 2, columns, "F16")
            weights.matrix(f"vision.blk.{layer}.{linear}.weight.lora_b", rows, rank // 2, "F16", gain=0.2)
    writer.write(path)


def write_all(folder: Path) -> None:
    """Every tiny model under `folder`: tiny/{vision,llm,adapter}.gguf and three single files beside it."""
    (folder / "tiny").mkdir(parents=True, exist_ok=True)
    write_vision(folder / "tiny/vision.gguf", DINOV2, seed=1)
    write_llm(folder / "tiny/llm.gguf", LLAMA, seed=2)
    write_adapter(folder / "tiny/adapter.gguf", DINOV2, LLAMA, seed=3)
    write_vision(folder / "vision_siglip.gguf", SIGLIP, seed=4)
    write_vision(folder / "vision_clip.gguf", CLIP, seed=5)
    write_llm(folder / "llm_qwen2.gguf", QWEN2, seed=6)
