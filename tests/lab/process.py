"""One program in one host: started with a log file, ended by its pid, its CPU time and memory read from the kernel."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_TICK = os.sysconf("SC_CLK_TCK")


class LabError(RuntimeError):
    """The laboratory can't do what was asked; the text says what to look at."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process used so far: CPU in seconds (user + system, all threads), peak resident set in bytes."""

    cpu: float
    peak_rss: int


def wait_until(what: str, condition: Callable[[], bool], timeout: float = 15.0, *, every: float = 0.02) -> None:
    """Real programs run in real time: look until it is so. `LabError` names what did not come about in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"waited {timeout:g} s for {what}")
        time.sleep(every)


class Process:
    """A started program. `argv` runs as given (the caller puts it into a namespace); stdout and stderr go to `log`."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        pipes: bool = False,
    ) -> None:
        self.name = name
        self.log = log
        self._last = Usage(0.0, 0)
        with log.open("ab") as out:
            # A process group of its own (a Ctrl-C must not reach it before us) but no session of its own: the kernel
            # shares the CPU between sessions, and a bench is one of them.
            self._popen = subprocess.Popen(
                list(argv),
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else out,
                stderr=out,
                env=dict(env) if env is not None else None,
                cwd=cwd,
                process_group=0,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def stdin(self) -> IO[bytes]:
        """Only where it was started with pipes."""
        assert self._popen.stdin is not None
        return self._popen.stdin

    @property
    def stdout(self) -> IO[bytes]:
        """Only where it was started with pipes."""
        assert self._popen.stdout is not None
        return self._popen.stdout

    @property
    def status(self) -> int | None:
        """Exit status (negative: the signal that ended it), None while it runs."""
        if self._popen.returncode is None:
            self._reap(os.WNOHANG)
        return self._popen.returncode

    @property
    def running(self) -> bool:
        return self.status is None

    def usage(self) -> Usage:
        """So far; once it has ended: CPU of its whole life, and the peak as it was at the last call before."""
        if self.running:
            try:
                fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
                lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
                peak = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
            except OSError:
                return self._last
            self._last = Usage((int(fields[11]) + int(fields[12])) / _TICK, max(peak, self._last.peak_rss))
        return self._last

    def send(self, number: signal.Signals) -> None:
        if self.running:
            os.kill(self.pid, number)

    def wait(self, timeout: float) -> int:
        wait_until(f"{self.name} to end (its log: {self.tail()})", lambda: not self.running, timeout)
        assert self.status is not None
        return self.status

    def stop(self, timeout: float = 10.0) -> None:
        """SIGTERM, and SIGKILL for what does not end in time. Also ends one that is frozen."""
        self.send(signal.SIGTERM)
        self.send(signal.SIGCONT)
        with contextlib.suppress(LabError):
            self.wait(timeout)
        self.kill()

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.wait(10.0)
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                # Closing flushes: the reader is gone.
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def tail(self, characters: int = 1500) -> str:
        """The end of its log, for an error message."""
        return self.log.read_text(errors="replace")[-characters:].strip() or "(empty)"

    def _reap(self, flags: int) -> None:
        try:
            pid, status, used = os.wait4(self.pid, flags)
        except ChildProcessError:
            self._popen.returncode = -signal.SIGKILL
            return
        if pid:
            self._popen.returncode = os.waitstatus_to_exitcode(status)
            # Not ru_maxrss: before exec it already counted the pages of the process that forked it.
            self._last = Usage(used.ru_utime + used.ru_stime, self._last.peak_rss)
