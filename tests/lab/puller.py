"""Pulls one image like a daemon does: manifest by tag, then config and layers, three at a time. A process per node.

Stands alone (standard library only, quick to start) and is as light as Python allows, because on a laboratory machine
the pullers share the CPU with what is measured: the body of a blob is received straight into memory that was touched
before the clock began, and hashed only after it has stopped.

    puller.py <json>      {"url", "repository", "tag", "at", "parallel", "keep", "room"}
    stdout line 1: {"start", "end", "layers": [{"digest", "size", "end"}], "error"}    (wall clock seconds)
    a line on stdin, or its end; then line 2: {"verified": true} or {"verified": false, "wrong": [digest]}

`at`: the wall-clock second at which it starts. `keep` false: bytes are thrown away by the kernel (MSG_TRUNC) and line 2
says nothing of them: for blobs larger than the memory one wants to give. `room`: bytes of memory to have ready.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import socket
import sys
import threading
import time

ACCEPT = ", ".join(
    [
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    ]
)
TIMEOUT = 120.0  # seconds without a byte
PIECE = 256 * 1024
WAKE = 64 * 1024  # bytes that must be there before the kernel wakes us, where more than that is missing


class PullError(Exception):
    pass


class Connection:
    """One keep-alive HTTP/1.1 connection; only what a registry answers: Content-Length, no encodings."""

    def __init__(self, url: str) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self.host = f"{host}:{port}"
        self.socket = socket.create_connection((host, int(port)), timeout=TIMEOUT)

    def get(self, path: str, accept: str = "*/*") -> tuple[dict[str, str], int, bytes]:
        """(headers, length, the body's bytes that came with the head)."""
        request = f"GET {path} HTTP/1.1\r\nHost: {self.host}\r\nAccept: {accept}\r\nUser-Agent: lab-puller\r\n\r\n"
        self.socket.sendall(request.encode())
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        head = b""
        while b"\r\n\r\n" not in head:
            data = self.socket.recv(4096)
            if not data:
                raise PullError(f"{path}: closed before the answer")
            head += data
            if len(head) > 65536:
                raise PullError(f"{path}: endless head")
        head, _, rest = head.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        status = int(first.split()[1])
        if status != 200:
            raise PullError(f"{path}: {first}")
        if "content-length" not in headers:
            raise PullError(f"{path}: no Content-Length")
        return headers, int(headers["content-length"]), rest

    def body(self, path: str, length: int, rest: bytes, into: memoryview | None) -> None:
        """The rest of the body into `into` (a memoryview of `length` bytes), or thrown away where that is None."""
        got = len(rest)
        if got > length:
            raise PullError(f"{path}: {got} bytes where {length} were announced")
        if into is not None:
            into[:got] = rest
        waste = bytearray(1)
        low = 1
        while got < length:
            wanted = min(WAKE, length - got)
            if wanted != low:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted)
                low = wanted
            if into is not None:
                n = self.socket.recv_into(into[got : got + PIECE])
            else:
                n = _discard(self.socket, min(1 << 20, length - got), waste)
            if n == 0:
                raise PullError(f"{path}: closed after {got} of {length} bytes")
            got += n


def _discard(sock: socket.socket, most: int, waste: bytearray) -> int:
    """Drops up to `most` bytes in the kernel; recv_into can't be told a length above its buffer's, so one step."""
    if len(waste) < most:
        waste.extend(bytes(most - len(waste)))
    return sock.recv_into(waste, most, socket.MSG_TRUNC)


class Arena:
    """Memory that is there before it is needed.

    Its first touch costs 1.4 s of CPU per GiB on a small virtual machine, with huge pages 0.15, and whole blobs are
    sent to all nodes in the same moment: twelve pulls of 64 MiB ended half a second after the agents were done.
    """

    def __init__(self, room: int) -> None:
        self._memory = mmap.mmap(-1, max(room, 1))
        self._memory.madvise(mmap.MADV_HUGEPAGE)
        view = memoryview(self._memory)
        view[:: mmap.PAGESIZE] = bytes(len(view[:: mmap.PAGESIZE]))
        self._left = view[:room]

    def take(self, size: int) -> memoryview:
        """Room for `size` bytes; memory never touched where not enough was ordered."""
        if size > len(self._left):
            return memoryview(mmap.mmap(-1, size))
        taken, self._left = self._left[:size], self._left[size:]
        return taken


class Pull:
    def __init__(self, order: dict) -> None:
        self.url = order["url"]
        self.base = f"/v2/{order['repository']}"
        self.tag = order["tag"]
        self.parallel = order.get("parallel", 3)
        self.keep = order.get("keep", True)
        self.arena = Arena(order.get("room", 0) if self.keep else 0)
        self.kept: dict[str, bytearray | memoryview] = {}
        self.ends: dict[str, float] = {}
        self.errors: list[str] = []
        self.todo: list[dict] = []
        self.lock = threading.Lock()

    def run(self) -> list[dict]:
        connection = Connection(self.url)
        headers, length, rest = connection.get(f"{self.base}/manifests/{self.tag}", ACCEPT)
        raw = bytearray(length)
        connection.body("manifest", length, rest, memoryview(raw))
        manifest = json.loads(raw)
        self.kept[headers.get("docker-content-digest", "")] = raw
        self.todo = [manifest["config"], *manifest["layers"]]
        threads = [threading.Thread(target=self.work) for _ in range(self.parallel - 1)]
        for thread in threads:
            thread.start()
        self.work(connection)
        for thread in threads:
            thread.join()
        return [
            {"digest": layer["digest"], "size": layer["size"], "end": self.ends.get(layer["digest"])}
            for layer in manifest["layers"]
        ]

    def work(self, connection: Connection | None = None) -> None:
        try:
            connection = connection or Connection(self.url)
            while True:
                with self.lock:
                    if not self.todo or self.errors:
                        return
                    blob = self.todo.pop(0)
                self.blob(connection, blob["digest"], blob["size"])
        except (OSError, PullError) as e:
            self.errors.append(f"{type(e).__name__}: {e}")

    def blob(self, connection: Connection, digest: str, size: int) -> None:
        path = f"{self.base}/blobs/{digest}"
        _, length, rest = connection.get(path)
        if length != size:
            raise PullError(f"{path}: {length} bytes announced, the manifest says {size}")
        into = None
        if self.keep and size:
            with self.lock:
                into = self.kept[digest] = self.arena.take(size)
        connection.body(path, length, rest, into)
        self.ends[digest] = time.time()

    def wrong(self) -> list[str]:
        """Digests whose bytes are not what they should be."""
        return [digest for digest, data in self.kept.items() if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest]


def main() -> None:
    order = json.loads(sys.argv[1])
    pull = Pull(order)
    at = order.get("at", 0.0)
    while (left := at - time.time()) > 0:
        time.sleep(left)
    start = time.time()
    layers = []
    try:
        layers = pull.run()
    except (OSError, PullError, ValueError, KeyError) as e:
        pull.errors.append(f"{type(e).__name__}: {e}")
    result = {"start": start, "end": time.time(), "layers": layers, "error": "; ".join(pull.errors)}
    print(json.dumps(result), flush=True)
    sys.stdin.readline()
    wrong = pull.wrong() + pull.errors
    print(json.dumps({"verified": not wrong, "wrong": wrong}), flush=True)


if __name__ == "__main__":
    main()
