"""One client's share in a flight: it starts once, streams what is proved, and never goes on after a doubt."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from pull.pull_script import Script, play
from swarm.swarm_script import CHUNK, REPOSITORY

from p2pdist.errors import DigestMismatch, UpstreamNotFound
from p2pdist.oci import Digest
from p2pdist.protocol import messages as wire
from p2pdist.pull import Handle
from p2pdist.swarm.exchange import Exchange

DATA = random.Random(6).randbytes(5 * CHUNK + 10)
COUNT = 6


async def collect(handle: Handle, start: int = 0, end: int = len(DATA), into: bytearray | None = None) -> bytes:
    got = bytearray() if into is None else into
    async for piece in handle.stream(start, end):
        got += piece
    return bytes(got)


async def flight(script: Script) -> tuple[Handle, Exchange]:
    """A client waits for the blob, whose chunks the test brings."""
    digest = script.image(DATA).layers[0]
    script.cluster.connected = True
    handle = await script.pull.blob(REPOSITORY, digest)
    script.swarms.tracker_message(wire.Joined(str(digest), [wire.Swarm(str(digest), CHUNK, 2, 0)], []))
    transfer = script.pull.transfer(REPOSITORY, digest, len(DATA))
    await transfer.ready.wait()
    assert transfer.exchange is not None
    return handle, transfer.exchange


def bring(exchange: Exchange, data: bytes, *indexes: int) -> None:
    """Chunks of `data` come, as if read here."""
    for index in indexes:
        receiver = exchange.receive(index)
        receiver.feed(data[index * CHUNK : (index + 1) * CHUNK])
        exchange.prove_read(receiver)


def test_everyone_who_asks_for_a_blob_shares_one_read(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        digest = script.image(DATA).layers[0]
        handles = await asyncio.gather(*(script.pull.blob(REPOSITORY, digest) for _ in range(20)))
        for file in await asyncio.gather(*(handle.proved() for handle in handles)):
            with file:
                assert file.pread(0, len(DATA)) == DATA
        assert script.registry.reads == [(0, COUNT)]

    play(tmp_path, case, connected=False)


def test_a_client_that_leaves_a_large_blob_cancels_nothing(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        digest = script.image(DATA).layers[0]
        handle = await script.pull.blob(REPOSITORY, digest)
        waiting = asyncio.ensure_future(handle.proved())
        await asyncio.sleep(0.05)
        waiting.cancel()
        handle.release()
        await asyncio.sleep(5.0)
        assert script.store.find(digest) is not None

    play(tmp_path, case, connected=False)


def test_the_last_chunk_is_withheld_until_the_whole_digest_is_proved(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        handle, exchange = await flight(script)
        got = bytearray()
        reading = asyncio.ensure_future(collect(handle, into=got))
        bring(exchange, DATA, 5, 0, 1, 2)
        await asyncio.sleep(1.0)
        assert got == DATA[: 3 * CHUNK]
        bring(exchange, DATA, 3, 4)
        assert await reading == DATA
        handle.release()

    play(tmp_path, case)


def test_a_stream_that_began_before_a_doubt_never_goes_on_though_the_blob_comes_right_in_the_end(
    tmp_path: Path,
) -> None:
    async def case(script: Script) -> None:
        handle, exchange = await flight(script)
        got = bytearray()
        slow = handle.stream(0, len(DATA))
        bring(exchange, b"\0" * len(DATA), 0)
        first = await anext(slow)  # tainted, and the client reads on only much later
        reading = asyncio.ensure_future(collect(handle, into=got))
        await asyncio.sleep(0)
        bring(exchange, DATA, *range(1, COUNT))
        with pytest.raises(DigestMismatch):
            await reading
        assert len(got) < len(DATA)
        with await handle.proved() as file:
            assert file.pread(0, len(DATA)) == DATA
        assert bytes(first) != DATA[: len(first)]
        with pytest.raises(DigestMismatch):
            await anext(slow)
        assert await collect(handle) == DATA  # who begins now has nothing to fear
        handle.release()

    play(tmp_path, case)


def test_while_a_blob_is_doubted_nobody_gets_a_byte_and_it_counts_as_not_delivering(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        hold = asyncio.Event()
        script.registry.gate = hold.wait
        handle, exchange = await flight(script)
        bring(exchange, b"\0" * len(DATA), *range(COUNT))
        async with asyncio.timeout(5):
            while exchange.doubted is None:
                await asyncio.sleep(0.01)
        assert not handle.delivering
        with pytest.raises(DigestMismatch):
            await collect(handle)
        hold.set()
        (await handle.proved()).close()
        handle.release()

    play(tmp_path, case)


def test_a_flight_that_fails_reaches_the_stream(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        handle, exchange = await flight(script)
        reading = asyncio.ensure_future(collect(handle))
        bring(exchange, DATA, 0)
        await asyncio.sleep(0.1)
        script.swarms.tracker_message(wire.Gone(exchange.name, 404))
        with pytest.raises(UpstreamNotFound):
            await reading
        with pytest.raises(UpstreamNotFound):
            await collect(handle)  # who comes with the failed flight learns the same
        handle.release()

    play(tmp_path, case)


def test_a_stream_outlives_the_seed_it_reads_from(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        handle, exchange = await flight(script)
        slow = handle.stream(0, len(DATA))
        bring(exchange, DATA, *range(COUNT))
        got = bytearray(await anext(slow))
        (await handle.proved()).close()
        await exchange.close()  # another blob needed its place
        async for piece in slow:
            got += piece
        assert got == DATA
        handle.release()

    play(tmp_path, case)


def test_a_stream_says_that_its_source_is_alive_only_while_something_moves(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        handle, exchange = await flight(script)
        pieces = handle.stream(0, len(DATA))
        bring(exchange, DATA, 3)
        assert await anext(pieces) == b""
        loop = asyncio.get_running_loop()
        began, waiting = loop.time(), asyncio.ensure_future(anext(pieces))
        await asyncio.sleep(4.0)
        bring(exchange, DATA, 0)
        assert await waiting == DATA[:CHUNK]
        assert loop.time() - began < 5.0
        await pieces.aclose()  # type: ignore[attr-defined]
        handle.release()

    play(tmp_path, case)


def test_a_blob_whose_file_rots_between_two_requests_is_fetched_again(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        digest = script.image(DATA).layers[0]
        (await (await script.pull.blob(REPOSITORY, digest)).proved()).close()
        file = next(path for path in tmp_path.rglob(f"*{digest.hex}*") if path.is_file())
        file.chmod(0o600)
        file.write_bytes(b"\0" * len(DATA))
        with await (await script.pull.blob(REPOSITORY, digest)).proved() as again:
            assert again.pread(0, len(DATA)) == DATA
        assert len(script.registry.reads) == 2

    play(tmp_path, case, connected=False)


def test_a_blob_that_is_stored_while_its_size_is_asked_for_starts_no_flight(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        digest = Digest.of(DATA)
        script.registry.blobs[digest] = DATA
        head = script.registry.head_blob

        async def meanwhile(*args: object, **options: object) -> int:
            await script.store.put(DATA, digest)
            return await head(*args, **options)  # type: ignore[arg-type]

        script.registry.head_blob = meanwhile  # type: ignore[method-assign, assignment]
        handle = await script.pull.blob(REPOSITORY, digest)
        assert script.swarms.transfers == []
        with await handle.proved() as file:
            assert file.size == len(DATA)
        assert script.registry.reads == []

    play(tmp_path, case, connected=False)


def test_the_layers_of_an_image_fly_together(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        image = script.image(DATA, DATA[::-1])
        await script.pull.manifest(REPOSITORY, "1")
        (await (await script.pull.blob(REPOSITORY, image.layers[0])).proved()).close()
        await asyncio.sleep(5.0)
        assert script.store.find(image.layers[1]) is not None

    play(tmp_path, case, connected=False)
