"""Trains a tiny random model on drawn shapes, all phases, in under a minute: does each loss fall, is what comes out usable?

In: a model folder with tiny random weights (tests/golden/data/tiny), perhaps a built `tokenflex`. Out: exit status; one
line a check. Needs torch 1.13 or later, numpy, Pillow; neither `tokenizers` nor java.
Run: python3 -m train.smoke --model tests/golden/data/tiny [--program build/release/tokenflex]
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from tokenflex_tools.gguf import GgufReader
from tokenflex_tools.reference_llm import LanguageModel, greedy
from tokenflex_tools.reference_vision import Projector as ReferenceProjector
from tokenflex_tools.reference_vision import VisionModel

from . import (captions, data, export, features, model, pictures, rewards, sequences, smoke_faults, table, team, vision,
               words)

SHAPES, COLOURS = ("circle", "square", "triangle"), ("red", "green", "blue", "white")
COUNTS = [4, 9, 16]
NEW_TOKENS_MAX = 40
PIECES = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+")


class AsciiTokenizer:
    """Byte-level BPE by the GGUF's merges, for ASCII text alone; has the two calls of `tokenizers` that training uses."""

    def __init__(self, metadata: dict[str, Any]):
        self._tokens: list[str] = metadata["tokenizer.ggml.tokens"]
        self._ids = {token: i for i, token in enumerate(self._tokens)}
        self._ranks = {tuple(merge.split(" ")): i for i, merge in enumerate(metadata["tokenizer.ggml.merges"])}

    def _piece(self, text: str) -> list[int]:
        parts = [letter.translate({32: "Ġ", 10: "Ċ"}) for letter in text]
        while len(parts) > 1:
            pairs = list(zip(parts, parts[1:]))
            best = min(pairs, key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if best not in self._ranks:
                break
            at = pairs.index(best)
            parts[at:at + 2] = ["".join(best)]
        return [self._ids[part] for part in parts]

    def encode(self, text: str, add_special_tokens: bool = False) -> SimpleNamespace:
        """.ids of a text."""
        return SimpleNamespace(ids=[token for piece in PIECES.findall(text) for token in self._piece(piece)])

    def decode(self, ids: list[int]) -> str:
        """Text of ids."""
        return "".join(self._tokens[token] for token in ids).translate({ord("Ġ"): " ", ord("Ċ"): "\n"})


def draw(shape: str, colour: str, seed: int) -> Image.Image:
    """A shape somewhere on a dark ground."""
    place, size = random.Random(seed), 56
    image = Image.new("RGB", (size, size), (20, 20, 20))
    pen, left, top, side = ImageDraw.Draw(image), place.randint(2, 20), place.randint(2, 20), place.randint(20, 32)
    box = (left, top, left + side, top + side)
    if shape == "circle":
        pen.ellipse(box, colour)
    elif shape == "square":
        pen.rectangle(box, colour)
    else:
        pen.polygon([(left, top + side), (left + side, top + side), (left + side // 2, top)], colour)
    return image


def write_data(folder: Path) -> None:
    """A data folder: images in a tar, two captions each."""
    lines = []
    with tarfile.open(folder / "images.tar", "w") as tar:
        for i, (shape, colour) in enumerate((s, c) for _ in range(6) for s in SHAPES for c in COLOURS):
            file, member = io.BytesIO(), tarfile.TarInfo(f"{i}.png")
            draw(shape, colour, i).save(file, "PNG")
            member.size = file.tell()
            file.seek(0)
            tar.addfile(member, file)
            split = "dev" if i % 9 == 0 else "train"
            lines += [f"{split}\t{i}.png\tA {colour} {shape} .\n", f"{split}\t{i}.png\ta {shape} in {colour}\n"]
    (folder / "captions.tsv").write_text("".join(lines), "utf-8")


def cache_features(folder: Path, model_file: Path) -> None:
    """What train.features does, in f32."""
    (folder / "cache").mkdir()
    vit = vision.Vision(GgufReader(model_file), torch.float32)
    names = [example.file for example in data.read_captions(folder, "train")]
    files = data.load(folder, names)
    for view in ("plain", "flip"):
        features.write_view(vit, files, names, view, folder / f"cache/train.{view}.npy")
    pictures.write(files, names, folder / f"cache/train.{pictures.NAME}.npy", vit.settings["image_size"])


def options_of(parser: argparse.ArgumentParser, paths: dict[str, Path], *extra: str) -> argparse.Namespace:
    """Parsed options of a phase, with the smoke run's settings."""
    common = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    paths["out"].mkdir(exist_ok=True)
    return parser.parse_args([*common, "--f32", "--counts", *map(str, COUNTS), *extra])


def losses_of(folder: Path, key: str) -> list[float]:
    """A phase's log."""
    return [json.loads(line)[key] for line in (folder / "log.jsonl").read_text().splitlines()]


def check(holds: bool, what: str) -> None:
    """Says it, or ends the run."""
    print(f"smoke: {'ok' if holds else 'FAILED'}: {what}", flush=True)
    if not holds:
        raise SystemExit(1)


def reference_caption(folder: Path, adapter: Path, image: np.ndarray, count: int) -> str:
    """The readable reference, from pixels to text."""
    file, adapter_file = GgufReader(folder / "llm.gguf"), GgufReader(adapter)
    vit = VisionModel(GgufReader(folder / "vision.gguf"), adapter_file)
    patches = vit.trace(vit.preprocess(image)[None]).output[0]
    text = sequences.Words(file, adapter_file.metadata["tokenflex.prompt"])
    tokens = ReferenceProjector(adapter_file)(patches, count)
    ids = greedy(LanguageModel(file, adapter_file), text.prompt, tokens, {text.end}, NEW_TOKENS_MAX).tokens
    return text.decode(ids)


def check_gradients() -> None:
    """MergedLinear's own backward pass against plain autograd through W + s B A, two linears in a group."""
    random = torch.Generator().manual_seed(0)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.double, generator=random).requires_grad_()

    x, base, scale, target = tensor(2, 5, 6), tensor(7, 6).detach(), 0.5, tensor(2, 5, 7).detach()
    factors = [tensor(2, 6), tensor(2, 6), tensor(3, 2), tensor(4, 2)]
    whole = base + scale * torch.cat([factors[2] @ factors[0], factors[3] @ factors[1]])
    truth = torch.autograd.grad((torch.nn.functional.linear(x, whole) * target).sum(), [x, *factors])
    merged = model.MergedLinear.apply(x, whole.detach(), scale, *factors)
    mine = torch.autograd.grad((merged * target).sum(), [x, *factors])
    worst = max(float((a - b).abs().max()) for a, b in zip(truth, mine))
    check(worst < 1e-12, f"merged LoRA's gradients, off by {worst:.0e} at most")


def check_vision(tiny: Path) -> None:
    """The learning ViT against the reference with the same LoRA, and its gradient along a direction against differences."""
    file, random = GgufReader(tiny / "vision.gguf"), torch.Generator().manual_seed(0)
    vit, metadata = vision.Vision(file, torch.float32), {"adapter.lora.alpha": 8.0}
    lora = {name: tensor + 0.1 * torch.randn(tensor.shape, generator=random) for name, tensor in vision.new_lora(file, 2, 0).items()}
    reference = VisionModel(file)
    for name in [name for name in reference.tensors if f"{name}.lora_a" in lora]:
        reference.tensors[name] += 4.0 * lora[f"{name}.lora_b"] @ lora[f"{name}.lora_a"]
    pixels = torch.randn(2, 3, 56, 56, generator=random)
    truth = reference.trace(pixels).output
    weights = torch.randn(truth.shape, generator=random)
    direction = {name: torch.randn(tensor.shape, generator=random) for name, tensor in lora.items()}

    def loss(step: float) -> float:
        vit.merge({name: tensor + step * direction[name] for name, tensor in lora.items()}, metadata)
        return float((vit.features(pixels).double() * weights).sum())

    differences = (loss(1e-3) - loss(-1e-3)) / 2e-3
    vit.merge(lora, metadata)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in lora.items()}
    mine = vit.features(pixels, leaves)
    (mine * weights).sum().backward()
    slope = sum(float((leaves[name].grad * direction[name]).sum()) for name in leaves)
    off, slope_off = float((mine - truth).abs().max()), abs(slope - differences) / abs(differences)
    check(off < 1e-4, f"the learning ViT is within {off:.0e} of the reference")
    check(slope_off < 0.01, f"its gradient is within {slope_off:.4f} of the differences'")


def check_changes() -> None:
    """What makes a caption and a picture look otherwise each time."""
    torch.manual_seed(0)
    tokens, ids = torch.zeros(40, 50, dtype=torch.long), torch.tensor([7, 8, 9])
    read = captions.misread(tokens, 0.25, ids)
    share = float((read != 0).float().mean())
    check(0.2 < share < 0.3 and set(read.unique().tolist()) == {0, 7, 8, 9}, f"{share:.2f} of the words are read as others")
    check(torch.equal(captions.misread(tokens, 0.0, ids), tokens), "or none")
    pixels, views = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) * 155 + 50, random.Random(0)
    toned = [pictures.retone(pixels, views, 0.3) for _ in range(200)]
    light = [float(one.mean() / pixels.mean()) for one in toned]
    check(0.7 <= min(light) < 0.75 and 1.25 < max(light) <= 1.3, f"brightness changes by {min(light):.2f} to {max(light):.2f}")
    spread = [float(one.std() / one.mean() * pixels.mean() / pixels.std()) for one in toned]
    check(min(spread) < 0.9 and max(spread) > 1.1, f"contrast, too, by {min(spread):.2f} to {max(spread):.2f}")
    check(torch.allclose(pictures.retone(pixels, views, 0.0), pixels), "or nothing")


def check_fast(tiny: Path, kernels: Path) -> None:
    """fast.py's loss and gradients in bf16 against autograd's in f32; autograd's own in bf16 are the measure."""
    file, random = GgufReader(tiny / "llm.gguf"), torch.Generator().manual_seed(0)
    adapter = model.new_adapter(file, 8, 16, 4, 0)
    names = [name for name in adapter if ".lora_" in name]
    adapter = {name: adapter[name] + 0.1 * torch.randn(adapter[name].shape, generator=random) for name in names}
    width = file.metadata["llama.embedding_length"]
    start, group = torch.randn(3, 9, width, generator=random), [[5, 6, 7, 8, 2], [9, 2], [5, 4, 3, 2]]
    layout = sequences.lay_out([group, group[:2], group[1:]], start.shape[1])
    weights = torch.randn(len(layout.targets), generator=random)

    def gradients(dtype: torch.dtype, fast: Path | None) -> list[torch.Tensor]:
        llm = model.Language(file, 0.5, dtype, fast)
        llm.merge(adapter)
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in adapter.items()}
        x = start.clone().requires_grad_()
        hidden = sequences.hidden_states(llm, x, layout, leaves)
        loss = llm.loss(hidden, llm.head[:300], layout.targets, weights, 0.1)
        return [loss.detach(), *torch.autograd.grad(loss, [x, *leaves.values()])]

    def worst(mine: list[torch.Tensor], truth: list[torch.Tensor]) -> float:
        return max(float((a - b).norm() / b.norm()) for a, b in zip(mine, truth))

    truth = gradients(torch.float32, None)
    plain, fast = (worst(gradients(torch.bfloat16, folder), truth) for folder in (None, kernels))
    check(fast < 1.5 * plain + 0.01, f"the fast pass is off by {fast:.3f}, autograd in bf16 by {plain:.3f}")

    def states(llm: model.Language) -> torch.Tensor:
        """Hidden states of three tokens behind each prompt, one by one or all at once."""
        llm.merge(adapter)
        tokens, length = torch.tensor([[5, 6, 7]] * len(start)), start.shape[1]
        if llm.fast is not None:
            rows = [llm.fast.start(start, 2, 3)]
            rows += [llm.fast.step(llm.embedding[tokens[:, i]].repeat_interleave(2, dim=0), i).clone()
                     for i in range(3)]
            return torch.stack(rows, dim=1)
        x = torch.cat([start, llm.embedding[tokens]], dim=1)
        causal = torch.ones(1, 1, length + 3, length + 3, dtype=torch.bool).tril()
        hidden = llm.forward(x, torch.arange(length + 3).expand(len(x), -1), causal)
        return hidden[:, length - 1:].repeat_interleave(2, dim=0)

    truth = [states(model.Language(file, 0.5, torch.float32))]
    plain, fast = (worst([states(model.Language(file, 0.5, torch.bfloat16, folder)).float()], truth)
                   for folder in (None, kernels))
    check(fast < 1.5 * plain + 0.01, f"token by token it is off by {fast:.4f}, autograd's way by {plain:.4f}")


