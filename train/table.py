"""The paper's table: adapters trained at one token count and at random ones, each measured at every count.

In: data folder, model folder, feature cache, the program. Out: for each way of training and each seed a folder with its
adapter, run.json (the options) and result.json; the table in Markdown: mean of the seeds, how far they lie apart, minutes of
phase 2. Captions come from the program, the loss of people's captions from PyTorch.
Every way gets the same phases, steps, batches and seeds; only the counts drawn differ. A run that was ended goes on where it was,
if its options are the same; a folder of other options is refused.
Run: python -m train.table --data DIR --model DIR --cache DIR --program build/release/tokenflex --out DIR --steps 120
     --seeds 1 2 3 --workers 2 --fast
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from . import export, pipeline
from .evaluate import Evaluation

COUNTS = (64, 144, 256)
WAYS = {**{f"fixed {count}": ([count], [1.0]) for count in COUNTS}, "random": (list(COUNTS), [0.2, 0.3, 0.5])}
SCORES = {"cider_d": "CIDEr-D", "bleu4": "BLEU-4", "loss": "loss a token"}


def phase(module: str, options: argparse.Namespace, *rest: object) -> None:
    """Runs one phase of training as its own process."""
    command = [sys.executable, "-m", f"train.{module}", "--data", options.data, "--model", options.model,
               "--cache", options.cache, *rest]
    subprocess.run([str(word) for word in command], check=True)


def minutes_of(log: Path) -> float:
    """What the last line of a phase's log says."""
    return float(json.loads(log.read_text().splitlines()[-1])["minutes"])


def measure(adapter: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The scores of the dev images' captions and the loss of people's, at each count."""
    evaluation, results = Evaluation(argparse.Namespace(**{**vars(options), "adapter": adapter, "split": "dev", "f32": False})), []
    with tempfile.TemporaryDirectory() as folder:
        model, images = Path(folder) / "model", Path(folder) / "images"
        model.mkdir()
        images.mkdir()
        for part in ("vision.gguf", "llm.gguf"):
            (model / part).symlink_to((options.model / part).resolve())
        tensors, metadata = export.read(adapter)
        export.write(model / "adapter.gguf", tensors, metadata | {"tokenflex.token_counts": list(COUNTS)})
        pipeline.unpack(options.data, {example.file for example in evaluation.examples}, images)
        for count in COUNTS:
            said, seconds = pipeline.caption(options.program, model, images, count, [])
            results.append(pipeline.measure(evaluation.examples, said, count, seconds) | {"loss": evaluation.loss(count)})
    return results


def options_of(way: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """What a result depends on beside data and model."""
    counts, shares = WAYS[way]
    return {"counts": counts, "shares": shares, "seed": seed, "steps": options.steps, "words_steps": options.words_steps,
            "images": options.images}


def refuse_others(folder: Path, wanted: dict[str, Any]) -> None:
    """Ends the program where the folder holds (a part of) a run of other options, or of unknown ones."""
    kept = {name: json.loads((folder / name).read_text()) for name in ("run.json", "result.json") if (folder / name).exists()}
    if not kept and ((folder / "words/adapter.gguf").exists() or (folder / "captions/last.pt").exists()):
        raise SystemExit(f"{folder} holds a run whose options nobody noted (no run.json): name another --out, or remove it")
    for name, content in kept.items():
        noted = content if name == "run.json" else content.get("options", {})
        for option, value in wanted.items():
            if noted.get(option) != value:
                there = f"--{option.replace('_', '-')} {noted.get(option, 'unknown')}"
                raise SystemExit(f"{folder} holds a run with {there} ({name}), not {value}: name another --out, or remove it")


def one_run(way: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Words, captions, evaluation; the result is kept, and taken from there the next time."""
    folder = options.out / f"{way.replace(' ', '-')}.{seed}"
    record, wanted = folder / "result.json", options_of(way, seed, options)
    refuse_others(folder, wanted)
    if record.exists():
        return json.loads(record.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(wanted) + "\n")
    counts, shares = WAYS[way]
    drawn = ["--counts", *counts, "--shares", *shares, "--seed", seed]
    words, captions = folder / "words", folder / "captions"
    if not (words / "adapter.gguf").exists():
        phase("words", options, "--out", words, "--steps", options.words_steps, *drawn)
    fast = ["--fast"] if options.fast else []
    phase("captions", options, "--start", words / "adapter.gguf", "--out", captions, "--steps", options.steps,
          "--workers", options.workers, *drawn, *fast)
    result = {"way": way, "seed": seed, "options": wanted, "minutes": minutes_of(captions / "log.jsonl"),
              "tokens": sum(count * share for count, share in zip(counts, shares)),
              "measured": measure(captions / "adapter.gguf", options)}
    record.write_text(json.dumps(result, indent=1) + "\n")
    return result


def cell(runs: list[dict[str, Any]], count: int, score: str) -> str:
    """Mean over the seeds, and half of the distance between the outermost."""
    values = [next(m[score] for m in run["measured"] if m["vision_tokens"] == count) for run in runs]
    spread = f" ± {(max(values) - min(values)) / 2:.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}"


def table(results: list[dict[str, Any]], score: str) -> str:
    """One score of all runs: a row for each way of training, a column for each count at inference. Minutes are phase 2's."""
    lines = [f"| {SCORES[score]}: trained | " + " | ".join(f"at {count}" for count in COUNTS)
             + " | tokens an image | minutes of phase 2 |", "|---" * (len(COUNTS) + 3) + "|"]
    for way in WAYS:
        runs = [run for run in results if run["way"] == way]
        if runs:
            cells = [cell(runs, count, score) for count in COUNTS]
            cost = f"{runs[0]['tokens']:.0f} | {mean(run['minutes'] for run in runs):.1f}"
            lines.append(f"| {way} | " + " | ".join(cells) + f" | {cost} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Trains at fixed and at random token counts, and compares.")
    for name in ("data", "model", "cache", "program", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--words-steps", type=int, default=300, help="of phase 1, 32 images each")
    parser.add_argument("--steps", type=int, default=120, help="of phase 2, 16 images each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--images", type=int, default=300, help="of the dev split, the first so many; 0: all")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--fast", action="store_true", help="see train.captions")
    options = parser.parse_args()
    torch.set_num_threads(options.workers)
    results = []
    for seed in options.seeds:
        for way in options.ways:
            results.append(one_run(way, seed, options))
            print(f"{way}, seed {seed}: done", flush=True)
    for score in SCORES:
        print("\n" + table(results, score))


if __name__ == "__main__":
    main()
