"""The real programs, as a deployment starts them: redis-server, router, encoder, LLM on one machine.

In: the build folder, the model, options. Out: jobs measured by bench/jobs.c; start-up time and memory of each process.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from pathlib import Path

from driver import environment_without_tokenflex, resident_mb

READY_SECONDS_MAX = 60
QUEUE = "bench"


class Stack:
    """Processes with a folder of their own; a context manager that ends them."""

    def __init__(self, build: Path, model: Path, sequences: int = 8, batch: int = 4, workers: int = 1, threads: int = 0,
                 stub: Path | None = None, cache: Path | None = None) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="tokenflex-bench-")
        self.build, self.path = build, Path(self.folder.name)
        self.url = f"unix://{self.path}/redis.sock"
        self.processes: dict[str, subprocess.Popen] = {}
        self.started_s = 0.0
        router = f"ipc://{self.path}/router.sock"
        start = time.monotonic()
        self.start("redis-server", ["redis-server", "--port", "0", "--unixsocket", f"{self.path}/redis.sock", "--dir", str(self.path),
                                    "--save", "", "--appendonly", "yes", "--appendfsync", "everysec"])
        self.wait(lambda: self.redis("ping") == "PONG")
        self.start("router", [build / "tokenflex-router", "--redis", self.url, "--queue", QUEUE, "--bind", router, "--health", "off"])
        common = ["--model", model, "--routers", router, "--threads", threads, "--health", "off", "--cache-dir", cache or "off"]
        if stub:
            self.start("stub tiers", [stub, router, "stub", "0123456789abcdef0123456789abcdef", "4096"])
        for i in range(0 if stub else workers):
            self.start(f"encoder {i}", [build / "tokenflex-encoder", *common, "--batch", batch, "--allow-dir", "/",
                                        "--feature-cache-mib", "0"])  # the same photos come again: they are to be encoded
            self.start(f"llm {i}", [build / "tokenflex-llm", *common, "--sequences", sequences,
                                    "--tensor-bind", f"ipc://{self.path}/llm{i}.sock"])
        self.wait(lambda: self.redis("hget", f"tf:{{{QUEUE}}}:model", "token_counts") != "")
        self.started_s = time.monotonic() - start

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self.processes.values()):
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.folder.cleanup()

    def start(self, name: str, command: list[object]) -> None:
        """A process of the stack; its log goes to the folder."""
        with open(self.path / f"{name}.log", "w") as log:
            self.processes[name] = subprocess.Popen([str(word) for word in command], stdout=log, stderr=log,
                                                    env=environment_without_tokenflex())

    def redis(self, *words: str) -> str:
        """An answer of Redis as text; empty where it is not up."""
        done = subprocess.run(["redis-cli", "-s", f"{self.path}/redis.sock", *words], capture_output=True, text=True, timeout=10)
        return done.stdout.strip() if done.returncode == 0 else ""

    def wait(self, ready: object) -> None:
        """Polls until ready, with a bound."""
        until = time.monotonic() + READY_SECONDS_MAX
        while not ready():
            ended = [name for name, process in self.processes.items() if process.poll() is not None]
            if ended or time.monotonic() > until:
                log = (self.path / f"{(ended or ['router'])[0]}.log").read_text()[-2000:]
                raise SystemExit(f"bench: the stack does not come up ({', '.join(ended) or 'time is over'}):\n{log}")
            time.sleep(0.02)

    def jobs(self, tokens: int, new: int, count: int, outstanding: int, files: list[str]) -> dict:
        """Captions a second of `count` jobs."""
        return self.client("jobs", self.url, QUEUE, tokens, new, count, outstanding, *files)

    def streams(self, count: int) -> dict:
        """As many entries through bare streams of the same Redis."""
        return self.client("streams", self.url, count)

    def client(self, *words: object) -> dict:
        """Runs bench/jobs.c."""
        done = subprocess.run([str(word) for word in (self.build / "bench/jobs", *words)], capture_output=True, text=True, timeout=600)
        if done.returncode:
            raise SystemExit("bench: " + done.stderr + "".join(p.read_text()[-400:] for p in self.path.glob("*.log")))
        return json.loads(done.stdout)

    def cpu_s(self, name: str) -> float:
        """User and system time of a process so far."""
        fields = Path(f"/proc/{self.processes[name].pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def memory_mb(self) -> dict[str, float]:
        """Resident memory by process."""
        return {name: resident_mb(process.pid) for name, process in self.processes.items()}
