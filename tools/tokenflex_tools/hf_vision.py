"""Hugging Face's DINOv2, SigLIP and CLIP vision models -> vision.gguf.

In: a `Source`. Out: a GgufWriter with every setting and tensor of docs/MODEL.md's vision.gguf.
Names: transformers' Dinov2Model, SiglipVisionModel, CLIPVisionModel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .gguf import GgufWriter
from .hf_source import Source, Unsupported, read_json
from .safetensors import SafeTensors

ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "quick_gelu": "quick_gelu"}
IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CLIP_IMAGES = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
HALVES = [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]

DINOV2 = {"norm1": "norm1", "norm2": "norm2", "attn_q": "attention.attention.query", "attn_k": "attention.attention.key",
          "attn_v": "attention.attention.value", "attn_output": "attention.output.dense", "mlp_up": "mlp.fc1",
          "mlp_down": "mlp.fc2"}
SIGLIP = {"norm1": "layer_norm1", "norm2": "layer_norm2", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
          "attn_v": "self_attn.v_proj", "attn_output": "self_attn.out_proj", "mlp_up": "mlp.fc1", "mlp_down": "mlp.fc2"}
PREFIXES = {
    "dinov2": ("dinov2.", ""),
    "siglip_vision_model": ("vision_model.vision_model.", "vision_model.", ""),
    "clip_vision_model": ("vision_model.vision_model.", "vision_model.", ""),
}


# What transformers takes for a key that is not there: files of a pair (siglip, clip) hold only what differs from this.
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224, "num_channels": 3}
DEFAULTS = {
    "dinov2": BASE | {"mlp_ratio": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "patch_size": 14},
    "siglip_vision_model": BASE | {"intermediate_size": 3072, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
                                   "patch_size": 16},
    "clip_vision_model": BASE | {"intermediate_size": 3072, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
                                 "patch_size": 32},
}
RESCALE = 1 / 255


def source_of(folder: Path, tensors: SafeTensors, config: dict[str, Any], kind: str) -> Source:
    """A vision model in a folder, its configuration completed."""
    if kind not in PREFIXES:
        raise Unsupported(f"{folder}: vision model {kind or 'of no type'} is not supported ({', '.join(PREFIXES)} are)")
    return Source(folder, tensors, DEFAULTS[kind] | config, PREFIXES[kind])


def preprocessor_of(folder: Path) -> dict[str, Any]:
    """How pictures are prepared: what tokenflex can't do is refused."""
    settings = (read_json(folder / "preprocessor_config.json")
                or read_json(folder / "processor_config.json").get("image_processor", {}))  # the latter: transformers 5
    if not settings.get("do_rescale", True) or abs(settings.get("rescale_factor", RESCALE) - RESCALE) > 1e-6:
        raise Unsupported(f"{folder}: pictures that are not scaled to 0..1 before mean and deviation are not supported")
    for key in ("size", "crop_size"):
        sides = settings.get(key)
        if isinstance(sides, dict) and len({sides[side] for side in ("height", "width") if side in sides}) > 1:
            raise Unsupported(f"{folder}: pictures of {sides} are not supported: they must be square")
    return settings


def image_size(source: Source, wanted: int | None) -> int:
    """What the model is shown: the caller's wish, else the preprocessor's, else the configuration's."""
    preprocessor = preprocessor_of(source.folder)
    for entry in (wanted, preprocessor.get("crop_size") if preprocessor.get("do_center_crop") else None,
                  preprocessor.get("size"), source.need("image_size")):
        if isinstance(entry, dict):
            entry = entry.get("height", entry.get("shortest_edge"))
        if entry:
            return int(entry)
    raise Unsupported(f"{source.folder}: neither configuration nor preprocessor says an image size")


def settings(source: Source, family: str, size: int, layers: int, final_norm: bool) -> dict[str, Any]:
    """vision.gguf's metadata."""
    preprocessor = preprocessor_of(source.folder)
    mean, std = {"dinov2": IMAGENET, "siglip": HALVES, "clip": CLIP_IMAGES}[family]
    if not preprocessor.get("do_normalize", True):
        preprocessor = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    activation, patch = source.need("hidden_act"), source.need("patch_size")
    if activation not in ACTIVATIONS:
        raise Unsupported(f"{source.folder}: activation {activation} ({', '.join(ACTIVATIONS)} are known)")
    if size < patch:
        raise Unsupported(f"{source.folder}: image size {size} is less than the patch size {patch}")
    width = source.need("hidden_size")
    return {
        "family": family, "image_size": size, "patch_size": patch, "width": width, "layer_count": layers,
        "head_count": source.need("num_attention_heads"),
        "mlp_width": source.config.get("intermediate_size") or int(width * source.need("mlp_ratio")),
        "layer_norm_epsilon": float(source.need("layer_norm_eps")),
        "activation": ACTIVATIONS[activation], "class_token": family != "siglip", "pre_layer_norm": family == "clip",
        "layer_scale": family == "dinov2", "final_layer_norm": final_norm,
        "position_grid": source.need("image_size") // patch,
        "image_mean": [float(x) for x in preprocessor.get("image_mean", mean)],
        "image_std": [float(x) for x in preprocessor.get("image_std", std)],
    }


