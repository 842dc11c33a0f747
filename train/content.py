"""Which pictures need tokens? The gain from few to many vision tokens, image by image, against cheap signals.

In: data folder, model folder, feature cache, adapter.gguf. Out: a JSON object: for each signal its rank correlation with
the gain in loss and in CIDEr-D (bootstrap 95% interval), and what a split by that signal is worth at the same mean number
of tokens, against an even spread and against an oracle that knows the gains. docs/CONTENT.md reports a run.
Run: python -m train.content --data DIR --model DIR --cache DIR --adapter adapter.gguf
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from tokenflex_tools.reference_vision import pool

from . import data
from .evaluate import BATCH, Evaluation
from .model import add_device
from .sequences import hidden_states, lay_out

RESAMPLES, SHARE_MANY, EDGE = 1000, 0.5, 32  # EDGE: of 255, a step between neighbours that counts as an edge


def jpeg_signals(content: bytes) -> dict[str, float]:
    """What an encoder could know from the file and its pixels alone."""
    image = Image.open(io.BytesIO(content)).convert("L")
    gray = np.asarray(image, dtype=np.float32)
    steps = np.maximum(np.abs(np.diff(gray, axis=0))[:, :-1], np.abs(np.diff(gray, axis=1))[:-1])
    histogram = np.histogram(gray, 64, (0, 256))[0] / gray.size
    return {"jpeg_bits_per_pixel": len(content) * 8 / gray.size, "edge_density": float((steps > EDGE).mean()),
            "gray_entropy": float(-(histogram[histogram > 0] * np.log2(histogram[histogram > 0])).sum())}


def pooling_error(features: torch.Tensor, few: int) -> float:
    """Share of the patch features' variance that pooling to `few` tokens loses."""
    grid, side = round(features.shape[0] ** 0.5), round(few ** 0.5)
    pooled = pool(features, side, "resize_average").T.reshape(1, -1, side, side)
    back = F.interpolate(pooled, size=(grid, grid), mode="bilinear", align_corners=True)[0].flatten(1).T
    spread = (features - features.mean(0)).square().sum()
    return float((features - back).square().sum() / spread)


@torch.no_grad()
def losses(evaluation: Evaluation, count: int) -> np.ndarray:
    """Loss a token of each image's captions."""
    out = []
    for first in range(0, len(evaluation.examples), BATCH):
        rows = list(range(first, min(first + BATCH, len(evaluation.examples))))
        groups = [[evaluation.words.encode(c) for c in evaluation.examples[row].captions] for row in rows]
        for row, group in zip(rows, groups):
            prefix = evaluation.prefix([row], count)
            layout = lay_out([group], prefix.shape[1], evaluation.llm.device)
            logits = F.linear(hidden_states(evaluation.llm, prefix, layout), evaluation.llm.head).float()
            out.append(float(F.cross_entropy(logits, layout.targets)))
    return np.array(out)


def ciders(evaluation: Evaluation, captions: list[str]) -> np.ndarray:
    """CIDEr-D of each image's caption."""
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    references = {i: [{"caption": c} for c in e.captions] for i, e in enumerate(evaluation.examples)}
    said = {i: [{"caption": c}] for i, c in enumerate(captions)}
    return np.asarray(Cider().compute_score(PTBTokenizer().tokenize(references), PTBTokenizer().tokenize(said))[1])


def ranks(x: np.ndarray) -> np.ndarray:
    """Ranks, ties shared."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def correlation(x: np.ndarray, y: np.ndarray, random: np.random.Generator) -> dict[str, float]:
    """Spearman's rho and its bootstrap interval."""
    def rho(rows: np.ndarray) -> float:
        return float(np.corrcoef(ranks(x[rows]), ranks(y[rows]))[0, 1])

    draws = [rho(random.integers(0, len(x), len(x))) for _ in range(RESAMPLES)]
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"rho": round(rho(np.arange(len(x))), 3), "low": round(float(low), 3), "high": round(float(high), 3)}


def split_value(order: np.ndarray, few: np.ndarray, many: np.ndarray) -> float:
    """Mean of a score when the first SHARE_MANY of the order get many tokens, the rest few."""
    cut = round(len(order) * SHARE_MANY)
    return round(float(np.concatenate([many[order[:cut]], few[order[cut:]]]).mean()), 4)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Relates the gain from more vision tokens to cheap signals.")
    for name in ("data", "model", "cache", "adapter"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--split", default="dev")
    parser.add_argument("--images", type=int, default=0, help="the first so many; 0: all")
    parser.add_argument("--counts", type=int, nargs=2, default=[64, 256], help="few and many")
    parser.add_argument("--f32", action="store_true")
    add_device(parser)
    options = parser.parse_args()
    evaluation, random = Evaluation(options), np.random.default_rng(1)
    files = data.load(options.data, (example.file for example in evaluation.examples))
    signals: dict[str, list[float]] = {}
    for row, example in enumerate(evaluation.examples):
        values = jpeg_signals(files[example.file])
        values["pooling_error"] = pooling_error(evaluation.cache.take([row])[0], options.counts[0])
        for name, value in values.items():
            signals.setdefault(name, []).append(value)
    loss = [losses(evaluation, count) for count in options.counts]
    cider = [ciders(evaluation, evaluation.captions(count)) for count in options.counts]
    gains = {"loss": loss[0] - loss[1], "cider": cider[1] - cider[0]}
    result: dict[str, Any] = {"images": len(evaluation.examples), "counts": options.counts, "share_many": SHARE_MANY,
                              "loss": [round(float(x.mean()), 4) for x in loss],
                              "cider": [round(float(x.mean()), 4) for x in cider],
                              "gain_sd": {k: round(float(v.std()), 4) for k, v in gains.items()}, "signals": {}}
    for name, values in signals.items():
        x = np.array(values)
        order = np.argsort(-x)
        result["signals"][name] = {
            **{f"{k}_gain": correlation(x, v, random) for k, v in gains.items()},
            "split_loss": split_value(order, *loss), "split_cider": split_value(order, *cider)}
    result["even_spread"] = {"loss": round(float((loss[0] + loss[1]).mean() / 2), 4),
                             "cider": round(float((cider[0] + cider[1]).mean() / 2), 4)}
    result["oracle"] = {"split_loss": split_value(np.argsort(-gains["loss"]), *loss),
                        "split_cider": split_value(np.argsort(-gains["cider"]), *cider)}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
