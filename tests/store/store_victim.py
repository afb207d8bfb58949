"""Programs that the crash tests kill. Each says on stdout what was promised to it, just after the store promised it.

`store_victim.py storm DIRECTORY SEED`: works until it is killed from outside, at any instant.
`store_victim.py points DIRECTORY`: forks one victim after the other; the n-th kills itself at its n-th system call that
changes a file, before it, or, if that is a write, after half of it. Ends when one came through unharmed.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from store_kit import CHUNK, content, fill

from p2pdist.oci import Digest
from p2pdist.store import Store

CHANGING = ("open", "write", "pwrite", "fsync", "fdatasync", "ftruncate", "rename", "unlink", "mkdir")
WRITES = ("write", "pwrite")

_say = os.write


def say(fd: int, *words: object) -> None:
    """One line, at once: the system has it even if the next instant is the last."""
    _say(fd, (" ".join(map(str, words)) + "\n").encode())


def blob(seed: int) -> bytes:
    """The content that `seed` stands for in what is said: 1 to 6 chunks."""
    return content(CHUNK * (seed % 6) + 1 + seed % CHUNK, seed)


async def one_round(store: Store, out: int, seed: int) -> None:
    """A blob in random order with a chunk forgotten and proved again, a small one, another one half, one removed."""
    chance = random.Random(seed)
    data, small, half = blob(seed), content(1000, seed + 1), blob(seed + 2)
    async with await store.stage(Digest.of(data), len(data), CHUNK) as staging:
        order = [index for index in range(staging.count) if not staging.have >> index & 1]
        chance.shuffle(order)
        for index in order:
            fill(staging, data, [index])
            say(out, "proved", seed, index)
        again = chance.randrange(staging.count)
        say(out, "forgetting", seed, again)
        staging.forget(again)
        fill(staging, data, [again])
        say(out, "proved", seed, again)
        await staging.commit()
        say(out, "stored", seed)
    await store.put(small, Digest.of(small))
    say(out, "put", seed + 1)
    async with await store.stage(Digest.of(half), len(half), CHUNK) as staging:
        fill(staging, half, [staging.count - 1])
        say(out, "proved", seed + 2, staging.count - 1)
    if chance.randrange(3) == 0:
        say(out, "removing", seed)
        await store.remove(Digest.of(data))


async def storm(directory: Path, seed: int) -> None:
    store = await Store.open(directory)
    say(1, "opened")
    for number in range(seed, seed + 10_000, 10):
        await one_round(store, 1, number)


def die_at(point: int) -> None:
    """Arms every changing call of `os`: the `point`-th kills."""
    count = 0

    def armed(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*arguments: object, **options: object) -> object:
            nonlocal count
            count += 1
            if count == point:
                if name in WRITES:
                    fd, data, *rest = arguments
                    call(fd, bytes(data)[: len(data) // 2], *rest)
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return wrapped

    for name in CHANGING:
        setattr(os, name, armed(name, getattr(os, name)))


def points(directory: Path) -> None:
    for point in range(1, 1000):
        child = os.fork()
        if not child:
            out = os.open(directory / f"{point}.said", os.O_WRONLY | os.O_CREAT)
            die_at(point)
            asyncio.run(_victim(directory / str(point), out))
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            return
    raise SystemExit("the victims never came through")


async def _victim(directory: Path, out: int) -> None:
    store = await Store.open(directory)
    await one_round(store, out, 14)
    await store.close()


if __name__ == "__main__":
    if sys.argv[1] == "storm":
        asyncio.run(storm(Path(sys.argv[2]), int(sys.argv[3])))
    else:
        points(Path(sys.argv[2]))
