"""Hugging Face folders -> a model folder of tokenflex (docs/MODEL.md).

In: a TokenFLEX release (SigLIP, Qwen2 or Llama, projector in one folder), or one of its parts: DINOv2, SigLIP, CLIP;
Llama, Qwen2. Out: vision.gguf, llm.gguf, adapter.gguf, those that the folder holds; a plan with shapes and memory.
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import Any

from . import hf_llm, hf_vision
from .gguf import GgufWriter
from .hf_source import BLOCK_TYPES, Source, Unsupported, check_rest, check_unquantised, read_json
from .safetensors import SafeTensors

PROJECTOR = {"norm": "layernorm", "gate": "f1", "up": "f2", "down": "g"}
LLM_KINDS = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}
LLM_TYPES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
OTHER_PARTS = r"text_model\..*|(visual|text)_projection\..*|logit_.*|classifier\..*"  # beside a vision model
IMAGE_START, IMAGE_END = "<img>", "</img>"
COMPUTE_BYTES = {"f32": 4, "bf16": 2, "int8": 1}


def adapter(folder: Path, tensors: SafeTensors, options: argparse.Namespace, vision_width: int, llm_width: int,
            grid: int, size: int) -> GgufWriter:
    """TokenFLEX's projector, without a LoRA."""
    source = Source(folder, tensors, {}, ("projector.mlp.",))
    hidden = tensors.shape(f"{source.prefix}f1.weight")[0] if source.has("f1.weight") else 0
    writer = GgufWriter(architecture="tokenflex", type="adapter", name=folder.resolve().name)
    for key, value in {
        "token_counts": options.counts, "grid": grid, "image_size": size, "pooling": "resize_average",
        "vision_width": vision_width, "llm_width": llm_width, "hidden": hidden, "layer_norm_epsilon": 1e-5,
        "prompt": options.prompt, "system": options.system, "image_start": IMAGE_START, "image_end": IMAGE_END,
    }.items():
        if value != "":
            writer.set(f"tokenflex.{key}", value)
    shapes = {"norm": (vision_width,), "gate": (hidden, vision_width), "up": (hidden, vision_width),
              "down": (llm_width, hidden)}
    for name, module in PROJECTOR.items():
        source.add(writer, f"projector.{name}.weight", f"{module}.weight", shapes[name], options.dtype)
        source.add(writer, f"projector.{name}.bias", f"{module}.bias", shapes[name][:1], options.dtype)
    return writer


def check_tiles(folder: Path, config: dict[str, Any], options: argparse.Namespace) -> None:
    """One picture is one tile here."""
    tiles = config.get("max_dynamic_patch", 1) if config.get("dynamic_image_size") else 1
    if tiles > 1 and not options.one_tile:
        raise Unsupported(f"{folder}: the model cuts a picture into up to {tiles} tiles; tokenflex shows the LLM one. "
                          "Give --one-tile to convert it for one tile: it will see less of text and small things")


def release(folder: Path, config: dict[str, Any], options: argparse.Namespace) -> dict[str, GgufWriter]:
    """A folder that holds all three parts."""
    check_tiles(folder, config, options)
    tensors, vision_config, llm_config = SafeTensors(folder), config["vision_config"], config["llm_config"]
    kind, size = vision_config.get("model_type"), options.image_size or config.get("force_image_size")
    check_unquantised(folder, config, vision_config, llm_config)
    vision = hf_vision.source_of(folder, tensors, vision_config, kind)
    writer = hf_vision.convert(vision, kind, size, options.dtype, config.get("select_layer", -1))
    llm = Source(folder, tensors, llm_config, hf_llm.PREFIXES)
    llm_writer = hf_llm.convert(llm, llm_kind(folder, llm_config), options.dtype, (IMAGE_START, IMAGE_END))
    size = hf_vision.image_size(vision, size)
    grid = size // vision.need("patch_size")
    files = {"vision.gguf": writer, "llm.gguf": llm_writer,
             "adapter.gguf": adapter(folder, tensors, options, vision.need("hidden_size"), llm.need("hidden_size"), grid, size)}
    check_rest(folder, tensors)
    return files


def llm_kind(folder: Path, config: dict[str, Any]) -> str:
    """GGUF's architecture of a configuration."""
    name = (config.get("architectures") or [LLM_TYPES.get(config.get("model_type", ""), "an LLM of no type")])[0]
    if name not in LLM_KINDS:
        raise Unsupported(f"{folder}: {name} is not supported ({', '.join(LLM_KINDS)} are)")
    return LLM_KINDS[name]