def check_export(folder: Path, tiny: Path, program: Path | None) -> None:
    """The adapter in training's code, in the reference, and in the C programs says the same of every dev image."""
    adapter_path = folder / "final/adapter.gguf"
    adapter, metadata = export.read(adapter_path)
    file, examples = GgufReader(tiny / "llm.gguf"), data.read_captions(folder, "dev")
    llm = model.Language(file, model.lora_scale(adapter, metadata), torch.float32)
    llm.merge(adapter)
    text, projector = sequences.Words(file, metadata["tokenflex.prompt"]), model.Projector(metadata)
    files, names = dict(data.read_files(folder)), [example.file for example in examples]
    images = {name: data.decode(content, 56) for name, content in files.items()}
    vit = vision.Vision(GgufReader(tiny / "vision.gguf"), torch.float32)
    vit.merge(adapter, metadata)
    features.write_view(vit, files, names, "plain", folder / f"cache/dev.plain{vision.tag(adapter, metadata)}.npy")
    (folder / "model").mkdir()
    for name in ("vision.gguf", "llm.gguf"):
        shutil.copyfile(tiny / name, folder / "model" / name)
    shutil.copyfile(adapter_path, folder / "model/adapter.gguf")
    for count in COUNTS:
        x = features.Cache(folder / "cache", "dev", adapter, metadata, names, tiny / "vision.gguf").take(list(range(len(examples))))
        prefix = llm.prefix(text.prompt, projector(adapter, x, count, torch.float32))
        mine = [text.decode(ids) for ids in model.generate(llm, prefix, text.end, NEW_TOKENS_MAX).tolist()]
        theirs = [reference_caption(tiny, adapter_path, images[example.file], count) for example in examples]
        check(mine == theirs, f"{len(mine)} captions at {count} tokens as the reference says them, e.g. {mine[0]!r}")
    if program:
        for example in examples[:2]:
            Image.fromarray(images[example.file]).resize((224, 224), Image.Resampling.NEAREST).save(
                folder / "photo.jpg", quality=95)
            image = np.asarray(Image.open(folder / "photo.jpg").convert("RGB"))
            said = subprocess.run([program, "caption", "--model", folder / "model", folder / "photo.jpg"],
                                  stdout=subprocess.PIPE, text=True, timeout=60, check=True).stdout
            caption, expected = json.loads(said)["caption"], reference_caption(tiny, adapter_path, image, COUNTS[-1])
            check(caption == expected, f"the C program says {caption!r}, the reference {expected!r}")


