"""Partial blobs: what is proved stays, what isn't whole is never stored."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path

import pytest
from store_kit import CHUNK, Clock, add, chunk, content, fill, names, path_of, read, sha256

from p2pdist.errors import DigestMismatch, InputError, StorageError
from p2pdist.oci import Digest
from p2pdist.store import Store, StoredBlob


@pytest.fixture
async def store(tmp_path: Path):
    store = await Store.open(tmp_path, clock=Clock())
    yield store
    await store.close()


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 7 * CHUNK + 13])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_a_blob_whose_chunks_come_in_any_order_is_stored_and_read_back(store, tmp_path, size, algorithm) -> None:
    data = content(size)
    digest = Digest.of(data, algorithm)
    staging = await store.stage(digest, size, CHUNK)
    order = list(range(staging.count))
    random.Random(size).shuffle(order)
    fill(staging, data, order)
    assert staging.complete and staging.have == (1 << staging.count) - 1
    assert await staging.commit() == StoredBlob(digest, size)
    await staging.close()
    assert store.find(digest) == StoredBlob(digest, size)
    assert await read(store, digest) == data
    assert path_of(tmp_path, digest).read_bytes() == data
    assert names(tmp_path / "staging") == set()


async def test_nothing_is_found_before_the_whole_digest_is_proved(store, tmp_path) -> None:
    data = content(3 * CHUNK)
    digest = Digest.of(data)
    async with await store.stage(digest, len(data), CHUNK) as staging:
        fill(staging, data, [0, 2])
        with pytest.raises(StorageError, match="1 of 3 chunks are missing"):
            await staging.commit()
        assert store.find(digest) is None and await store.open_blob(digest) is None
        assert names(tmp_path / "blobs" / "sha256") == set()


async def test_a_false_attestation_is_found_at_the_commit_and_the_staging_stays_usable(store, tmp_path) -> None:
    data, lie = content(4 * CHUNK), content(CHUNK, seed=1)
    digest = Digest.of(data)
    async with await store.stage(digest, len(data), CHUNK) as staging:
        fill(staging, data, [0, 1, 3])
        staging.write(2 * CHUNK, lie)
        staging.prove(2, sha256(lie), b"signed by a liar")
        with pytest.raises(DigestMismatch) as caught:
            await staging.commit()
        assert caught.value.wanted == str(digest)
        assert store.find(digest) is None and names(tmp_path / "blobs" / "sha256") == set()
        staging.forget(2)
        assert staging.have == 0b1011
        fill(staging, data, [2])
        await staging.commit()
    assert await read(store, digest) == data


async def test_a_late_second_copy_of_a_chunk_cannot_overwrite_the_proved_one(store) -> None:
    data = content(3 * CHUNK)
    async with await store.stage(Digest.of(data), len(data), CHUNK) as staging:
        fill(staging, data, [1])
        for offset, length in ((CHUNK, 1), (2 * CHUNK - 1, 2), (0, len(data)), (CHUNK - 1, 2)):
            with pytest.raises(StorageError, match="proved chunk"):
                staging.write(offset, b"x" * length)
        assert staging.read(CHUNK, CHUNK) == chunk(data, 1)
        fill(staging, data, [0, 2])
        await staging.commit()
        with pytest.raises(StorageError, match="committed"):
            staging.write(0, b"x")
        with pytest.raises(StorageError, match="committed"):
            staging.forget(0)


async def test_an_endless_body_cannot_make_the_file_longer_than_the_blob(store) -> None:
    async with await store.stage(Digest.of(b"short"), 5, CHUNK) as staging:
        for offset, data in ((0, b"longer"), (5, b"x"), (-1, b"xx"), (1 << 40, b"x")):
            with pytest.raises(InputError):
                staging.write(offset, data)
        staging.write(0, b"short")


async def test_proofs_that_cannot_be_are_refused_and_leave_the_chunk_unproved(store) -> None:
    async with await store.stage(Digest.of(content(2 * CHUNK)), 2 * CHUNK, CHUNK) as staging:
        for index in (-1, 2, 1 << 40):
            with pytest.raises(InputError):
                staging.prove(index, bytes(32), b"")
            with pytest.raises(InputError):
                staging.forget(index)
        with pytest.raises(InputError, match="32 bytes"):
            staging.prove(0, bytes(31), b"")
        with pytest.raises(InputError, match="at most 4096"):
            staging.prove(0, bytes(32), bytes(4097))
        assert staging.have == 0 and staging.evidence(0) is None


async def test_proving_a_chunk_again_changes_nothing_and_a_conflicting_proof_is_refused(store) -> None:
    data = content(2 * CHUNK)
    async with await store.stage(Digest.of(data), len(data), CHUNK) as staging:
        fill(staging, data, [0])
        before = staging.evidence(0)
        staging.prove(0, sha256(chunk(data, 0)), b"another witness")
        assert staging.evidence(0) == before == (sha256(chunk(data, 0)), b"evidence 0")
        with pytest.raises(StorageError, match="another sha256"):
            staging.prove(0, bytes(32), b"")
        assert staging.evidence(0) == before


async def test_the_hash_of_a_chunk_can_be_taken_from_the_file(store) -> None:
    data = content(CHUNK + 5)
    async with await store.stage(Digest.of(data), len(data), CHUNK) as staging:
        staging.write(0, data)
        assert [staging.chunk_sha256(index) for index in (0, 1)] == [sha256(data[:CHUNK]), sha256(data[CHUNK:])]


async def test_a_closed_staging_is_resumed_with_its_evidence_also_after_a_restart(tmp_path) -> None:
    data = content(9 * CHUNK)
    digest = Digest.of(data)
    store = await Store.open(tmp_path)
    staging = await store.stage(digest, len(data), CHUNK)
    fill(staging, data, [8, 1, 3])
    await staging.close()
    await staging.close()
    assert store.partials() == [(digest, len(data), CHUNK)]
    await store.close()

    store = await Store.open(tmp_path)
    assert store.partials() == [(digest, len(data), CHUNK)]
    async with await store.stage(digest, len(data), CHUNK) as staging:
        assert store.partials() == []
        assert staging.have == 0b100001010
        assert staging.evidence(3) == (sha256(chunk(data, 3)), b"evidence 3")
        assert staging.read(8 * CHUNK, CHUNK) == chunk(data, 8)
        fill(staging, data, [0, 2, 4, 5, 6, 7])
        await staging.commit()
    assert await read(store, digest) == data
    await store.close()


async def test_a_chunk_that_was_damaged_on_disk_is_not_resumed(store, tmp_path) -> None:
    data = content(4 * CHUNK)
    staging = await store.stage(Digest.of(data), len(data), CHUNK)
    fill(staging, data, [0, 1, 2])
    await staging.close()
    (part,) = (tmp_path / "staging").glob("*.part")
    with part.open("r+b") as file:
        file.seek(CHUNK + 77)
        file.write(b"damage")
    async with await store.stage(Digest.of(data), len(data), CHUNK) as staging:
        assert staging.have == 0b101
        fill(staging, data, [1, 3])
        await staging.commit()


async def test_a_forgotten_chunk_does_not_come_back_with_a_restart(store) -> None:
    data, lie = content(2 * CHUNK), content(CHUNK, seed=1)
    staging = await store.stage(Digest.of(data), len(data), CHUNK)
    staging.write(0, lie)
    staging.prove(0, sha256(lie), b"signed by a liar")
    fill(staging, data, [1])
    staging.forget(0)
    staging.forget(0)
    await staging.close()
    async with await store.stage(Digest.of(data), len(data), CHUNK) as staging:
        assert staging.have == 0b10 and staging.evidence(0) is None


async def test_another_size_or_chunk_size_starts_again(store, tmp_path) -> None:
    data = content(4 * CHUNK)
    digest = Digest.of(data)
    for size, chunk_size in ((len(data), CHUNK), (len(data), 2 * CHUNK), (len(data) - 1, 2 * CHUNK)):
        staging = await store.stage(digest, size, chunk_size)
        assert staging.have == 0
        fill(staging, data[:size], [0])
        await staging.close()
        assert store.partials() == [(digest, size, chunk_size)]
    assert len(names(tmp_path / "staging")) == 2


@pytest.mark.parametrize(("size", "chunk_size"), [(-1, CHUNK), (10, 0), (10, CHUNK + 1), (10, 2**25), (2**60, CHUNK)])
async def test_sizes_that_the_protocol_does_not_know_are_refused(store, tmp_path, size, chunk_size) -> None:
    with pytest.raises(InputError):
        await store.stage(Digest.of(b""), size, chunk_size)
    assert names(tmp_path / "staging") == set()


async def test_one_blob_is_staged_by_one_flight_at_a_time(store) -> None:
    digest = Digest.of(content(CHUNK))
    async with await store.stage(digest, CHUNK, CHUNK):
        with pytest.raises(StorageError, match="being staged already"):
            await store.stage(digest, CHUNK, CHUNK)
    async with await store.stage(digest, CHUNK, CHUNK):
        pass


async def test_a_cancelled_commit_goes_on_to_its_end(store) -> None:
    data = content(64 * CHUNK)
    digest = Digest.of(data)
    staging = await store.stage(digest, len(data), CHUNK)
    fill(staging, data)
    committing = asyncio.create_task(staging.commit())
    await asyncio.sleep(0)
    committing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await committing
    await staging.close()
    assert await read(store, digest) == data


async def test_two_who_commit_get_the_same_blob_once(store) -> None:
    data = content(2 * CHUNK)
    async with await store.stage(Digest.of(data), len(data), CHUNK) as staging:
        fill(staging, data)
        first, second = await asyncio.gather(staging.commit(), staging.commit())
        assert first == second == await staging.commit() == store.find(first.digest)


@pytest.mark.parametrize("steps", range(4))
async def test_a_cancelled_stage_leaves_the_blob_to_whoever_comes_next(store, steps) -> None:
    data = content(3 * CHUNK)
    digest = Digest.of(data)
    staging = await store.stage(digest, len(data), CHUNK)
    fill(staging, data, [1])
    await staging.close()
    opening = asyncio.create_task(store.stage(digest, len(data), CHUNK))
    for _ in range(steps):
        await asyncio.sleep(0)
    opening.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await (await opening).close()  # it was there before the cancellation
    async with asyncio.timeout(60):
        while True:  # the worker lets go as soon as it is done
            try:
                staging = await store.stage(digest, len(data), CHUNK)
                break
            except StorageError:
                await asyncio.sleep(0)
    assert staging.have == 0b010
    await staging.close()


async def test_an_abandoned_staging_leaves_no_trace(store, tmp_path) -> None:
    staging = await store.stage(Digest.of(content(CHUNK)), CHUNK, CHUNK)
    fill(staging, content(CHUNK))
    await staging.abandon()
    assert names(tmp_path / "staging") == set() and store.partials() == []


async def test_a_staging_without_a_proved_chunk_is_not_kept(store, tmp_path) -> None:
    staging = await store.stage(Digest.of(content(CHUNK)), CHUNK, CHUNK)
    staging.write(0, b"some bytes that nobody vouched for")
    await staging.close()
    assert names(tmp_path / "staging") == set() and store.partials() == []


async def test_a_closed_staging_refuses_everything_with_a_storage_error(store) -> None:
    data = content(CHUNK)
    staging = await store.stage(Digest.of(data), CHUNK, CHUNK)
    fill(staging, data)
    await staging.close()
    for action in (
        lambda: staging.read(0, 1),
        lambda: staging.write(0, b"x"),
        lambda: staging.prove(0, bytes(32), b""),
        lambda: staging.forget(0),
        lambda: staging.chunk_sha256(0),
    ):
        with pytest.raises(StorageError, match="closed"):
            action()
    with pytest.raises(StorageError, match="closed"):
        await staging.commit()


async def test_readers_of_a_staging_read_on_while_and_after_it_is_committed(store) -> None:
    data = content(2 * CHUNK)
    async with await store.stage(Digest.of(data), len(data), CHUNK) as staging:
        fill(staging, data)
        await staging.commit()
        await store.remove(staging.digest)
        assert staging.read(CHUNK, 2 * CHUNK) == chunk(data, 1)


async def test_closing_the_store_closes_what_is_staged_and_keeps_what_is_proved(tmp_path) -> None:
    data = content(2 * CHUNK)
    store = await Store.open(tmp_path)
    staging = await store.stage(Digest.of(data), len(data), CHUNK)
    fill(staging, data, [1])
    await store.close()
    with pytest.raises(StorageError, match="closed"):
        staging.read(0, 1)
    with pytest.raises(StorageError, match="closed"):
        await store.stage(Digest.of(data), len(data), CHUNK)
    store = await Store.open(tmp_path)
    async with await store.stage(Digest.of(data), len(data), CHUNK) as staging:
        assert staging.have == 0b10
    await store.close()


async def test_a_staging_that_is_never_closed_is_warned_of(store) -> None:
    staging = await store.stage(Digest.of(b"x"), 1, CHUNK)
    with pytest.warns(ResourceWarning, match="unclosed staging"):
        staging.__del__()
    await staging.close()


async def test_a_blob_that_is_stored_already_can_be_staged_and_committed_again(store) -> None:
    data = content(CHUNK)
    await add(store, data)
    with await store.open_blob(Digest.of(data)) as old:
        await add(store, data)
        assert old.pread(0, CHUNK) == data
    assert await read(store, Digest.of(data)) == data
    assert store.usage().stored == CHUNK and store.usage().blobs == 1
