"""Whole blobs: no byte leaves that wasn't proved, whatever happened to the file."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
from pathlib import Path

import pytest
import structlog
from store_kit import CHUNK, Clock, add, content, names, path_of, read

from p2pdist.errors import DigestMismatch, StorageError
from p2pdist.oci import Digest
from p2pdist.store import Store, StoredBlob, shelf, verify

DATA = content(3 * CHUNK + 5)
DIGEST = Digest.of(DATA)
WEEK = 7 * 24 * 3600.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(tmp_path: Path, clock: Clock):
    store = await Store.open(tmp_path, reverify_after=WEEK, clock=clock)
    await add(store, DATA)
    yield store
    await store.close()


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Digest]:
    """Every full hash of a stored file."""
    seen: list[Digest] = []
    hash_file = verify.hash_file

    def noted(fd: int, digest: Digest) -> str:
        seen.append(digest)
        return hash_file(fd, digest)

    monkeypatch.setattr(verify, "hash_file", noted)
    return seen


def flip(path: Path) -> None:
    """One bit, with size and times as before: what only ctime can tell."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(CHUNK)
        byte = file.read(1)[0]
        file.seek(CHUNK)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def other_file(path: Path) -> None:
    path.unlink()
    path.write_bytes(content(len(DATA), seed=1))


def link(path: Path) -> None:
    elsewhere = path.parent.parent.parent / "elsewhere"
    shutil.copy(path, elsewhere)
    path.unlink()
    path.symlink_to(elsewhere)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "in it").write_bytes(DATA)


DAMAGES = [flip, append, other_file, link, fifo, folder, Path.unlink, lambda path: os.truncate(path, CHUNK)]


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_file_is_found_when_it_is_read_and_dropped(store, tmp_path, damage) -> None:
    store.note(DIGEST, "docker.io/library/alpine", "a/b")
    damage(path_of(tmp_path, DIGEST))
    with structlog.testing.capture_logs() as logs:
        assert await store.open_blob(DIGEST) is None
    assert any(line["digest"] == str(DIGEST) and line["log_level"] == "error" for line in logs)
    assert store.find(DIGEST) is None and store.stored() == [] and store.repositories(DIGEST) == set()
    assert names(tmp_path / "blobs" / "sha256") == set() == names(tmp_path / "trash")
    await add(store, DATA)
    assert await read(store, DIGEST) == DATA


@pytest.mark.parametrize("damage", DAMAGES)
async def test_damage_done_while_no_agent_ran_is_found_too(store, tmp_path, damage) -> None:
    await store.close()
    damage(path_of(tmp_path, DIGEST))
    again = await Store.open(tmp_path)
    assert await again.open_blob(DIGEST) is None and again.find(DIGEST) is None
    await again.close()


async def test_an_unchanged_file_is_given_out_without_hashing(store, hashed, clock) -> None:
    clock.now += WEEK
    assert await read(store, DIGEST) == DATA
    assert hashed == []


async def test_a_right_file_with_another_stamp_is_hashed_once_and_given_out(store, tmp_path, hashed) -> None:
    path = path_of(tmp_path, DIGEST)
    shutil.copy(path, tmp_path / "copy")
    os.rename(tmp_path / "copy", path)
    assert [await read(store, DIGEST) for _ in range(2)] == [DATA, DATA]
    assert hashed == [DIGEST]


async def test_an_old_proof_is_renewed_before_the_first_byte(store, hashed, clock) -> None:
    clock.now += WEEK + 1
    assert [await read(store, DIGEST) for _ in range(2)] == [DATA, DATA]
    assert hashed == [DIGEST]


async def test_a_proof_from_the_future_is_renewed(store, hashed, clock) -> None:
    clock.now -= 1
    assert await read(store, DIGEST) == DATA
    assert hashed == [DIGEST]


async def test_a_disk_that_forgets_without_a_trace_is_found_by_the_renewal(store, tmp_path, clock, monkeypatch) -> None:
    flip(path_of(tmp_path, DIGEST))
    now = shelf.Stamp.of(path_of(tmp_path, DIGEST).stat())
    store._index.prove(DIGEST, now, clock.now)  # as if nothing had been changed
    assert await read(store, DIGEST) != DATA
    clock.now += WEEK + 1
    assert await read(store, DIGEST) is None


async def test_a_store_that_always_verifies_still_gives_out_what_is_right(tmp_path, hashed, clock) -> None:
    async def ticking() -> None:
        store = await Store.open(tmp_path / "always", reverify_after=-1, clock=clock)
        await add(store, DATA)
        assert [await read(store, DIGEST) for _ in range(3)] == [DATA] * 3
        await store.close()

    await ticking()
    assert hashed == [DIGEST] * 3


async def test_a_hundred_readers_of_a_suspicious_blob_wait_for_one_hash(store, tmp_path, hashed) -> None:
    os.utime(path_of(tmp_path, DIGEST))
    assert await asyncio.gather(*(read(store, DIGEST) for _ in range(100))) == [DATA] * 100
    assert hashed == [DIGEST]


