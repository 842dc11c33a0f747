"""A client of the queue: feeds photos at a rate, waits for the end, and counts what became of every id.
In: REDIS (host:port), PASSWORD; photos in a folder. Out: the ids that Redis acknowledged, one a line; a line that counts.

load.py feed IDS PREFIX PHOTOS SECONDS:RATE...   each rate (jobs/s) for so long; SECONDS may be a file's name: until it exists
load.py unfinished                               how many jobs are
load.py settle SECONDS                           until no job is unfinished; status 1 when time is over
load.py check IDS [DEAD]                         every id exactly once in results and dead letters, DEAD (0) of them dead; status 1 if not
"""
import collections
import itertools
import os
import pathlib
import socket
import sys
import time

QUEUE = "tf:{default}:"


class Redis:
    """The protocol of Redis on one connection; OSError where it breaks."""

    def __init__(self):
        host, port = os.environ["REDIS"].rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=5)
        self.file = self.socket.makefile("rb")
        self.call("AUTH", os.environ["PASSWORD"])

    def call(self, *words):
        words = [w if isinstance(w, bytes) else str(w).encode() for w in words]
        self.socket.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words))
        return self.answer()

    def answer(self):
        line = self.file.readline()
        if not line.endswith(b"\r\n"):
            raise OSError("the connection was closed")
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise OSError(rest.decode())
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self.file.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return None if rest == b"-1" else [self.answer() for _ in range(int(rest))]
        return rest


def insistent(connection, *words, seconds=120):
    """-> (connection, answer), over new connections while Redis is away for that long at most."""
    until = time.monotonic() + seconds
    while True:
        try:
            connection = connection or Redis()
            return connection, connection.call(*words)
        except OSError:
            connection = None
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def feed(ids, prefix, photos, *steps):
    """Evenly spaced. An entry whose acknowledgement got lost is sent again under its id: that is what ids are for."""
    pictures = itertools.cycle([p.read_bytes() for p in sorted(pathlib.Path(photos).glob("*.jpg"))])
    connection, number = None, 0
    with open(ids, "a") as file:
        for step in steps:
            length, rate = step.rsplit(":", 1)
            due = time.monotonic()
            end = due + float(length) if length.replace(".", "").isdigit() else None
            while time.monotonic() < end if end else not os.path.exists(length):
                number += 1
                name = f"{prefix}-{number}"
                connection, _ = insistent(connection, "XADD", QUEUE + "jobs:1", "*", "id", name, "image", next(pictures))
                print(name, file=file, flush=True)
                due = max(due + 1 / float(rate), time.monotonic() - 1)
                time.sleep(max(0, due - time.monotonic()))


def unfinished(connection=None):
    connection, first = insistent(connection, "XLEN", QUEUE + "jobs:0")
    connection, second = insistent(connection, "XLEN", QUEUE + "jobs:1")
    return connection, first + second


def settle(seconds):
    connection, until = None, time.monotonic() + float(seconds)
    while time.monotonic() < until:
        connection, left = unfinished(connection)
        if left == 0:
            return
        time.sleep(0.5)
    sys.exit(f"{left} jobs are still unfinished")


def entries(connection, stream):
    """-> each entry's fields as a dict, a thousand at a time."""
    after = "-"
    while True:
        connection, found = insistent(connection, "XRANGE", QUEUE + stream, after, "+", "COUNT", 1000)
        for _, fields in found:
            yield dict(zip(fields[::2], fields[1::2]))
        if len(found) < 1000:
            return
        after = "(" + found[-1][0].decode()


def check(ids, dead="0"):
    wanted = pathlib.Path(ids).read_text().split()
    results = collections.Counter(e[b"id"].decode() for e in entries(None, "results") if e[b"caption"])
    letters = collections.Counter(e[b"id"].decode() for e in entries(None, "dead"))
    wrong = [i for i in wanted if results[i] + letters[i] != 1]
    gone = sum(letters[i] for i in wanted)
    print(f"{len(wanted)} ids: {sum(results[i] for i in wanted)} captions, {gone} dead letters, {len(wrong)} not exactly once {wrong[:5] or ''}")
    sys.exit(0 if wanted and len(set(wanted)) == len(wanted) and not wrong and gone == int(dead) else 1)


if __name__ == "__main__":
    {"feed": feed, "unfinished": lambda: print(unfinished()[1]), "settle": settle, "check": check}[sys.argv[1]](*sys.argv[2:])
