"""Which peers a node is told about: a few live ones, drawn at random from the swarms it is interested in. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from p2pdist.protocol.messages import PeerInfo
from tracker import gateways
from tracker.model import Node, State, Swarm

_CROWD = 256  # nodes of a swarm: among more, hardly one is drawn twice, and `pick` goes on where it happens
_SITES = 4  # times as many are drawn where sites keep nodes apart


def pick(state: State, node: Node, swarms: Sequence[Swarm], count: int) -> list[PeerInfo]:
    """Up to `count` live peers of `node`, from all the swarms: a fair share from each, then whatever the first have."""
    chosen: dict[Node, PeerInfo] = {}
    share = max(2, -(-count // max(1, len(swarms))))
    for most in (share, count):
        for swarm in swarms:
            if len(chosen) >= count:
                break
            _draw(state, node, swarm, min(most, count - len(chosen)), chosen)
        if share >= count:
            break
    links = _other_zones(state, swarms) if any(swarm.apart for swarm in swarms) else {}
    near = list(chosen.values())
    return near[: count - len(links)] + list(links.values()) if links else near


def _other_zones(state: State, swarms: Sequence[Swarm]) -> dict[Node, PeerInfo]:
    """A few nodes of other zones: nothing is fetched from them but under leases, and in a time without a tracker."""
    links: dict[Node, PeerInfo] = {}
    for swarm in swarms:
        for roster in (*(sibling.members for sibling in swarm.siblings), swarm.everywhere):
            for peer in roster.sample(state.rng, state.rules.zone_links):
                if peer.zone != swarm.rollout.zone and len(links) < state.rules.zone_links:
                    links[peer] = peer.peer
    return links


def _draw(state: State, node: Node, swarm: Swarm, count: int, chosen: dict[Node, PeerInfo]) -> None:
    """Add up to `count` new ones of the swarm's members and holders, in proportion to how many there are of each."""
    members, holders = len(swarm.members), len(swarm.holders)
    total = members + holders
    again = len(chosen) if total <= _CROWD else 1  # some may be chosen already
    spare = count + again + 1  # one may be the node itself
    if len(swarm.gateways) + len(swarm.awaited) > 1:
        spare *= _SITES  # and some may be out of its reach
    from_holders = holders if total <= spare else -(-spare * holders // total)
    drawn = swarm.holders.sample(state.rng, from_holders)
    drawn += swarm.members.sample(state.rng, spare - len(drawn) if total > spare else members)
    if 0 < from_holders < len(drawn):  # each part is in random order already
        state.rng.shuffle(drawn)
    goal = len(chosen) + count
    for peer in drawn:
        if len(chosen) >= goal:
            return
        info = gateways.meet(swarm, node, peer) if peer is not node else None
        if info is not None:
            chosen[peer] = info


def first_degree(state: State, swarms: Sequence[Swarm]) -> int:
    """How many peers a joining node gets: half of the degree where later nodes will bring the other half."""
    crowd = max((swarm.crowd() for swarm in swarms), default=0)
    degree = state.rules.degree
    return degree if crowd <= degree else max(1, degree // 2)
