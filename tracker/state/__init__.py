"""What trackers must agree on and not forget: see `State`."""

from tracker.state.protocol import Leader, State

__all__ = ["Leader", "State"]
