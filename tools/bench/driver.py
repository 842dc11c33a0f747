"""Alternation and statistics: contestants take turns, A B A B, and medians are compared.

In: programs that answer commands with {"units", "ms"} (bench/ours.c, peer_*.py). Out: numbers with their spread.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

COMMAND_SECONDS_MAX = 300


class Program:
    """A program that measures on demand; started at its first command, kept until close_all."""

    running: list[Program] = []

    def __init__(self, name: str, command: list[str]) -> None:
        self.name, self.command = name, command
        self.process: subprocess.Popen[str] | None = None

    def ask(self, *words: object) -> dict:
        """One command's answer."""
        if self.process is None:
            self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            Program.running.append(self)
            self.errors: list[str] = []
            threading.Thread(target=lambda: self.errors.extend(self.process.stderr), daemon=True).start()
        timer = threading.Timer(COMMAND_SECONDS_MAX, self.process.kill)
        timer.start()
        try:
            self.process.stdin.write(" ".join(str(word) for word in words) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            raise SystemExit(f"bench: {self.name} ended at '{' '.join(map(str, words))}':\n" + "".join(self.errors[-8:]))
        return json.loads(line)

    def resident_mb(self) -> float:
        """What it holds now."""
        return resident_mb(self.process.pid) if self.process else 0

    @classmethod
    def close_all(cls) -> None:
        """Ends them."""
        for program in cls.running:
            program.process.stdin.close()
            try:
                program.process.wait(30)
            except subprocess.TimeoutExpired:
                program.process.kill()
            program.process = None
        cls.running.clear()


def resident_mb(pid: int) -> float:
    """Resident memory of a process."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmRSS"))


@dataclass
class Contestant:
    """Somebody who does a piece of work; `measure` gives one number of a round."""

    name: str
    measure: Callable[[], float]
    ours: bool = False
    detail: str = ""  # said beside it: a cosine, a setting
    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Over the rounds."""
        return statistics.median(self.values)

    def row(self) -> dict:
        """For the tables."""
        return {"name": self.name, "value": self.median, "low": min(self.values), "high": max(self.values), "detail": self.detail}


def alternate(contestants: list[Contestant], rounds: int) -> None:
    """Every round asks everybody once; the order turns about, so that drift hits both sides alike."""
    for turn in range(rounds):
        for one in contestants if turn % 2 == 0 else contestants[::-1]:
            one.values.append(one.measure())


def compare(name: str, unit: str, contestants: list[Contestant], rounds: int, higher_is_better: bool) -> dict:
    """One result: the best of ours against the best of the others, everybody's numbers beside it."""
    alternate(contestants, rounds)
    pick = max if higher_is_better else min
    ours = pick((one for one in contestants if one.ours), key=lambda one: one.median)
    peer = pick((one for one in contestants if not one.ours), key=lambda one: one.median)
    return result(name, unit, ours, peer, contestants, higher_is_better)


def result(name: str, unit: str, ours: Contestant, peer: Contestant, everybody: list[Contestant], higher_is_better: bool) -> dict:
    """An entry of results.json. ratio > 1: ours is the faster one."""
    ratios = [a / b if higher_is_better else b / a for a, b in zip(ours.values, peer.values)]
    ratio = ours.median / peer.median if higher_is_better else peer.median / ours.median
    print(f"{name:34} {ours.median:10.2f} {peer.median:10.2f} {unit:12} {ratio:6.2f}  {peer.name}", file=sys.stderr, flush=True)
    return {"name": name, "ours": round(ours.median, 4), "peer": round(peer.median, 4), "peer_name": peer.name, "unit": unit,
            "ratio": round(ratio, 4), "ratio_low": round(min(ratios), 4), "ratio_high": round(max(ratios), 4),
            "rounds": len(ratios), "ours_name": ours.name, "contestants": [one.row() for one in everybody]}


def alone(name: str, unit: str, value: float) -> dict:
    """An entry of results.json that no peer stands beside: a property of ours."""
    print(f"{name:34} {value:10.2f} {'':10} {unit:12}", file=sys.stderr, flush=True)
    return {"name": name, "ours": round(value, 4), "peer": None, "peer_name": "", "unit": unit, "ratio": None, "rounds": 1, "contestants": []}


def environment_without_tokenflex() -> dict[str, str]:
    """The user's settings must not change what is measured, but for kernels chosen on purpose."""
    kept = {"TOKENFLEX_COMPUTE", "TOKENFLEX_CPU"}
    return {key: value for key, value in os.environ.items() if not key.startswith("TOKENFLEX_") or key in kept}
