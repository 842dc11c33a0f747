"""Hugging Face's DINOv2, SigLIP and CLIP vision models -> vision.gguf.

In: a `Source`. Out: a GgufWriter with every setting and tensor of docs/MODEL.md's vision.gguf.
Names: transformers' Dinov2Model, SiglipVisionModel, CLIPVisionModel.
"""

from __future__ import annotations

from typing import Any

from .gguf import GgufWriter
from .hf_source import Source, Unsupported, read_json

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
    "dinov2": ("", "dinov2."),
    "siglip_vision_model": ("vision_model.vision_model.", "vision_model.", ""),
    "clip_vision_model": ("vision_model.vision_model.", "vision_model.", ""),
}


def image_size(source: Source, wanted: int | None) -> int:
    """What the model is shown: the caller's wish, else the preprocessor's, else the configuration's."""
    preprocessor = read_json(source.folder / "preprocessor_config.json")
    for entry in (wanted, preprocessor.get("crop_size") if preprocessor.get("do_center_crop") else None,
                  preprocessor.get("size"), source.need("image_size")):
        if isinstance(entry, dict):
            entry = entry.get("height", entry.get("shortest_edge"))
        if entry:
            return int(entry)
    raise Unsupported(f"{source.folder}: neither configuration nor preprocessor says an image size")


def settings(source: Source, family: str, size: int, layers: int, final_norm: bool) -> dict[str, Any]:
    """vision.gguf's metadata."""
    preprocessor = read_json(source.folder / "preprocessor_config.json")
    mean, std = {"dinov2": IMAGENET, "siglip": HALVES, "clip": CLIP_IMAGES}[family]
    activation, patch = source.need("hidden_act", "gelu"), source.need("patch_size")
    if activation not in ACTIVATIONS:
        raise Unsupported(f"{source.folder}: activation {activation} ({', '.join(ACTIVATIONS)} are known)")
    if size < patch:
        raise Unsupported(f"{source.folder}: image size {size} is less than the patch size {patch}")
    width = source.need("hidden_size")
    return {
        "family": family, "image_size": size, "patch_size": patch, "width": width, "layer_count": layers,
        "head_count": source.need("num_attention_heads"),
        "mlp_width": source.config.get("intermediate_size") or width * source.need("mlp_ratio", 4),
        "layer_norm_epsilon": float(source.need("layer_norm_eps", 1e-5 if family == "clip" else 1e-6)),
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
    return writer

