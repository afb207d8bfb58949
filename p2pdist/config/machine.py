"""Options of the node itself: who it is, what it keeps, how operators look at it."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from p2pdist.config import values as v
from p2pdist.config.declare import Section, derived, option
from p2pdist.config.labels import labels_of, read_labels


def default_data_dir() -> Path:
    """Where an agent keeps its data unless told: the system's place for root, the user's own for everyone else."""
    if os.geteuid() == 0:
        return Path("/var/lib/p2pdist")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "p2pdist"


@dataclass(frozen=True, slots=True)
class NodeConfig(Section):
    """This node: its name, and where and how much it keeps."""

    name: str = derived(
        v.TEXT,
        socket.gethostname,
        v.quoted("node-1"),
        "this host's name",
        "What this node is called in status and logs.",
    )
    data_dir: Path = derived(
        v.PATH,
        default_data_dir,
        v.quoted("/var/lib/p2pdist"),
        "/var/lib/p2pdist for root, ~/.local/share/p2pdist for other users",
        "Directory of the store and the node's key. One agent per directory.",
    )
    labels: tuple[str, ...] = option(
        v.list_of(v.LABEL),
        (),
        'What this node is told apart by, like "zone=a": nodes with the same zone are near each other.',
    )
    labels_file: Path | None = option(
        v.optional(v.PATH, "", "none"),
        None,
        "More labels, read at the start: a JSON object or lines KEY=VALUE, as cloud metadata and Kubernetes' downward "
        'API give them. The zone is "zone", or else "topology.kubernetes.io/zone".',
    )
    max_store_bytes: int | None = option(
        v.optional(v.SIZE, 0, "no bound"),
        50 * 1024**3,
        "Blobs kept on disk, at most. Beyond it the least recently used go; what is being read or fetched never does.",
    )
    shutdown_seconds: float = option(
        v.SECONDS,
        10.0,
        "How long a stopping agent (SIGTERM, Ctrl-C) goes on serving what has begun before it closes.",
    )

    def __post_init__(self) -> None:
        """Checks the values and takes in the labels of the file. ConfigError."""
        Section.__post_init__(self)
        if self.labels_file is not None:  # once: what the file says later is not asked for
            read = tuple(f"{key}={value}" for key, value in read_labels(self.labels_file).items() if "=" not in key)
            object.__setattr__(self, "labels", (*read, *self.labels))

    @property
    def label_map(self) -> dict[str, str]:
        """The labels by key; the last one counts where a key is there twice."""
        return labels_of(dict(label.partition("=")[::2] for label in self.labels))


@dataclass(frozen=True, slots=True)
class StoreConfig(Section):
    """What is never evicted. An image is all that belongs to it: index, manifests, config, layers, signatures."""

    keep: tuple[str, ...] = option(
        v.list_of(v.IMAGES),
        (),
        'Images that are kept once they were pulled: "docker.io/library/nginx:stable", "ghcr.io/acme/*:release-*", a '
        "repository for all its tags, a digest. Where a tag moves, what it named before may go. `p2pdist keep` adds "
        "more.",
    )
    running_seconds: float | None = option(
        v.optional(v.SECONDS, 0, "none"),
        86_400.0,
        "Images that the daemon asked for within so long count as running and are kept too, the latest first, as far "
        "as they take half of node.max_store_bytes.",
    )
    recheck_bytes_per_second: int | None = option(
        v.optional(v.SIZE, 0, "only before it is given out"),
        8 * 1024**2,
        "What is stored is hashed again, so that a disk that forgets is found before anybody gets what it has made of "
        "a blob: in the background twice a week, reading so much at most, and before it is given out where that was "
        "longer ago than a week.",
    )


@dataclass(frozen=True, slots=True)
class AdminConfig(Section):
    """The agent's own interface, for `p2pdist status` and metrics: HTTP on a Unix socket that only its user opens."""

    socket: Path | None = option(
        v.optional(v.SOCKET, "", "admin.sock in the data directory"),
        None,
        "Where the socket is made.",
    )
    metrics_port: int | None = option(
        v.optional(v.PORT, 0, "none"),
        None,
        "Port on which Prometheus gets the metrics, and nothing else, by plain HTTP and without asking who it is.",
    )
    metrics_host: str = option(v.HOST, "127.0.0.1", "Address of that port.")


@dataclass(frozen=True, slots=True)
class LogConfig(Section):
    """What is written to standard error."""

    level: str = option(v.one_of("debug", "info", "warning", "error"), "info", "The least important level written.")
    format: str = option(
        v.one_of("auto", "text", "json"),
        "auto",
        '"text": one readable line each; "json": one object each; "auto": text on a terminal, json elsewhere.',
    )
