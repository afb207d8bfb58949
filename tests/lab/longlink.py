"""The link between two sites: two TAP devices, each a port of one site's bridge, joined by this program with a delay.

The kernels of laboratory machines have no netem, so the delay is made here: a frame that leaves one device is put into
the other one so many milliseconds later. The rate is the devices' own (`tc tbf`), so what is counted on them has really
crossed. Multicast stays in its site, as it does between real ones; ARP passes.

    longlink.py TAP TAP MILLISECONDS        (inside the namespace that has the bridges; prints "ready")

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


def _take(fd: int, queue: deque[tuple[float, bytes]], delay: float) -> None:
    for _ in range(_AT_ONCE):
        try:
            frame = os.read(fd, _FRAME)
        except BlockingIOError:
            return
        if not frame[0] & 1 or frame[12:14] == _ARP:
            queue.append((time.monotonic() + delay, frame))


def _put(fd: int, queue: deque[tuple[float, bytes]], now: float) -> None:
    while queue and queue[0][0] <= now:
        # A device that takes no more, or is down, loses the frame, as a network may.
        with contextlib.suppress(OSError):
            os.write(fd, queue.popleft()[1])


def main() -> None:
    one, other = _open(sys.argv[1]), _open(sys.argv[2])
    delay = float(sys.argv[3]) / 1000
    # Ahead of what the machine does besides: a link's delay does not depend on it. Not every kernel lets us.
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    there: deque[tuple[float, bytes]] = deque()
    back: deque[tuple[float, bytes]] = deque()
    print("ready", flush=True)
    while True:
        dues = [queue[0][0] for queue in (there, back) if queue]
        if dues:
            time.sleep(max(0.0, min(_TICK, min(dues) - time.monotonic())))
        else:
            select.select([one, other], [], [])
        _take(one, there, delay)
        _take(other, back, delay)
        now = time.monotonic()
        _put(other, there, now)
        _put(one, back, now)


if __name__ == "__main__":
    main()
