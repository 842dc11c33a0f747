"""The pass through the LLM and back by hand: PyTorch's products, kernels.c between them, memory that is kept.

In: what Language.forward takes, gradients wanted. Out: the same hidden states and gradients as autograd's, in about half
the time: nothing is copied to be laid out anew, no page of memory is touched for the first time twice, the masked half of
attention is not computed in the softmax.

bf16 on a CPU alone. One pass is in flight at a time: backward belongs to the latest forward.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import subprocess
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .model import Language

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ("-std=gnu11", "-O3", "-march=native", "-ffast-math", "-fopenmp-simd", "-fPIC", "-shared",
         *(("-mprefer-vector-width=512",) if platform.machine() == "x86_64" else ()))
LIBRARIES = ("-lmvec", "-lm") if platform.machine() == "x86_64" else ("-lm",)  # libmvec: exp of a whole vector
FEW_ROWS = 128  # up to here a product is faster with the weights first: PyTorch lays the second factor out anew for each
ROOM = 1.25  # of a buffer that has to grow, beyond what is asked


def build_kernels(folder: Path) -> ctypes.CDLL:
    """kernels.c compiled for this machine into `folder`, once for each version of it."""
    name = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:16]
    path = folder / f"train-kernels-{name}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        subprocess.run([os.environ.get("CC", "cc"), *FLAGS, str(SOURCE), "-o", str(partial), *LIBRARIES],
                       check=True)
        partial.rename(path)
    return ctypes.CDLL(str(path))


class Kernels:
    """kernels.c's functions, called with tensors, integers and floats."""

    def __init__(self, folder: Path):
        self._library = build_kernels(folder)

    def __call__(self, name: str, *arguments: torch.Tensor | int | float | None) -> None:
        """Tensors go as their addresses (they must be contiguous), integers as ptrdiff_t."""
        function = getattr(self._library, name)
        function.restype = None
        function(*map(_argument, arguments))


def _argument(value: torch.Tensor | int | float | None) -> Any:
    if isinstance(value, torch.Tensor):
        assert value.is_contiguous()
        return ctypes.c_void_p(value.data_ptr())
    if value is None:
        return ctypes.c_void_p()
    return ctypes.c_float(value) if isinstance(value, float) else ctypes.c_ssize_t(value)


