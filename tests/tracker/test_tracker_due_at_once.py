"""The event loop that trackers run on (uvloop) has timers of two kinds: those that are due at once know no time."""

from __future__ import annotations

import asyncio

import uvloop

from tracker.app import RunningTracker, TrackerSettings


def test_decisions_that_are_due_at_once_end_no_session_and_are_made_once() -> None:
    """It ended the sessions of whoever spoke in that moment; found by bench/load.py."""
    made: list[str] = []

    async def main() -> None:
        async with RunningTracker(TrackerSettings(port=0, insecure=True)) as running:
            leading = running.leading
            assert leading is not None
            timers = leading.cluster.swarms.state.timers
            timers.at(leading.now(), lambda now, out: made.append("first"))
            leading.dispatch([])
            timers.at(leading.now() - 1.0, lambda now, out: made.append("earlier"))
            leading.dispatch([])
            timers.at(leading.now() + 0.2, lambda now, out: made.append("later"))
            leading.dispatch([])
            while len(made) < 3:
                await asyncio.sleep(0)

    uvloop.run(main())
    assert made == ["earlier", "first", "later"]
