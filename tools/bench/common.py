"""What the peers' programs share: commands on stdin, a JSON line each on stdout, as bench/ours.c has it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

Samples = dict[str, object]


def serve(commands: dict[str, Callable[..., Samples]]) -> None:
    """Answers every line of stdin: a command and its arguments."""
    for line in sys.stdin:
        name, *words = line.split()
        answer = commands[name](*words)
        print(json.dumps(answer), file=REPLY, flush=True)


def milliseconds(work: Callable[[], object], calls: int) -> list[float]:
    """Time of each call."""
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) * 1000)
    return times


def keep_stdout() -> object:
    """Libraries that write to stdout write to stderr from now on; the true stdout is for answers."""
    import os

    true = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return true


REPLY = keep_stdout()
