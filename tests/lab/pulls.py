"""Pulls on many hosts that begin at a wall-clock instant, and what became of each."""

from __future__ import annotations

import json
import select
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lab.lab import Lab
from lab.net import Host
from lab.process import Process

_PULLER = Path(__file__).with_name("puller.py")
_TIMED = Path(__file__).with_name("timed.py")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One pull. Times are wall-clock seconds; `layer_ends` in manifest order, NaN where it never ended."""

    start: float
    end: float
    layer_ends: tuple[float, ...]
    error: str  # empty: all of it arrived

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass
class Pull:
    """A puller that waits for its instant. `outcome` is None until it has ended; `verified` until it was asked."""

    process: Process
    at: float
    outcome: Outcome | None = None
    verified: bool | None = None
    wrong: list[str] = field(default_factory=list)
    abandoned: bool = False

    def abandon(self) -> None:
        """Its node has died: nobody waits for it any more."""
        self.abandoned = True
        self.process.kill()


def start_pull(
    lab: Lab,
    host: Host,
    url: str,
    repository: str,
    tag: str,
    *,
    at: float = 0.0,
    parallel: int = 3,
    keep: bool = True,
    room: int = 0,
) -> Pull:
    """A puller in `host`. With `keep` it holds the image in memory until it has been verified; `room`: bytes of it
    that it should have ready at its instant."""
    order = {
        "url": url,
        "repository": repository,
        "tag": tag,
        "at": at,
        "parallel": parallel,
        "keep": keep,
        "room": room,
    }
    return _start(lab, host, at, str(_PULLER), json.dumps(order))


def start_command(lab: Lab, host: Host, argv: Sequence[str], *, at: float) -> Pull:
    """A real client's command instead of the puller; it has no times per layer."""
    return _start(lab, host, at, str(_TIMED), str(at), *argv)


def _start(lab: Lab, host: Host, at: float, *argv: str) -> Pull:
    # -I -S: nothing of the environment is read, it is up in some 20 ms
    name = f"pull-{host.name}-{len(lab.processes)}"
    return Pull(lab.start(name, [sys.executable, "-I", "-S", *argv], host, pipes=True), at)


def collect(pulls: Mapping[str, Pull], seconds: float) -> bool:
    """Takes in what has ended, waiting `seconds` at most for the next one. True: nobody is waited for any more."""
    waiting = [pull for pull in pulls.values() if pull.outcome is None and not pull.abandoned]
    if waiting:
        ready, _, _ = select.select([pull.process.stdout for pull in waiting], [], [], seconds)
        for pull in waiting:
            if pull.process.stdout in ready:
                pull.outcome = _outcome(pull)
    return all(pull.outcome is not None or pull.abandoned for pull in pulls.values())


def verify(pulls: Mapping[str, Pull]) -> bool:
    """Has every pull hash what it received, after the clock has stopped. False if anything is not what it should be."""
    for pull in pulls.values():
        if pull.outcome is not None and pull.verified is None:
            pull.process.stdin.close()
            answer = json.loads(pull.process.stdout.readline() or '{"verified": false, "wrong": ["no answer"]}')
            pull.verified, pull.wrong = bool(answer["verified"]), list(answer["wrong"])
            pull.process.wait(30.0)
            pull.process.kill()
    return all(pull.verified for pull in pulls.values() if not pull.abandoned)


def _outcome(pull: Pull) -> Outcome:
    line = pull.process.stdout.readline()
    if not line:
        return Outcome(pull.at, time.time(), (), f"the puller died: {pull.process.tail()}")
    result = json.loads(line)
    ends = tuple(float("nan") if layer["end"] is None else float(layer["end"]) for layer in result["layers"])
    return Outcome(result["start"], result["end"], ends, result["error"])
