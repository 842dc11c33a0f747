"""Phase 2: projector and LoRAs learn to write the captions, through the frozen LLM, at randomly drawn token counts.

In: data folder, model folder, cache of features (of pixels, where the ViT learns too), an adapter to start from. Out:
OUT/last.pt (resumable), OUT/adapter.gguf (the running average), OUT/log.jsonl.
Run: python -m train.captions --data DIR --model DIR --cache DIR --start adapter.gguf --out DIR --minutes 60
"""

from __future__ import annotations

import argparse
import json
import math
import pickle
import random
import time
from pathlib import Path
from typing import Any, Callable

import torch
import torch.nn.functional as F

from tokenflex_tools.gguf import GgufReader

from . import data, export, team, vision
from .cached import digest_of_file
from .features import Cache
from .model import Adapter, Language, Projector, add_device, check_fit, device_of, lora_scale
from .pictures import Pictures
from .sequences import Words, check_budget, epoch, hidden_states, lay_out, left_of, take

COMMON_TOKENS = 2000  # ids of the commonest pieces: kept in the loss's vocabulary, said in a caption or not
GRADIENT_NORM_MAX = 1.0
TOKENS_MAX = 1500    # of a worker's forward and backward pass, about
CAPTION_TOKENS = 90  # of one image: prompt and written captions, about
SAVE_S = 180
KERNELS = Path("build/train")


def options_parser() -> argparse.ArgumentParser:
    """Options that every run through the LLM has."""
    parser = argparse.ArgumentParser(description="Trains the adapter through the LLM.")
    for name in ("data", "model", "cache", "start", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60, help="budget; the learning rate falls to its end by then")
    parser.add_argument("--steps", type=int, default=0, help="budget in steps instead: a run that the seed repeats")
    parser.add_argument("--counts", type=int, nargs="+", default=[64, 144, 256])
    parser.add_argument("--shares", type=float, nargs="+", help="how often each count is drawn")
    parser.add_argument("--batch", type=int, default=16, help="images a step, all workers together")
    parser.add_argument("--captions", type=int, default=5, help="captions of an image in a sequence, at most")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate of the LLM's LoRA")
    parser.add_argument("--projector-rate", type=float, default=4e-4)
    parser.add_argument("--rate-end", type=float, default=0.02, help="last learning rate as a share of the peak")
    parser.add_argument("--warmup", type=int, default=40, help="steps")
    parser.add_argument("--decay", type=float, default=0.01, help="AdamW's weight decay")
    parser.add_argument("--smoothing", type=float, default=0.0, help="label smoothing")
    parser.add_argument("--noise", type=float, default=0.0, help="share of patches dropped (set to the mean patch)")
    parser.add_argument("--word-noise", type=float, default=0.0, help="share of a caption's words read as others: less by heart")
    parser.add_argument("--side", type=float, default=1.0, help="a window of the features, of at least this share a side")
    parser.add_argument("--vision-rank", type=int, default=0, help="a LoRA for the ViT too, where the adapter has none")
    parser.add_argument("--vision-rate", type=float, default=2e-4, help="peak learning rate of the ViT's LoRA")
    parser.add_argument("--crop", type=float, default=0.6, help="what the ViT sees while it learns: at least this share a side")
    parser.add_argument("--tone", type=float, default=0.0, help="its brightness, contrast and colour change by up to this share")
    parser.add_argument("--average", type=float, default=0.99, help="decay of the weights' running average a step")
    parser.add_argument("--workers", type=int, default=1, help="processes; each takes its part of a batch")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--f32", action="store_true", help="compute in f32 rather than bf16")
    parser.add_argument("--fast", action="store_true", help="the pass of fast.py: wants bf16 and a C compiler")
    add_device(parser)
    return parser


def start(options: argparse.Namespace) -> tuple[Adapter, dict[str, Any]]:
    """The adapter to start from, with a LoRA for the ViT where that is wanted."""
    adapter, metadata = export.read(options.start)
    if options.vision_rank and not vision.learns(adapter):
        adapter |= vision.new_lora(GgufReader(options.model / "vision.gguf"), options.vision_rank, options.seed)
    return adapter, metadata


