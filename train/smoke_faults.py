"""What training says to bad input, and how it goes on after an end in the middle: part of the smoke run.

In: an empty folder; the smoke run's data, caches and models. Out: a check a promise.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch
from PIL import Image

from tokenflex_tools.gguf import GgufReader, GgufWriter
from tokenflex_tools.reference_llm import LORA_LINEARS, LanguageModel

from . import cached, captions, data, export, features, model, pictures, sequences, team, vision

Check = Callable[[bool, str], None]


def said(work: Callable[[], Any]) -> str:
    """What the program ends with; the empty text where it doesn't end."""
    try:
        work()
    except SystemExit as end:
        return str(end)
    return ""


def picture(colour: str, mode: str = "RGB") -> bytes:
    """A small PNG."""
    file = io.BytesIO()
    Image.new(mode, (8, 6), colour).save(file, "PNG")
    return file.getvalue()


def check_data(folder: Path, check: Check) -> None:
    """Captions and images, sound and broken."""
    folder.mkdir()
    (folder / "a").mkdir()
    (folder / "a/1.png").write_bytes(picture("red"))
    with tarfile.open(folder / "more.tar.gz", "w:gz") as tar:
        member, content = tarfile.TarInfo("b/2.webp"), picture("blue")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    table = folder / "captions.tsv"
    table.write_text("train\ta/1.png\tA line\u2028within.\r\n\ntrain\t1.png\t \ndev\t2.webp\tBlue.\n", "utf-8")
    train = data.read_captions(folder, "train")
    check(train == [data.Example("1.png", ["A line\u2028within."])], "captions.tsv with odd lines is read")
    check(set(data.load(folder, ["1.png", "2.webp"])) == {"1.png", "2.webp"}, "images in folders and compressed tars are found")
    missing = said(lambda: data.load(folder, ["1.png", "3.png", "4.png"]))
    check("2 of 3 images are missing, 3.png" in missing, "missing images are named")
    (folder / "1.png").write_bytes(picture("green"))
    check("different images of the name 1.png" in said(lambda: data.load(folder, ["1.png"])), "two images of one name are refused")
    check("split test; those it has: dev, train" in said(lambda: data.read_captions(folder, "test")), "an empty split is refused")
    table.write_text("train\t1.png\tA\nno columns\n")
    check("captions.tsv:2: not split" in said(lambda: data.read_captions(folder, "train")), "a line without columns is named")
    table.write_bytes(b"train\t1.png\t\xff\xfe\n")
    check("not UTF-8" in said(lambda: data.read_captions(folder, "train")), "captions that are no UTF-8 are refused")
    table.unlink()
    check("neither" in said(lambda: data.read_captions(folder, "train")), "a folder without captions is refused")
    images = [{"split": split, "filename": f"{split}.jpg", "sentences": [{"raw": "One."}, {"raw": " "}]}
              for split in ("restval", "val")]
    (folder / "dataset_x.json").write_text(json.dumps({"images": images}))
    check([data.read_captions(folder, split)[0] for split in ("train", "dev")]
          == [data.Example("restval.jpg", ["One."]), data.Example("val.jpg", ["One."])], "Karpathy's file is read")
    (folder / "dataset_x.json").write_text('{"images": [{"split": "train"}]}')
    check("not Karpathy's form" in said(lambda: data.read_captions(folder, "train")), "another JSON is refused")
    (folder / "bad.tar").write_bytes(b"\0" * 100 + b"no tar at all" * 50)
    check("bad.tar: a damaged tar" in said(lambda: data.load(folder, ["2.webp"])), "a damaged tar file is named")
    check("5.jpg can't be decoded" in said(lambda: data.decode(b"no picture", 8, "5.jpg")), "a damaged image is named")
    check(int(data.decode(picture("#ff000000", "RGBA"), 8).min()) == 255, "what is transparent is white")
    turned, exif, file = Image.new("RGB", (8, 4), "black"), Image.Exif(), io.BytesIO()
    turned.paste((255, 255, 255), (0, 0, 4, 4))
    exif[0x0112] = 6  # a quarter to the right: what is on the left goes to the top
    turned.save(file, "JPEG", exif=exif, quality=95)
    rows = data.decode(file.getvalue(), 8).mean((1, 2))
    check(rows[0] > 200 and rows[-1] < 50, "a photograph is turned as its camera was")
    shutil.rmtree(folder)


