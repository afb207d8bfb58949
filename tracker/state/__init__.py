"""What a tracker, or all replicas of one, must not forget; see `protocol`."""

from tracker.state.local import LocalState
from tracker.state.opening import open_state
from tracker.state.protocol import Leader, State

__all__ = ["Leader", "LocalState", "State", "open_state"]
