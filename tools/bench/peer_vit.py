"""The ViT by other runtimes: the same weights, the same inputs, each at the settings it is best at.

Usage: peer_vit.py KIND FOLDER    KIND: openvino-f32, openvino-bf16, openvino-int8, onnxruntime-f32, onnxruntime-int8
FOLDER: what prepare.py made. Commands: `vit STREAMS BATCH CALLS`, `features IN OUT IMAGES`.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common import Samples, serve

import numpy as np

SIDE = 224
CORES = 2
FILES = {"openvino-f32": "vit.onnx", "openvino-bf16": "vit.onnx", "openvino-int8": "vit-openvino-int8.xml",
         "onnxruntime-f32": "vit.onnx", "onnxruntime-int8": "vit-onnxruntime-int8.onnx"}


class OpenVino:
    """STREAMS requests at once on one compiled model."""

    def __init__(self, kind: str, path: Path) -> None:
        import openvino

        self.openvino, self.core, self.path = openvino, openvino.Core(), path
        # Unset, OpenVINO itself takes bf16 for what stays unquantised where the processor has it: its best.
        self.precision = {"openvino-f32": {"INFERENCE_PRECISION_HINT": "f32"},
                          "openvino-bf16": {"INFERENCE_PRECISION_HINT": "bf16"}}.get(kind, {})
        self.compiled: dict[tuple[int, int], object] = {}

    def model(self, streams: int, batch: int) -> object:
        """Compiled for this many streams and images a call."""
        if (streams, batch) not in self.compiled:
            model = self.core.read_model(self.path)
            model.reshape([batch, 3, SIDE, SIDE])
            hint = "THROUGHPUT" if streams > 1 else "LATENCY"
            self.compiled[streams, batch] = self.core.compile_model(
                model, "CPU", {"NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": CORES, "PERFORMANCE_HINT": hint} | self.precision)
        return self.compiled[streams, batch]

    def run(self, streams: int, batch: int, calls: int, pixels: np.ndarray) -> float:
        """Milliseconds for CALLS calls on every stream."""
        queue = self.openvino.AsyncInferQueue(self.model(streams, batch), streams)
        for _ in range(streams):
            queue.start_async([pixels])
        queue.wait_all()
        start = time.perf_counter()
        for _ in range(streams * calls):
            queue.start_async([pixels])
        queue.wait_all()
        return (time.perf_counter() - start) * 1000

    def one(self, pixels: np.ndarray) -> np.ndarray:
        """[1, 257, 384] of one image."""
        return self.model(1, 1)([pixels])[0]


class OnnxRuntime:
    """STREAMS threads with a session each."""

    def __init__(self, kind: str, path: Path) -> None:
        import onnxruntime

        self.onnxruntime, self.path = onnxruntime, path
        self.sessions: dict[int, list[object]] = {}

    def session(self, threads: int) -> object:
        """A session of so many threads."""
        options = self.onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        return self.onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])

    def of(self, streams: int) -> list[object]:
        """As many sessions as streams, which share the cores."""
        if streams not in self.sessions:
            self.sessions[streams] = [self.session(max(1, CORES // streams)) for _ in range(streams)]
        return self.sessions[streams]

    def run(self, streams: int, batch: int, calls: int, pixels: np.ndarray) -> float:
        """Milliseconds for CALLS calls on every stream."""
        def work(session: object, count: int) -> None:
            for _ in range(count):
                session.run(None, {session.get_inputs()[0].name: pixels})

        sessions = self.of(streams)
        with ThreadPoolExecutor(streams) as threads:
            list(threads.map(work, sessions, [1] * streams))
            start = time.perf_counter()
            list(threads.map(work, sessions, [calls] * streams))
            return (time.perf_counter() - start) * 1000

    def one(self, pixels: np.ndarray) -> np.ndarray:
        """[1, 257, 384] of one image."""
        session = self.of(1)[0]
        return session.run(None, {session.get_inputs()[0].name: pixels})[0]


def main() -> None:
    """KIND FOLDER"""
    kind, folder = sys.argv[1], Path(sys.argv[2])
    runtime = (OpenVino if kind.startswith("openvino") else OnnxRuntime)(kind, folder / FILES[kind])

    def vit(streams: str, batch: str, calls: str) -> Samples:
        pixels = np.random.default_rng(1).uniform(-2, 2, (int(batch), 3, SIDE, SIDE)).astype(np.float32)
        milliseconds = runtime.run(int(streams), int(batch), int(calls), pixels)
        return {"units": int(streams) * int(batch) * int(calls), "ms": [milliseconds]}

    def features(source: str, target: str, images: str) -> Samples:
        pixels = np.fromfile(source, np.float32).reshape(int(images), 1, 3, SIDE, SIDE)
        # The class token comes first and is dropped: what is compared is what a projector would get.
        np.concatenate([runtime.one(image)[:, 1:] for image in pixels]).astype(np.float32).tofile(target)
        return {"images": int(images)}

    serve({"vit": vit, "features": features})


if __name__ == "__main__":
    main()
