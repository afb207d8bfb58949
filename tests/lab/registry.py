"""The upstream: Debian's docker-registry in a host of its own, with a request log that is read back."""

from __future__ import annotations

import http.client
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from lab.images import Content, Image, Index
from lab.lab import Lab
from lab.net import Host
from lab.process import LabError, Process, wait_until

PORT = 5000
_LINE = re.compile(r'^(\S+) - \S+ \[[^]]*\] "(\S+) (\S+) [^"]*" (\d+) (\d+) "[^"]*" "([^"]*)"$')
_BLOB = re.compile(r"/blobs/(sha(?:256|512):[0-9a-f]+)$")


@dataclass(frozen=True, slots=True)
class Request:
    """One line of the registry's access log. `sent`: bytes of the body that it wrote."""

    address: str
    method: str
    path: str
    status: int
    sent: int
    agent: str

    @property
    def blob(self) -> str | None:
        """The digest, where a blob was read."""
        found = _BLOB.search(self.path)
        return found[1] if found and self.method == "GET" else None


class Registry:
    """docker-registry with a filesystem root; with `proxy_of` it is a pull-through cache of another one."""

    def __init__(self, lab: Lab, host: Host, *, name: str = "registry", proxy_of: Registry | None = None) -> None:
        self.host = host
        self.url = f"http://{host.address}:{PORT}"
        self._lab = lab
        self._name = name
        config: dict[str, object] = {
            "version": "0.1",
            "log": {"level": "warn", "accesslog": {"disabled": False}},
            "storage": {
                "filesystem": {"rootdirectory": str(lab.path(name))},
                "cache": {"blobdescriptor": "inmemory"},
                "maintenance": {"uploadpurging": {"enabled": False}},
            },
            "http": {"addr": f"0.0.0.0:{PORT}"},
        }
        if proxy_of is not None:
            config["proxy"] = {"remoteurl": proxy_of.url}
        self._config = lab.directory / f"{name}.yml"
        self._config.write_text(json.dumps(config))  # YAML knows JSON
        self.process = self._start()

    def stop(self) -> None:
        """Gone: connections are refused."""
        self.process.kill()

    def restart(self) -> None:
        if not self.process.running:
            self.process = self._start()

    def mark(self) -> int:
        """A point in the request log, for `requests(since=...)`."""
        return self.process.log.stat().st_size

    def requests(self, since: int = 0) -> list[Request]:
        """What was asked since then. A request appears once its answer has been sent or given up."""
        with self.process.log.open("rb") as log:
            log.seek(since)
            text = log.read().decode(errors="replace")
        found = []
        for line in text.splitlines():
            if m := _LINE.match(line):
                address = m[1].rsplit(":", 1)[0] if ":" in m[1] else m[1]
                found.append(Request(address, m[2], urlsplit(m[3]).path, int(m[4]), int(m[5]), m[6]))
        return found

    def blob_bytes(self, since: int = 0, *, without: Collection[str] = ()) -> Counter[str]:
        """Bytes sent per blob digest since then, not counting clients at the addresses `without`."""
        sent: Counter[str] = Counter()
        for request in self.requests(since):
            if request.blob is not None and request.address not in without:
                sent[request.blob] += request.sent
        return sent

    def push(self, repository: str, tag: str, what: Image | Index) -> None:
        """Through the registry's own API, from inside its host (so the link's rate does not count)."""
        self.host.call(lambda: self._push(repository, tag, what))

    def _push(self, repository: str, tag: str, what: Image | Index) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=120)
        try:
            for blob in what.blobs:
                _push_blob(connection, repository, blob)
            for one in what.images if isinstance(what, Index) else ():
                _push_manifest(connection, repository, one.digest, one.media_type, one.manifest)
            _push_manifest(connection, repository, tag, what.media_type, what.manifest)
        finally:
            connection.close()

    def _start(self) -> Process:
        # It takes a buffer of 4 MiB for every range. In a fleet it has a machine of its own to collect them on.
        quiet = {"GOGC": "800"}
        command = ["docker-registry", "serve", str(self._config)]
        process = self._lab.start(self._name, command, self.host, env=quiet)
        self._lab.wait_port(process, self.host, PORT)
        return process


def settle(registry: Registry, wanted: Iterable[str], since: int, timeout: float = 5.0) -> None:
    """Until the log shows a read of every digest: the last lines are written a moment after the bytes have arrived."""
    digests = set(wanted)
    wait_until("the registry's log", lambda: digests <= set(registry.blob_bytes(since)), timeout)


def _push_blob(connection: http.client.HTTPConnection, repository: str, blob: Content) -> None:
    headers = _answer(connection, "POST", f"/v2/{repository}/blobs/uploads/", {202})
    target = urlsplit(headers["Location"])
    path = f"{target.path}?{target.query}&digest={blob.digest}"
    length = {"Content-Length": str(blob.size), "Content-Type": "application/octet-stream"}
    _answer(connection, "PUT", path, {201}, body=blob.pieces(), headers=length)


def _push_manifest(connection: http.client.HTTPConnection, repository: str, target: str, kind: str, raw: bytes) -> None:
    path = f"/v2/{repository}/manifests/{target}"
    _answer(connection, "PUT", path, {201}, body=raw, headers={"Content-Type": kind})


def _answer(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    wanted: set[int],
    *,
    body: bytes | Iterable[bytes] | None = None,
    headers: dict[str, str] | None = None,
) -> http.client.HTTPMessage:
    connection.request(method, path, body=body, headers=headers or {})
    response = connection.getresponse()
    text = response.read()
    if response.status not in wanted:
        raise LabError(f"{method} {path}: {response.status} {text[:300]!r}")
    return response.headers
