"""A Hugging Face tokenizer's files -> tokenizer.ggml.*: byte-level BPE of the kinds that the C programs cut text by.

In: tokenizer.json, or vocab.json and merges.txt; tokenizer_config.json beside them. Out: tokens, their kinds, merges, the
name of the pre-tokenizer. Whatever would make other ids of a text than the C programs do is refused by name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from .gguf import GgufWriter
from .hf_source import Unsupported, read_json

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
GPT2_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN2_PIECES = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
                r"|\s+(?!\S)|\s+")
DIGITS, WHOLE = ("Digits", True), ("ByteLevel", False)  # WHOLE: bytes to letters, nothing cut any more
GPT2, QWEN2 = ("Split", GPT2_PIECES), ("Split", QWEN2_PIECES)
PRE_TOKENIZERS = {  # GGUF's name -> the steps of tokenizer.json, each way to write them
    "smollm": [[DIGITS, ("ByteLevel", True)], [DIGITS, GPT2, WHOLE]],
    "gpt-2": [[("ByteLevel", True)], [GPT2, WHOLE]],
    "qwen2": [[QWEN2, WHOLE]],
}
CLASSES = {"Qwen2Tokenizer": "qwen2", "GPT2Tokenizer": "gpt-2"}  # of vocab.json and merges.txt
PLAIN_MODEL = {"byte_fallback", "ignore_merges", "continuing_subword_prefix", "end_of_word_suffix", "dropout"}  # none of these


def flat(node: dict[str, Any] | None, parts: str) -> list[dict[str, Any]]:
    """The steps of a (nested) sequence, in order."""
    if not node:
        return []
    return [step for part in node.get(parts) or [] for step in flat(part, parts)] if node.get("type") == "Sequence" else [node]


def step_of(node: dict[str, Any]) -> tuple[str, Any] | None:
    """A step in the terms of PRE_TOKENIZERS; None: none of them."""
    kind, pattern = node.get("type"), node.get("pattern")
    if kind == "Digits":
        return kind, bool(node.get("individual_digits"))
    if kind == "ByteLevel" and not node.get("add_prefix_space", True):
        return kind, bool(node.get("use_regex", True))
    way = node.get("behavior"), bool(node.get("invert"))
    if kind == "Split" and isinstance(pattern, dict) and way in (("Isolated", False), ("Removed", True)):
        return kind, pattern.get("Regex")
    return None


def pre_tokenizer(folder: Path, tokenizer: dict[str, Any]) -> str:
    """GGUF's name of how the text is cut before the merges."""
    nodes = flat(tokenizer.get("pre_tokenizer"), "pretokenizers")
    steps = [step_of(node) for node in nodes]
    for name, ways in PRE_TOKENIZERS.items():
        if steps in ways:
            return name
    raise Unsupported(f"{folder}: tokenizer.json cuts text in a way that is not supported (those of GPT-2, SmolLM2 and Qwen2 "
                      f"are): {json.dumps(nodes)[:200]}")


def check_kind(folder: Path, tokenizer: dict[str, Any]) -> None:
    """Byte-level BPE, and nothing done to the text before. Unicode's normal form C is let pass: text mostly has it."""
    model = tokenizer.get("model") or {}
    if model.get("type", "BPE" if "merges" in model else None) != "BPE":
        raise Unsupported(f"{folder}: tokenizer.json holds {model.get('type', 'no model')}; byte-level BPE is supported "
                          "(sentencepiece models are not)")
    if odd := sorted(key for key in PLAIN_MODEL if model.get(key)):
        raise Unsupported(f"{folder}: tokenizer.json's BPE with {', '.join(odd)} is not supported")
    changes = {node.get("type") for node in flat(tokenizer.get("normalizer"), "normalizers")} - {"NFC"}
    if changes:
        raise Unsupported(f"{folder}: tokenizer.json changes text before it is cut ({', '.join(map(str, sorted(changes)))}): "
                          "not supported")


def older_files(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What tokenizer.json would say, from vocab.json and merges.txt; added tokens are not in it yet."""
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if not vocabulary.exists() or not merges.exists():
        other = "; sentencepiece's tokenizer.model is not supported" if (folder / "tokenizer.model").exists() else ""
        raise Unsupported(f"{folder}: the tokenizer is missing: tokenizer.json, or vocab.json and merges.txt{other}")
    name = str(settings.get("tokenizer_class", "")).removesuffix("Fast")
    if name not in CLASSES:
        raise Unsupported(f"{folder}: tokenizer_config.json names tokenizer_class {name or 'nothing'}; without tokenizer.json those "
                          f"known are {', '.join(CLASSES)}")
    if settings.get("add_prefix_space"):
        raise Unsupported(f"{folder}: tokenizer_config.json's add_prefix_space is not supported")
    lines = merges.read_text("utf-8").split("\n")
    pairs = [line.rstrip("\r") for line in lines[lines[0].startswith("#version"):]]
    more = [{"id": i, "content": token} for token, i in read_json(folder / "added_tokens.json").items()]
    return {"model": {"type": "BPE", "vocab": read_json(vocabulary), "merges": [pair for pair in pairs if pair]},
            "pre": CLASSES[name], "added_tokens": more}


def added(tokenizer: dict[str, Any], settings: dict[str, Any]) -> list[tuple[int, str, int]]:
    """(id, text, kind) of the tokens that no merge makes."""
    tokens = {token["id"]: token for token in tokenizer.get("added_tokens") or []}
    for number, token in (settings.get("added_tokens_decoder") or {}).items():
        tokens[int(number)] = tokens.get(int(number), {}) | token
    turns = (TURN_START, TURN_END)  # made by no text, whatever the file says of them
    return [(i, t["content"], CONTROL if t.get("special") or t["content"] in turns else USER_DEFINED)
            for i, t in tokens.items()]


def add_tokenizer(folder: Path, writer: GgufWriter, vocabulary: int, markers: tuple[str, ...]) -> None:
    """tokenizer.ggml.*; ids that have no name are unused. markers: control tokens that must be there beside ChatML's."""
    settings = read_json(folder / "tokenizer_config.json")
    tokenizer = read_json(folder / "tokenizer.json") or older_files(folder, settings)
    check_kind(folder, tokenizer)
    tokens, kinds = [f"[unused{i}]" for i in range(vocabulary)], [UNUSED] * vocabulary
    named = [(i, token, NORMAL) for token, i in tokenizer["model"]["vocab"].items()]
    for i, token, kind in named + added(tokenizer, settings):
        if not 0 <= i < vocabulary:
            raise Unsupported(f"{folder}: token {token!r} is number {i} of {vocabulary}")
        tokens[i], kinds[i] = token, CONTROL if token in markers else kind
    for token in (TURN_START, TURN_END, *markers):
        if token not in tokens:
            raise Unsupported(f"{folder}: the vocabulary has no {token}, which tokenflex's prompt (ChatML) needs")
    writer.set("tokenizer.ggml.model", "gpt2")
    writer.set("tokenizer.ggml.pre", tokenizer.get("pre") or pre_tokenizer(folder, tokenizer))
    writer.set("tokenizer.ggml.tokens", tokens)
    writer.set("tokenizer.ggml.token_type", np.array(kinds, np.int32))
    writer.set("tokenizer.ggml.merges", [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]])
    writer.set("tokenizer.ggml.eos_token_id", tokens.index(TURN_END))
