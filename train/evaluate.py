"""How good an adapter is: captions of dev images against what people wrote, at several token counts.

In: data folder, model folder, feature cache, adapter.gguf. Out: a JSON line for each token count: BLEU-1..4, METEOR,
ROUGE-L, CIDEr-D (pycocoevalcap: the COCO caption evaluation with its PTB tokenizer, which needs java), the loss of the
people's captions a token, and that loss with another image of the set in front of them.
Run: python -m train.evaluate --data DIR --model DIR --cache DIR --adapter adapter.gguf [--images 300]
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from tokenflex_tools.gguf import GgufReader

from . import data, export
from .features import Cache
from .model import Language, Projector, add_device, check_fit, device_of, generate, lora_scale
from .sequences import Words, hidden_states, lay_out

BATCH = 25
NEW_TOKENS_MAX = 40


def scores(references: list[list[str]], captions: list[str]) -> dict[str, float]:
    """BLEU-1..4, METEOR, ROUGE-L and CIDEr-D of one caption an image against its references."""
    if shutil.which("java") is None:
        raise SystemExit("java is missing, which the COCO evaluation's tokenizer runs in (tools/install-packages train)")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    def tokenized(groups: list[list[str]]) -> dict[int, list[str]]:
        return PTBTokenizer().tokenize({i: [{"caption": text} for text in group] for i, group in enumerate(groups)})

    truth, said = tokenized(references), tokenized([[caption] for caption in captions])
    bleu, _ = Bleu(4).compute_score(truth, said, verbose=0)
    values = {f"bleu{i + 1}": value for i, value in enumerate(bleu)}
    values["meteor"] = Meteor().compute_score(truth, said)[0]
    values["rouge_l"], values["cider_d"] = Rouge().compute_score(truth, said)[0], Cider().compute_score(truth, said)[0]
    return {name: round(float(value), 4) for name, value in values.items()}


class Evaluation:
    """Models and dev images, loaded once."""

    def __init__(self, options: argparse.Namespace):
        adapter, metadata = export.read(options.adapter)
        file = GgufReader(options.model / "llm.gguf")
        check_fit(adapter, metadata, GgufReader(options.model / "vision.gguf"), file)
        device, dtype = device_of(options), torch.float32 if options.f32 else torch.bfloat16
        self.llm = Language(file, lora_scale(adapter, metadata), dtype, device=device)
        adapter = {name: tensor.to(device) for name, tensor in adapter.items()}
        self.llm.merge(adapter)
        self.adapter, self.projector, self.words = adapter, Projector(metadata), Words(file, metadata["tokenflex.prompt"])
        examples = data.read_captions(options.data, options.split)
        self.cache = Cache(options.cache, options.split, adapter, metadata, [example.file for example in examples],
                           options.model / "vision.gguf")
        self.examples = examples[:options.images or None]

    def prefix(self, rows: list[int], count: int) -> torch.Tensor:
        """Prompt embeddings of some images."""
        vision = self.projector(self.adapter, self.cache.take(rows).to(self.llm.device), count, self.llm.dtype)
        return self.llm.prefix(self.words.prompt, vision)

    @torch.no_grad()
    def captions(self, count: int) -> list[str]:
        """Greedy captions of all images."""
        texts: list[str] = []
        for first in range(0, len(self.examples), BATCH):
            rows = list(range(first, min(first + BATCH, len(self.examples))))
            ids = generate(self.llm, self.prefix(rows, count), self.words.end, NEW_TOKENS_MAX)
            texts += [self.words.decode(row) for row in ids.tolist()]
        return texts

    @torch.no_grad()
    def loss(self, count: int, shift: int = 0) -> float:
        """Loss a token of the people's captions; with a shift, behind the image that many rows further on."""
        total, tokens = 0.0, 0
        for first in range(0, len(self.examples), BATCH):
            rows = list(range(first, min(first + BATCH, len(self.examples))))
            prefix = self.prefix([(row + shift) % len(self.examples) for row in rows], count)
            groups = [[self.words.encode(caption) for caption in self.examples[row].captions] for row in rows]
            layout = lay_out(groups, prefix.shape[1], self.llm.device)
            logits = F.linear(hidden_states(self.llm, prefix, layout), self.llm.head).float()
            total += float(F.cross_entropy(logits, layout.targets, reduction="sum"))
            tokens += len(layout.targets)
        return round(total / tokens, 4)

    def measure(self, count: int, losses: bool) -> tuple[dict[str, Any], list[str]]:
        """All numbers at one token count, and the captions."""
        start, texts = time.monotonic(), self.captions(count)
        result: dict[str, Any] = {"vision_tokens": count, "images": len(self.examples)}
        result |= scores([example.captions for example in self.examples], texts)
        if losses:
            result |= {"loss": self.loss(count), "loss_wrong_image": self.loss(count, len(self.examples) // 2)}
        return result | {"seconds": round(time.monotonic() - start)}, texts


def keep_best(folder: Path, adapter: Path, results: list[dict[str, Any]]) -> None:
    """Copies the adapter and its numbers to the folder where the mean CIDEr-D is above that of what lies there."""
    folder.mkdir(parents=True, exist_ok=True)
    score, record = sum(result["cider_d"] for result in results) / len(results), folder / "metrics.json"
    if record.exists() and json.loads(record.read_text())["mean_cider_d"] >= score:
        return
    shutil.copyfile(adapter, folder / "adapter.new")
    (folder / "adapter.new").rename(folder / "adapter.gguf")
    record.write_text(json.dumps({"mean_cider_d": round(score, 4), "results": results}, indent=1) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measures an adapter on captioned images.")
    for name in ("data", "model", "cache", "adapter"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--split", default="dev")
    parser.add_argument("--images", type=int, default=0, help="the first so many; 0: all")
    parser.add_argument("--counts", type=int, nargs="+", default=[64, 144, 256])
    parser.add_argument("--no-losses", action="store_true")
    parser.add_argument("--captions", type=Path, help="writes file, count, caption as TSV")
    parser.add_argument("--best", type=Path, help="keeps the best adapter seen, by mean CIDEr-D, in this folder")
    parser.add_argument("--f32", action="store_true", help="compute in f32 rather than bf16")
    add_device(parser)
    options = parser.parse_args()
    evaluation, results, lines = Evaluation(options), [], []
    for count in options.counts:
        result, texts = evaluation.measure(count, not options.no_losses)
        print(json.dumps(result), flush=True)
        results.append(result)
        lines += [f"{example.file}\t{count}\t{text}\n" for example, text in zip(evaluation.examples, texts)]
    if options.captions:
        options.captions.write_text("".join(lines), "utf-8")
    if options.best:
        keep_best(options.best, options.adapter, results)


if __name__ == "__main__":
    main()