def add_embeddings(source: Source, writer: GgufWriter, values: dict[str, Any], dtype: str) -> None:
    """Patch convolution, positions, class token."""
    width, patch, grid = values["width"], values["patch_size"], values["position_grid"]
    if values["family"] == "dinov2":
        shape = (1, grid * grid + 1, width)
        source.add(writer, "vision.class", "embeddings.cls_token", (1, 1, width), dtype, out_shape=(width,))
        source.add(writer, "vision.position.class", "embeddings.position_embeddings", shape, "F32",
                   lambda x: x[0, 0], (width,))
        source.add(writer, "vision.position.patch", "embeddings.position_embeddings", shape, "F32",
                   lambda x: x[0, 1:], (grid * grid, width))
        convolution = "embeddings.patch_embeddings.projection"
    else:
        convolution, positions = "embeddings.patch_embedding", "embeddings.position_embedding.weight"
        if values["family"] == "clip":
            shape = (grid * grid + 1, width)
            source.add(writer, "vision.class", "embeddings.class_embedding", (width,), dtype)
            source.add(writer, "vision.position.class", positions, shape, "F32", lambda x: x[0], (width,))
            source.add(writer, "vision.position.patch", positions, shape, "F32", lambda x: x[1:], (grid * grid, width))
        else:
            source.add(writer, "vision.position.patch", positions, (grid * grid, width), "F32")
    source.add(writer, "vision.patch.weight", f"{convolution}.weight", (width, 3, patch, patch), dtype)
    if source.has(f"{convolution}.bias"):
        source.add(writer, "vision.patch.bias", f"{convolution}.bias", (width,), dtype)


def add_block(source: Source, writer: GgufWriter, values: dict[str, Any], layer: int, dtype: str) -> None:
    """One transformer block."""
    names, layers = (DINOV2, "encoder.layer") if values["family"] == "dinov2" else (SIGLIP, "encoder.layers")
    width, hidden, target, origin = values["width"], values["mlp_width"], f"vision.blk.{layer}", f"{layers}.{layer}"
    for name, module in names.items():
        rows, columns = {"mlp_up": (hidden, width), "mlp_down": (width, hidden)}.get(name, (width, width))
        shape = (width,) if name.startswith("norm") else (rows, columns)
        source.add(writer, f"{target}.{name}.weight", f"{origin}.{module}.weight", shape, dtype)
        source.add(writer, f"{target}.{name}.bias", f"{origin}.{module}.bias", (rows,), dtype)
    if values["layer_scale"]:
        for i in (1, 2):
            source.add(writer, f"{target}.scale{i}", f"{origin}.layer_scale{i}.lambda1", (width,), dtype)


def convert(source: Source, kind: str, size: int | None, dtype: str, select_layer: int = -1) -> GgufWriter:
    """The whole file. kind: the configuration's model_type; select_layer: as the release's configuration has it."""
    family = kind.split("_")[0]
    if family == "dinov2" and (source.has("embeddings.register_tokens") or source.need("use_swiglu_ffn", False)):
        raise Unsupported(f"{source.folder}: DINOv2 with registers or SwiGLU blocks is not supported")
    count = source.need("num_hidden_layers")
    if not -count <= select_layer <= count:
        raise Unsupported(f"{source.folder}: select_layer {select_layer} of {count} layers")
    # hidden_states[k] is what block k puts out, before the last norm; CLIP's patches are taken so, too.
    layers = count if select_layer == -1 else select_layer + (count + 1 if select_layer < 0 else 0)
    final_norm = select_layer == -1 and family != "clip"
    values = settings(source, family, image_size(source, size), layers, final_norm)
    writer = GgufWriter(architecture="tokenflex", type="vision", name=source.folder.resolve().name)
    for key, value in values.items():
        writer.set(f"tokenflex.vision.{key}", value)
    add_embeddings(source, writer, values, dtype)
    if values["pre_layer_norm"]:
        for part in ("weight", "bias"):
            source.add(writer, f"vision.pre_norm.{part}", f"pre_layrnorm.{part}", (values["width"],), dtype)
    for layer in range(layers):
        add_block(source, writer, values, layer, dtype)
    if final_norm:
        name = "layernorm" if family == "dinov2" else "post_layernorm"
        for part in ("weight", "bias"):
            source.add(writer, f"vision.norm.{part}", f"{name}.{part}", (values["width"],), dtype)
    source.leave(r"embeddings\.(position_ids|mask_token)", r"head\..*", r"post_layernorm\..*", *(
        rf"encoder\.layers?\.{layer}\..*" for layer in range(layers, count)))  # heads of other tasks, layers after the chosen one
    return writer

