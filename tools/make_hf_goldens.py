#!/usr/bin/env python3
"""Writes tests/golden/data/hf: small random models as `transformers` saves them, and what it computes with them.

In: nothing (seeds are fixed). Out: a folder a model with config.json, model.safetensors, tokenizer.json, and golden.gguf
with input and output. Run with torch, transformers and safetensors installed (requirements-hf-goldens.txt).
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (CLIPVisionConfig, CLIPVisionModel, Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM,
                          Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel)

from tokenflex_tools import tiny_models
from tokenflex_tools.gguf import GgufWriter
from tokenflex_tools.hf_tokenizer import QWEN2_PIECES
from tokenflex_tools.reference_vision import pool

OUT = Path(__file__).resolve().parent.parent / "tests/golden/data/hf"
MERGES, TOKENS, IMAGES, COUNTS = 40, 12, 1, [4, 9]
WIDTH, HEADS, HIDDEN, LAYERS, PATCH = 32, 4, 48, 2, 8


def tokenizer(pre: str) -> dict[str, Any]:
    """tokenizer.json of a small byte-level BPE."""
    merges = tiny_models.learn_merges(tiny_models.MERGE_TEXT, MERGES)
    tokens = [*tiny_models.byte_letters(), *("".join(merge) for merge in merges)]
    special = [*tiny_models.SPECIAL_TOKENS, "<img>", "</img>"]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": pre == "smollm"}
    first = ({"type": "Digits", "individual_digits": True} if pre == "smollm" else
             {"type": "Split", "pattern": {"Regex": QWEN2_PIECES}, "behavior": "Isolated", "invert": False})
    return {"model": {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)},
                      "merges": [list(m) if pre == "smollm" else " ".join(m) for m in merges]},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [first, byte_level]},
            "added_tokens": [{"id": len(tokens) + i, "content": token, "special": True} for i, token in enumerate(special)]}


def vocabulary(pre: str) -> int:
    """Ids of that tokenizer, rounded up as models have it."""
    made = tokenizer(pre)
    return -(-(len(made["model"]["vocab"]) + len(made["added_tokens"])) // 16) * 16


def randomise(model: nn.Module, seed: int, dtype: torch.dtype) -> nn.Module:
    """Weights that matter, as the file's dtype rounds them, in f32."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            fan = tensor[0].numel() if tensor.dim() > 1 else 1
            is_norm = "norm" in name and name.endswith("weight") or "lambda" in name
            values = torch.randn(tensor.shape, generator=generator) * (0.2 if tensor.dim() == 1 else fan ** -0.5)
            tensor.copy_((values + is_norm).to(dtype).float())
    return model.eval()


def saved(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors under the names that published files have (a state dict's may differ)."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(Path(folder) / "model.safetensors")


def save(name: str, config: dict[str, Any], tensors: dict[str, torch.Tensor], dtype: torch.dtype,
         files: dict[str, Any]) -> Path:
    """A Hugging Face folder."""
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.detach().to(dtype).contiguous() for key, tensor in tensors.items()}, folder / "model.safetensors")
    for file, content in {"config.json": config, **files}.items():
        (folder / file).write_text(json.dumps(content, separators=(",", ":")), "utf-8")
    return folder


def golden(folder: Path, values: dict[str, torch.Tensor], **settings: Any) -> None:
    """golden.gguf beside the model."""
    writer = GgufWriter(architecture="tokenflex", type="golden", name=folder.name)
    for key, value in settings.items():
        writer.set(key, value)
    for key, tensor in values.items():
        writer.tensor(key, tensor.detach().numpy())
    writer.write(folder / "golden.gguf")


def pixels(size: int, seed: int) -> torch.Tensor:
    """Pictures."""
    return torch.randn(IMAGES, 3, size, size, generator=torch.Generator().manual_seed(seed))


def kept(config: Any, *extra: str) -> dict[str, Any]:
    """The part of a configuration that says something."""
    return {k: v for k, v in config.to_diff_dict().items() if k not in ("transformers_version", *extra)}


@torch.no_grad()
def vision(name: str, model: nn.Module, config: Any, seed: int, files: dict[str, Any], skip: int) -> None:
    """DINOv2 and CLIP: the patch tokens as tokenflex takes them."""
    model, dtype = randomise(model, seed, torch.float16), torch.float16
    folder = save(name, kept(config) | {"architectures": [type(model).__name__]}, saved(model), dtype, files)
    images = pixels(config.image_size, seed)
    output = (model(images).last_hidden_state if name == "dinov2" else
              model(images, output_hidden_states=True).hidden_states[-1])
    golden(folder, {"input": images, "output": output[:, skip:]})


