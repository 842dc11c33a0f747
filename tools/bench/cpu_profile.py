"""Where a job's CPU time goes, by what the functions do: sampled by perf over the processes of the real stack.

In: a running Stack, work that it does meanwhile, the build's objects (which function lies in which file). Out: CPU seconds by
group. Needs Debian's linux-perf and the right to sample; without either `Sampler.missing` says so. A profile that can not be
trusted is none: `Unusable` says why.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

HERTZ = 499  # no multiple of the scheduler's ticks
PERF_SECONDS_MAX = 120
ATTACH_S = 1  # until perf is there; the idle stack spends next to nothing meanwhile
INTERRUPTED = (0, -signal.SIGINT, 128 + signal.SIGINT)  # perf's ends of a recording that SIGINT stopped
COMPLAINT_MAX = 300
MATCHED_MIN, SAMPLED_MIN = 0.8, 0.5  # of the lines; of the CPU time that the processes' own accounts have

PRODUCTS, EPILOGUES, ATTENTION = "products of the linears", "their epilogues, in the tile", "attention: both products"
SOFTMAX, ROWS, NORMS = "attention: soft maximum", "rows to int8 or bf16 and back", "norms, RoPE, copies, choice of words"
THREADS, PICTURES, MESSAGES = "threads: handing out, waiting", "JPEG and resizing", "ZeroMQ, protobuf, service"
ROUTER, REDIS, KERNEL = "router", "Redis", "kernel, on behalf of all"
MATRIX = (PRODUCTS, EPILOGUES, ATTENTION)
GROUPS = (*MATRIX, SOFTMAX, ROWS, NORMS, THREADS, PICTURES, MESSAGES, ROUTER, REDIS, KERNEL)

# First match wins: a pattern for the file and one for the function.
FUNCTIONS = [(re.compile(file), re.compile(function), group) for file, function, group in (
    (r"tensor/kernel_", r"tf_convert_", ROWS),
    (r"tensor/kernel_", r"finish", EPILOGUES),
    (r"tensor/(kernel_|linear\.c|blas\.c)", r"", PRODUCTS),
    (r"tensor/attention", r"absorb|softmax", SOFTMAX),
    (r"tensor/attention", r"round|pack|store|convert|to_bf16|divide", ROWS),
    (r"tensor/attention", r"", ATTENTION),
    (r"tensor/rows\.c", r"", ROWS),
    (r"tensor/parallel\.c", r"", THREADS),
    (r"tensor/ops\.c", r"softmax", SOFTMAX),
    (r"image/|encoder-svc/(preprocess|fetch)\.c", r"", PICTURES),
    (r"tensor/|(llm|encoder)-svc/(model|kv|sampler|engine|vit|pool|projector|positions|encoder|feature_cache)\.c", r"", NORMS))]
LIBRARIES = ((re.compile(r"openblas"), PRODUCTS), (re.compile(r"jpeg|png|webp|heif|tiff|gif"), PICTURES), (re.compile(r"libc\.|libm\."), NORMS))


def plain(function: str) -> str:
    """Its name without what the compiler hung on to it."""
    return re.sub(r"\.(constprop|isra|part|cold|avx2|default|resolver)\b.*", "", function)


def objects_of(build: Path) -> dict[str, set[str]]:
    """The object files that define a function: {function: {path without .o}}; of statics there may be several."""
    found: dict[str, set[str]] = {}
    for path in (build / "obj").rglob("*.o"):
        done = subprocess.run(["nm", "--defined-only", str(path)], capture_output=True, text=True, check=False)
        for line in done.stdout.splitlines():
            words = line.split()
            if len(words) == 3 and words[1] in "tTi":
                found.setdefault(plain(words[2]), set()).add(str(path.relative_to(build / "obj"))[:-2] + ".c")
    return found


def group_of(process: str, library: str, function: str, objects: dict[str, set[str]]) -> str:
    """What a sample was busy with."""
    if library.startswith("[") or library.endswith(".ko"):
        return KERNEL
    if process.startswith("redis"):
        return REDIS
    if process == "router":
        return ROUTER
    if "tokenflex" not in library:
        return next((group for pattern, group in LIBRARIES if pattern.search(library)), MESSAGES)
    part = "encoder-svc/" if process.startswith("encoder") else "llm-svc/"
    files = {file for file in objects.get(function, ()) if file.startswith((part, "tensor/", "image/", "common/", "proto/", "gen/"))}
    groups = {next((group for at, name, group in FUNCTIONS if at.search(file) and name.search(function)), MESSAGES) for file in files}
    # A name that several files have as a static function: the group that claims least for the matrix kernels.
    return max(groups, key=GROUPS.index) if groups else MESSAGES


class Unusable(Exception):
    """Why a profile says nothing."""


class Samples(NamedTuple):
    """What perf said, and how much of it was understood."""

    seconds: Counter[str]
    lines: int
    matched: int

    def checked(self, spent_s: float) -> Counter[str]:
        """CPU seconds by group, if they can be all: spent_s is what the processes did spend."""
        if self.matched == 0:
            raise Unusable(f"no samples of the processes in {self.lines} lines of perf")
        if self.matched < MATCHED_MIN * self.lines:
            raise Unusable(f"only {self.matched} of {self.lines} lines of perf are samples of the processes")
        if self.seconds.total() < SAMPLED_MIN * spent_s:
            raise Unusable(f"samples of {self.seconds.total():.2f} CPU seconds, where the processes spent {spent_s:.2f}")
        return self.seconds


class Sampler:
    """perf over some processes while they work."""

    def __init__(self, build: Path) -> None:
        self.objects = objects_of(build)

    @staticmethod
    def missing() -> str:
        """Why nothing can be sampled here; empty: it can."""
        if shutil.which("perf") is None:
            return "perf is missing (Debian: linux-perf)"
        with tempfile.NamedTemporaryFile(prefix="tokenflex-perf-") as file:
            command = ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(HERTZ), "-o", file.name, "--", "true"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=PERF_SECONDS_MAX, check=False)
        return "" if done.returncode == 0 else f"perf can not sample here: {complaint(done.stderr)}"

    def sample(self, processes: dict[str, int], work: Callable[[], object], spent: Callable[[], float]) -> Counter[str]:
        """CPU seconds by group that the processes ({name: pid}) spent while `work` ran; spent: what they say they spent so far."""
        names = {pid: name for name, pid in processes.items()}
        with tempfile.NamedTemporaryFile(prefix="tokenflex-perf-") as file, tempfile.TemporaryFile("w+") as complaints:
            command = ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(HERTZ), "-o", file.name, "-p", ",".join(map(str, names))]
            perf = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=complaints)
            try:
                time.sleep(ATTACH_S)
                before = spent()
                if perf.poll() is None:
                    work()
                spent_s, early = spent() - before, perf.poll() is not None
            finally:
                status = stop(perf)
            if early or status not in INTERRUPTED:
                complaints.seek(0)
                raise Unusable(f"perf ended with {status}: {complaint(complaints.read())}")
            script = ["perf", "script", "-i", file.name, "-F", "pid,ip,sym,dso"]
            try:
                done = subprocess.run(script, capture_output=True, text=True, timeout=PERF_SECONDS_MAX, check=False)
            except subprocess.TimeoutExpired as error:
                raise Unusable(f"perf script did not end in {PERF_SECONDS_MAX} s") from error
            if done.returncode:
                raise Unusable(f"perf script ended with {done.returncode}: {complaint(done.stderr)}")
        return self.count(done.stdout, names).checked(spent_s)

    def count(self, text: str, names: dict[int, str]) -> Samples:
        """Lines of `perf script`: PID ADDRESS FUNCTION (LIBRARY)."""
        seconds: Counter[str] = Counter()
        lines, matched = [line for line in text.splitlines() if line.strip()], 0
        for line in lines:
            match = re.match(r"\s*(\d+)\s+[0-9a-f]+\s+(.*?)\s+\((.*)\)$", line)
            if match and int(match[1]) in names:
                seconds[group_of(names[int(match[1])], match[3], plain(match[2]), self.objects)] += 1 / HERTZ
                matched += 1
        return Samples(seconds, len(lines), matched)


def stop(perf: subprocess.Popen) -> int:
    """Ends a recording, so that its file is whole; its exit status."""
    perf.send_signal(signal.SIGINT)
    try:
        return perf.wait(PERF_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        perf.kill()
        return perf.wait()


def complaint(text: str) -> str:
    """What a program said on stderr, in one line."""
    return " ".join(text.split())[:COMPLAINT_MAX] or "no reason given"


def outside(seconds: Counter[str]) -> float:
    """The share of all (of which there is some) that is not in the matrix kernels."""
    return sum(seconds[group] for group in GROUPS if group not in MATRIX) / seconds.total()


def table_of(counts: dict[int, tuple[int, Counter[str]]]) -> dict:
    """A row a group, for {tokens: (jobs, CPU seconds)}: milliseconds of a job and their share."""
    header = ["where"] + [text for tokens in counts for text in (f"ms a job at {tokens}", "share")]
    rows = []

    def add(name: str, groups: tuple[str, ...]) -> None:
        row = [name]
        for jobs, seconds in counts.values():
            spent = sum(seconds[group] for group in groups)
            row += [f"{spent / jobs * 1000:.2f}", f"{spent / seconds.total() * 100:.1f}%"]
        rows.append(row)

    for group in GROUPS:
        add(group, (group,))
    add("**all but the first three**", tuple(group for group in GROUPS if group not in MATRIX))
    return {"title": "CPU time of a job by what it is spent on, photos of 224 x 224", "header": header, "rows": rows}
