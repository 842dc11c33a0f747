"""Hugging Face's Llama and Qwen2 models with byte-level BPE -> llm.gguf.

In: a `Source` and the tokenizer's files. Out: a GgufWriter with the settings, vocabulary and tensors of GGUF's `llama` and
`qwen2` architectures. Names: transformers' LlamaForCausalLM, Qwen2ForCausalLM.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .gguf import GgufWriter
from .hf_source import Source, Unsupported
from .hf_tokenizer import add_tokenizer

LINEARS = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
           "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
           "ffn_down": "mlp.down_proj"}
PREFIXES = ("language_model.", "")


def interleave(heads: int):
    """Rows of q or k from half-split rotation (pairs i, i + d/2) to GGUF llama's interleaved one (pairs 2i, 2i + 1)."""
    def change(x: np.ndarray) -> np.ndarray:
        rows = x.shape[0] // heads
        return x.reshape(heads, 2, rows // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
    return change


def rope_base(source: Source) -> float:
    """RoPE's base; every way to scale it is refused."""
    config = source.config
    for rope in (config.get("rope_scaling") or {}, config.get("rope_parameters") or {}):  # the latter: transformers 5
        rest = {key: value for key, value in rope.items() if key not in ("rope_type", "type", "rope_theta")}
        is_plain = rope.get("rope_type", rope.get("type")) in ("default", None)
        if not is_plain or any(value not in (None, 1) for value in rest.values()):
            raise Unsupported(f"{source.folder}: scaled RoPE ({rope}) is not supported")
    if config.get("partial_rotary_factor") not in (None, 1):
        raise Unsupported(f"{source.folder}: RoPE of a part of each head (partial_rotary_factor) is not supported")
    return float((config.get("rope_parameters") or {}).get("rope_theta") or source.need("rope_theta", 10000.0))


def settings(source: Source) -> dict[str, Any]:
    """What the architecture's keys say."""
    if source.config.get("use_sliding_window") or set(source.config.get("layer_types") or []) - {"full_attention"}:
        raise Unsupported(f"{source.folder}: a sliding window is not supported")
    if source.config.get("mlp_bias"):
        raise Unsupported(f"{source.folder}: biases in the MLP are not supported")
    if source.need("hidden_act", "silu") != "silu":
        raise Unsupported(f"{source.folder}: activation {source.config['hidden_act']} (silu is known)")
    width, heads = source.need("hidden_size"), source.need("num_attention_heads")
    return {
        "block_count": source.need("num_hidden_layers"), "embedding_length": width,
        "feed_forward_length": source.need("intermediate_size"), "attention.head_count": heads,
        "attention.head_count_kv": source.config.get("num_key_value_heads") or heads,
        "attention.key_length": source.config.get("head_dim") or width // heads,
        "context_length": source.need("max_position_embeddings"),
        "attention.layer_norm_rms_epsilon": float(source.need("rms_norm_eps")),
        "rope.freq_base": rope_base(source),
    }


def add_tensors(source: Source, writer: GgufWriter, kind: str, values: dict[str, Any], dtype: str) -> None:
    """Embedding, blocks, output."""
    width, hidden, vocabulary = values["embedding_length"], values["feed_forward_length"], source.need("vocab_size")
    heads, kv_heads, size = (values[f"attention.{key}"] for key in ("head_count", "head_count_kv", "key_length"))
    shapes = {"attn_q": (heads * size, width), "attn_k": (kv_heads * size, width), "attn_v": (kv_heads * size, width),
              "attn_output": (width, heads * size), "ffn_gate": (hidden, width), "ffn_up": (hidden, width),
              "ffn_down": (width, hidden)}
    turned = {"attn_q": interleave(heads), "attn_k": interleave(kv_heads)} if kind == "llama" else {}
    source.add(writer, "token_embd.weight", "model.embed_tokens.weight", (vocabulary, width), dtype)
    for layer in range(values["block_count"]):
        origin = f"model.layers.{layer}"
        source.add(writer, f"blk.{layer}.attn_norm.weight", f"{origin}.input_layernorm.weight", (width,), dtype)
        source.add(writer, f"blk.{layer}.ffn_norm.weight", f"{origin}.post_attention_layernorm.weight", (width,), dtype)
        for name, module in LINEARS.items():
            change = turned.get(name, lambda x: x)
            source.add(writer, f"blk.{layer}.{name}.weight", f"{origin}.{module}.weight", shapes[name], dtype, change)
            if not source.has(f"{origin}.{module}.bias"):
                continue
            if name not in ("attn_q", "attn_k", "attn_v") or kind != "qwen2":
                raise Unsupported(f"{source.folder}: a bias in {origin}.{module} is not supported")
            source.add(writer, f"blk.{layer}.{name}.bias", f"{origin}.{module}.bias", shapes[name][:1], dtype)
    source.add(writer, "output_norm.weight", "model.norm.weight", (width,), dtype)
    source.leave(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"lm_head\.weight")  # the latter: where it is tied
    if not source.config.get("tie_word_embeddings", kind == "qwen2" and not source.has("lm_head.weight")):
        source.add(writer, "output.weight", "lm_head.weight", (vocabulary, width), dtype)


def convert(source: Source, kind: str, dtype: str, markers: tuple[str, ...] = ()) -> GgufWriter:
    """The whole file. kind: "llama" or "qwen2"; markers: control tokens that it must have, beside ChatML's."""
    values = settings(source)
    writer = GgufWriter(architecture=kind, type="model", name=source.folder.resolve().name)
    for key, value in values.items():
        writer.set(f"{kind}.{key}", value)
    add_tokenizer(source.folder, writer, source.need("vocab_size"), markers)
    add_tensors(source, writer, kind, values, dtype)
    return writer
