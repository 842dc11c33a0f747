"""A GGUF file's byte-level BPE in the published `tokenizers` library, and the prompt of tokenflex in its ids.

In: llm.gguf's vocabulary and merges. Out: a Tokenizer for plain text (special tokens written in the text stay text),
ChatML prompts.
"""

from __future__ import annotations

from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from .gguf import GgufReader
from .hf_tokenizer import QWEN2_PIECES
from .reference_llm import Prompt

def build(metadata: dict[str, Any]) -> Tokenizer:
    """Tokenizer of GGUF metadata `tokenizer.ggml.*` (model gpt2; pre smollm, gpt-2 or qwen2)."""
    ids = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges))
    if metadata["tokenizer.ggml.pre"] == "smollm":
        steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    elif metadata["tokenizer.ggml.pre"] == "gpt-2":
        steps = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    elif metadata["tokenizer.ggml.pre"] == "qwen2":
        steps = [pre_tokenizers.Split(Regex(QWEN2_PIECES), "isolated"),
                 pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    else:
        raise ValueError(f"pre-tokenizer {metadata['tokenizer.ggml.pre']} is not supported")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def load(file: GgufReader) -> Tokenizer:
    """Tokenizer of a GGUF file."""
    return build(file.metadata)


def chat_prompt(file: GgufReader, tokenizer: Tokenizer, text: str) -> Prompt:
    """The ids around the vision tokens: one ChatML turn of the user, then the start of the assistant's."""
    tokens: list[str] = file.metadata["tokenizer.ggml.tokens"]
    start, end = tokens.index("<|im_start|>"), tokens.index("<|im_end|>")

    def plain(part: str) -> list[int]:
        return tokenizer.encode(part, add_special_tokens=False).ids

    return Prompt([start, *plain("user\n")],
                  [*plain("\n" + text), end, *plain("\n"), start, *plain("assistant\n")])
