"""Room: the least recently used goes, what is in use never does, and a full disk loses nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_kit import CHUNK, Clock, add, content, fill, names, path_of, read

from p2pdist.errors import DiskFull
from p2pdist.oci import Digest
from p2pdist.store import Store
from p2pdist.store.eviction import Candidate, choose

BLOBS = [content(CHUNK, seed=seed) for seed in range(6)]
DIGESTS = [Digest.of(blob) for blob in BLOBS]
ROOM = 4 * CHUNK


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(tmp_path: Path, clock: Clock):
    """Four blobs in room for four, the first stored first."""
    store = await Store.open(tmp_path, max_bytes=ROOM, clock=clock)
    for blob in BLOBS[:4]:
        clock.now += 1
        await add(store, blob)
    clock.now += 1
    yield store
    await store.close()


def there(store: Store) -> list[int]:
    return [number for number, digest in enumerate(DIGESTS) if store.find(digest) is not None]


async def test_the_least_recently_used_blob_makes_room(store, tmp_path, clock) -> None:
    await read(store, DIGESTS[0])
    await add(store, BLOBS[4])
    assert there(store) == [0, 2, 3, 4]
    assert not path_of(tmp_path, DIGESTS[1]).exists() and names(tmp_path / "trash") == set()
    assert await read(store, DIGESTS[1]) is None
    await store.put(b"small", Digest.of(b"small"))
    assert there(store) == [0, 3, 4]
    assert store.usage().stored <= ROOM


async def test_the_order_of_use_holds_over_a_restart(store, tmp_path, clock) -> None:
    clock.now += 100
    await read(store, DIGESTS[0])
    await store.close()
    store = await Store.open(tmp_path, max_bytes=ROOM, clock=clock)
    await add(store, BLOBS[4])
    assert there(store) == [0, 2, 3, 4]
    await store.close()


async def test_open_pinned_and_staged_blobs_are_never_evicted(store, clock) -> None:
    store.pin(DIGESTS[0])
    with await store.open_blob(DIGESTS[1]):
        async with await store.stage(DIGESTS[4], CHUNK, CHUNK) as staging:
            fill(staging, BLOBS[4])
            assert there(store) == [0, 1, 3]
            async with await store.stage(DIGESTS[5], CHUNK, CHUNK) as other:
                fill(other, BLOBS[5])
                assert there(store) == [0, 1]
                with pytest.raises(DiskFull, match="max_bytes"):
                    await store.put(b"x", Digest.of(b"x"))
                with pytest.raises(DiskFull):
                    await store.stage(DIGESTS[3], CHUNK, CHUNK)
                assert there(store) == [0, 1]
                await other.commit()
                clock.now += 1
            await staging.commit()
            assert store.usage().staging == 0 and store.usage().stored == ROOM
        assert there(store) == [0, 1, 4, 5]
        await add(store, BLOBS[3])
        assert there(store) == [0, 1, 3, 4]
    store.unpin(DIGESTS[0])
    await add(store, BLOBS[2])
    assert there(store) == [1, 2, 3, 4]


async def test_a_blob_just_committed_is_not_evicted_while_its_staging_is_open(store) -> None:
    async with await store.stage(DIGESTS[4], CHUNK, CHUNK) as staging:
        fill(staging, BLOBS[4])
        await staging.commit()
        with pytest.raises(DiskFull):
            await store.stage(DIGESTS[5], ROOM, CHUNK)
        assert there(store) == [1, 2, 3, 4]
    async with await store.stage(DIGESTS[5], ROOM, CHUNK):
        assert there(store) == []


async def test_a_blob_opened_twice_and_closed_once_is_open(store, clock) -> None:
    first, second = await store.open_blob(DIGESTS[0]), await store.open_blob(DIGESTS[0])
    clock.now += 1
    for digest in DIGESTS[1:4]:
        await read(store, digest)
    first.close()
    first.close()
    await add(store, BLOBS[4])
    assert there(store) == [0, 2, 3, 4]
    second.close()
    await add(store, BLOBS[5])
    assert there(store) == [2, 3, 4, 5]


async def test_a_pin_holds_over_a_restart_and_before_the_blob_is_there(store, tmp_path, clock) -> None:
    store.pin(DIGESTS[0])
    store.pin(DIGESTS[4])
    await add(store, BLOBS[4])
    await store.close()
    store = await Store.open(tmp_path, max_bytes=2 * CHUNK, clock=clock)
    with pytest.raises(DiskFull):
        await store.stage(DIGESTS[5], CHUNK, CHUNK)
    assert there(store) == [0, 2, 3, 4]
    await store.close()


async def test_a_blob_that_can_never_fit_evicts_nothing(store) -> None:
    for size in (ROOM + 1, 2**40):
        with pytest.raises(DiskFull):
            await store.stage(DIGESTS[4], size, 16 * 2**20)
    assert there(store) == [0, 1, 2, 3] and store.usage().partials == 0
    async with await store.stage(DIGESTS[4], ROOM, CHUNK):
        assert there(store) == []


async def test_a_partial_outlives_blobs_and_is_the_last_to_go(store) -> None:
    data = content(3 * CHUNK, seed=9)
    staging = await store.stage(Digest.of(data), len(data), CHUNK)
    fill(staging, data, [0, 1])
    await staging.close()
    assert there(store) == [3]
    async with await store.stage(DIGESTS[4], 2 * CHUNK, CHUNK):
        assert there(store) == [] and len(store.partials()) == 1
        async with await store.stage(DIGESTS[5], CHUNK, CHUNK):
            assert store.partials() == []
    async with await store.stage(Digest.of(data), len(data), CHUNK) as staging:
        assert staging.have == 0


async def test_a_refused_resumption_keeps_the_partial(store) -> None:
    data = content(3 * CHUNK, seed=9)
    staging = await store.stage(Digest.of(data), len(data), CHUNK)
    fill(staging, data, [0])
    await staging.close()
    async with await store.stage(DIGESTS[4], 3 * CHUNK, CHUNK):
        with pytest.raises(DiskFull):
            await store.stage(Digest.of(data), len(data), CHUNK)
        assert store.partials() == [(Digest.of(data), len(data), CHUNK)]
    async with await store.stage(Digest.of(data), len(data), CHUNK) as staging:
        assert staging.have == 0b1


async def test_a_disk_that_fills_up_while_staging_loses_nothing_and_the_write_can_be_tried_again(
    store, monkeypatch
) -> None:
    for number in (errno.ENOSPC, errno.EDQUOT):
        async with await store.stage(DIGESTS[4], CHUNK, CHUNK) as staging:
            pwrite, room = os.pwrite, 1000

            def full(fd, data, offset, pwrite=pwrite, number=number):
                nonlocal room
                if not room:
                    raise OSError(number, os.strerror(number))
                count = pwrite(fd, memoryview(data)[:room], offset)
                room -= count
                return count

            with monkeypatch.context() as patch:
                patch.setattr(os, "pwrite", full)
                with pytest.raises(DiskFull, match="free some space"):
                    fill(staging, BLOBS[4])
            assert staging.have == 0
            fill(staging, BLOBS[4])
            await staging.commit()
        assert await read(store, DIGESTS[4]) == BLOBS[4]
        await store.remove(DIGESTS[4])
    assert there(store) == [1, 2, 3]


async def test_a_disk_without_room_for_the_last_sync_stores_nothing(store, tmp_path, monkeypatch) -> None:
    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    async with await store.stage(DIGESTS[4], CHUNK, CHUNK) as staging:
        fill(staging, BLOBS[4])
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(DiskFull):
                await staging.commit()
    assert store.find(DIGESTS[4]) is None and names(tmp_path / "staging") == set()
    assert there(store) == [1, 2, 3]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.integers(0, 100))), st.integers(-10, 500))
def test_what_goes_is_enough_and_no_more_and_in_order(things, needed) -> None:
    candidates = [
        Candidate(partial, used, Digest.of(b"%d" % number), size) for number, (partial, used, size) in enumerate(things)
    ]
    chosen = choose(candidates, needed)
    if chosen is None:
        assert sum(one.size for one in candidates) < needed
        return
    assert chosen == sorted(candidates)[: len(chosen)]
    assert sum(one.size for one in chosen) >= max(0, needed) or needed <= 0
    assert not chosen or sum(one.size for one in chosen[:-1]) < needed
