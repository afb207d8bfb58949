"""Whether the state answers: for health, metrics and the log."""

from __future__ import annotations

import structlog

from p2pdist.errors import StorageError

log = structlog.get_logger()


class Reach:
    """`trouble`: why it can't be reached; empty: it can."""

    def __init__(self) -> None:
        self.trouble = ""
        self.outages = 0

    def answered(self) -> None:
        """It did."""
        if self.trouble:
            log.info("the state can be reached again")
        self.trouble = ""

    def failed(self, error: StorageError) -> None:
        """It didn't."""
        if not self.trouble:
            self.outages += 1
            log.error("the state can't be reached: going on with what is known", error=str(error))
        self.trouble = str(error)
