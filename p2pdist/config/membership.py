"""Options of the exchange with other nodes: ports, sites, trackers, which cluster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from p2pdist.config import values as v
from p2pdist.config.declare import Section, option


@dataclass(frozen=True, slots=True)
class PeerConfig(Section):
    """The port on which the other nodes fetch chunks from this one."""

    host: str = option(v.HOST, "0.0.0.0", "Address to listen on.")
    port: int = option(v.PORT, 5051, "Port to listen on; the other nodes must reach it.")
    advertise_host: str | None = option(
        v.optional(v.HOST, "", "the address that the tracker sees this node come from"),
        None,
        "Where the other nodes reach this one.",
    )
    engine: str = option(
        v.one_of("mesh", "bittorrent"),
        "mesh",
        'How chunks move between nodes; the same on all nodes of a cluster. "mesh": the faster one, for nodes that a '
        'tracker introduces. "bittorrent": also finds nodes of the same network segment with no tracker at all; it '
        "listens on the two ports behind this one, too.",
    )


@dataclass(frozen=True, slots=True)
class SiteConfig(Section):
    """Places that are joined by a wide-area link. Which one a node is in, its label says: `node.labels = ["site=a"]`.

    Nodes of one site exchange chunks by peer.engine. One gateway of each site at a time carries a blob across, by
    BitTorrent over uTP, which leaves the link to other traffic; the tracker chooses it among those that pull the blob.
    """

    gateway: bool = option(
        v.FLAG,
        False,
        "This node may be its site's gateway. Set it on several nodes of each site, or on all. Where a site has none "
        "in a rollout, its nodes exchange chunks with other sites as if there were no sites.",
    )
    gateway_port: int = option(
        v.PORT, 5061, "Port on which gateways of other sites reach this one; it listens on the two behind it, too."
    )
    far_from_upstream: bool = option(
        v.FLAG,
        False,
        "This site's way to the upstream registries is the expensive one: it reads there only what no other site's "
        "nodes can.",
    )
    upload_bytes_per_second: int | None = option(
        v.optional(v.SIZE, 0, "no bound"), None, "What this gateway sends to other sites, at most."
    )
    download_bytes_per_second: int | None = option(
        v.optional(v.SIZE, 0, "no bound"), None, "What it takes from them, at most."
    )


@dataclass(frozen=True, slots=True)
class TrackerConfig(Section):
    """Who tells this node which other nodes want or have a blob."""

    urls: tuple[str, ...] = option(
        v.list_of(v.HTTP_URL),
        (),
        "Trackers, every address behind every name: nodes spread over them, and go over to another when one fails. "
        "None: this node fetches everything from upstream itself.",
    )


@dataclass(frozen=True, slots=True)
class ClusterConfig(Section):
    """Which cluster this node is a member of. docs/security.md says what members can do and who else can't."""

    insecure: bool = option(
        v.FLAG,
        False,
        "Neither encryption nor certificates, towards other nodes and trackers: whoever reaches the ports is a member. "
        "For closed test networks; the tracker must be set the same.",
    )
    token: str | None = option(
        v.optional(v.SECRET, "", "none"),
        None,
        "Join token, needed until this node has its first certificate: `p2pdist-tracker token create` makes one.",
    )
    token_file: Path | None = option(
        v.optional(v.PATH, "", "none"), None, "File with the join token, in place of cluster.token."
    )
    kubernetes_token_file: Path | None = option(
        v.optional(v.PATH, "", "none"),
        None,
        "In a pod, in place of a join token: a projected service account token, which the tracker shows to "
        "Kubernetes. Read at each attempt, since it is renewed in its file.",
    )
    authority_file: Path | None = option(
        v.optional(v.PATH, "", "none"),
        None,
        "With cluster.kubernetes_token_file: the certificate (PEM) of the cluster's authority. A join token names it "
        "by itself.",
    )
