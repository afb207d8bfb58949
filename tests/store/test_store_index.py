"""The index is a cache of proofs: lost, damaged or lying, it costs hashing and never a blob or a wrong byte."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import structlog
from store_kit import CHUNK, Clock, add, content, names, path_of, read

from p2pdist.oci import Digest
from p2pdist.store import Store, StoredBlob, index, verify

ONE, TWO = content(2 * CHUNK, seed=1), content(10, seed=2)
DIGEST, SMALL = Digest.of(ONE), Digest.of(TWO, "sha512")


@pytest.fixture
async def filled(tmp_path: Path) -> Path:
    """A data directory with two blobs and everything that can be noted of one."""
    store = await Store.open(tmp_path, clock=Clock())
    await add(store, ONE)
    await store.put(TWO, SMALL)
    store.pin(DIGEST)
    store.note(DIGEST, "docker.io/library/alpine", "application/vnd.oci.image.manifest.v1+json")
    store.note(DIGEST, "ghcr.io/a/b", "application/vnd.oci.image.manifest.v1+json")
    store.set_tag("docker.io/library/alpine", "latest", str(DIGEST), 12.5)
    await store.close()
    return tmp_path


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Digest]:
    seen: list[Digest] = []
    hash_file = verify.hash_file

    def noted(fd: int, digest: Digest) -> str:
        seen.append(digest)
        return hash_file(fd, digest)

    monkeypatch.setattr(verify, "hash_file", noted)
    return seen


def sql(directory: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(directory / "index.sqlite3")) as database, database:
        database.execute(statement, values)


async def test_all_that_was_noted_is_there_after_a_restart_and_nothing_is_hashed(filled, hashed) -> None:
    store = await Store.open(filled, clock=Clock())
    assert sorted(blob.size for blob in store.stored()) == [10, 2 * CHUNK]
    assert store.find(DIGEST) == StoredBlob(DIGEST, 2 * CHUNK)
    assert store.media_type(DIGEST) == "application/vnd.oci.image.manifest.v1+json"
    assert store.repositories(DIGEST) == {"docker.io/library/alpine", "ghcr.io/a/b"}
    assert store.tag("docker.io/library/alpine", "latest") == (str(DIGEST), 12.5)
    assert store.tag("docker.io/library/alpine", "edge") is None
    assert store.media_type(SMALL) is None and store.repositories(SMALL) == set()
    assert store.usage().stored == 2 * CHUNK + 10
    assert await read(store, DIGEST) == ONE and await read(store, SMALL) == TWO
    assert hashed == []
    await store.close()


async def test_what_is_known_of_a_blob_goes_with_it(filled) -> None:
    store = await Store.open(filled)
    await store.remove(DIGEST)
    assert store.media_type(DIGEST) is None
    await store.close()
    with structlog.testing.capture_logs() as logs:
        store = await Store.open(filled)
    assert logs == []
    assert store.media_type(DIGEST) is None and store.find(DIGEST) is None
    await add(store, ONE)
    assert store.repositories(DIGEST) == set()
    await store.close()


def delete(path: Path) -> None:
    path.unlink()


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(5000))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def broken_page(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)


def other_version(path: Path) -> None:
    sql(path.parent, "PRAGMA user_version = 99")


def no_table(path: Path) -> None:
    sql(path.parent, "DROP TABLE tags")


def crossed_tables(path: Path) -> None:
    """Every row can be read, but they are another table's."""
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA writable_schema = ON")
        database.execute(
            "UPDATE sqlite_schema SET rootpage = (SELECT rootpage FROM sqlite_schema WHERE name = 'pins')"
            " WHERE name = 'notes'"
        )


def impossible_digest(path: Path) -> None:
    sql(path.parent, "UPDATE blobs SET digest = '../../etc/passwd' WHERE size = 10")


def impossible_size(path: Path) -> None:
    sql(path.parent, "UPDATE blobs SET size = 'many'")


