"""A disk that is really full: a small tmpfs. Needs root."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest
import structlog
from store_kit import CHUNK, Clock, add, content, fill, names, read

from p2pdist.errors import DiskFull
from p2pdist.oci import Digest
from p2pdist.store import Store

pytestmark = pytest.mark.system
SIZE = 4 * 2**20
DATA = content(16 * CHUNK)
DIGEST = Digest.of(DATA)


@pytest.fixture
def disk():
    """Not below pytest's own directory, and given up lazily: a mount left over would be in pytest's way for ever."""
    place = Path(tempfile.mkdtemp(prefix="p2pdist-disk-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "p2pdist-test", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
        place.rmdir()


class Hog:
    """Somebody else's file, which takes all that is left of the disk."""

    def __init__(self, disk: Path) -> None:
        self.path = disk / "hog"

    def grow(self) -> None:
        with self.path.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                return

    def go(self) -> None:
        self.path.unlink()


async def test_a_disk_that_fills_up_while_staging_loses_nothing(disk) -> None:
    store = await Store.open(disk / "data", clock=Clock())
    small = await store.put(b"small", Digest.of(b"small"))
    hog = Hog(disk)
    async with await store.stage(DIGEST, len(DATA), CHUNK) as staging:
        fill(staging, DATA, range(4))
        hog.grow()
        with pytest.raises(DiskFull, match="free some space"):
            fill(staging, DATA, range(4, 16))
        proved = staging.have
        assert proved & 0b1111 == 0b1111 and not staging.complete
        assert await read(store, small.digest) == b"small"
    with pytest.raises(DiskFull):
        await store.stage(DIGEST, len(DATA), CHUNK)
    hog.go()
    async with await store.stage(DIGEST, len(DATA), CHUNK) as staging:
        assert staging.have == proved
        fill(staging, DATA, [index for index in range(16) if not proved >> index & 1])
        await staging.commit()
    assert await read(store, DIGEST) == DATA
    await store.close()


async def test_small_content_without_room_is_refused_and_leaves_no_trace(disk) -> None:
    store = await Store.open(disk / "data", clock=Clock())
    hog = Hog(disk)
    hog.grow()
    data = content(2 * CHUNK, seed=1)
    with pytest.raises(DiskFull):
        await store.put(data, Digest.of(data))
    assert names(disk / "data" / "staging") == set() == names(disk / "data" / "blobs" / "sha256")
    await store.close()


async def test_a_disk_too_small_for_the_blob_is_known_before_the_first_byte(disk) -> None:
    store = await Store.open(disk / "data", clock=Clock())
    await add(store, DATA)
    with pytest.raises(DiskFull, match="no room for"):
        await store.stage(Digest.of(b"big"), SIZE, CHUNK)
    assert await read(store, DIGEST) == DATA
    await store.close()


async def test_without_a_limit_the_oldest_blobs_go_when_the_disk_is_full(disk) -> None:
    clock = Clock()
    store = await Store.open(disk / "data", clock=clock)
    for seed in range(8):
        clock.now += 1
        await add(store, content(16 * CHUNK, seed))
    kept = [seed for seed in range(8) if store.find(Digest.of(content(16 * CHUNK, seed))) is not None]
    assert kept in ([5, 6, 7], [6, 7])
    await store.close()


async def test_a_store_on_a_full_disk_opens_and_gives_out_what_it_has(disk) -> None:
    store = await Store.open(disk / "data", clock=Clock())
    await add(store, DATA)
    hog = Hog(disk)
    hog.grow()
    with structlog.testing.capture_logs():
        for number in range(2000):
            store.set_tag("docker.io/library/x", f"tag-{number}", str(DIGEST), 1.0)
        await store.close()
        hog.grow()
        store = await Store.open(disk / "data", clock=Clock())
        assert await read(store, DIGEST) == DATA
        await store.close()
    assert os.statvfs(disk).f_bavail == 0
