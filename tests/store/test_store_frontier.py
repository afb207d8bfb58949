"""The digest that is computed while the blob comes: exact whatever is proved, forgotten and written again."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_kit import CHUNK, add, chunk, content, fill, names, read, sha256

from p2pdist.errors import DigestMismatch, StorageError
from p2pdist.oci import Digest
from p2pdist.store import Store, hashing

PIECE = 1000


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers small enough for small files to need many."""
    monkeypatch.setattr(hashing, "BUFFER", CHUNK // 4)
    monkeypatch.setattr(hashing, "WAKE", CHUNK)
    monkeypatch.setattr(hashing, "SPAN", 2 * CHUNK)


class Steps:
    """A frontier over a file, its work done when the test says so."""

    def __init__(self, path: Path, digest: Digest) -> None:
        self.file = path.open("w+b", buffering=0)
        self.waiting: list[Callable[[], None]] = []
        self.frontier = hashing.Frontier(self.file.fileno(), digest, self.waiting.append)

    def work(self) -> None:
        while self.waiting:
            self.waiting.pop()()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(["extend", "rewind", "work"]), st.integers(0, 20)), max_size=30), st.data())
def test_whatever_is_extended_and_rewound_the_digest_is_that_of_the_file(tmp_path, steps, data) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashing, "BUFFER", PIECE // 3)
        patch.setattr(hashing, "WAKE", PIECE)
        patch.setattr(hashing, "SPAN", 2 * PIECE)
        lab = Steps(tmp_path / "file", Digest.of(b""))
        with lab.file:
            end = 0
            for step, argument in steps:
                if step == "extend":
                    for _ in range(argument):
                        lab.file.write(data.draw(st.binary(min_size=1, max_size=4)) * (PIECE // 4))
                    end = lab.file.tell()
                    lab.frontier.extend(end)
                elif step == "rewind":
                    end = end * argument // 20
                    lab.frontier.rewind(end)
                    lab.file.seek(end)
                    lab.file.truncate()
                else:
                    lab.work()
            lab.file.seek(0)
            assert lab.frontier.finish() == hashlib.sha256(lab.file.read()).hexdigest()


@pytest.mark.parametrize("when", range(1, 9))
def test_a_chunk_forgotten_while_it_is_hashed_starts_the_hashing_again(
    tmp_path, small_steps, monkeypatch, when
) -> None:
    good = content(6 * CHUNK)
    bad = good[:CHUNK] + bytes(CHUNK) + good[2 * CHUNK :]
    lab = Steps(tmp_path / "file", Digest.of(good))
    with lab.file:
        lab.file.write(bad)
        calls = 0
        preadv = os.preadv

        def forget_meanwhile(fd, buffers, offset):
            nonlocal calls
            calls += 1
            count = preadv(fd, buffers, offset)
            if calls == when * 2:
                lab.frontier.rewind(CHUNK)
                os.pwrite(fd, chunk(good, 1), CHUNK)
                lab.frontier.extend(len(good))
            return count

        monkeypatch.setattr(os, "preadv", forget_meanwhile)
        lab.frontier.extend(len(bad))
        lab.work()
        assert lab.frontier.finish() == hashlib.sha256(good).hexdigest()


async def test_commit_reads_nothing_that_was_hashed_before(tmp_path, small_steps, monkeypatch) -> None:
    data = content(40 * CHUNK)
    store = await Store.open(tmp_path)
    lengths: list[int] = []
    preadv = os.preadv

    def counted(fd, buffers, offset):
        lengths.append(preadv(fd, buffers, offset))
        return lengths[-1]

    monkeypatch.setattr(os, "preadv", counted)
    async with await store.stage(Digest.of(data), len(data), CHUNK) as staging:
        order = list(range(staging.count))
        random.Random(1).shuffle(order)
        fill(staging, data, order)
        await staging.commit()
    assert sum(lengths) == len(data)
    await store.close()


async def test_the_prefix_is_hashed_before_the_commit_asks_for_it(tmp_path, small_steps, monkeypatch) -> None:
    data = content(40 * CHUNK)
    hashed, near_the_frontier = 0, threading.Event()
    preadv = os.preadv

    def counted(fd, buffers, offset):
        nonlocal hashed
        count = preadv(fd, buffers, offset)
        hashed += count
        if hashed > 28 * CHUNK:
            near_the_frontier.set()
        return count

    monkeypatch.setattr(os, "preadv", counted)
    store = await Store.open(tmp_path)
    async with await store.stage(Digest.of(data), len(data), CHUNK) as staging:
        fill(staging, data, range(30))
        assert await asyncio.to_thread(near_the_frontier.wait, 60)
    await store.close()


async def test_a_liars_chunk_far_behind_the_frontier_is_replaced_and_the_digest_is_right(tmp_path, small_steps) -> None:
    data, lie = content(40 * CHUNK), content(CHUNK, seed=1)
    store = await Store.open(tmp_path)
    async with await store.stage(Digest.of(data), len(data), CHUNK) as staging:
        staging.write(2 * CHUNK, lie)
        staging.prove(2, sha256(lie), b"signed by a liar")
        fill(staging, data, [index for index in range(40) if index != 2])
        with pytest.raises(DigestMismatch):
            await staging.commit()
        staging.forget(2)
        fill(staging, data, [2])
        await staging.commit()
    assert await read(store, Digest.of(data)) == data
    await store.close()


async def test_a_write_error_that_the_kernel_told_once_fails_the_commit(tmp_path, small_steps, monkeypatch) -> None:
    """After a failed sync the next one succeeds although bytes are lost; such a blob must never be stored."""
    data = content(8 * CHUNK)
    store = await Store.open(tmp_path)

    def fails(fd):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(hashing, "FLUSH", CHUNK)
    monkeypatch.setattr(os, "fdatasync", fails)
    async with await store.stage(Digest.of(data), len(data), CHUNK) as staging:
        fill(staging, data)
        with pytest.raises(StorageError, match="Input/output error"):
            await staging.commit()
        with pytest.raises(StorageError, match="abandon it"):
            await staging.commit()
    assert store.find(Digest.of(data)) is None
    assert names(tmp_path / "staging") == set() == names(tmp_path / "blobs" / "sha256")
    monkeypatch.undo()
    await add(store, data)
    await store.close()


async def test_a_partial_file_cut_short_by_somebody_else_fails_the_commit(tmp_path) -> None:
    data = content(4 * CHUNK)
    store = await Store.open(tmp_path)
    async with await store.stage(Digest.of(data), len(data), CHUNK) as staging:
        fill(staging, data)
        os.truncate(staging.fd, 3 * CHUNK)
        for _ in range(2):
            with pytest.raises(StorageError, match="cut short"):
                await staging.commit()
        staging.forget(3)
        fill(staging, data, [3])
        await staging.commit()
    assert await read(store, Digest.of(data)) == data
    await store.close()


async def test_the_file_is_closed_only_when_the_worker_that_hashes_let_go(tmp_path, small_steps, monkeypatch) -> None:
    """Or its next read would be from whatever file got the descriptor next."""
    data = content(4 * CHUNK)
    reading, closing = threading.Event(), threading.Event()
    order: list[str] = []
    preadv, close = os.preadv, os.close

    def slow(fd, buffers, offset):
        reading.set()
        assert closing.wait(10)
        count = preadv(fd, buffers, offset)
        order.append("read")
        return count

    def noted(fd):
        if fd == staging.fd or staging.fd < 0:
            order.append("closed")
        close(fd)

    store = await Store.open(tmp_path)
    staging = await store.stage(Digest.of(data), len(data), CHUNK)
    stop = staging._frontier.stop
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", slow)
        patch.setattr(os, "close", noted)
        patch.setattr(staging._frontier, "stop", lambda: (closing.set(), stop()))
        fill(staging, data)
        await asyncio.to_thread(reading.wait)
        await staging.close()
    assert "read" in order and order.index("closed") > max(n for n, word in enumerate(order) if word == "read")
    await store.close()
