"""The agent's local interface, on a Unix socket: both ends."""

from p2pdist.admin.client import AdminClient, AdminError, NoAgent
from p2pdist.admin.server import AdminServer

__all__ = ["AdminClient", "AdminError", "AdminServer", "NoAgent"]
