"""The agent's side of its session with a tracker: one at a time, with whichever of several answers."""

from p2pdist.tracker_client.client import TrackerClient

__all__ = ["TrackerClient"]
