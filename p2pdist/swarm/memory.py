"""What a node remembers of its cluster over a restart: its membership and its last neighbours.

So a node that starts while no tracker answers still finds peers, and they believe what it attests.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
import structlog

from p2pdist.protocol.messages import Membership, PeerInfo
from p2pdist.swarm.attest import Attestor

_log = structlog.get_logger("p2pdist.swarm")
_PEERS = 64


class _Memory(msgspec.Struct):
    peers: list[PeerInfo] = []
    cluster_key: bytes = b""
    membership: Membership | None = None


def recall(path: Path, attestor: Attestor) -> list[PeerInfo]:
    """The last known neighbours; `attestor` gets back its membership. Nothing where nothing usable is there."""
    try:
        memory = msgspec.json.decode(path.read_bytes(), type=_Memory)
    except FileNotFoundError:
        return []
    except (OSError, msgspec.DecodeError) as error:
        _log.warning("what was known of the cluster can't be read", file=str(path), error=str(error))
        return []
    if memory.membership is not None and memory.membership.node == attestor.node and len(memory.cluster_key) == 32:
        attestor.join(memory.membership, memory.cluster_key)
    return memory.peers[:_PEERS]


def remember(path: Path, attestor: Attestor, peers: Sequence[PeerInfo]) -> None:
    """Write it down for the next start; a failure is logged only."""
    memory = _Memory(list(peers)[:_PEERS], attestor.cluster_key or b"", attestor.membership)
    new = path.with_name(path.name + ".new")
    try:
        new.write_bytes(msgspec.json.encode(memory))
        os.replace(new, path)
    except OSError as error:
        _log.warning("what is known of the cluster can't be written", file=str(path), error=str(error))
