"""Sites, and the gateways between them: nodes of one site know each other, and one of them at a time knows the others.

A node says by labels which site it is in, on which port other sites reach it if it may be a gateway, and whether it is
far from the upstream registries. For every blob one gateway of each site that takes part is chosen, and stays as long
as it does; only these meet across. Where two sites don't both have one a few seconds after the first node wanted the
blob, their nodes meet as if there were no sites. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice

from p2pdist.protocol import labels as names
from p2pdist.protocol import messages
from p2pdist.protocol.messages import PeerInfo
from tracker.model import Node, State, Swarm
from tracker.timers import Outbox

AWAITED = 5.0  # seconds after which a site is no longer expected to have a gateway in a swarm
_LOOKED_AT = 64  # possible gateways of a site


def place(labels: Mapping[str, str]) -> tuple[str, int, bool]:
    """A node's site, the port of its gateway (0: none), and whether it reads from upstream as others do."""
    site = labels.get(names.SITE, "")
    text = labels.get(names.GATEWAY, "")
    port = int(text) if text.isascii() and text.isdigit() and len(text) <= 5 else 0
    return site, port if site and port <= 65535 else 0, labels.get(names.UPSTREAM) != names.FAR


def came(swarm: Swarm, node: Node, out: Outbox) -> None:
    """A live node takes part or has the blob."""
    if node.gateway and node.site not in swarm.gateways:
        swarm.gateways[node.site] = node
        for peer, info in across(swarm, node):  # both are told: one of them may not be able to reach the other
            out.append((node.id, messages.Neighbours([info])))
            out.append((peer.id, messages.Neighbours([at_gateway(node, swarm.digest)])))


def left(state: State, swarm: Swarm, node: Node, out: Outbox) -> None:
    """A node takes no part any more, or no longer has the blob."""
    if swarm.gateways.get(node.site) is node and node not in swarm.members and node not in swarm.holders:
        del swarm.gateways[node.site]
        for other in _possible(state, node.site, swarm):
            came(swarm, other, out)
            return


def born(state: State, swarm: Swarm, now: float) -> None:
    """A new swarm: gateways may hold the blob already, or come."""
    if len(state.sites) > 1:
        swarm.awaited = frozenset(state.sites)
        state.timers.at(now + AWAITED, partial(_no_longer_awaited, swarm))
    if swarm.holders:
        for site in state.sites:
            for node in _possible(state, site, swarm):
                swarm.gateways[site] = node
                break


def gone(state: State, node: Node) -> None:
    """A node's session is over."""
    nodes = state.sites.get(node.site)
    if nodes is not None:
        nodes.pop(node, None)
        if not nodes:
            del state.sites[node.site]


def _possible(state: State, site: str, swarm: Swarm) -> Iterator[Node]:
    for node in islice(state.sites.get(site, ()), _LOOKED_AT):
        if node.live and (node in swarm.members or node in swarm.holders):
            yield node


def meet(swarm: Swarm, node: Node, peer: Node) -> PeerInfo | None:
    """How `node` reaches `peer` for this blob; None: not at all."""
    if node.site == peer.site:
        return peer.peer
    if node.site in swarm.gateways and peer.site in swarm.gateways:
        both = swarm.gateways[node.site] is node and swarm.gateways[peer.site] is peer
        return at_gateway(peer, swarm.digest) if both else None
    expected = all(site in swarm.gateways or site in swarm.awaited for site in (node.site, peer.site))
    return None if expected else peer.peer


def _no_longer_awaited(swarm: Swarm, now: float, out: Outbox) -> None:
    swarm.awaited = frozenset()


def at_gateway(node: Node, blob: str) -> PeerInfo:
    """Where other sites reach it to carry a blob."""
    return PeerInfo(node.id, node.peer.host, node.gateway, node.site, blob=blob)


def brought_to(swarm: Swarm, node: Node) -> bool:
    """Whether its site's gateway brings the node what other sites have: it lacks that for as long as the link takes."""
    return len(swarm.gateways) > 1 and node.site in swarm.gateways and swarm.gateways[node.site] is not node


def across(swarm: Swarm, node: Node) -> Iterator[tuple[Node, PeerInfo]]:
    """The gateways of other sites, where the node is its own site's."""
    if swarm.gateways.get(node.site) is node:
        for peer in swarm.gateways.values():
            info = meet(swarm, node, peer) if peer is not node else None
            if info is not None:
                yield peer, info