class Buffers:
    """Named pieces of memory that are kept from pass to pass and only grow."""

    def __init__(self):
        self._flat: dict[Any, torch.Tensor] = {}

    def __call__(self, name: Any, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        """What was last written under `name` is lost."""
        size, flat = prod(shape), self._flat.get(name)
        if flat is None or flat.numel() < size:
            flat = self._flat[name] = torch.empty(int(size * ROOM), dtype=dtype)
        return flat[:size].view(shape)


class Pass:
    """Forward and backward through a Language's layers."""

    def __init__(self, model: Language, folder: Path):
        if model.dtype != torch.bfloat16:
            raise ValueError("the fast pass computes in bf16: leave out --f32 or --fast")
        self.model, self.kernel, self.buffer = model, Kernels(folder), Buffers()
        self.number = 0
        self._inputs: tuple[torch.Tensor, ...] = ()
        self._started = 0, 0, 0, 0  # images, captions of each, tokens of the prompt, most tokens of a caption

    def __call__(self, x: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor,
                 factors: list[torch.Tensor]) -> torch.Tensor:
        """As Language.forward; factors: of each layer and group A of each linear, then B of each. Their values are those
        that were merged last; what is given here only receives the gradients."""
        return _Function.apply(x, self, positions, mask, *factors)

    def _norm(self, x: torch.Tensor, added: torch.Tensor | None, weight: str,
              name: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """x + added, and its norm; both and 1 / rms are kept under `name`."""
        rows, width = x.shape
        total, out = self.buffer((name, "sum"), rows, width, dtype=torch.float32), self.buffer((name, "norm"), rows, width)
        inverse = self.buffer((name, "inverse"), rows, dtype=torch.float32)
        self.kernel("tf_add_norm", x, added, self.model.norms[weight], float(self.model.epsilon), total, out, inverse,
                    rows, width)
        return total, out

    def _norm_back(self, output: torch.Tensor, weight: str, name: Any, gradient: torch.Tensor, copy: torch.Tensor) -> None:
        rows, width = output.shape
        self.kernel("tf_norm_back", output, self.buffer((name, "sum"), rows, width, dtype=torch.float32),
                    self.buffer((name, "inverse"), rows, dtype=torch.float32), self.model.norms[weight], gradient, copy,
                    rows, width)

    def _linear(self, x: torch.Tensor, weight: torch.Tensor, name: Any) -> torch.Tensor:
        out = self.buffer(name, x.shape[0], weight.shape[0])
        if len(x) > FEW_ROWS:
            return torch.mm(x, weight.t(), out=out)
        return out.copy_(torch.mm(weight, x.t(), out=self.buffer("turned", weight.shape[0], len(x))).t())

    def _feed_forward(self, layer: int, x: torch.Tensor, attended: torch.Tensor,
                      name: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer from attention's output on: the residual after attention, and what is to be added to it. What the way back
        needs is kept under `name`."""
        weights = self.model.merged[layer]
        x, u = self._norm(x, self._linear(attended, weights[1], "added"), f"blk.{layer}.ffn_norm.weight", (name, 1))
        gate_up = self._linear(u, weights[2], (name, "gate_up"))
        hidden = self.buffer((name, "hidden"), len(x), gate_up.shape[1] // 2)
        self.kernel("tf_swiglu", gate_up, hidden, len(x), hidden.shape[1])
        return x, self._linear(hidden, weights[3], "added")

    def forward(self, x: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """x [batch, tokens, width] f32, positions [batch, tokens], mask bool [batch, 1, tokens, tokens] within the causal
        one -> [batch, tokens, width] in bf16, a buffer."""
        self.number += 1
        model, shape, kernel, buffer = self.model, self.model.shape, self.kernel, self.buffer
        batch, tokens, width = x.shape
        rows, heads, kv_heads, size = batch * tokens, shape.heads, shape.kv_heads, shape.head_dim
        cos, sin = (angle.contiguous() for angle in model.angles(positions))
        seen = mask.expand(batch, 1, tokens, tokens).to(torch.uint8).contiguous()
        self._inputs = cos, sin
        x, added = x.reshape(rows, width).contiguous(), None
        for layer in range(model.layer_count):
            weights = model.merged[layer]
            x, u = self._norm(x, added, f"blk.{layer}.attn_norm.weight", (layer, 0))
            qkv = self._linear(u, weights[0], "qkv")
            q, k, v = (buffer((layer, name), batch * kv_heads, count * tokens, size)
                       for name, count in (("q", heads // kv_heads), ("k", 1), ("v", 1)))
            kernel("tf_split_heads", qkv, cos, sin, size ** -0.5, q, k, v, batch, tokens, heads, kv_heads, size)
            scores = torch.bmm(q, k.transpose(1, 2), out=buffer((layer, "scores"), q.shape[0], q.shape[1], tokens))
            kernel("tf_softmax", scores, seen, batch, heads, tokens)
            split = torch.bmm(scores, v, out=buffer("split", *q.shape))
            merged = buffer((layer, "attended"), rows, heads * size)
            kernel("tf_merge_heads", split, merged, 0, batch, tokens, heads, size)
            x, added = self._feed_forward(layer, x, merged, layer)
        return self._norm(x, added, "output_norm.weight", "last")[1].view(batch, tokens, width)

    def start(self, prefix: torch.Tensor, copies: int, room: int) -> torch.Tensor:
        """Runs prompts [batch, tokens, width], of which `copies` captions each of at most `room` tokens go on by `step`; gives
        the last hidden states [batch * copies, width]. Captions of one image share its keys and values, kept until the next
        pass."""
        batch, tokens, _ = prefix.shape
        positions = torch.arange(tokens).expand(batch, -1)
        causal = torch.ones(1, 1, tokens, tokens, dtype=torch.bool).tril().expand(batch, -1, -1, -1)
        self._started = batch, copies, tokens, room
        return self.forward(prefix, positions, causal)[:, -1].repeat_interleave(copies, dim=0)

    def step(self, x: torch.Tensor, at: int) -> torch.Tensor:
        """The token at place `at` of each caption, the first is 0: embeddings [batch * copies, width] -> hidden states, a
        buffer."""
        batch, copies, tokens, room = self._started
        model, shape, kernel, buffer = self.model, self.model.shape, self.kernel, self.buffer
        heads, kv_heads, size = shape.heads, shape.kv_heads, shape.head_dim
        shared, alone = batch * kv_heads, (batch, copies)
        cos, sin = (angle.contiguous() for angle in model.angles(torch.tensor([[tokens + at]])))
        added = None
        for layer in range(model.layer_count):
            x, u = self._norm(x, added, f"blk.{layer}.attn_norm.weight", ("step", 0))
            qkv = self._linear(u, model.merged[layer][0], "step qkv")
            q = buffer("step q", shared, copies * heads // kv_heads, size)
            tails = [buffer((layer, name), *alone, kv_heads, room, size) for name in ("k tail", "v tail")]
            kernel("tf_decode_split", qkv, cos, sin, size ** -0.5, q, *tails, *alone, at, room, heads, kv_heads, size)
            k, v = (buffer((layer, name), shared, tokens, size) for name in "kv")
            scores = torch.bmm(q, k.transpose(1, 2), out=buffer("step scores", *q.shape[:2], tokens))
            own = buffer("step own", *q.shape, dtype=torch.float32)
            kernel("tf_decode_softmax", scores, q, *tails, own, *alone, at, room, heads, kv_heads, size, tokens)
            prompt = torch.bmm(scores, v, out=buffer("step prompt", *q.shape))
            attended = buffer("step attended", batch * copies, heads * size)
            kernel("tf_decode_merge", prompt, own, attended, *alone, heads, kv_heads, size)
            x, added = self._feed_forward(layer, x, attended, "step")
        return self._norm(x, added, "output_norm.weight", ("step", 0))[1]

    def backward(self, output: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Gradient of forward's result -> of its x (a buffer), and of each factor, in the order of the call."""
        model, shape, kernel, buffer = self.model, self.model.shape, self.kernel, self.buffer
        batch, tokens, width = output.shape
        rows, heads, kv_heads, size = batch * tokens, shape.heads, shape.kv_heads, shape.head_dim
        cos, sin = self._inputs
        gradient = buffer("gradient", rows, width, dtype=torch.float32).zero_()
        copy = buffer("copy", rows, width)
        self._norm_back(output.reshape(rows, width).contiguous(), "output_norm.weight", "last", gradient, copy)
        results: dict[tuple[int, int], list[torch.Tensor]] = {}

        def linear_back(layer: int, group: int, x: torch.Tensor, g: torch.Tensor, name: str) -> torch.Tensor:
            results[layer, group] = self._factors_back(x, g, layer, group)
            return torch.mm(g, model.merged[layer][group], out=buffer(name, rows, x.shape[1]))

        for layer in reversed(range(model.layer_count)):
            hidden_width = model.merged[layer][3].shape[1]
            hidden = buffer((layer, "hidden"), rows, hidden_width)
            d_hidden = linear_back(layer, 3, hidden, copy, "d hidden")
            d_gate_up = buffer("d gate_up", rows, 2 * hidden_width)
            kernel("tf_swiglu_back", buffer((layer, "gate_up"), rows, 2 * hidden_width), d_hidden, d_gate_up, rows,
                   hidden_width)
            d_norm = linear_back(layer, 2, buffer(((layer, 1), "norm"), rows, width), d_gate_up, "d norm")
            self._norm_back(d_norm, f"blk.{layer}.ffn_norm.weight", (layer, 1), gradient, copy)
            d_merged = linear_back(layer, 1, buffer((layer, "attended"), rows, heads * size), copy, "d merged")
            many = heads // kv_heads * tokens
            d_split = buffer("split", batch * kv_heads, many, size)
            kernel("tf_merge_heads", d_merged, d_split, 1, batch, tokens, heads, size)
            q, k, v = (buffer((layer, name), batch * kv_heads, count, size)
                       for name, count in (("q", many), ("k", tokens), ("v", tokens)))
            weights = buffer((layer, "scores"), batch * kv_heads, many, tokens)
            d_v = torch.bmm(weights.transpose(1, 2), d_split, out=buffer("d v", *v.shape))
            d_scores = torch.bmm(d_split, v.transpose(1, 2), out=buffer("d scores", *weights.shape))
            kernel("tf_softmax_back", weights, d_scores, batch * heads * tokens, tokens)
            d_q = torch.bmm(d_scores, k, out=buffer("d q", *q.shape))
            d_k = torch.bmm(d_scores.transpose(1, 2), q, out=buffer("d k", *k.shape))
            d_qkv = buffer("qkv", rows, (heads + 2 * kv_heads) * size)
            kernel("tf_split_heads_back", d_q, d_k, d_v, cos, sin, size ** -0.5, d_qkv, batch, tokens, heads, kv_heads, size)
            d_norm = linear_back(layer, 0, buffer(((layer, 0), "norm"), rows, width), d_qkv, "d norm")
            self._norm_back(d_norm, f"blk.{layer}.attn_norm.weight", (layer, 0), gradient, copy)
        return gradient.view(batch, tokens, width), [one for _, group in sorted(results.items()) for one in group]

    def _factors_back(self, x: torch.Tensor, g: torch.Tensor, layer: int, group: int) -> list[torch.Tensor]:
        """f32 gradients of a group's A and B, from its input x [rows, in] and its output's gradient g [rows, out]."""
        down, up = self.model.packed[layer][group]
        narrow, wide = x @ down.t(), g @ up
        d_down, d_up = wide.t() @ x, narrow.t() @ g
        return self.model.unpack(d_down, d_up, layer, group)


class _Function(torch.autograd.Function):
    """Pass to autograd."""

    @staticmethod
    def forward(ctx, x, runner, positions, mask, *factors):
        """See Pass.forward."""
        ctx.runner = runner
        out = runner.forward(x.detach(), positions, mask)
        ctx.number = runner.number
        return out.clone()

    @staticmethod
    def backward(ctx, output):
        """See Pass.backward."""
        assert ctx.number == ctx.runner.number, "a later pass has taken this one's buffers"
        gradient, results = ctx.runner.backward(output)
        return gradient.clone(), None, None, None, *results


class CrossEntropy(torch.autograd.Function):
    """Sum over rows of weight x cross-entropy of hidden @ head^T against targets; the logits exist once, in bf16."""

    @staticmethod
    def forward(ctx, hidden, head, targets, weights, smoothing, runner):
        """hidden [rows, width] bf16, head [vocabulary, width] bf16, targets int64 [rows], weights f32 [rows] -> f32."""
        rows, width = hidden.shape[0], head.shape[0]
        logits = torch.mm(hidden, head.t(), out=runner.buffer("logits", rows, width))
        losses = torch.empty(rows)
        runner.kernel("tf_cross_entropy", logits, targets, weights, float(smoothing), losses, rows, width)
        ctx.gradient = logits @ head
        return (losses * weights).sum()

    @staticmethod
    def backward(ctx, output):
        """The gradient was made on the way; output is nearly always 1."""
        return ctx.gradient * output.to(ctx.gradient.dtype), None, None, None, None, None