def run(options: argparse.Namespace, work: Callable) -> None:
    """A phase in all its workers."""
    check_budget(options)
    options.out.mkdir(parents=True, exist_ok=True)
    team.run(options.workers, sum(tensor.numel() for tensor in start(options)[0].values()), work, options)


class Trainer:
    """What training through the LLM shares: models, optimiser, budget, checkpoints. A phase gives the loss."""

    def __init__(self, crew: team.Team, options: argparse.Namespace):
        check_budget(options)
        self.team, self.options = crew, options
        self.state_path = options.out / "last.pt"
        state = self._resumed()
        if state:
            self.adapter, self.metadata = state["adapter"], state["metadata"]
        else:
            self.adapter, self.metadata = start(options)
        if options.vision_rank and not vision.learns(self.adapter):
            raise SystemExit(f"{self.state_path} is of a run without --vision-rank: name another --out, or leave the option out")
        device = device_of(options)
        self.adapter = {name: tensor.to(device).clone().requires_grad_() for name, tensor in self.adapter.items()}
        self.average: Adapter = {name: tensor.detach().clone() for name, tensor in self.adapter.items()}
        file = GgufReader(options.model / "llm.gguf")
        check_fit(self.adapter, self.metadata, GgufReader(options.model / "vision.gguf"), file)
        dtype = torch.float32 if options.f32 else torch.bfloat16
        self.words = Words(file, self.metadata["tokenflex.prompt"])
        self.llm = Language(file, lora_scale(self.adapter, self.metadata), dtype, KERNELS if options.fast else None,
                            device)
        self.projector = Projector(self.metadata)
        self.vision = None
        if vision.learns(self.adapter):
            self.vision = vision.Vision(GgufReader(options.model / "vision.gguf"), dtype, device)
        rates = {"blk": options.rate, "projector": options.projector_rate, "vision": options.vision_rate}
        self.optimiser = torch.optim.AdamW([
            {"params": params, "peak": peak} for part, peak in rates.items()
            if (params := [t for n, t in self.adapter.items() if n.split(".")[0] == part])
        ], lr=0.0, weight_decay=options.decay, **({"fused": True} if options.fast else {}))
        self.step, self.elapsed, self._started, self._saved = 0, 0.0, time.monotonic(), time.monotonic()
        if state:
            self.average = {name: tensor.to(device) for name, tensor in state["average"].items()}
            self.step, self.elapsed = state["step"], state["elapsed"]
            self.optimiser.load_state_dict(state["optimiser"])
        self.merge()
        self.views = random.Random()
        names = [example.file for example in data.read_captions(options.data, "train")]
        self._cache = self._pictures = None
        if self.vision:
            self._pictures = Pictures(options.cache, "train", self.vision.settings, names)
        else:
            self._cache = Cache(options.cache, "train", self.adapter, self.metadata, names, options.model / "vision.gguf")

    def _resumed(self) -> dict[str, Any] | None:
        """The checkpoint of this run; None: there is none. That of another run is refused."""
        self.begun = digest_of_file(self.options.start)
        if not self.state_path.exists():
            return None
        try:
            state = torch.load(self.state_path, map_location="cpu")
            begun, options = state.get("begun", {}), self.begun_with()
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, AttributeError) as error:
            why = str(error).splitlines()[0]
            raise SystemExit(f"{self.state_path} is damaged ({why}): remove it, or name another --out") from None
        for name, value in begun.items():
            if options[name] != value:
                what = "that began from another adapter" if name == "start" else f"with --{name} {value}, not {options[name]}"
                raise SystemExit(f"{self.state_path} is of a run {what}: name another --out, or remove it")
        return state

    def begun_with(self) -> dict[str, Any]:
        """What a run that goes on must have in common with the one that began it."""
        return {"start": self.begun, "seed": self.options.seed, "counts": self.options.counts, "shares": self.options.shares,
                "batch": self.options.batch}

    def vocabulary(self, ids: set[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """What the loss's softmax runs over: the ids in order; the place of each id of the LLM among them."""
        allowed = torch.tensor(sorted(ids))
        place = torch.zeros(len(self.llm.embedding), dtype=torch.long)
        place[allowed] = torch.arange(len(allowed))
        return allowed.to(self.llm.device), place.to(self.llm.device)

    def merge(self) -> None:
        """The adapter's present values into the models' weights."""
        self.llm.merge(self.adapter)
        if self.vision:
            self.vision.merge(self.adapter, self.metadata)

    def features(self, rows: list[int]) -> torch.Tensor:
        """Features [rows, patches, width] of training images, each seen in a way drawn at random."""
        if self.vision:
            features = self.vision.features(self._pictures.take(rows, self.views, self.options.crop, self.options.tone), self.adapter)
        else:
            features = take(self._cache, rows, self.views)
        return augment(features.to(self.llm.device), self.options.noise, self.options.side)

    def minutes(self) -> float:
        """Time trained, earlier runs of a resumed one counted in."""
        return (self.elapsed + time.monotonic() - self._started) / 60

    def progress(self) -> float:
        """0 .. 1, the same for every worker."""
        done = self.step / self.options.steps if self.options.steps else self.minutes() / self.options.minutes
        return self.team.share([done])[0]

    def left(self) -> float | None:
        """Minutes, about."""
        done = self.step / self.options.steps if self.options.steps else self.minutes() / self.options.minutes
        return left_of(self.minutes(), min(1.0, done))

    def seed_step(self) -> int:
        """What is drawn in a step depends on seed, step and worker alone: a run that goes on draws as an unbroken one."""
        seed = (self.options.seed * 1000003 + self.step) * 101 + self.team.rank
        self.views.seed(seed)
        torch.manual_seed(seed)
        return seed

    def draw_count(self) -> int:
        """This step's token count: one for the whole batch."""
        return random.Random(self.options.seed * 1000003 + self.step).choices(self.options.counts, self.options.shares)[0]

    def prefix(self, features: torch.Tensor, count: int, adapter: Adapter) -> torch.Tensor:
        """Features -> embeddings of the whole prompt."""
        return self.llm.prefix(self.words.prompt, self.projector(adapter, features, count, self.llm.dtype))

    @staticmethod
    def chunks(rows: list[int], tokens: int) -> list[list[int]]:
        """A worker's images, of so many tokens each, in equal parts that fit TOKENS_MAX: bounds a backward pass's memory."""
        parts = min(len(rows), -(-len(rows) * tokens // TOKENS_MAX))
        return [rows[i::parts] for i in range(parts)]

    def update(self, progress: float) -> None:
        """One step of the optimiser by the gradients that all workers have gathered."""
        self.team.average(list(self.adapter.values()))
        torch.nn.utils.clip_grad_norm_(list(self.adapter.values()), GRADIENT_NORM_MAX)
        cosine = 0.5 + 0.5 * math.cos(math.pi * min(1.0, progress))
        scale = min(1.0, (self.step + 1) / self.options.warmup) * (self.options.rate_end
                                                                  + (1 - self.options.rate_end) * cosine)
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * scale
        self.optimiser.step()
        self.step += 1
        self.merge()
        keep = min(self.options.average, self.step / (self.step + 10))
        with torch.no_grad():
            for name, tensor in self.adapter.items():
                self.average[name].lerp_(tensor, 1 - keep)
        self.optimiser.zero_grad()

    def save(self, force: bool = False) -> None:
        """Checkpoint and export, by the leader, every few minutes."""
        if self.team.rank or not force and time.monotonic() - self._saved < SAVE_S:
            return
        self._saved = time.monotonic()
        partial = self.state_path.with_suffix(".partial")
        torch.save({"adapter": {name: tensor.detach() for name, tensor in self.adapter.items()}, "average": self.average,
                    "metadata": self.metadata, "optimiser": self.optimiser.state_dict(), "step": self.step,
                    "elapsed": self.minutes() * 60, "begun": self.begun_with()}, partial)
        partial.rename(self.state_path)
        export.write(self.options.out / "adapter.gguf", self.average, self.metadata)

    def report(self, **values: Any) -> None:
        """A line of log by the leader."""
        if self.team.rank == 0:
            line = {"step": self.step, "minutes": round(self.minutes(), 2), **values}
            print(json.dumps(line), flush=True)
            with open(self.options.out / "log.jsonl", "a") as file:
                file.write(json.dumps(line) + "\n")


def augment(features: torch.Tensor, dropped: float, side: float) -> torch.Tensor:
    """Features [images, patches, width] of a square grid, changed so that no image is seen twice alike: a window whose sides
    are at least `side` of the grid's takes the place of the whole, then a share `dropped` of patches becomes the mean patch.
    """
    if side < 1:
        count, patches, width = features.shape
        grid = features.transpose(1, 2).view(count, width, math.isqrt(patches), -1)
        scale = side + (1 - side) * torch.rand(count, 2)
        shift = (1 - scale) * (2 * torch.rand(count, 2) - 1)
        window = torch.zeros(count, 2, 3)
        window[:, 0, 0], window[:, 1, 1], window[:, :, 2] = scale[:, 0], scale[:, 1], shift
        places = F.affine_grid(window.to(features.device), list(grid.shape), align_corners=False)
        grid = F.grid_sample(grid, places, padding_mode="border", align_corners=False)
        features = grid.flatten(2).transpose(1, 2)
    if dropped > 0:
        chosen = (torch.rand(features.shape[:2])[..., None] < dropped).to(features.device)
        features = torch.where(chosen, features.mean(1, keepdim=True), features)
    return features


def misread(tokens: torch.Tensor, share: float, ids: torch.Tensor) -> torch.Tensor:
    """Tokens, a share of which have become other ones of `ids`; what is due stays as it is."""
    others = ids[torch.randint(len(ids), tokens.shape).to(ids.device)]
    return torch.where(torch.rand(tokens.shape).to(ids.device) < share, others, tokens)


def train(crew: team.Team, options: argparse.Namespace) -> None:
    """One worker's run."""
    trainer = Trainer(crew, options)
    captions = [[trainer.words.encode(c) for c in e.captions] for e in data.read_captions(options.data, "train")]
    said = {token for group in captions for caption in group for token in caption}
    allowed, place = trainer.vocabulary(said | set(range(min(COMMON_TOKENS, len(trainer.llm.embedding)))))
    head = trainer.llm.head[allowed]
    lengths = [sum(len(caption) for caption in group) for group in captions]
    per_epoch = len(epoch(lengths, options.batch, 0))
    smooth, first, present, batches = 0.0, trainer.step, -1, []
    while (progress := trainer.progress()) < 1:
        trainer.seed_step()
        number, at = divmod(trainer.step, per_epoch)
        if number != present:
            present, batches = number, epoch(lengths, options.batch, options.seed * 1009 + number)
        rows = batches[at][crew.rank::crew.size]
        count = trainer.draw_count()
        total = 0.0
        for chunk in trainer.chunks(rows, count + CAPTION_TOKENS):
            prefix = trainer.prefix(trainer.features(chunk), count, trainer.adapter)
            groups = [trainer.views.sample(captions[row], min(options.captions, len(captions[row]))) for row in chunk]
            layout = lay_out(groups, prefix.shape[1], trainer.llm.device)
            layout.tokens = misread(layout.tokens, options.word_noise, allowed)
            weights = torch.full(layout.targets.shape, len(chunk) / len(rows) / len(layout.targets), device=trainer.llm.device)
            loss = trainer.llm.loss(hidden_states(trainer.llm, prefix, layout, trainer.adapter), head,
                                    place[layout.targets], weights, options.smoothing)
            loss.backward()
            total += loss.item()
        trainer.update(progress)
        smooth += (total - smooth) / min(trainer.step - first, 20)
        if trainer.step % 10 == 0 or trainer.step == 1:
            trainer.report(loss=round(smooth, 4), count=count, epoch=round(trainer.step / per_epoch, 3),
                           rate=trainer.optimiser.param_groups[0]["lr"], left=trainer.left())
        trainer.save()
    trainer.save(force=True)


def main() -> None:
    """Command line."""
    run(options_parser().parse_args(), train)


if __name__ == "__main__":
    main()
