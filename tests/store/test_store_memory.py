"""A blob of any size goes through the store in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import asyncio, hashlib, json, os, pathlib, resource, sys
from p2pdist.oci import Digest
from p2pdist.store import Store

CHUNK, COUNT = 4 * 2**20, 64

def piece(index):
    return index.to_bytes(8, "big") * (64 * 1024 // 8)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

async def main():
    whole = hashlib.sha256()
    for index in range(COUNT):
        for _ in range(CHUNK // 65536):
            whole.update(piece(index))
    digest = Digest("sha256", whole.hexdigest())
    store = await Store.open(pathlib.Path(sys.argv[1]))
    before = peak()
    async with await store.stage(digest, CHUNK * COUNT, CHUNK) as staging:
        for index in range(COUNT):
            hasher = hashlib.sha256()
            for offset in range(index * CHUNK, (index + 1) * CHUNK, 65536):
                hasher.update(piece(index))
                staging.write(offset, piece(index))
            staging.prove(index, hasher.digest(), bytes(205))
        await staging.close()
    async with await store.stage(digest, CHUNK * COUNT, CHUNK) as staging:
        await staging.commit()
    staged = peak()
    os.utime(pathlib.Path(sys.argv[1]) / "blobs" / "sha256" / digest.hex)
    with await store.open_blob(digest):
        pass
    await store.close()
    print(json.dumps([before, staged, peak()]))

asyncio.run(main())
"""
LIMIT = 6 * 2**20  # bytes: a buffer for each worker, and the threads themselves


def test_staging_resuming_committing_and_proving_a_large_blob_takes_a_few_buffers(tmp_path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], check=True, capture_output=True, timeout=100)
    before, staged, proved = json.loads(done.stdout.splitlines()[-1])
    assert staged - before < LIMIT
    assert proved - staged < LIMIT
