"""One process of the demo: started with a log file, ended by its own pid, never left behind."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from p2pdist.errors import OperationError


class ChildDied(OperationError):
    """A process of the demo ended by itself."""


class Child:
    """A running process. Standard error goes to `log`, and so does standard output unless it is read here."""

    def __init__(self, name: str, log: Path, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.log = log
        self._process = process

    @classmethod
    async def start(cls, name: str, arguments: Sequence[str], log: Path, *, read_stdout: bool = False) -> Self:
        """Run this interpreter with `arguments`, in a session of its own: a Ctrl-C is ours to act upon."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("P2PDIST_")}
        with log.open("ab") as out:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if read_stdout else out,
                stderr=out,
                env=environment,
                start_new_session=True,
            )
        return cls(name, log, process)

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    async def first_line(self, timeout_seconds: float) -> str:
        """The first line of standard output. Raises ChildDied when it ends, or says nothing, instead."""
        assert self._process.stdout is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), timeout_seconds)
        except TimeoutError:
            line = b""
        if not line.endswith(b"\n"):
            raise ChildDied(f"{self.name} did not start: {self.last_words()}")
        return line.decode().strip()

    def check(self) -> None:
        """Raises ChildDied if it has ended."""
        if not self.running:
            raise ChildDied(f"{self.name} ended with status {self._process.returncode}: {self.last_words()}")

    def kill(self) -> None:
        """SIGKILL, without a word, as a machine dies; harmless when it has ended."""
        if self.running:
            self._process.kill()

    async def stop(self, timeout_seconds: float) -> int:
        """SIGTERM, and SIGKILL if that does not help in time. The exit status (negative: the signal's number)."""
        if self.running:
            self._process.terminate()
        try:
            return await asyncio.wait_for(self._process.wait(), timeout_seconds)
        except TimeoutError:
            self.kill()
            return await self._process.wait()

    async def gone(self) -> None:
        """Kill it and wait until it is no more."""
        self.kill()
        await self._process.wait()

    def last_words(self) -> str:
        """The last line of its log, to show why it ended."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - 4096))
                lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        except OSError:
            lines = []
        return lines[-1].strip() if lines else "it said nothing"
