"""Takes away what a laboratory run made, however that run ends.

A run starts this file as a process of its own and tells it, line by line on a pipe, what it is about to make. When the
pipe closes (a clean end, an exception, SIGKILL: the kernel closes it in every case) the guard ends the processes,
unmounts, deletes the namespaces and removes the directories. It is the only place where a run is taken down.

Imports the standard library only and nothing of this project: it must work whatever state the rest is in.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

NETNS = Path("/run/netns")
PATIENCE = 10.0  # seconds that ended processes get to disappear
_MNT_DETACH = 2


class CleanupError(RuntimeError):
    """Something that the run made is still there; the text names it."""


class Guard:
    """The run's end of the pipe. Thread-safe enough: one `write` per line, lines far under PIPE_BUF."""

    def __init__(self) -> None:
        # Own process group: a Ctrl-C on the terminal must reach the run and not what cleans up after it.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,
        )

    def process(self, pid: int) -> None:
        self._tell("process", f"{pid} {start_time(pid)}")

    def netns(self, name: str) -> None:
        self._tell("netns", name)

    def directory(self, path: Path) -> None:
        """Everything mounted below it will be unmounted and the tree removed."""
        self._tell("directory", str(path))

    def close(self) -> None:
        """Everything goes now. Raises `CleanupError` with what would not go."""
        if self._process.stdin is None or self._process.stdin.closed:
            return
        output, _ = self._process.communicate(timeout=60)
        if self._process.returncode != 0:
            raise CleanupError(output.decode(errors="replace").strip())

    def _tell(self, kind: str, name: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([kind, name]).encode() + b"\n")
        self._process.stdin.flush()

    def __enter__(self) -> Guard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def start_time(pid: int) -> int:
    """Clock ticks since boot at which the process started: with the pid it names it for good. 0 if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(text.rpartition(")")[2].split()[19])


def runs(pid: int) -> bool:
    """False also for one that has ended and that its parent has not taken notice of."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def pids_in(netns: str) -> list[int]:
    """Processes whose network namespace is the named one."""
    try:
        wanted = (NETNS / netns).stat()
    except FileNotFoundError:
        return []
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            # The process may end between the listing and the look.
            with contextlib.suppress(OSError):
                have = os.stat(f"/proc/{entry}/ns/net")
                if (have.st_ino, have.st_dev) == (wanted.st_ino, wanted.st_dev):
                    found.append(int(entry))
    return found


def _end(processes: list[tuple[int, int]], netns: list[str]) -> list[str]:
    deadline = time.monotonic() + PATIENCE
    while True:
        left = [pid for pid, start in processes if start and start_time(pid) == start and runs(pid)]
        left += [pid for name in netns for pid in pids_in(name) if runs(pid)]
        if not left:
            return []
        if time.monotonic() > deadline:
            return [f"process {pid} does not end" for pid in left]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _unmount_below(directory: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    below = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        target = line.split()[4].encode().decode("unicode_escape")
        if target == directory or target.startswith(directory + "/"):
            below.append(target)
    for target in reversed(below):
        libc.umount2(os.fsencode(target), _MNT_DETACH)


def _remove_netns(name: str) -> list[str]:
    shutil.rmtree(Path("/etc/netns") / name, ignore_errors=True)
    if not (NETNS / name).exists():
        return []
    done = subprocess.run(["ip", "netns", "del", name], capture_output=True, text=True, check=False)
    return [] if done.returncode == 0 else [f"namespace {name}: {done.stderr.strip()}"]


def _main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    processes: list[tuple[int, int]] = []
    netns: list[str] = []
    directories: list[str] = []
    for line in sys.stdin:
        kind, name = json.loads(line)
        if kind == "process":
            pid, start = name.split()
            processes.append((int(pid), int(start)))
        elif kind == "netns":
            netns.append(name)
        elif kind == "directory":
            directories.append(name)
    wrong = _end(processes, netns)
    for directory in directories:
        _unmount_below(directory)
    for name in netns:
        wrong += _remove_netns(name)
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)
        if Path(directory).exists():
            wrong.append(f"directory {directory} can't be removed")
    for text in wrong:
        # The reader may be gone: then nobody is left to be told.
        with contextlib.suppress(BrokenPipeError):
            print(text, flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(_main())
