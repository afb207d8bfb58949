"""The link between two sites: two TAP devices, each a port of one site's bridge, joined by this program with a delay.

The kernels of laboratory machines have no netem, so the link is made here: a frame that leaves one device waits for
those before it to be sent at the link's rate, or is lost where the queue is full, and is put into the other device so
many milliseconds later. Not by `tc tbf`: a qdisc of the same kernel holds the sockets of this machine back (TCP small
queues), and a TCP flow would never fill the queue as one from another machine does. Multicast stays in its site, as it
does between real ones; ARP passes.

    longlink.py TAP TAP DELAY RATE BUFFER   (ms, Mbit/s, ms; inside the bridges' namespace; prints "ready")

Stands alone: standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import sys
import time
from collections import deque

_TUNSETIFF = 0x400454CA
_TAP_WITHOUT_HEADER = 0x0002 | 0x1000  # IFF_TAP | IFF_NO_PI
_ARP = b"\x08\x06"
_FRAME = 65536  # bytes; more than any frame has
_AT_ONCE = 64  # frames that are taken from one device before the other is looked at
_TICK = 0.002  # seconds between two looks, so that not every frame costs a wake-up; small against the delays of links


def _open(name: str) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP_WITHOUT_HEADER))
    return fd


class Way:
    """One direction. `delay`, `buffer` in seconds; `rate` in bytes per second."""

    def __init__(self, source: int, target: int, delay: float, rate: float, buffer: float) -> None:
        self.source, self.target = source, target
        self.delay, self.rate, self.buffer = delay, rate, buffer
        self.free = 0.0  # when the last frame will have been sent
        self.queue: deque[tuple[float, bytes]] = deque()

    def take(self) -> None:
        """What the one device has for the link."""
        for _ in range(_AT_ONCE):
            try:
                frame = os.read(self.source, _FRAME)
            except BlockingIOError:
                return
            now = time.monotonic()
            if (frame[0] & 1 and frame[12:14] != _ARP) or self.free - now > self.buffer:
                continue
            self.free = max(now, self.free) + len(frame) / self.rate
            self.queue.append((self.free + self.delay, frame))

    def put(self, now: float) -> None:
        """What has arrived, into the other device."""
        while self.queue and self.queue[0][0] <= now:
            # A device that takes no more, or is down, loses the frame, as a network may.
            with contextlib.suppress(OSError):
                os.write(self.target, self.queue.popleft()[1])


def main() -> None:
    one, other = _open(sys.argv[1]), _open(sys.argv[2])
    delay, rate, buffer = float(sys.argv[3]) / 1000, float(sys.argv[4]) * 1e6 / 8, float(sys.argv[5]) / 1000
    # Ahead of what the machine does besides: a link's delay does not depend on it. Not every kernel lets us.
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    ways = [Way(one, other, delay, rate, buffer), Way(other, one, delay, rate, buffer)]
    print("ready", flush=True)
    while True:
        dues = [way.queue[0][0] for way in ways if way.queue]
        if dues:
            time.sleep(max(0.0, min(_TICK, min(dues) - time.monotonic())))
        else:
            select.select([one, other], [], [])
        for way in ways:
            way.take()
        for way in ways:
            way.put(time.monotonic())


if __name__ == "__main__":
    main()