@pytest.mark.parametrize(
    "damage",
    [
        delete,
        garbage,
        empty,
        cut,
        broken_page,
        other_version,
        no_table,
        crossed_tables,
        impossible_digest,
        impossible_size,
    ],
)
async def test_a_lost_or_damaged_index_is_rebuilt_by_hashing_every_blob(filled, damage, hashed) -> None:
    damage(filled / "index.sqlite3")
    store = await Store.open(filled)
    assert sorted(hashed) == sorted([DIGEST, SMALL])
    assert await read(store, DIGEST) == ONE and await read(store, SMALL) == TWO
    await store.close()
    store = await Store.open(filled)
    assert len(store.stored()) == 2 and len(hashed) == 2
    await store.close()


async def test_a_file_with_a_lying_name_is_never_believed(filled) -> None:
    wanted = Digest.of(b"what a daemon wants")
    (filled / "index.sqlite3").unlink()
    path_of(filled, wanted).write_bytes(b"what an intruder put")
    os.link(path_of(filled, SMALL), path_of(filled, Digest.of(b"another")))
    (filled / "blobs" / "sha256" / "README").write_bytes(b"not ours")
    with structlog.testing.capture_logs() as logs:
        store = await Store.open(filled)
    assert any(line.get("digest") == str(wanted) for line in logs)
    assert await store.open_blob(wanted) is None and store.find(wanted) is None
    assert {blob.digest for blob in store.stored()} == {DIGEST, SMALL}
    assert names(filled / "blobs" / "sha256") == {DIGEST.hex, "README"}
    await store.close()


async def test_a_file_that_came_without_the_index_knowing_is_hashed_and_kept(filled, hashed) -> None:
    extra = content(CHUNK, seed=3)
    path_of(filled, Digest.of(extra)).write_bytes(extra)
    store = await Store.open(filled)
    assert hashed == [Digest.of(extra)]
    assert await read(store, Digest.of(extra)) == extra
    await store.close()


async def test_an_index_row_that_vouches_for_the_wrong_file_is_found_out(filled) -> None:
    sql(filled, "UPDATE blobs SET inode = inode + 1")
    path_of(filled, SMALL).write_bytes(b"0123456789")
    store = await Store.open(filled)
    assert await read(store, DIGEST) == ONE and await read(store, SMALL) is None
    await store.close()


async def test_a_blob_whose_index_row_could_not_be_written_is_not_lost(tmp_path) -> None:
    store = await Store.open(tmp_path)
    store._index._writer.submit(store._index._database.execute, "DROP TABLE blobs").result()
    with structlog.testing.capture_logs() as logs:
        await add(store, ONE)
        assert await read(store, DIGEST) == ONE
        await store.close()
    assert any(line["event"] == "index not written" for line in logs)
    store = await Store.open(tmp_path)
    assert await read(store, DIGEST) == ONE
    await store.close()


async def test_remembered_tags_are_bounded_and_the_oldest_goes(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(index, "MAX_TAGS", 3)
    store = await Store.open(tmp_path)
    for tag in ("a", "b", "c", "a", "d"):
        store.set_tag("docker.io/x/y", tag, str(DIGEST), 1.0)
    for _ in range(2):
        assert [tag for tag in "abcd" if store.tag("docker.io/x/y", tag)] == ["a", "c", "d"]
        await store.close()
        store = await Store.open(tmp_path)
    await store.close()


async def test_names_from_outside_are_values_and_never_sql_or_paths(tmp_path) -> None:
    evil = "../../x'; DROP TABLE blobs; --\x00\N{SNOWMAN}"
    store = await Store.open(tmp_path)
    await store.put(TWO, SMALL)
    store.note(SMALL, evil, evil)
    store.set_tag(evil, evil, evil, 1.0)
    await store.close()
    store = await Store.open(tmp_path)
    assert store.tag(evil, evil) == (evil, 1.0)
    assert store.repositories(SMALL) == {evil} and store.media_type(SMALL) == evil
    assert store.find(SMALL) is not None
    await store.close()
