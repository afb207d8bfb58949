"""What goes into the container daemons' own configuration so that they ask this node's mirror first. Pure text.

Every one of these leaves the daemon's own way to the registry open: with the agent stopped, pulls go on without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Snippet:
    """`text` belongs into the file `path` of `daemon`; `note` says how it takes effect and what it covers."""

    daemon: str
    path: str
    text: str
    note: str


def snippets(mirror: str, registries: Sequence[str], *, tls: bool = False) -> list[Snippet]:
    """For a mirror at `mirror` (host:port) and the registries it serves, by the names images use.

    `tls`: it has a certificate, whose authority the daemon must know; else it speaks plain HTTP.
    """
    return [_dockerd(mirror, tls), _containerd(mirror, tls), _containers(mirror, registries, tls)]


def _url(mirror: str, tls: bool) -> str:
    return f"{'https' if tls else 'http'}://{mirror}"


def _dockerd(mirror: str, tls: bool) -> Snippet:
    return Snippet(
        "dockerd",
        "/etc/docker/daemon.json",
        f'{{ "registry-mirrors": ["{_url(mirror, tls)}"] }}',
        "Docker Hub images only. Then: kill -HUP the daemon (systemctl reload docker); no container stops. "
        "Docker 29 (containerd store) covers every registry with the next file at "
        "/etc/docker/certs.d/_default/hosts.toml, without a reload."
        + (f" The mirror's authority goes into /etc/docker/certs.d/{mirror}/ca.crt." if tls else ""),
    )


def _containerd(mirror: str, tls: bool) -> Snippet:
    return Snippet(
        "containerd",
        "/etc/containerd/certs.d/_default/hosts.toml",
        f'[host."{_url(mirror, tls)}"]\n  capabilities = ["pull", "resolve"]',
        "Every registry; read at each pull. Before containerd 2.2 Kubernetes' CRI also needs "
        'config_path = "/etc/containerd/certs.d" in config.toml and one restart; ctr needs --hosts-dir.'
        + (' The mirror\'s authority: add ca = "FILE" below, unless the system trusts it.' if tls else ""),
    )


def _containers(mirror: str, registries: Sequence[str], tls: bool) -> Snippet:
    how = "" if tls else "\ninsecure = true"  # which would also take any certificate
    blocks = [
        f'[[registry]]\nprefix = "{name}"\nlocation = "{name}"\n'
        f'[[registry.mirror]]\nlocation = "{mirror}/{_as_path(name)}"{how}'
        for name in registries
    ]
    return Snippet(
        "podman, buildah, skopeo, CRI-O",
        "/etc/containers/registries.conf.d/50-p2pdist.conf",
        "\n\n".join(blocks),
        "One block for each registry; read at each pull (CRI-O: reload). It replaces your block for a prefix."
        + (f" The mirror's authority goes into /etc/containers/certs.d/{mirror}/ca.crt." if tls else ""),
    )


def _as_path(registry: str) -> str:
    """A registry's name as first path component: containers/image takes no colon there; the mirror reads `__`."""
    return registry.replace(":", "__")
