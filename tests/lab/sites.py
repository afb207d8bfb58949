"""Two sites, joined by one link with a rate and a delay, and a TCP flow of other traffic across it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from lab.lab import Lab
from lab.process import Process, wait_until

SITE_TWO = "br1"  # the bridge of the second site's hosts
_ONE, _TWO = "wan1", "wan2"
_BUFFER = 100.0  # ms of queue before the link, as access routers have it, and more
_HERE = Path(__file__).parent
_FLOW_PORT = 9


class SiteLink:
    """Hosts made with `bridge=SITE_TWO` are behind it. `rate`: Mbit/s each way; `delay`: ms one way."""

    def __init__(self, lab: Lab, *, rate: float, delay: float) -> None:
        self.rate = rate
        self._lab = lab
        lab.network.join(_ONE, _TWO)
        argv = ["nsenter", f"--net=/run/netns/{lab.network.hub}", sys.executable, "-I", "-S"]
        process = lab.start(
            "longlink", [*argv, str(_HERE / "longlink.py"), _ONE, _TWO, f"{delay:g}", f"{rate:g}", f"{_BUFFER:g}"]
        )
        wait_until("the link between the sites", lambda: process.log.read_text().startswith("ready"))

    def crossed(self) -> tuple[int, int]:
        """Bytes that have crossed so far, with all headers: from site one to two, and back."""
        counters = self._lab.network.counters()
        return counters[_TWO][0], counters[_ONE][0]


class OtherFlow:
    """A TCP flow from a host of its own in site one to one in site two, until `until` (wall clock)."""

    def __init__(self, lab: Lab, *, until: float) -> None:
        sender, receiver = lab.host("flow1"), lab.host("flow2", bridge=SITE_TWO)
        program = [sys.executable, "-I", "-S", str(_HERE / "flow.py")]
        self._receiver = lab.start("flow-receive", [*program, "receive", str(_FLOW_PORT)], receiver)
        wait_until("the flow's receiver", lambda: _listens(self._receiver))
        self._sender = lab.start(
            "flow-send", [*program, "send", receiver.address, str(_FLOW_PORT), f"{until:.3f}"], sender
        )

    def wait(self, timeout: float = 120.0) -> None:
        """Until it is over."""
        self._receiver.wait(timeout)

    def arrived(self) -> Arrived:
        """What has come so far."""
        lines = self._receiver.log.read_text().splitlines()
        points = [line.split() for line in lines if line.count(" ") == 1]
        return Arrived(tuple((float(second), int(count)) for second, count in points))


@dataclass(frozen=True, slots=True)
class Arrived:
    """(second of the wall clock, bytes of payload until then), in order."""

    points: tuple[tuple[float, int], ...]

    def between(self, start: float, end: float) -> float:
        """Bytes that came from `start` to `end`, by straight lines between the points."""
        return self._at(end) - self._at(start)

    def _at(self, second: float) -> float:
        if not self.points or second <= self.points[0][0]:
            return 0.0
        for (t0, n0), (t1, n1) in pairwise(self.points):
            if second <= t1:
                return n0 + (n1 - n0) * (second - t0) / (t1 - t0) if t1 > t0 else n1
        return self.points[-1][1]


def _listens(process: Process) -> bool:
    table = Path(f"/proc/{process.pid}/net/tcp").read_text()
    return any(line.split()[1].endswith(f":{_FLOW_PORT:04X}") for line in table.splitlines()[1:])
