"""What a tracker, or all replicas of one, must not forget; see `protocol`."""

from tracker.state.local import LocalState
from tracker.state.opening import open_configured, open_state
from tracker.state.protocol import Leader, State
from tracker.state.settings import StateSettings

__all__ = ["Leader", "LocalState", "State", "StateSettings", "open_configured", "open_state"]
