"""The LLM by OpenVINO GenAI: continuous batching on the same GGUF file.

Usage: peer_genai.py GGUF    Commands: `prefill TOKENS CALLS`, `decode SEQUENCES TOKENS STEPS`, `answers TOKENS SEQUENCES
NEW CALLS`. TOKENS counts the whole prompt: random ids, drawn anew each time; its prefix cache is off.
"""

from __future__ import annotations

import itertools
import json
import sys
import time

from common import Samples, serve

import numpy as np
import openvino as ov
import openvino_genai as genai

SEQUENCES_MAX = 32
CACHE_GB = 2


class Peer:
    """One pipeline; requests are added at once, then stepped."""

    def __init__(self, path: str, properties: dict[str, object]) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.max_num_seqs = SEQUENCES_MAX
        scheduler.cache_size = CACHE_GB
        scheduler.enable_prefix_caching = False
        scheduler.max_num_batched_tokens = 4096
        self.pipeline = genai.ContinuousBatchingPipeline(path, scheduler, "CPU", properties)
        self.random = np.random.default_rng(1)
        self.number = itertools.count()

    def add(self, tokens: int, sequences: int, new: int) -> None:
        """Requests of `tokens` random ids each, greedy, end of text ignored."""
        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = new, True, False
        self.handles = [self.pipeline.add_request(next(self.number), ov.Tensor(self.random.integers(1000, 40000, (1, tokens))), config)
                        for _ in range(sequences)]

    def steps(self) -> list[float]:
        """Milliseconds of each step until nothing is left to do."""
        times = []
        while self.pipeline.has_non_finished_requests():
            start = time.perf_counter()
            self.pipeline.step()
            times.append((time.perf_counter() - start) * 1000)
        return times

    def prefill(self, tokens: str, calls: str) -> Samples:
        """To the first new token."""
        return self.answers(tokens, "1", "1", calls)

    def decode(self, sequences: str, tokens: str, steps: str) -> Samples:
        """The last STEPS - 1 steps are decoding alone."""
        self.add(int(tokens), int(sequences), int(steps) + 1)
        times = self.steps()
        # The first and the last are left out: prompts may take two steps, and the last step is the shorter one.
        return {"units": int(sequences), "ms": times[-int(steps):-1]}

    def answers(self, tokens: str, sequences: str, new: str, calls: str) -> Samples:
        """All of them from beginning to end."""
        milliseconds = []
        for _ in range(int(calls)):
            self.add(int(tokens), int(sequences), int(new))
            milliseconds.append(sum(self.steps()))
            for handle in self.handles:
                assert len(handle.read_all()[0].generated_ids) == int(new)
        return {"units": int(sequences), "ms": milliseconds}


def main() -> None:
    """GGUF [PROPERTIES as JSON]"""
    peer = Peer(sys.argv[1], json.loads(sys.argv[2]) if len(sys.argv) > 2 else {})
    serve({"prefill": peer.prefill, "decode": peer.decode, "answers": peer.answers})


if __name__ == "__main__":
    main()
