"""What the bench makes of perf's samples. In: a folder, tools/bench in PYTHONPATH. Out: "ok WHAT" or "FAILED WHAT" a check.

perf itself is a script in the folder: it records nothing and says what a check wants it to say.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cpu_profile
from cpu_profile import ATTENTION, HERTZ, KERNEL, MESSAGES, PRODUCTS, REDIS, ROUTER, Sampler, Unusable

NAMES = {10: "encoder 0", 11: "llm 0", 12: "router", 13: "redis-server"}
OBJECTS = {"multiply": {"tensor/kernel_amx.c"}, "score": {"tensor/attention_avx2.c"}, "both": {"tensor/kernel_amx.c", "llm-svc/main.c"}}
SAMPLES = """
     10     55d0c0ffee multiply.constprop.0 (/opt/bin/tokenflex-encoder)
     11     55d0c0ffee multiply (/opt/bin/tokenflex-llm)
     11     55d0c0ffee score (/opt/bin/tokenflex-llm)
     11     55d0c0ffee both (/opt/bin/tokenflex-llm)
     11   7f00c0ffee [unknown] (/usr/lib/libzmq.so.5)
     12   55d0c0ffee dictFind (/opt/bin/tokenflex-router)
     13   55d0c0ffee dictFind (/usr/bin/redis-server)
     13  ffffffff810 do syscall 64 ([kernel.kallsyms])
"""
EXPECTED = {PRODUCTS: 2, ATTENTION: 1, MESSAGES: 2, ROUTER: 1, REDIS: 1, KERNEL: 1}
SPENT_S = 8 / HERTZ


def sampler(folder: Path) -> Sampler:
    """One that knows three functions."""
    one = Sampler(folder)  # no objects there
    one.objects = OBJECTS
    return one


def reason(work: Callable[[], object]) -> str:
    """Why a profile is unusable; empty: it is not."""
    try:
        work()
    except Unusable as error:
        return str(error)
    return ""


def counts(folder: Path) -> None:
    """Lines to groups to the share outside."""
    samples = sampler(folder).count(SAMPLES, NAMES)
    assert (samples.lines, samples.matched) == (8, 8)
    assert {group: round(seconds * HERTZ) for group, seconds in samples.seconds.items()} == EXPECTED
    assert abs(cpu_profile.outside(samples.checked(SPENT_S)) - 5 / 8) < 1e-9
    table = cpu_profile.table_of({64: (4, samples.seconds)})
    assert [PRODUCTS, "1.00", "25.0%"] in table["rows"] and table["rows"][-1][2] == "62.5%", table


def unusable(folder: Path) -> None:
    """No samples, too few of the lines, too little of the time."""
    one = sampler(folder)
    for text in ("", "\n", "  99 55d0c0ffee multiply (/opt/bin/tokenflex-llm)\n", "perf: no data\n"):
        assert "no samples" in reason(lambda text=text: one.count(text, NAMES).checked(0)), text
    assert reason(lambda: one.count(SAMPLES + "warning\n" * 2, NAMES).checked(SPENT_S)) == ""
    assert "8 of 11 lines" in reason(lambda: one.count(SAMPLES + "warning\n" * 3, NAMES).checked(SPENT_S))
    assert reason(lambda: one.count(SAMPLES, NAMES).checked(2 * SPENT_S)) == ""
    assert "CPU seconds" in reason(lambda: one.count(SAMPLES, NAMES).checked(2.1 * SPENT_S))


def profile(folder: Path, record: str, script: str, spent_s: float = SPENT_S) -> tuple[str, Counter[str], int]:
    """A profile by a perf of these two shell lines: why it is none, or its seconds; and how often the work was done."""
    (folder / "perf").write_text(f"#!/bin/sh\nif [ $1 = record ]; then\n{record}\nelse\n{script}\nfi\n")
    (folder / "perf").chmod(0o755)
    done, seconds, accounts = [], Counter(), iter((1.0, 1.0 + spent_s))
    why = reason(lambda: seconds.update(sampler(folder).sample({name: pid for pid, name in NAMES.items()}, lambda: done.append(1),
                                                               lambda: next(accounts))))
    return why, seconds, len(done)


WAITS = "trap 'trap - INT; kill -INT $$' INT; while :; do sleep 0.05; done"  # as perf ends by a SIGINT


def recorded(folder: Path) -> None:
    """From perf to seconds."""
    (folder / "samples").write_text(SAMPLES)
    why, seconds, done = profile(folder, WAITS, f"cat {folder}/samples")
    assert why == "" and done == 1 and round(seconds.total() * HERTZ) == 8, (why, seconds)
    why, seconds, done = profile(folder, WAITS, f"cat {folder}/samples", 1.0)
    assert "CPU seconds" in why and not seconds, why


def failing(folder: Path) -> None:
    """perf that ends early, badly, or never."""
    why, _, done = profile(folder, "echo not allowed >&2; exit 255", "true")
    assert "255: not allowed" in why and done == 0, why
    why, _, done = profile(folder, "exit 0", f"cat {folder}/samples")
    assert "ended with 0" in why and done == 0, why
    why, _, done = profile(folder, "trap 'echo disk full >&2; exit 3' INT; while :; do sleep 0.05; done", f"cat {folder}/samples")
    assert "3: disk full" in why and done == 1, why
    why, _, _ = profile(folder, WAITS, "echo torn >&2; exit 1")
    assert "perf script ended with 1: torn" in why, why
    cpu_profile.PERF_SECONDS_MAX = 1
    why, _, _ = profile(folder, "trap '' INT; exec sleep 60", f"cat {folder}/samples")
    assert "ended with -9" in why, why


def main() -> None:
    """FOLDER"""
    folder = Path(sys.argv[1])
    cpu_profile.ATTACH_S = 0.3
    os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"
    for what, check in (("samples go to their groups", counts), ("what says nothing is no profile", unusable),
                        ("perf's samples become seconds", recorded), ("a perf that fails leaves no profile", failing)):
        try:
            check(folder)
            print(f"ok {what}", flush=True)
        except Exception as error:  # told as a failure, with its place
            place = traceback.extract_tb(error.__traceback__)[1].line
            print(f"FAILED {what}: {error!r} at {place}", flush=True)


if __name__ == "__main__":
    main()