def sequence(model: nn.Module, size: int, seed: int, vision_tokens: torch.Tensor | None = None) -> dict[str, Any]:
    """Ids, vision tokens after the fifth of them, logits."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, size - 20, (TOKENS,), generator=generator)
    if vision_tokens is None:
        vision_tokens = torch.randn(4, WIDTH, generator=generator)
    embedded = model.get_input_embeddings()(ids)
    embedded = torch.cat([embedded[:5], vision_tokens, embedded[5:]])[None]
    return {"ids": ids, "vision": vision_tokens, "logits": model(inputs_embeds=embedded).logits[0]}


def llm_golden(folder: Path, made: dict[str, Any], more: dict[str, torch.Tensor]) -> None:
    """golden.gguf of an LLM."""
    golden(folder, {"vision": made["vision"], "logits": made["logits"], **more}, tokens=[int(i) for i in made["ids"]],
           vision_position=5)


@torch.no_grad()
def llama() -> None:
    """A Llama with its own output matrix, f16."""
    size = vocabulary("smollm")
    config = LlamaConfig(hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
                         num_key_value_heads=2, vocab_size=size, max_position_embeddings=128, rms_norm_eps=1e-5,
                         tie_word_embeddings=False, bos_token_id=None, eos_token_id=258)
    model = randomise(LlamaForCausalLM(config), 11, torch.float16)
    folder = save("llama", kept(config) | {"architectures": ["LlamaForCausalLM"]}, saved(model), torch.float16,
                  {"tokenizer.json": tokenizer("smollm")})
    llm_golden(folder, sequence(model, size, 12), {})


class Projector(nn.Module):
    """The release's projector (its MLP's names)."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.layernorm = nn.LayerNorm(width)
        self.f1, self.f2, self.g = nn.Linear(width, 3 * width), nn.Linear(width, 3 * width), nn.Linear(3 * width, out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, width] -> [N, out]."""
        x = self.layernorm(x)
        return self.g(nn.functional.silu(self.f1(x)) * self.f2(x))


@torch.no_grad()
def release() -> None:
    """SigLIP, Qwen2 with tied output, and the projector in one folder, bf16."""
    size = vocabulary("qwen2")
    vision_config = SiglipVisionConfig(hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=1,
                                       num_attention_heads=HEADS, image_size=36, patch_size=PATCH)
    llm_config = Qwen2Config(hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=LAYERS,
                             num_attention_heads=HEADS, num_key_value_heads=1, vocab_size=size,
                             max_position_embeddings=128, tie_word_embeddings=True)
    dtype = torch.bfloat16
    vit = randomise(SiglipVisionModel(vision_config), 21, dtype)
    llm, projector = randomise(Qwen2ForCausalLM(llm_config), 22, dtype), randomise(Projector(WIDTH, WIDTH), 23, dtype)
    tensors = {f"vision_model.vision_model.{k}": t for k, t in saved(vit).items() if ".head." not in k}
    tensors |= {f"language_model.{k}": t for k, t in saved(llm).items()}
    tensors |= {f"projector.mlp.{k}": t for k, t in projector.state_dict().items()}
    config = {"model_type": "ristretto", "architectures": ["RistrettoModel"], "select_layer": -1, "template": "chatml",
              "dynamic_image_size": True, "max_dynamic_patch": 6, "num_image_token": 9,
              "vision_config": kept(vision_config) | {"model_type": "siglip_vision_model"},
              "llm_config": kept(llm_config) | {"architectures": ["Qwen2ForCausalLM"]}}
    folder = save("release", config, tensors, dtype, {"tokenizer.json": tokenizer("qwen2")})
    images = pixels(36, 24)  # the last 4 pixels of a side make no patch
    features = vit(images).last_hidden_state
    projected = {f"projected.{n}": projector(pool(features[0], round(n ** 0.5), "resize_average")) for n in COUNTS}
    made = sequence(llm, size, 25, projected["projected.4"])
    llm_golden(folder, made, {"input": images, "output": features, **projected})


def main() -> None:
    """All of them."""
    torch.set_grad_enabled(False)
    dinov2 = Dinov2Config(hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=2, mlp_ratio=2, image_size=40,
                          patch_size=PATCH)
    vision("dinov2", Dinov2Model(dinov2), dinov2, 1, {"preprocessor_config.json": {
        "do_center_crop": True, "crop_size": {"height": 40, "width": 40}}}, 1)
    clip = CLIPVisionConfig(hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=2,
                            image_size=32, patch_size=PATCH)
    vision("clip", CLIPVisionModel(clip), clip, 2, {}, 1)
    llama()
    release()


if __name__ == "__main__":
    main()
