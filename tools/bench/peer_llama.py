"""The LLM, and the whole pair, by llama.cpp through llama-cpp-python's C bindings.

Usage: peer_llama.py GGUF [MMPROJ]    Commands: `prefill TOKENS CALLS`, `decode SEQUENCES TOKENS STEPS`, `answers TOKENS
SEQUENCES NEW CALLS`, and with MMPROJ `pictures FILE CALLS` (encoding alone, through mtmd).
TOKENS counts the whole prompt: random ids, drawn anew each time; the memory is cleared before.
"""

from __future__ import annotations

import ctypes
import sys
import time

from common import Samples, serve

import llama_cpp as api
import numpy as np
from llama_cpp import mtmd_cpp as mtmd

CORES = 2
SEQUENCES_MAX = 32
CONTEXT_TOKENS = 16384
BATCH_TOKENS = 8192
MICRO_BATCH_TOKENS = 512


@api.llama_log_callback
def quiet(_level: int, _text: bytes, _data: object) -> None:
    """llama.cpp's log is dropped."""


class Peer:
    """A model and a context; greedy choice by numpy, as its cost is the same anywhere."""

    def __init__(self, path: str) -> None:
        api.llama_log_set(quiet, ctypes.c_void_p(0))
        api.llama_backend_init()
        self.model = api.llama_model_load_from_file(path.encode(), api.llama_model_default_params())
        assert self.model, path
        settings = api.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = CONTEXT_TOKENS, BATCH_TOKENS, MICRO_BATCH_TOKENS
        settings.n_seq_max, settings.kv_unified = SEQUENCES_MAX, True
        settings.n_threads = settings.n_threads_batch = CORES
        self.context = api.llama_init_from_model(self.model, settings)
        assert self.context
        self.memory = api.llama_get_memory(self.context)
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.batch = api.llama_batch_init(BATCH_TOKENS, 0, 1)
        self.random = np.random.default_rng(1)

    def fill(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """rows: token, position, sequence, whether its logits are wanted."""
        for i, (token, position, sequence, wanted) in enumerate(rows):
            self.batch.token[i], self.batch.pos[i] = token, position
            self.batch.n_seq_id[i], self.batch.seq_id[i][0], self.batch.logits[i] = 1, sequence, wanted
        self.batch.n_tokens = len(rows)

    def run(self) -> None:
        """One batch through the model."""
        assert api.llama_decode(self.context, self.batch) == 0

    def choose(self, row: int) -> int:
        """The likeliest next token of a row of the batch."""
        logits = np.ctypeslib.as_array(api.llama_get_logits_ith(self.context, row), (self.vocabulary,))
        return int(logits.argmax())

    def prompts(self, tokens: int, sequences: int) -> list[int]:
        """Fills the emptied memory with random prompts, all in one batch; each one's first token."""
        api.llama_memory_clear(self.memory, True)
        ids = self.random.integers(1000, 40000, (sequences, tokens))
        chosen = []
        each = max(1, BATCH_TOKENS // tokens)
        for first in range(0, sequences, each):
            group = range(first, min(first + each, sequences))
            self.fill([(int(ids[s, p]), p, s, p + 1 == tokens) for s in group for p in range(tokens)])
            self.run()
            chosen += [self.choose((i + 1) * tokens - 1) for i in range(len(group))]
        return chosen

    def step(self, last: list[int], position: int) -> list[int]:
        """One more token of every sequence."""
        self.fill([(token, position, sequence, True) for sequence, token in enumerate(last)])
        self.run()
        return [self.choose(row) for row in range(len(last))]

    def prefill(self, tokens: str, calls: str) -> Samples:
        """To the first new token."""
        return self.answers(tokens, "1", "1", calls)

    def decode(self, sequences: str, tokens: str, steps: str) -> Samples:
        """Steps of all sequences."""
        last, times = self.prompts(int(tokens), int(sequences)), []
        for i in range(int(steps) + 1):
            start = time.perf_counter()
            last = self.step(last, int(tokens) + i)
            times.append((time.perf_counter() - start) * 1000)
        return {"units": int(sequences), "ms": times[1:]}

    def answers(self, tokens: str, sequences: str, new: str, calls: str) -> Samples:
        """All of them from beginning to end."""
        times = []
        for _ in range(int(calls)):
            start = time.perf_counter()
            last = self.prompts(int(tokens), int(sequences))
            for i in range(int(new) - 1):
                last = self.step(last, int(tokens) + i)
            times.append((time.perf_counter() - start) * 1000)
        return {"units": int(sequences), "ms": times}


class Pictures:
    """llama.cpp's vision encoder with a projector of equal shape."""

    def __init__(self, peer: Peer, path: str) -> None:
        settings = mtmd.mtmd_context_params_default()
        settings.use_gpu, settings.n_threads, settings.print_timings = False, CORES, False
        settings.warmup = True
        mtmd.mtmd_log_set(quiet, ctypes.c_void_p(0))
        mtmd.mtmd_helper_log_set(quiet, ctypes.c_void_p(0))
        self.context = mtmd.mtmd_init_from_file(path.encode(), peer.model, settings)
        assert self.context, path

    def pictures(self, path: str, calls: str) -> Samples:
        """File to projected tokens."""
        times, tokens = [], 0
        for _ in range(int(calls) + 1):
            start = time.perf_counter()
            bitmap = mtmd.mtmd_helper_bitmap_init_from_file(self.context, path.encode(), False)
            marker = mtmd.mtmd_default_marker()
            text = mtmd.mtmd_input_text(marker, len(marker), False, True)
            chunks = mtmd.mtmd_input_chunks_init()
            images = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
            assert mtmd.mtmd_tokenize(self.context, chunks, ctypes.byref(text), images, 1) == 0
            tokens = 0
            for i in range(mtmd.mtmd_input_chunks_size(chunks)):
                chunk = mtmd.mtmd_input_chunks_get(chunks, i)
                if mtmd.mtmd_input_chunk_get_type(chunk) == mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE:
                    assert mtmd.mtmd_encode_chunk(self.context, chunk) == 0
                    tokens += mtmd.mtmd_input_chunk_get_n_tokens(chunk)
            times.append((time.perf_counter() - start) * 1000)
            mtmd.mtmd_input_chunks_free(chunks)
            mtmd.mtmd_bitmap_free(bitmap)
        return {"units": 1, "ms": times[1:], "tokens": tokens}


def main() -> None:
    """GGUF [MMPROJ]"""
    peer = Peer(sys.argv[1])
    commands = {"prefill": peer.prefill, "decode": peer.decode, "answers": peer.answers}
    if len(sys.argv) > 2:
        commands["pictures"] = Pictures(peer, sys.argv[2]).pictures
    serve(commands)


if __name__ == "__main__":
    main()
