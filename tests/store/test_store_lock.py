"""One process per data directory, and a clean house after whatever happened to the last one."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from store_kit import CHUNK, add, content, fill, names

from p2pdist.errors import StorageError
from p2pdist.oci import Digest
from p2pdist.store import Store

HOLD = """
import asyncio, pathlib, sys
from p2pdist.store import Store
async def main():
    store = await Store.open(pathlib.Path(sys.argv[1]))
    print("open", flush=True)
    sys.stdin.read()
asyncio.run(main())
"""


async def test_a_second_store_on_the_same_directory_is_refused_and_told_who_has_it(tmp_path) -> None:
    store = await Store.open(tmp_path)
    with pytest.raises(StorageError, match=f"in use by process {os.getpid()}"):
        await Store.open(tmp_path)
    await store.close()
    await (await Store.open(tmp_path)).close()


async def test_another_process_is_refused_until_the_first_is_dead(tmp_path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(StorageError, match=f"in use by process {holder.pid}"):
            await Store.open(tmp_path)
        holder.kill()
        holder.wait()
        await (await Store.open(tmp_path)).close()


async def test_a_cancelled_opening_lets_go_of_the_directory(tmp_path) -> None:
    opening = asyncio.create_task(Store.open(tmp_path))
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    while True:  # the worker lets go as soon as it is done
        try:
            store = await Store.open(tmp_path)
        except StorageError:
            continue
        break
    await store.close()


async def test_a_directory_that_cannot_be_made_is_a_clear_error(tmp_path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"can.t make the data directory .*node.data_dir"):
        await Store.open(tmp_path / "file" / "data")


async def test_what_a_crash_left_behind_is_swept_up(tmp_path) -> None:
    store = await Store.open(tmp_path)
    data = content(2 * CHUNK)
    staging = await store.stage(Digest.of(data), len(data), CHUNK)
    fill(staging, data, [0])
    await store.close()
    kept = names(tmp_path / "staging")
    orphan, half = Digest.of(b"orphan"), Digest.of(b"half")
    (tmp_path / "staging" / f"sha256-{orphan.hex}.part").write_bytes(b"no journal")
    (tmp_path / "staging" / f"sha256-{half.hex}.journal").write_bytes(b"no bytes, and no journal either")
    (tmp_path / "staging" / f"sha256-{half.hex}-0.tmp").write_bytes(b"half a manifest")
    (tmp_path / "trash" / "deleted").write_bytes(b"almost")
    (tmp_path / "trash" / "folder").mkdir()
    store = await Store.open(tmp_path)
    assert names(tmp_path / "staging") == kept and names(tmp_path / "trash") == set()
    assert len(store.partials()) == 1
    await store.close()


async def test_a_partial_of_a_blob_that_was_committed_just_before_a_crash_is_swept_up(tmp_path) -> None:
    data = content(2 * CHUNK)
    store = await Store.open(tmp_path)
    staging = await store.stage(Digest.of(data), len(data), CHUNK)
    fill(staging, data, [0])
    await staging.close()
    await store.put(data, Digest.of(data))
    await store.close()
    store = await Store.open(tmp_path)
    assert names(tmp_path / "staging") == set() and store.partials() == []
    await store.close()


async def test_private_images_are_nobody_elses_business(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "data")
    await add(store, b"secret")
    await store.put(b"small secret", Digest.of(b"small secret"))
    await store.close()
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    for path in (tmp_path / "data" / "blobs").rglob("*"):
        assert path.is_dir() or stat.S_IMODE(path.stat().st_mode) == 0o600