def check_table(folder: Path) -> None:
    """The table of given results; a folder with a result is taken as it is, or refused where an option is another one."""
    def result(way: str, seed: int, score: float) -> dict[str, Any]:
        measured = [{"vision_tokens": count, "cider_d": score + count / 1000} for count in table.COUNTS]
        return {"way": way, "seed": seed, "minutes": 1.5 * seed, "tokens": 64.0, "measured": measured}

    results = [result("fixed 64", 1, 0.5), result("fixed 64", 2, 0.7), result("random", 1, 0.9)]
    lines = table.table(results, "cider_d").splitlines()
    check(lines[0] == "| CIDEr-D: trained | at 64 | at 144 | at 256 | tokens an image | minutes of phase 2 |"
          and lines[2:] == ["| fixed 64 | 0.664 ± 0.100 | 0.744 ± 0.100 | 0.856 ± 0.100 | 64 | 2.2 |",
                            "| random | 0.964 | 1.044 | 1.156 | 64 | 1.5 |"], "the table of three results")
    options = argparse.Namespace(out=folder / "table", steps=2, words_steps=3, images=4)
    at = options.out / "random.1"
    at.mkdir(parents=True)
    done = results[2] | {"options": table.options_of("random", 1, options)}
    (at / "result.json").write_text(json.dumps(done))
    check(table.one_run("random", 1, options) == done, "a result of the same options is taken")

    def refusal(**others: int) -> str:
        try:
            table.one_run("random", 1, argparse.Namespace(**vars(options) | others))
        except SystemExit as end:
            return str(end)
        return ""

    for name in ("steps", "words_steps", "images"):
        said, there = refusal(**{name: 9}), f"--{name.replace('_', '-')} {getattr(options, name)} "
        check(str(at) in said and there in said, f"another {name} is refused: {said.split('/')[-1]}")
    (at / "result.json").rename(at / "run.json")
    (at / "run.json").write_text(json.dumps(done["options"]))
    check("steps" in refusal(steps=9), "also while there is no result yet")
    (at / "run.json").unlink()
    (at / "words").mkdir()
    (at / "words/adapter.gguf").touch()
    check("run.json" in refusal(), "nor is one begun whose options nobody noted gone on with")


