"""Training sequences: one image's prompt followed by all its captions, none of which sees another.

In: prompts, captions as token ids, features. Out: `Batch`: embeddings, positions, mask, and where which token is due.

The prompt is computed once for the captions that share it. Each caption's positions go on from the prompt's end, so that
every token sees exactly what it sees when the caption is generated alone.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import torch

from tokenflex_tools.gguf import GgufReader
from tokenflex_tools.reference_llm import Prompt

from .data import tidy
from .features import Cache
from .model import Language

BUCKET = 16  # batches sorted together by length: less padding


def load_tokenizer(file: GgufReader) -> Any:
    """The published `tokenizers` library's, for any text."""
    from tokenflex_tools import tokenizer
    return tokenizer.load(file)


def chat_prompt(file: GgufReader, tokenizer: Any, text: str) -> Prompt:
    """The ids around the vision tokens: one ChatML turn of the user, then the start of the assistant's."""
    tokens: list[str] = file.metadata["tokenizer.ggml.tokens"]
    start, end = tokens.index("<|im_start|>"), tokens.index("<|im_end|>")
    user, question, between, assistant = (tokenizer.encode(part, add_special_tokens=False).ids
                                          for part in ("user\n", "\n" + text, "\n", "assistant\n"))
    return Prompt([start, *user], [*question, end, *between, start, *assistant])


class Words:
    """The LLM's tokenizer and the prompt in its ids."""

    def __init__(self, file: GgufReader, text: str):
        self.tokenizer = load_tokenizer(file)
        self.prompt = chat_prompt(file, self.tokenizer, text)
        self.end: int = file.metadata["tokenizer.ggml.eos_token_id"]

    def encode(self, caption: str) -> list[int]:
        """A caption as it is trained: tidied, with the end token."""
        return [*self.tokenizer.encode(tidy(caption), add_special_tokens=False).ids, self.end]

    def decode(self, ids: list[int]) -> str:
        """Text up to the end token."""
        return self.tokenizer.decode(ids[:ids.index(self.end)] if self.end in ids else ids)


@dataclass
class Layout:
    """Where everything lies in a batch of `[prompt | caption | caption ..]` rows, padded at the end."""

    tokens: torch.Tensor     # [batch, caption tokens] ids behind the prompt
    positions: torch.Tensor  # [batch, prompt + caption tokens]
    mask: torch.Tensor       # [batch, 1, t, t] bool: row sees column
    rows: torch.Tensor       # [predictions] index into batch * t of the token that predicts
    targets: torch.Tensor    # [predictions] id that is due
    owners: torch.Tensor     # [predictions] number of the caption, counted through the batch


def lay_out(captions: list[list[list[int]]], prompt_length: int, device: torch.device = torch.device("cpu")) -> Layout:
    """captions[image][caption] = ids with the end token."""
    inputs = [[token for caption in group for token in caption[:-1]] for group in captions]
    width = max(1, *(len(row) for row in inputs))
    total = prompt_length + width
    tokens = torch.zeros(len(captions), width, dtype=torch.long)
    segments = torch.zeros(len(captions), total, dtype=torch.long)
    positions = torch.arange(total).repeat(len(captions), 1)
    rows, targets, owners, owner = [], [], [], 0
    for image, group in enumerate(captions):
        tokens[image, :len(inputs[image])] = torch.tensor(inputs[image])
        segments[image, prompt_length:] = -1
        at, base = prompt_length, image * total
        for number, caption in enumerate(group, 1):
            length = len(caption) - 1
            segments[image, at:at + length] = number
            positions[image, at:at + length] = torch.arange(prompt_length, prompt_length + length)
            rows += [base + prompt_length - 1, *range(base + at, base + at + length)]
            targets += caption
            owners += [owner] * len(caption)
            at, owner = at + length, owner + 1
    mask = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
    mask = (mask & torch.ones(total, total, dtype=torch.bool).tril())[:, None]
    parts = (tokens, positions, mask, torch.tensor(rows), torch.tensor(targets), torch.tensor(owners))
    return Layout(*(part.to(device) for part in parts))


def hidden_states(model: Language, prefix: torch.Tensor, layout: Layout, adapter: Any = None) -> torch.Tensor:
    """prefix [batch, prompt, width] (Language.prefix) -> hidden states [predictions, width] of the predicting tokens."""
    x = torch.cat([prefix, model.embedding[layout.tokens]], dim=1)
    hidden = model.forward(x, layout.positions, layout.mask, adapter)
    return hidden.reshape(-1, hidden.shape[-1])[layout.rows]


def check_budget(options: Any) -> None:
    """Ends the program where a phase's options don't fit together; fills in the shares that go without saying."""
    counts = options.counts
    if options.shares is None:
        options.shares = {1: [1.0], 3: [0.2, 0.3, 0.5]}.get(len(counts), [1 / len(counts)] * len(counts))
    if any(count < 1 or math.isqrt(count) ** 2 != count for count in counts) or counts != sorted(set(counts)):
        raise SystemExit(f"--counts {' '.join(map(str, counts))}: ascending squares are wanted")
    if len(options.shares) != len(counts) or min(options.shares) < 0 or sum(options.shares) <= 0:
        raise SystemExit(f"--shares: {len(counts)} numbers are wanted, one for each of --counts")
    if options.steps < 0 or options.steps == 0 and options.minutes <= 0:
        raise SystemExit("--minutes or --steps: more than 0 are wanted")
    if options.batch < getattr(options, "workers", 1):
        raise SystemExit(f"--batch {options.batch} leaves some of {options.workers} workers without an image")


def left_of(minutes: float, progress: float) -> float | None:
    """Minutes left of a phase, however its budget is given; None: too early to say."""
    return round(minutes / progress - minutes, 1) if progress > 0 else None


def epoch(lengths: list[int], batch: int, seed: int) -> list[list[int]]:
    """Rows of each batch of one epoch: random, but of like length within a batch. The last odd rows wait for the next."""
    if len(lengths) < batch:
        raise SystemExit(f"{len(lengths)} images are fewer than a batch of {batch}: give a smaller --batch")
    order = list(range(len(lengths)))
    random.Random(seed).shuffle(order)
    batches: list[list[int]] = []
    for first in range(0, len(order), batch * BUCKET):
        bucket = sorted(order[first:first + batch * BUCKET], key=lambda row: lengths[row])
        batches += [bucket[at:at + batch] for at in range(0, len(bucket) - batch + 1, batch)]
    random.Random(seed + 1).shuffle(batches)
    return batches


def take(cache: Cache, rows: list[int], views: random.Random) -> torch.Tensor:
    """Features of rows, each in a view drawn at random."""
    names = sorted(cache.views)
    return cache.take(rows, [views.choice(names) for _ in rows])