async def test_a_reader_that_leaves_while_a_blob_is_hashed_takes_nothing_from_the_others(store, tmp_path) -> None:
    os.utime(path_of(tmp_path, DIGEST))
    async with asyncio.TaskGroup() as group:
        leaving = group.create_task(read(store, DIGEST))
        staying = group.create_task(read(store, DIGEST))
        await asyncio.sleep(0)
        leaving.cancel()
    assert staying.result() == DATA


async def test_a_blob_stored_anew_while_the_old_file_is_hashed_is_not_dropped(store, tmp_path, monkeypatch) -> None:
    flip(path_of(tmp_path, DIGEST))
    prove_file = shelf.prove_file

    def overtaken(path: Path, digest: Digest, pause: None = None) -> object:
        verdict = prove_file(path, digest)
        asyncio.run_coroutine_threadsafe(add(store, DATA), loop).result()
        return verdict

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(shelf, "prove_file", overtaken)
    assert await read(store, DIGEST) == DATA


@pytest.mark.parametrize("descriptors", [0, 1])  # none even to look at it; one to look, none to hash
async def test_a_process_out_of_file_descriptors_does_not_lose_its_blobs(
    store, tmp_path, monkeypatch, descriptors
) -> None:
    os.utime(path_of(tmp_path, DIGEST))
    left, really_open = iter([True] * descriptors), os.open

    def none_left(*arguments: object) -> int:
        if not next(left, False):
            raise OSError(24, "Too many open files")
        return really_open(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", none_left)
        with pytest.raises(StorageError, match="Too many open files"):
            await store.open_blob(DIGEST)
    assert await read(store, DIGEST) == DATA


async def test_an_unreadable_sector_drops_the_blob(store, tmp_path, monkeypatch) -> None:
    os.utime(path_of(tmp_path, DIGEST))

    def broken(*arguments: object) -> int:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", broken)
        assert await store.open_blob(DIGEST) is None
    assert store.find(DIGEST) is None


# --- small content, removal, the open file


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_small_content_is_put_and_read_back(store, tmp_path, algorithm) -> None:
    digest = Digest.of(b"{}", algorithm)
    assert await store.put(b"{}", digest) == StoredBlob(digest, 2) == store.find(digest)
    assert await store.put(b"{}", digest) == StoredBlob(digest, 2)
    assert await read(store, digest) == b"{}" == path_of(tmp_path, digest).read_bytes()


async def test_wrong_small_content_is_refused_and_leaves_no_trace(store, tmp_path) -> None:
    wanted = Digest.of(b"right")
    with pytest.raises(DigestMismatch) as caught:
        await store.put(b"wrong", wanted)
    assert (caught.value.wanted, caught.value.got) == (str(wanted), str(Digest.of(b"wrong")))
    assert store.find(wanted) is None and names(tmp_path / "staging") == set()


async def test_putting_small_content_again_repairs_a_damaged_file(store, tmp_path) -> None:
    digest = Digest.of(b"manifest")
    await store.put(b"manifest", digest)
    path_of(tmp_path, digest).write_bytes(b"mAnifest")
    await store.put(b"manifest", digest)
    assert await read(store, digest) == b"manifest"


async def test_a_removed_blob_is_gone_but_who_has_it_open_reads_on(store, tmp_path) -> None:
    with await store.open_blob(DIGEST) as file:
        await store.remove(DIGEST)
        await store.remove(DIGEST)
        assert store.find(DIGEST) is None and await store.open_blob(DIGEST) is None
        assert names(tmp_path / "blobs" / "sha256") == set() == names(tmp_path / "trash")
        assert file.pread(0, 1 << 40) == DATA and file.pread(len(DATA), 1) == b"" == file.pread(1 << 40, 1)
    file.close()
    with pytest.raises(StorageError, match="closed"):
        file.pread(0, 1)


async def test_an_open_file_that_is_never_closed_is_warned_of_and_closed(store) -> None:
    file = await store.open_blob(DIGEST)
    fd = file.fd
    with pytest.warns(ResourceWarning, match="unclosed <BlobFile"):
        del file
        gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


async def test_a_put_that_the_closing_overtakes_ends_with_a_storage_error(tmp_path) -> None:
    store = await Store.open(tmp_path, max_bytes=len(DATA))
    await add(store, DATA)
    putting = asyncio.create_task(store.put(b"needs an eviction", Digest.of(b"needs an eviction")))
    await asyncio.sleep(0)
    await store.close()
    with pytest.raises(StorageError, match="closed"):
        await putting


async def test_a_closed_store_says_so(tmp_path) -> None:
    store = await Store.open(tmp_path)
    await store.close()
    await store.close()
    for work in (
        store.open_blob(DIGEST),
        store.put(b"", Digest.of(b"")),
        store.remove(DIGEST),
        store.recheck_oldest(1),
    ):
        with pytest.raises(StorageError, match="closed"):
            await work
    for note in (
        lambda: store.pin(DIGEST),
        lambda: store.note(DIGEST, "a", "b"),
        lambda: store.set_tag("a", "b", str(DIGEST), 0.0),
    ):
        with pytest.raises(StorageError, match="closed"):
            note()