def run(folder: Path, tiny: Path, program: Path | None) -> None:
    """All phases."""
    check_gradients()
    check_table(folder)
    check_vision(tiny)
    check_changes()
    check_fast(tiny, folder / "kernels")
    smoke_faults.check_data(folder / "faults", check)
    smoke_faults.check_languages(folder, check)
    smoke_faults.check_team(folder / "team", check)
    sequences.load_tokenizer = lambda file: AsciiTokenizer(file.metadata)
    write_data(folder)
    cache_features(folder, tiny / "vision.gguf")
    paths = {"data": folder, "model": tiny, "cache": folder / "cache", "out": folder / "words"}
    losses = words.train(options_of(words.options_parser(), paths, "--steps", "60", "--batch", "8", "--hidden", "96",
                                    "--rank", "4", "--alpha", "8"))
    check(np.mean(losses[-10:]) < np.mean(losses[:5]), f"words: loss {np.mean(losses[:5]):.3f} -> {np.mean(losses[-10:]):.3f}")
    paths |= {"start": folder / "words/adapter.gguf", "out": folder / "captions"}
    budget = ("--batch", "8", "--warmup", "5")
    options = options_of(captions.options_parser(), paths, "--steps", "120", "--rate", "1e-2", "--projector-rate", "4e-3",
                         "--average", "0.8", *budget)
    team.run(1, 0, captions.train, options)
    log = losses_of(paths["out"], "loss")
    check(log[-1] < 0.5 * log[0], f"captions: loss {log[0]:.3f} -> {log[-1]:.3f}")
    smoke_faults.check_cache(folder, tiny, check)
    smoke_faults.check_resume(lambda out, *extra: options_of(captions.options_parser(), paths | {"out": folder / out}, "--steps",
                                                             "8", "--noise", "0.3", "--word-noise", "0.1", *budget, *extra), check)
    paths |= {"start": folder / "captions/adapter.gguf", "out": folder / "seeing"}
    team.run(1, 0, captions.train, options_of(captions.options_parser(), paths, "--steps", "12", "--rate", "1e-3", "--crop", "0.9",
                                              "--tone", "0.1", "--vision-rank", "2", "--vision-rate", "1e-2", "--average", "0.8", *budget))
    learned = export.read(paths["out"] / "adapter.gguf")[0]
    moved = max(float(tensor.abs().max()) for name, tensor in learned.items() if name.startswith("vision.") and name.endswith("_b"))
    check(moved > 1e-3, f"the ViT's LoRA has moved by {moved:.3f}")
    paths |= {"start": folder / "seeing/adapter.gguf", "out": folder / "final"}
    parser = captions.options_parser()
    parser.add_argument("--samples", type=int, default=4)
    team.run(1, 0, rewards.train, options_of(parser, paths, "--steps", "15", "--rate", "1e-3", *budget))
    log = losses_of(paths["out"], "reward")
    check(len(log) == 4 and log[-1] > 0, f"rewards: {log[0]:.3f} -> {log[-1]:.3f}")
    check_export(folder, tiny, program)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="A minute's training of a tiny model, with checks.")
    parser.add_argument("--model", type=Path, required=True, help="folder with tiny vision.gguf and llm.gguf")
    parser.add_argument("--program", type=Path, help="a built tokenflex, to caption with the result")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="tokenflex-smoke-") as folder:
        run(Path(folder), options.model, options.program)


if __name__ == "__main__":
    main()