def check_cache(folder: Path, tiny: Path, check: Check) -> None:
    """Cached arrays of other pictures or another model."""
    names = [example.file for example in data.read_captions(folder, "train")]
    cache, file, at = folder / "cache", tiny / "vision.gguf", folder / "cache/train.plain.npy"
    settings = vision.Vision(GgufReader(file), torch.float32).settings

    def read(names: list[str], model_file: Path = file) -> str:
        return said(lambda: features.Cache(cache, "train", {}, {}, names, model_file))

    other = folder / "other.gguf"
    other.write_bytes(file.read_bytes() + b"\0")
    check(read(names) == "" and "of other pictures" in read(names[::-1]), "features of pictures in another order are refused")
    check("of other vision" in read(names, other), "features of another ViT are refused")
    check("of other pictures or of another model" in read(names[1:]), "fewer pictures are refused")
    check("of other pictures" in said(lambda: pictures.Pictures(cache, "train", settings, names[::-1])), "pixels, too")
    note, whole = cached.note_of(at).read_text(), at.read_bytes()
    cached.note_of(at).unlink()
    check(read(names) == "" and "of other pictures" in read(names[1:]), "without a note the shape counts")
    at.write_bytes(whole[:100])
    check("is damaged" in read(names), "a damaged array is named")
    at.write_bytes(whole)
    cached.note_of(at).write_text(note)
    none = said(lambda: features.Cache(cache, "dev", {}, {}, names, file))
    check("no dev.plain.npy; run train.features" in none, "no array at all")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for process in (ended.pid, os.getppid()):
        (cache / f"train.plain.{process}.partial").touch()
    cached.begin(at, json.loads(note))
    left = [path.name for path in cache.glob("train.plain.*.partial")]
    check(left == [f"train.plain.{os.getppid()}.partial"], "what a killed process left is removed, what a live one writes is not")
    (cache / left[0]).unlink()


def work_of_two(crew: team.Team, folder: Path) -> None:
    """A worker's part of `check_team`: gradients that differ, one of them missing; ends badly where there is no folder."""
    if not folder.exists():
        raise SystemExit(3)
    tensors = [torch.zeros(2), torch.zeros(3)]
    tensors[0].grad = torch.tensor([1.0, 5.0]) * (crew.rank + 1)
    if crew.rank:
        tensors[1].grad = torch.ones(3)
    crew.average(tensors)
    result = [tensor.grad.tolist() for tensor in tensors] + [crew.share([crew.rank + 0.5])]
    (folder / f"{crew.rank}.json").write_text(json.dumps(result))


def check_team(folder: Path, check: Check) -> None:
    """Two workers."""
    folder.mkdir()
    team.run(2, 5, work_of_two, folder)
    results = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    mean = [[1.5, 7.5], [0.5, 0.5, 0.5], [0.5]]
    check(results == [mean, mean], "two workers have the mean of their gradients, and the leader's word")
    ended = said(lambda: team.run(2, 5, work_of_two, folder / "none"))
    check(ended == "a worker ended with status 3", "a worker that ends takes the others along")


class Killed(Exception):
    """Ends a run in the middle."""


def check_resume(options_for: Callable[..., argparse.Namespace], check: Check) -> None:
    """A run that ended in the middle goes on as if it had not; one of other options is refused, and options that can't be."""
    save_s, captions.SAVE_S = captions.SAVE_S, 0

    def run(out: str, *extra: str, dies_at: int = 100) -> dict[str, torch.Tensor]:
        update = captions.Trainer.update

        def dying(self: captions.Trainer, progress: float) -> None:
            if self.step == dies_at:
                raise Killed
            update(self, progress)

        options, captions.Trainer.update = options_for(out, *extra), dying
        try:
            team.run(1, 0, captions.train, options)
        except Killed:
            pass
        finally:
            captions.Trainer.update = update
        return torch.load(options.out / "last.pt")

    unbroken, half = run("unbroken"), run("broken", dies_at=5)
    check(half["step"] == 5, "a run that ended in the middle has a checkpoint")
    whole = run("broken")
    alike = all(torch.equal(unbroken[part][name], tensor) for part in ("adapter", "average")
                for name, tensor in whole[part].items())
    check(whole["step"] == 8 and alike, "it goes on to the same weights as an unbroken one")
    again = run("broken")
    check(again["step"] == 8, "a finished run stays as it is")
    check("with --seed 1, not 2" in said(lambda: run("broken", "--seed", "2")), "another seed's checkpoint is refused")
    checkpoint = options_for("broken").out / "last.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    check("is damaged" in said(lambda: run("broken")), "a damaged checkpoint is named")
    for what, words, extra in (("shares for other counts", "--shares: 3", ["--shares", "1", "2"]),
                               ("a count that is no square", "ascending squares", ["--counts", "5"]),
                               ("a batch of more images than there are", "fewer than a batch", ["--batch", "1000"]),
                               ("a device that there is not", "--device abacus", ["--device", "abacus"]),
                               ("no time at all", "--minutes or --steps", ["--steps", "0", "--minutes", "0"])):
        check(words in said(lambda: run("refused", *extra)), f"{what}: refused")
    check(run("single", "--counts", "4")["step"] == 8, "one count needs no shares")
    check(run("timed", "--steps", "0", "--minutes", "0.005")["step"] > 0, "a budget of minutes ends a run")
    lines = [json.loads(line) for line in (options_for("timed").out / "log.jsonl").read_text().splitlines()]
    check(all({"loss", "left", "minutes"} <= line.keys() for line in lines), "lines of progress tell the loss and the time left")
    adapter, metadata = export.read(options_for("unbroken").start)
    strange, begun = options_for("strange").out / "start.gguf", options_for("strange")
    for what, words, changed, facts in (
            ("an adapter of another LLM", "llm_width", adapter, metadata | {"tokenflex.llm_width": 8}),
            ("a LoRA of other sizes", "LoRA of blk.0.attn_q",
             adapter | {"blk.0.attn_q.weight.lora_b": torch.zeros(4, 4)}, metadata),
            ("an adapter without a LoRA", "has no LoRA", {n: t for n, t in adapter.items() if "blk." not in n}, metadata)):
        export.write(strange, changed, facts)
        begun.start = strange
        check(words in said(lambda: team.run(1, 0, captions.train, begun)), f"{what}: refused")
    check("no adapter can be read" in said(lambda: export.read(strange.with_name("none.gguf"))), "an adapter that is not there")
    captions.SAVE_S = save_s


