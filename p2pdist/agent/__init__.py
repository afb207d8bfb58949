"""An agent: everything put together."""

from p2pdist.agent.root import Agent, AgentStatus
from p2pdist.agent.settings import make_upstreams, trust_settings

__all__ = ["Agent", "AgentStatus", "make_upstreams", "trust_settings"]
