"""Labels of a node that trackers understand; what others there are is the operator's."""

from __future__ import annotations

SITE = "site"  # where it is: nodes of one site exchange chunks with each other, gateways with other sites
GATEWAY = "gateway"  # the port on which other sites reach this node; without it, the node is no gateway
ZONE = "zone"  # chunks come into it once; nodes of one zone are near each other
CROSSING, LEASES = "crossing", "leases"  # it fetches chunks from other zones when it is told to; else zones don't count
UPSTREAM = "upstream"
FAR = "far"  # reads from upstream registries only where no other node can
