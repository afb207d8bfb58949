"""Other traffic: one TCP flow that takes what it can get, and says every tenth of a second how much has arrived.

    flow.py receive PORT                    prints "SECOND BYTES" (wall clock, bytes so far) until the sender closes
    flow.py send ADDRESS PORT UNTIL         sends until that second of the wall clock

Stands alone: standard library only.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time

_EVERY = 0.1  # seconds between two lines
_PIECE = bytes(64 * 1024)


def receive(port: int) -> None:
    with socket.create_server(("0.0.0.0", port)) as server:
        connection, _ = server.accept()
    got, due = 0, time.time()
    buffer = bytearray(256 * 1024)
    with connection:
        while count := connection.recv_into(buffer):
            got += count
            if time.time() >= due:
                due = time.time() + _EVERY
                print(f"{time.time():.3f} {got}", flush=True)
    print(f"{time.time():.3f} {got}", flush=True)


def send(address: str, port: int, until: float) -> None:
    with socket.create_connection((address, port), timeout=20.0) as connection:
        while time.time() < until:
            connection.sendall(_PIECE)


if __name__ == "__main__":
    # It stands for other machines: it must not wait for this one's CPU. Not every kernel lets us.
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    if sys.argv[1] == "receive":
        receive(int(sys.argv[2]))
    else:
        send(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
