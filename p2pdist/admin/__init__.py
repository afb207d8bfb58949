"""The agent's local interface, on a Unix socket: both ends. And its metrics on a port, where one is wanted."""

from p2pdist.admin.client import AdminClient, AdminError, NoAgent
from p2pdist.admin.metrics import MetricsServer
from p2pdist.admin.server import AdminServer

__all__ = ["AdminClient", "AdminError", "AdminServer", "MetricsServer", "NoAgent"]
