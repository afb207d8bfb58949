"""A bench gets a session of its own, and that session a larger share of the CPU.

The kernel shares the CPU between sessions first ("autogroup"), so what else runs on the machine would otherwise take
its half whatever the priorities inside are, and times would say more about the neighbours than about us.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def run_in_own_session(main: Callable[[], int], *, nice: int = -10) -> int:
    """Runs `main` in a forked child with its own session and returns its exit status. Interrupts reach it as usual."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os._exit(_child(main, nice))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda got, _: _forward(child, got))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _child(main: Callable[[], int], nice: int) -> int:
    os.setsid()
    # If the parent is killed nobody could interrupt us any more: end as if asked to.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    # Also SIGINT: what a shell starts in the background has it ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    # Not every kernel groups by session, and not every root may raise a group: then it runs as it is.
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(nice))
    try:
        code = main()
    except KeyboardInterrupt:
        print("interrupted; everything has been taken away", file=sys.stderr)
        code = 130
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 1
    except BaseException as e:  # noqa: BLE001  os._exit follows: nobody else would print it
        sys.excepthook(type(e), e, e.__traceback__)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _forward(child: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, number)
