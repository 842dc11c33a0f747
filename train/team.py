"""Data-parallel training on one machine: worker processes that share one buffer of gradients.

In: a function for each worker. Out: the mean of all workers' gradients, the same in each.

Two processes of one thread each lose less to other programs on the machine than one process of two threads: they meet
once a step instead of at every matrix product. Waiting sleeps; no sockets are used.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any, Callable

import torch
import torch.multiprocessing as mp

WAIT_S_MAX = 1800


class Team:
    """One worker's view: `rank` of `size`, gradients averaged by `average`, leader's numbers spread by `share`."""

    def __init__(self, rank: int, size: int, gradients: torch.Tensor, numbers: torch.Tensor, barrier: Any):
        self.rank, self.size = rank, size
        self._gradients, self._numbers, self._barrier = gradients, numbers, barrier

    def _meet(self) -> None:
        if self.size > 1:
            self._barrier.wait(WAIT_S_MAX)

    def average(self, tensors: list[torch.Tensor]) -> None:
        """Replaces each tensor's .grad by the mean over the workers; a missing gradient counts as zero."""
        if self.size == 1:
            return
        flat = torch.cat([(torch.zeros_like(t) if t.grad is None else t.grad).reshape(-1) for t in tensors])
        self._gradients[self.rank, :flat.numel()] = flat
        self._meet()
        mean = self._gradients[:, :flat.numel()].mean(0)
        self._meet()
        for tensor, part in zip(tensors, mean.split([t.numel() for t in tensors])):
            tensor.grad = part.view_as(tensor)

    def share(self, numbers: list[float]) -> list[float]:
        """The leader's numbers, for all."""
        if self.size == 1:
            return numbers
        if self.rank == 0:
            self._numbers[:len(numbers)] = torch.tensor(numbers, dtype=torch.float64)
        self._meet()
        result = self._numbers[:len(numbers)].tolist()
        self._meet()
        return result


def _worker(rank: int, size: int, threads: int, gradients: torch.Tensor, numbers: torch.Tensor, barrier: Any,
            work: Callable, arguments: tuple) -> None:
    torch.set_num_threads(threads)
    work(Team(rank, size, gradients, numbers, barrier), *arguments)


def run(size: int, gradient_count: int, work: Callable, *arguments: Any) -> None:
    """Calls work(team, *arguments) in `size` processes (this one, if one) and waits; the cores are shared out evenly."""
    numbers, cores = torch.zeros(16, dtype=torch.float64), len(os.sched_getaffinity(0))
    threads = max(1, cores // size)
    if size == 1:
        return _worker(0, 1, threads, torch.zeros(0), numbers, None, work, arguments)
    gradients = torch.zeros(size, gradient_count).share_memory_()
    barrier = mp.get_context("spawn").Barrier(size)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an orderly end takes the daemons along
    shared = (size, threads, gradients, numbers.share_memory_(), barrier, work, arguments)
    try:
        mp.spawn(_worker, shared, nprocs=size, daemon=True)
    except mp.ProcessExitedException as error:  # it has said why
        raise SystemExit(f"a worker ended with status {error.exit_code}") from None
