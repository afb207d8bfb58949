"""Pushes a new image into the registry and pulls it through all agents at the same moment; run by try.sh.

Standard library only. Prints what each agent took, and last the line `image NAME BYTES`.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

REGISTRY = ("registry", 5000)
AGENTS = ("agent-1", "agent-2", "agent-3")
MIB = 1 << 20
LAYERS = (12 * MIB, 8 * MIB, 4 * MIB)
OCI = "application/vnd.oci.image."


def main() -> int:
    name = f"try/{os.urandom(6).hex()}"
    size = push(name)
    with ThreadPoolExecutor(len(AGENTS)) as pool:
        for agent, (seconds, count, direct) in zip(AGENTS, pool.map(lambda one: pull(one, name), AGENTS), strict=True):
            past = f", {direct} of them from the registry itself" if direct else ""
            sys.stdout.write(f"{agent}: {size / MIB:.1f} MiB in {seconds:.2f} s, {count} digests proved{past}\n")
    sys.stdout.write(f"image {name} {size}\n")
    return 0


def push(name: str) -> int:
    """Random layers, which nothing compresses and nobody has; how many bytes."""
    connection = http.client.HTTPConnection(*REGISTRY, timeout=120)
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers"}}).encode()
    layers = [os.urandom(size) for size in LAYERS]
    descriptors = []
    for data in (config, *layers):
        digest = digest_of(data)
        answer, _ = ask(connection, "POST", f"/v2/{name}/blobs/uploads/", 202)
        where = urlsplit(answer.headers["Location"])
        kind = {"Content-Type": "application/octet-stream"}
        ask(connection, "PUT", f"{where.path}?{where.query}&digest={digest}", 201, data, kind)
        descriptors.append({"mediaType": f"{OCI}layer.v1.tar", "digest": digest, "size": len(data)})
    descriptors[0]["mediaType"] = f"{OCI}config.v1+json"
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}manifest.v1+json",
        "config": descriptors[0],
        "layers": descriptors[1:],
    }
    kind = {"Content-Type": f"{OCI}manifest.v1+json"}
    ask(connection, "PUT", f"/v2/{name}/manifests/1", 201, json.dumps(manifest).encode(), kind)
    connection.close()
    return sum(LAYERS) + len(config)


def pull(agent: str, name: str) -> tuple[float, int, int]:
    """As a container daemon does, by the path form of the mirror, and past it after a 404.

    Returns seconds, how many digests were proved, and how many of them by content that the registry itself had to give.
    """
    direct = 0
    begun = time.monotonic()
    base = f"/v2/registry__5000/{name}"
    connection = http.client.HTTPConnection(agent, 5050, timeout=120)
    kind = {"Accept": f"{OCI}manifest.v1+json"}
    answer, raw = ask(connection, "GET", f"{base}/manifests/1", 200, headers=kind)
    if answer.headers["Docker-Content-Digest"] != digest_of(raw):
        raise SystemExit(f"{agent}: the manifest isn't what its digest says")
    manifest = json.loads(raw)
    blobs = [manifest["config"], *manifest["layers"]]
    for blob in blobs:
        answer, data = ask(connection, "GET", f"{base}/blobs/{blob['digest']}", 200, or_else=404)
        if answer.status == 404:
            direct += 1
            registry = http.client.HTTPConnection(*REGISTRY, timeout=120)
            _, data = ask(registry, "GET", f"/v2/{name}/blobs/{blob['digest']}", 200)
            registry.close()
        if digest_of(data) != blob["digest"]:
            raise SystemExit(f"{agent}: {blob['digest']} isn't what its digest says")
    connection.close()
    return time.monotonic() - begun, 1 + len(blobs), direct


def ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    wanted: int,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    *,
    or_else: int = 0,
) -> tuple[http.client.HTTPResponse, bytes]:
    connection.request(method, path, body=body, headers=headers or {})
    answer = connection.getresponse()
    data = answer.read()
    if answer.status not in (wanted, or_else):
        raise SystemExit(f"{connection.host}: {method} {path}: {answer.status} {data[:300]!r}")
    return answer, data


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


if __name__ == "__main__":
    sys.exit(main())
