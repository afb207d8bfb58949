"""What is stored is hashed again: rot is found though no stamp shows it, slowly, and nobody waits for it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from store_kit import Clock, add, content, path_of, read

from p2pdist.errors import StorageError
from p2pdist.oci import Digest
from p2pdist.store import Recheck, Store, hashing
from p2pdist.store import store as store_module
from p2pdist.store.blob import Stamp
from p2pdist.store.recheck import LOOK, SETTLED

DATA = content(3 * hashing.PIECE + 5)
DIGEST = Digest.of(DATA)
WEEK = 7 * 24 * 3600.0
FAST = 1 << 40  # bytes per second


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(tmp_path: Path, clock: Clock):
    store = await Store.open(tmp_path, reverify_after=WEEK, clock=clock)
    await add(store, DATA)
    yield store
    await store.close()


def rot(store: Store, path: Path) -> None:
    """A bit changes, and nothing that the kernel tells of the file does."""
    with path.open("r+b") as file:
        file.seek(hashing.PIECE)
        byte = file.read(1)[0]
        file.seek(hashing.PIECE)
        file.write(bytes([byte ^ 1]))
    entry = store._index.get(DIGEST)
    assert entry is not None
    store._index.prove(DIGEST, Stamp.of(path.stat()), entry.verified)


async def test_what_was_proved_longest_ago_is_hashed_again_once_half_its_time_has_passed(store, clock) -> None:
    assert await store.recheck_oldest(FAST) is None
    clock.now += WEEK / 2
    newer = await store.put(b"newer", Digest.of(b"newer"))
    assert await store.recheck_oldest(FAST) == DIGEST
    assert await store.recheck_oldest(FAST) is None
    clock.now += WEEK * 3 / 4
    assert {await store.recheck_oldest(FAST), await store.recheck_oldest(FAST)} == {DIGEST, newer.digest}
    usage = store.usage()
    assert (usage.rechecked, usage.damaged) == (2 * len(DATA) + 5, 0)


async def test_a_reader_need_not_wait_for_a_hash_that_was_made_in_the_background(store, clock, monkeypatch) -> None:
    clock.now += WEEK * 3 / 4
    await store.recheck_oldest(FAST)
    clock.now += WEEK * 3 / 4
    monkeypatch.setattr(hashing, "feed", None)
    assert await read(store, DIGEST) == DATA


async def test_rot_is_found_though_no_stamp_shows_it_and_nobody_gets_it(store, clock, tmp_path) -> None:
    rot(store, path_of(tmp_path, DIGEST))
    blob = await store.open_blob(DIGEST)
    assert blob is not None, "the stamp is what it was: this is what only a hash finds"
    blob.close()
    clock.now += WEEK / 2
    assert await store.recheck_oldest(FAST) == DIGEST
    assert store.find(DIGEST) is None and await store.open_blob(DIGEST) is None
    assert store.usage().damaged == 1 and not path_of(tmp_path, DIGEST).exists()
    await add(store, DATA)
    assert await read(store, DIGEST) == DATA


async def test_it_is_the_disk_that_is_read_and_memory_keeps_nothing_of_it(store, clock, monkeypatch) -> None:
    done: list[tuple[str, int]] = []
    feed, advise = hashing.feed, os.posix_fadvise

    def fed(hasher, fd, start, end):
        done.append(("read", start))
        return feed(hasher, fd, start, end)

    def advised(fd, start, length, advice):
        assert advice == os.POSIX_FADV_DONTNEED
        done.append(("drop", start))
        advise(fd, start, length, advice)

    monkeypatch.setattr(hashing, "feed", fed)
    monkeypatch.setattr(os, "posix_fadvise", advised)
    clock.now += WEEK
    await store.recheck_oldest(FAST)
    pieces = [n * hashing.PIECE for n in range(4)]
    assert done == [(what, start) for start in pieces for what in ("drop", "read", "drop")]


async def test_no_more_is_read_in_a_second_than_was_said(store, clock, monkeypatch) -> None:
    waits: list[float] = []

    class Waiting:
        def wait(self, seconds: float) -> bool:
            waits.append(seconds)
            return False

        def set(self) -> None: ...

    monkeypatch.setattr(store_module, "threading", SimpleNamespace(Event=Waiting))
    clock.now += WEEK
    await store.recheck_oldest(hashing.PIECE // 2)
    assert len(waits) == 4 and sum(waits) == pytest.approx(2 * len(DATA) / hashing.PIECE)


async def test_a_slow_hash_keeps_no_reader_and_no_end_waiting(store, clock, tmp_path) -> None:
    clock.now += 2 * WEEK  # a reader has to hash it, too, and does so by itself
    slow = asyncio.create_task(store.recheck_oldest(1))
    async with asyncio.timeout(60):
        while not store.usage().rechecked:
            await asyncio.sleep(0.01)
        assert await read(store, DIGEST) == DATA
        assert not slow.done()
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        clock.now += 2 * WEEK
        slow = asyncio.create_task(store.recheck_oldest(1))
        await asyncio.sleep(0)
        await store.close()
        with pytest.raises(StorageError, match="closed"):
            await slow


class Ended(Exception):
    pass


async def test_it_begins_late_goes_from_blob_to_blob_says_what_is_lost_and_outlives_a_disk_that_fails(
    store, clock, tmp_path, monkeypatch
) -> None:
    other = await store.put(b"other", Digest.of(b"other"))
    rot(store, path_of(tmp_path, DIGEST))
    clock.now += WEEK
    slept: list[float] = []
    lost: list[Digest] = []
    failing = iter([True, False])
    recheck_oldest = store.recheck_oldest

    async def sometimes(rate: int) -> Digest | None:
        if next(failing, False):
            raise StorageError("too many open files")
        return await recheck_oldest(rate)

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise Ended

    async def note(digest: Digest) -> None:
        lost.append(digest)

    monkeypatch.setattr(store, "recheck_oldest", sometimes)
    with pytest.raises(Ended):
        await Recheck(store, FAST, note, sleep=sleep).run()
    assert slept == [SETTLED, LOOK, LOOK]
    assert lost == [DIGEST] and store.find(other.digest) is not None
