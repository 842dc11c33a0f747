"""Hugging Face's Llama and Qwen2 models with byte-level BPE -> llm.gguf.

In: a `Source` and tokenizer.json. Out: a GgufWriter with the settings, vocabulary and tensors of GGUF's `llama` and
`qwen2` architectures. Names: transformers' LlamaForCausalLM, Qwen2ForCausalLM.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .gguf import GgufWriter
from .hf_source import Source, Unsupported, read_json

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
QWEN2_MARK, GPT2_MARK, LLAMA3_MARK = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|", r"?\p{L}+| ?\p{N}+|", r"\p{N}{1,3}"
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


def settings(source: Source) -> dict[str, Any]:
    """What the architecture's keys say."""
    rope = source.config.get("rope_parameters") or {}  # transformers 5
    scaling = source.config.get("rope_scaling") or rope
    if scaling.get("rope_type", scaling.get("type", "default")) not in ("default", None):
        raise Unsupported(f"{source.folder}: scaled RoPE ({scaling}) is not supported")
    if source.config.get("use_sliding_window") or source.config.get("mlp_bias"):
        raise Unsupported(f"{source.folder}: a sliding window or biases in the MLP are not supported")
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
        "rope.freq_base": float(rope.get("rope_theta") or source.need("rope_theta", 10000.0)),
    }


def pre_tokenizer(source: Source, tokenizer: dict[str, Any]) -> str:
    """GGUF's name of how the text is cut before the merges."""
    text = str(tokenizer.get("pre_tokenizer")).replace("\\\\", "\\")
    if "Digits" in text and "'individual_digits': True" in text:
        return "smollm"
    if QWEN2_MARK in text:
        return "qwen2"
    if LLAMA3_MARK not in text and "ByteLevel" in text and ("Split" not in text or GPT2_MARK in text):
        return "gpt-2"
    raise Unsupported(f"{source.folder}: tokenizer.json cuts text in a way that is not supported (those of GPT-2, SmolLM2 "
                      f"and Qwen2 are): {text[:200]}")


def add_tokenizer(source: Source, writer: GgufWriter, vocabulary: int) -> None:
    """tokenizer.ggml.* from tokenizer.json; ids that have no name are unused."""
    tokenizer = read_json(source.folder / "tokenizer.json")
    model = tokenizer.get("model", {})
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise Unsupported(f"{source.folder}: tokenizer.json must be there and hold byte-level BPE "
                          f"(it says {model.get('type', 'nothing')}{', byte_fallback' if model.get('byte_fallback') else ''})")
    tokens, types = [f"[unused{i}]" for i in range(vocabulary)], [UNUSED] * vocabulary
    named = [(i, token, NORMAL) for token, i in model["vocab"].items()]
    named += [(t["id"], t["content"], CONTROL if t["special"] else USER_DEFINED) for t in tokenizer.get("added_tokens", [])]
    for i, token, kind in named:
        if not 0 <= i < vocabulary:
            raise Unsupported(f"{source.folder}: token {token!r} is number {i} of {vocabulary}")
        tokens[i], types[i] = token, kind
    writer.set("tokenizer.ggml.model", "gpt2")
    writer.set("tokenizer.ggml.pre", pre_tokenizer(source, tokenizer))
    writer.set("tokenizer.ggml.tokens", tokens)
    writer.set("tokenizer.ggml.token_type", np.array(types, np.int32))
    writer.set("tokenizer.ggml.merges", [m if isinstance(m, str) else " ".join(m) for m in model["merges"]])
    end = source.config.get("eos_token_id")
    end = read_json(source.folder / "generation_config.json").get("eos_token_id", end)
    end = end[0] if isinstance(end, list) else end
    if "<|im_end|>" in tokens:  # a chat ends its turns, whatever the base model's configuration says
        end = tokens.index("<|im_end|>")
    if end is not None:
        writer.set("tokenizer.ggml.eos_token_id", int(end))


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
    if not source.config.get("tie_word_embeddings", kind == "qwen2" and not source.has("lm_head.weight")):
        source.add(writer, "output.weight", "lm_head.weight", (vocabulary, width), dtype)


def convert(source: Source, kind: str, dtype: str) -> tuple[GgufWriter, dict[str, Any]]:
    """The whole file, and its settings. kind: "llama" or "qwen2"."""
    values = settings(source)
    writer = GgufWriter(architecture=kind, type="model", name=source.folder.resolve().name)
    for key, value in values.items():
        writer.set(f"{kind}.{key}", value)
    add_tokenizer(source, writer, source.need("vocab_size"))
    add_tensors(source, writer, kind, values, dtype)
    return writer, values
