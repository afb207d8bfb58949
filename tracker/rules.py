"""The tracker's constants, each with its unit and what is known about it. Frozen; a configuration may change them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from p2pdist.protocol import limits


def option(
    default: Any, doc: str, *, least: float | None = None, most: float = math.inf, choices: tuple[str, ...] = ()
) -> Any:
    """A dataclass field whose documentation and bounds travel with it: the configuration is read and shown by them.

    Without `least` an int is at least 1 and a float at least 0.
    """
    if least is None:
        least = 1 if isinstance(default, int) else 0
    return field(default=default, metadata={"doc": doc, "least": least, "most": most, "choices": choices})


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmRules:
    """Leases, credits and neighbours. Times in seconds."""

    degree: int = option(
        20,
        "neighbours a joining node gets (5: last node at 1.85 of the limit; 12: 1.15; 20: 1.09)",
        most=limits.MAX_NEIGHBOURS,
    )
    credits: int = option(8, "leases of one rollout that wait for their first half from upstream (4: 1.18; 16: 1.10)")
    first_credits: int = option(2, "credits a rollout starts with; one more for each that comes back")
    zone_credits: int = option(8, "chunks on their way into one zone from others, until half of each has come")
    zone_bytes: int = option(
        4 * 1024 * 1024, "the same in bytes, though two chunks always: a slow link is not to be late with all of them"
    )
    zone_links: int = option(2, "neighbours of a node in other zones, for a time without a tracker")
    carry_timeout: float = option(
        30.0, "seconds without progress after which a lease from another zone goes to another node, at least", least=0.1
    )
    registry_credits: int = option(64, "credits out to one upstream registry, over all rollouts")
    leases_per_node: int = option(2, "unfinished leases of one node in a rollout")
    run: int = option(1, "chunks in one lease (2 and 4: 1.085 and 1.095 instead of 1.077; 8: 1.20)", most=64)
    lease_timeout: float = option(
        10.0,
        "seconds without progress after which a lease goes to another node, at least, if no other one makes progress",
        least=0.1,
    )
    lease_timeout_factor: float = option(8.0, "the same as a multiple of what a first half usually takes")
    late_after: float = option(
        1.0, "seconds without progress after which it does, at least, while those of others make progress", least=0.1
    )
    late_factor: float = option(4.0, "the same as a multiple of what a first half usually takes")
    bench_time: float = option(
        10.0, "seconds without new leases for a node that let one expire; doubles up to 80 s with each more"
    )
    alone_after: float = option(
        0.25,
        "seconds after its birth from which a swarm of one node is read as one stream (nodes that start together are "
        "leased chunks from the first one on, and no stream has to be called back)",
    )
    alone_leases: int = option(2, "streams of one lone node at once")
    recall_timeout: float = option(2.0, "seconds after a recall from which the lone stream is taken for over")
    miss_patience: float = option(
        2.0, "age in seconds from which a missed read from another zone without progress is given to another node"
    )
    miss_again: float = option(
        3.0, "seconds after which a chunk still missed is leased though some node should have it"
    )
    retry_after_failure: float = option(
        0.25, "seconds before a failed chunk is leased again; doubles up to 8 s", least=0.01
    )
    settle: float = option(2.0, "seconds without leases for a swarm told of partial blobs, early in a tracker's life")
    settle_window: float = option(10.0, "how many seconds after its start a tracker settles swarms like that")
    vote_window: float = option(30.0, "seconds within which two nodes must call a third dead")
    throttle_most: float = option(60.0, "longest pause in seconds that one answer of an upstream can cause")
    max_nodes: int = option(20_000, "connected nodes")
    max_swarms: int = option(200_000, "swarms at once")
    max_swarms_per_node: int = option(limits.MAX_SWARMS_PER_NODE, "blobs one node waits for")
    max_swarms_per_rollout: int = option(1024, "blobs that share the credits and the order of one rollout")
    max_holds_per_node: int = option(32_768, "complete blobs one node announces")


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentRules:
    """Small content: tags, manifests, configs and blobs up to `limits.SMALL_CONTENT`. Times in seconds."""

    tag_refresh: float = option(10.0, "seconds for which the answer for a tag is fresh; then one node asks upstream")
    fetch_timeout: float = option(
        5.0, "seconds after which a fetch without an answer goes to the next waiter", least=0.1
    )
    absent_time: float = option(5.0, "seconds for which an upstream's refusal is remembered (a tag may be pushed)")
    absent_votes: int = option(2, "nodes that must be refused by the upstream before those that wait are told")
    tries: int = option(3, "fetches that may fail before those that wait are told, when there is nothing stale")
    max_bytes: int = option(64 * 1024 * 1024, "memory for content, least recently used goes first")
    max_bytes_per_node: int = option(
        16 * 1024 * 1024, "memory for content that one node brought; beyond it its own oldest goes"
    )
    max_asks_per_node: int = option(1024, "unanswered questions of one node, and what it is asked to bring")


@dataclass(frozen=True, slots=True, kw_only=True)
class BanRules:
    """When a node is shut out. Times in seconds."""

    accusers: int = option(
        3, "different nodes on different hosts, at least, that must have got wrong bytes from a node (no proof)"
    )
    accuser_share: float = option(
        0.34, "share of the cluster's hosts that accusers without proof must exceed as well", most=1.0
    )
    window: float = option(600.0, "seconds within which they must say so")
    settle: float = option(
        120.0, "seconds after its start in which a tracker bans nobody without proof: not every node is back yet"
    )
    ban_time: float = option(3600.0, "seconds for which the node is shut out")
    proved_ban_time: float = option(86_400.0, "seconds for which a node is shut out that signed a proved lie")
    proof_bytes: int = option(
        2 * 1024**3, "largest blob that an accuser may send to prove a lie; of larger ones accusers are counted"
    )
    max_accused_per_node: int = option(64, "nodes one node can accuse within the window")
