"""Journals after a crash: torn, cut, garbled. They cost chunks, never correctness."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from store_kit import CHUNK, chunk, content, fill, read, sha256

from p2pdist.errors import DiskFull
from p2pdist.oci import Digest
from p2pdist.store import Store
from p2pdist.store.journal import Claim, Heading, Journal

DATA = content(6 * CHUNK)
DIGEST = Digest.of(DATA)


async def partial(directory: Path) -> Path:
    """A partial blob of chunks 0, 2, 5, of which 2 was forgotten and proved again; its journal."""
    store = await Store.open(directory)
    staging = await store.stage(DIGEST, len(DATA), CHUNK)
    fill(staging, DATA, [0, 2, 5])
    staging.forget(2)
    fill(staging, DATA, [2])
    await store.close()
    (journal,) = (directory / "staging").glob("*.journal")
    return journal


async def resumed(directory: Path) -> int:
    """What is proved after a restart, checked, and the blob finished from there."""
    store = await Store.open(directory)
    async with await store.stage(DIGEST, len(DATA), CHUNK) as staging:
        have = staging.have
        for index in range(staging.count):
            if have >> index & 1:
                assert staging.read(index * CHUNK, CHUNK) == chunk(DATA, index)
                assert staging.evidence(index) == (sha256(chunk(DATA, index)), b"evidence %d" % index)
        fill(staging, DATA, [index for index in range(staging.count) if not have >> index & 1])
        await staging.commit()
    assert await read(store, DIGEST) == DATA
    await store.remove(DIGEST)
    await store.close()
    return have


async def test_a_journal_cut_anywhere_gives_back_the_chunks_before_the_cut(tmp_path) -> None:
    journal = await partial(tmp_path)
    whole, part = journal.read_bytes(), journal.with_suffix(".part")
    kept = set()
    for length in (*range(0, len(whole), 7), len(whole)):
        journal.write_bytes(whole[:length])
        part.write_bytes(DATA)
        kept.add(await resumed(tmp_path))
    assert kept == {0, 0b000001, 0b100001, 0b100101}


async def test_a_garbled_journal_never_brings_back_a_chunk_that_is_not_there(tmp_path) -> None:
    journal = await partial(tmp_path)
    whole, part = journal.read_bytes(), journal.with_suffix(".part")
    chance = random.Random(7)
    for _ in range(60):
        garbled = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            garbled[chance.randrange(len(garbled))] ^= chance.randrange(1, 256)
        journal.write_bytes(garbled)
        part.write_bytes(DATA[: 5 * CHUNK] + bytes(CHUNK))  # chunk 5 was never there
        assert await resumed(tmp_path) & 0b100000 == 0


async def test_zeros_behind_a_journal_after_a_power_failure_are_no_records(tmp_path) -> None:
    journal = await partial(tmp_path)
    with journal.open("ab") as file:
        file.write(bytes(10_000))
    assert await resumed(tmp_path) == 0b100101


async def test_a_journal_of_another_blob_under_this_name_is_not_believed(tmp_path) -> None:
    journal = await partial(tmp_path)
    other = content(6 * CHUNK, seed=1)
    fd = os.open(journal, os.O_RDWR | os.O_TRUNC)
    forged = Journal.create(fd, Heading(Digest.of(other), len(other), CHUNK))
    forged.add(Claim(0, sha256(chunk(DATA, 0)), b""))
    forged.close()
    store = await Store.open(tmp_path)
    assert store.partials() == []
    await store.close()


async def test_claims_of_chunks_that_the_blob_does_not_have_are_dropped(tmp_path) -> None:
    journal = await partial(tmp_path)
    heading = Heading(DIGEST, len(DATA), CHUNK)
    writer, _ = Journal.resume(os.open(journal, os.O_RDWR), heading)
    for index in (6, 2**32 - 1):
        writer.add(Claim(index, sha256(b""), b""))
    writer.close()
    assert await resumed(tmp_path) == 0b100101


async def test_a_journal_longer_than_a_read_is_read_whole(tmp_path) -> None:
    heading = Heading(DIGEST, 2**30, CHUNK)
    path = tmp_path / "journal"
    writer = Journal.create(os.open(path, os.O_RDWR | os.O_CREAT), heading)
    chance = random.Random(3)
    claims = {
        index: Claim(index, chance.randbytes(32), chance.randbytes(chance.randrange(4097))) for index in range(300)
    }
    for claim in claims.values():
        writer.add(claim)
    for index in range(0, 300, 7):
        writer.drop(index)
        del claims[index]
    writer.close()
    reader, found = Journal.resume(os.open(path, os.O_RDWR), heading)
    reader.close()
    assert found == claims


async def test_a_full_disk_while_a_proof_is_written_leaves_the_chunk_unproved_and_no_torn_record(
    tmp_path, monkeypatch
) -> None:
    store = await Store.open(tmp_path)
    staging = await store.stage(DIGEST, len(DATA), CHUNK)
    fill(staging, DATA, [0])
    pwrite, room = os.pwrite, 20

    def full(fd, data, offset):
        nonlocal room
        if fd == staging.fd:
            return pwrite(fd, data, offset)
        if room == 0:
            raise OSError(28, "No space left on device")
        count = pwrite(fd, bytes(data)[:room], offset)
        room -= count
        return count

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DiskFull, match="free some space"):
        fill(staging, DATA, [1])
    assert staging.have == 0b1
    monkeypatch.undo()
    fill(staging, DATA, [2])
    await store.close()
    assert await resumed(tmp_path) == 0b101
