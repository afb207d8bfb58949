"""The messages that agents and trackers, and agents and agents, exchange. Pure; no IO."""