def plan(folder: Path, options: argparse.Namespace) -> dict[str, GgufWriter]:
    """The files that a folder gives, nothing read yet but headers."""
    config = read_json(folder / "config.json")
    if not config:
        raise Unsupported(f"{folder}: no config.json")
    if "llm_config" in config and "vision_config" in config:
        return release(folder, config, options)
    kind, architecture = config.get("model_type", ""), (config.get("architectures") or [""])[0]
    check_unquantised(folder, config)
    if kind in ("siglip", "clip") and "vision_config" in config:  # the pair with its text model
        kind, config = f"{kind}_vision_model", config["vision_config"]
    if kind in hf_vision.PREFIXES:
        tensors = SafeTensors(folder)
        tensors.leave(OTHER_PARTS)
        files = {"vision.gguf": hf_vision.convert(hf_vision.source_of(folder, tensors, config, kind), kind, options.image_size,
                                                  options.dtype)}
        check_rest(folder, tensors)
        return files
    if kind in LLM_TYPES or architecture in LLM_KINDS:
        tensors = SafeTensors(folder)
        llm = Source(folder, tensors, config, hf_llm.PREFIXES)
        files = {"llm.gguf": hf_llm.convert(llm, llm_kind(folder, config), options.dtype)}
        check_rest(folder, tensors)
        return files
    raise Unsupported(f"{folder}: model {kind or 'of no type'} ({architecture or 'no architecture'}) is not supported; "
                      f"known are TokenFLEX releases, {', '.join(hf_vision.PREFIXES)}, {', '.join(LLM_KINDS)}")


def describe(name: str, writer: GgufWriter, verbose: bool) -> None:
    """What a file will hold, and what the programs will need for it."""
    sizes = writer.sizes()
    weights = sum(writer.elements().values())
    memory = ", ".join(f"{weights * size / 1e9:.2f} GB {kind}" for kind, size in COMPUTE_BYTES.items())
    print(f"{name}: {len(sizes)} tensors, {weights / 1e6:.1f} M weights, {sum(sizes.values()) / 1e9:.2f} GB in the file; "
          f"weights in memory: {memory}")
    if verbose:
        for tensor, shape, dtype in writer.listing():
            print(f"  {tensor} {list(shape)} {dtype}")


def write(folder: Path, files: dict[str, GgufWriter]) -> None:
    """All the files or none: under other names first."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = {name: folder / f".{name}.{os.getpid()}" for name in files}
    try:
        for name, writer in files.items():
            writer.write(partial[name])
        for name, path in partial.items():
            path.rename(folder / name)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="convert-hf", description="Makes a model folder of tokenflex from Hugging Face folders.",
        epilog="A release gives all three files. Parts are given one after the other (a vision model and an LLM); the "
               "adapter between them is then trained: train/README.md.")
    parser.add_argument("source", type=Path, nargs="+", help="folder with config.json and safetensors")
    parser.add_argument("out", type=Path, help="model folder to write")
    parser.add_argument("--dtype", choices=["keep", *BLOCK_TYPES], default="keep", help="of the matrices (default: as they are)")
    parser.add_argument("--image-size", type=int, help="pixels of a side that the vision model is shown")
    parser.add_argument("--counts", type=int, nargs="+", default=[64, 144, 256], help="vision tokens, of a release")
    parser.add_argument("--prompt", default="Describe this image.", help="the default prompt, of a release")
    parser.add_argument("--system", default="", help="system message, of a release (its code has it, not its files)")
    parser.add_argument("--one-tile", action="store_true", help="accept a model that was made for several tiles")
    parser.add_argument("--dry-run", action="store_true", help="tensors, shapes and memory from the headers; writes nothing")
    options = parser.parse_args()
    squares = [math.isqrt(max(1, count)) ** 2 for count in options.counts]
    if options.counts != squares or squares != sorted(set(squares)):
        parser.error(f"--counts {' '.join(map(str, options.counts))}: ascending squares are wanted")
    options.dtype = BLOCK_TYPES.get(options.dtype, "keep")
    files: dict[str, GgufWriter] = {}
    try:
        for folder in options.source:
            made = plan(folder, options)
            if twice := set(made) & set(files):
                raise Unsupported(f"{folder}: {', '.join(sorted(twice))} comes from a folder before it already")
            files |= made
        for name, writer in files.items():
            describe(name, writer, options.dry_run)
        if not options.dry_run:
            write(options.out, files)
    except (Unsupported, ValueError, OSError, KeyError) as error:
        text = f"the configuration has no {error}" if isinstance(error, KeyError) else error
        raise SystemExit(f"convert-hf: {text}") from None
    if not options.dry_run and not all((options.out / name).exists() for name in ("vision.gguf", "llm.gguf", "adapter.gguf")):
        print(f"{options.out} is not complete yet: see --help")


if __name__ == "__main__":
    main()