def write_llm(path: Path, architecture: str) -> None:
    """A small random LLM with an output of its own, heads wider than width / heads, and (qwen2) biases."""
    random, width, heads, kv_heads, size, hidden = np.random.default_rng(1), 24, 4, 2, 10, 40
    writer = GgufWriter(architecture=architecture, type="model")
    for key, value in {"block_count": 2, "embedding_length": width, "feed_forward_length": hidden, "attention.head_count": heads,
                       "attention.head_count_kv": kv_heads, "attention.key_length": size, "context_length": 64,
                       "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 10000.0}.items():
        writer.set(f"{architecture}.{key}", value)
    rows = {"attn_q": heads * size, "attn_k": kv_heads * size, "attn_v": kv_heads * size, "attn_output": width, "ffn_gate": hidden,
            "ffn_up": hidden, "ffn_down": width}
    columns = {"attn_output": heads * size, "ffn_down": hidden}

    def add(name: str, *shape: int) -> None:
        writer.tensor(name, random.normal(0, shape[-1] ** -0.5, shape).astype(np.float32) + (1 if "norm" in name else 0))

    for name in ("token_embd.weight", "output.weight"):
        add(name, 50, width)
    add("output_norm.weight", width)
    for layer in range(2):
        for name in ("attn_norm", "ffn_norm"):
            add(f"blk.{layer}.{name}.weight", width)
        for name in LORA_LINEARS:
            add(f"blk.{layer}.{name}.weight", rows[name], columns.get(name, width))
            if architecture == "qwen2" and name in ("attn_q", "attn_k", "attn_v"):
                add(f"blk.{layer}.{name}.bias", rows[name])
    writer.write(path)


def check_languages(folder: Path, check: Check) -> None:
    """Training's LLM against the reference, where output, heads and biases are not those of the default model; with a LoRA."""
    for architecture in ("llama", "qwen2"):
        path = folder / f"{architecture}.gguf"
        write_llm(path, architecture)
        file, random = GgufReader(path), torch.Generator().manual_seed(2)
        adapter = {name: 0.3 * torch.randn(tensor.shape, generator=random)
                   for name, tensor in model.new_adapter(file, 8, 16, 2, 0).items()}
        llm = model.Language(file, 0.5, torch.float32)
        llm.merge(adapter)
        reference = LanguageModel(file)
        for name in [name for name in reference.tensors if f"{name}.lora_a" in adapter]:
            reference.tensors[name] += 0.5 * adapter[f"{name}.lora_b"] @ adapter[f"{name}.lora_a"]
        start, group = torch.randn(1, 6, llm.width, generator=random), [[5, 6, 7, 8, 2], [9, 2]]
        layout, truth = sequences.lay_out([group], 6), []
        for caption in group:
            truth.append(reference.forward(torch.cat([start[0], reference.embed(caption[:-1])]))[5:])
        for learns in (None, adapter):
            mine = torch.nn.functional.linear(sequences.hidden_states(llm, start, layout, learns), llm.head)
            off = float((mine - torch.cat(truth)).abs().max())
            check(off < 1e-4, f"{architecture} in training is within {off:.0e} of the reference")
        if architecture == "qwen2":
            fast = said(lambda: model.Language(file, 0.5, torch.bfloat16, folder))
            check("leave out --fast" in fast, "biases are refused by --fast")
