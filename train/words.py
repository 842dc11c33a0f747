"""Phase 1: the projector learns to put the words of the captions into its tokens, without running the LLM.

In: data folder, model folder, feature cache. Out: OUT/adapter.gguf: a trained projector, and a LoRA that changes nothing
yet (random A, zero B).

Each projected token is compared with the LLM's own embeddings of content words, both centred and normalised; an image's
score of a word is the log-mean-exp over its tokens, and the words of its captions are the targets of a softmax over all
words, rare ones weighing more. The tokens' norm is held at that of the embeddings, so that the LLM meets vectors like
those it knows.
Run: python -m train.words --data DIR --model DIR --cache DIR --out DIR [--minutes 8]
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import time
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F

from tokenflex_tools.gguf import GgufReader

from . import data, export
from .features import Cache
from .model import Projector, add_device, device_of, new_adapter
from .sequences import Words, check_budget, epoch, left_of, take

IMAGES_MIN = 5       # a word must be said of so many images
SHARPNESS = 16.0     # cosine -> logit
NORM_WEIGHT = 0.1
STOP_WORDS = set("""a an and are as at be been being but by each for from has have he her him his in into is it its no not of
off on one or other others out over she some that the their them there these they this those through to up was were
which while who with""".split())


class Targets:
    """The words to be found: their embeddings, and for each image how often its captions say each of them."""

    def __init__(self, words: Words, embedding: torch.Tensor, examples: list[data.Example]):
        said = [[set(re.findall(r"[a-z]+", caption.lower())) - STOP_WORDS for caption in e.captions] for e in examples]
        images = Counter(word for captions in said for word in set().union(*captions))
        ids: dict[str, int] = {}
        for word, count in sorted(images.items()):
            pieces = words.tokenizer.encode(f" {word}", add_special_tokens=False).ids
            if count >= IMAGES_MIN and len(pieces) == 1:
                ids[word] = pieces[0]
        if not ids:
            raise SystemExit(f"no word of one token is said of {IMAGES_MIN} images: {len(examples)} images are too few here")
        self.words = list(ids)
        self.mean = embedding.mean(0)
        self.embedding = F.normalize(embedding[list(ids.values())] - self.mean, dim=-1)
        self.norm = float(embedding.norm(dim=-1).mean())
        rarity = torch.tensor([math.log(len(examples) / images[word]) for word in self.words])
        place = {word: i for i, word in enumerate(self.words)}
        wanted = torch.zeros(len(examples), len(self.words))
        for image, captions in enumerate(said):
            for caption in captions:
                for word in caption & place.keys():
                    wanted[image, place[word]] += rarity[place[word]] / len(captions)
        self.wanted = wanted.to(embedding.device)

    def logits(self, tokens: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Projected tokens [batch, N, width] -> score of each word [batch, words]."""
        unit = F.normalize(tokens - self.mean, dim=-1)
        similar = (unit.to(dtype) @ self.embedding.to(dtype).t()).float() * SHARPNESS
        return torch.logsumexp(similar, dim=1) - math.log(tokens.shape[1])

    def loss(self, tokens: torch.Tensor, rows: list[int], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean of the weighted log-probabilities of the images' words, and the penalty on the tokens' norm."""
        wanted = self.wanted[rows]
        loss = -(F.log_softmax(self.logits(tokens, dtype), -1) * wanted).sum() / wanted.sum()
        return loss, (tokens.norm(dim=-1) - self.norm).pow(2).mean()


def train(options: argparse.Namespace) -> list[float]:
    """Runs the phase; gives the loss of each step."""
    check_budget(options)
    torch.manual_seed(options.seed)
    vision, llm = GgufReader(options.model / "vision.gguf"), GgufReader(options.model / "llm.gguf")
    metadata = export.metadata_of(vision, llm, options.counts, options.hidden, options.alpha, options.name, options.prompt)
    adapter = new_adapter(llm, metadata["tokenflex.vision_width"], options.hidden, options.rank, options.seed)
    examples, views = data.read_captions(options.data, "train"), random.Random(options.seed)
    cache = Cache(options.cache, "train", {}, {}, [example.file for example in examples], vision.path)
    projector, dtype = Projector(metadata), torch.float32 if options.f32 else torch.bfloat16
    embedding = torch.from_numpy(llm.array("token_embd.weight").copy())
    targets = Targets(Words(llm, options.prompt), embedding.to(device_of(options)), examples)
    print(json.dumps({"words": len(targets.words), "images": len(examples)}), flush=True)
    device = device_of(options)
    adapter = {name: tensor.to(device) for name, tensor in adapter.items()}
    trained = [tensor.requires_grad_() for name, tensor in adapter.items() if name.startswith("projector.")]
    optimiser = torch.optim.AdamW(trained, lr=options.rate, weight_decay=0.01)
    start, step, losses = time.monotonic(), 0, []
    while True:
        for rows in epoch([0] * len(examples), options.batch, options.seed + step):
            minutes = (time.monotonic() - start) / 60
            progress = step / options.steps if options.steps else minutes / options.minutes
            if progress >= 1:
                export.write(options.out / "adapter.gguf", adapter, metadata)
                return losses
            count = views.choices(options.counts, options.shares)[0]
            tokens = projector(adapter, take(cache, rows, views).to(device), count, dtype)
            loss, spread = targets.loss(tokens, rows, dtype)
            optimiser.param_groups[0]["lr"] = options.rate * min(1, (step + 1) / 20) * (1 + math.cos(math.pi * progress)) / 2
            optimiser.zero_grad()
            (loss + NORM_WEIGHT * spread).backward()
            optimiser.step()
            losses.append(loss.item())
            step += 1
            if step % 25 == 0:
                print(json.dumps({"step": step, "minutes": round(minutes, 2), "loss": round(sum(losses[-25:]) / 25, 4),
                                  "norm_error": round(math.sqrt(spread.item()), 3),
                                  "left": left_of(minutes, progress)}), flush=True)


def options_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(description="Teaches the projector words.")
    for name in ("data", "model", "cache", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--steps", type=int, default=0, help="budget in steps instead")
    parser.add_argument("--counts", type=int, nargs="+", default=[64, 144, 256])
    parser.add_argument("--shares", type=float, nargs="+", help="how often each is drawn")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--hidden", type=int, default=1152, help="projector's inner width")
    parser.add_argument("--rank", type=int, default=16, help="of the LoRA")
    parser.add_argument("--alpha", type=float, default=32.0, help="the LoRA is scaled by alpha / rank")
    parser.add_argument("--name", default="tokenflex adapter")
    parser.add_argument("--prompt", default="Describe this image.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--f32", action="store_true", help="compute in f32 rather than bf16")
    add_device(parser)
    return parser


def main() -> None:
    """Command line."""
    options = options_parser().parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    train(options)


if __name__ == "__main__":
    main()
