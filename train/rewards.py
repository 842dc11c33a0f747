"""Phase 3: self-critical training: the model's own sampled captions, weighted by how much better than their siblings they
score in CIDEr-D against the image's captions (Rennie et al. 2017; the baseline is the mean of the other samples).

In: as phase 2. Out: as phase 2.
Run: python -m train.rewards --data DIR --model DIR --cache DIR --start adapter.gguf --out DIR --minutes 20 --rate 2e-4
"""

from __future__ import annotations

import math
import re
from collections import Counter

import torch

from . import data, team
from .captions import Trainer, options_parser, run
from .model import generate
from .sequences import epoch, hidden_states, lay_out

ORDERS, SIGMA = 4, 6.0  # CIDEr-D's longest n-gram and the width of its length penalty
END = "</s>"            # counted as a word: without it, a caption gains by stopping in mid-sentence
NEW_TOKENS_MAX = 32

Vectors = tuple[list[dict[tuple[str, ...], float]], list[float], int]


def words_of(caption: str) -> list[str]:
    """Lower-case words without punctuation, and the end mark."""
    return [*re.findall(r"[a-z0-9]+|'s", caption.lower()), END]


def ngrams(words: list[str]) -> Counter[tuple[str, ...]]:
    """All n-grams up to ORDERS with their counts."""
    return Counter(tuple(words[i:i + n]) for n in range(1, ORDERS + 1) for i in range(len(words) - n + 1))


class CiderReward:
    """CIDEr-D of a caption against one image's references; document frequencies are those of all images given."""

    def __init__(self, references: list[list[str]]):
        groups = [[words_of(caption) for caption in captions] for captions in references]
        self._seen: Counter[tuple[str, ...]] = Counter()
        for group in groups:
            self._seen.update({ngram for words in group for ngram in ngrams(words)})
        self._images = math.log(len(groups))
        self._references = [[self._vectors(words) for words in group] for group in groups]

    def _vectors(self, words: list[str]) -> Vectors:
        weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(ORDERS)]
        for ngram, count in ngrams(words).items():
            weights[len(ngram) - 1][ngram] = count * (self._images - math.log(max(1, self._seen[ngram])))
        return weights, [math.sqrt(sum(w * w for w in order.values())) for order in weights], len(words)

    def __call__(self, image: int, caption: str, finished: bool = True) -> float:
        """0 .. 10; an unfinished caption misses the end mark."""
        words = words_of(caption) if finished else words_of(caption)[:-1]
        mine, norms, length = self._vectors(words)
        total = 0.0
        for theirs, their_norms, their_length in self._references[image]:
            similarity = 0.0
            for order in range(ORDERS):
                if norms[order] and their_norms[order]:
                    dot = sum(min(weight, theirs[order].get(ngram, 0.0)) * theirs[order].get(ngram, 0.0)
                              for ngram, weight in mine[order].items())
                    similarity += dot / (norms[order] * their_norms[order])
            total += similarity / ORDERS * math.exp(-(length - their_length) ** 2 / (2 * SIGMA ** 2))
        return 10 * total / len(self._references[image])


def advantages(rewards: torch.Tensor) -> torch.Tensor:
    """[images, samples] -> each reward less the mean of its siblings'."""
    samples = rewards.shape[1]
    return (rewards - rewards.mean(1, keepdim=True)) * (samples / (samples - 1))


def train(crew: team.Team, options) -> None:
    """One worker's run."""
    trainer = Trainer(crew, options)
    words, llm = trainer.words, trainer.llm
    draws = torch.Generator()
    examples = data.read_captions(options.data, "train")
    reward = CiderReward([example.captions for example in examples])
    said = {t for e in examples for caption in e.captions for t in words.encode(caption)}
    allowed, place = trainer.vocabulary(said)
    head = llm.head[allowed]
    per_epoch, first = len(epoch([0] * len(examples), options.batch, 0)), trainer.step
    smooth, present, batches = 0.0, -1, []
    while (progress := trainer.progress()) < 1:
        draws.manual_seed(trainer.seed_step())
        number, at = divmod(trainer.step, per_epoch)
        if number != present:
            present, batches = number, epoch([0] * len(examples), options.batch, options.seed * 2003 + number)
        rows, count = batches[at][crew.rank::crew.size], trainer.draw_count()
        prefix = trainer.prefix(trainer.features(rows), count, trainer.adapter)
        ids = generate(llm, prefix.detach(), words.end, NEW_TOKENS_MAX, options.samples, draws, allowed).tolist()
        captions = [row[:row.index(words.end) + 1] if words.end in row else row for row in ids]
        gained = torch.tensor([reward(rows[i // options.samples], words.decode(caption), caption[-1] == words.end)
                               for i, caption in enumerate(captions)]).view(len(rows), options.samples)
        groups = [captions[i:i + options.samples] for i in range(0, len(captions), options.samples)]
        seen = prefix.detach().requires_grad_()
        for chunk in trainer.chunks(list(range(len(rows))), prefix.shape[1] + sum(map(len, captions)) // len(rows)):
            layout = lay_out([groups[image] for image in chunk], prefix.shape[1], llm.device)
            share = len(chunk) / len(rows) / len(layout.owners)
            weights = advantages(gained[chunk]).view(-1).to(llm.device)[layout.owners] * share
            llm.loss(hidden_states(llm, seen[chunk], layout, trainer.adapter), head, place[layout.targets], weights).backward()
        prefix.backward(seen.grad)
        total, tokens = float(gained.sum()), sum(map(len, captions))
        trainer.update(progress)
        drawn = len(rows) * options.samples
        smooth += (total / drawn - smooth) / min(trainer.step - first, 20)
        if trainer.step % 5 == 0 or trainer.step == 1:
            trainer.report(reward=round(smooth, 4), count=count, length=round(tokens / drawn, 1),
                           left=trainer.left())
        trainer.save()
    trainer.save(force=True)


def main() -> None:
    """Command line."""
    parser = options_parser()
    parser.add_argument("--samples", type=int, default=5, help="captions drawn of each image")
    run(parser.parse_args(), train)


if __name__ == "__main__":
    main()
