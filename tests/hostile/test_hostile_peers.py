"""Members that misbehave: an image still arrives whole and verified, from whoever is honest.

Every pull compares every byte (`Fleet.pull`); so what a test says of the rogue comes on top.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import pytest
from rogue import Answer, Request, Rogue, has_nothing
from support.fleet import Fleet
from support.registry import FakeRegistry, noise

MIB = 1 << 20


async def wrong_bytes(rogue: Rogue, request: Request) -> None:
    """A true statement of the chunk's hash, and other bytes."""
    data = rogue.blobs[request.digest]
    statement = rogue.attest(request, hashlib.sha256(data[request.start : request.end]).digest())
    request.writer.write(request.head(len(data), statement) + b"\0" * (request.end - request.start))


async def false_statement(rogue: Rogue, request: Request) -> None:
    """Wrong bytes, and its own signature that they are right."""
    data = os.urandom(request.end - request.start)
    statement = rogue.attest(request, hashlib.sha256(data).digest())
    request.writer.write(request.head(len(rogue.blobs[request.digest]), statement) + data)


async def no_statement(rogue: Rogue, request: Request) -> None:
    data = rogue.blobs[request.digest]
    request.writer.write(request.head(len(data), None) + data[request.start : request.end])


async def replayed_statement(rogue: Rogue, request: Request) -> None:
    """True when it was made: of another chunk."""
    data = rogue.blobs[request.digest]
    other = Request(request.digest, request.chunk_size, 0, request.chunk_size, request.writer)
    other.start = (request.index + 1) * request.chunk_size
    statement = rogue.attest(other, hashlib.sha256(data[request.start : request.end]).digest())
    request.writer.write(request.head(len(data), statement) + data[request.start : request.end])


async def always_busy(rogue: Rogue, request: Request) -> None:
    request.writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nP2pdist-Load: 0\r\n\r\n")


async def says_nothing(rogue: Rogue, request: Request) -> None:
    await asyncio.sleep(3600)


async def drips(rogue: Rogue, request: Request) -> None:
    """Right bytes, slowly, for ever."""
    data = rogue.blobs[request.digest]
    statement = rogue.attest(request, hashlib.sha256(data[request.start : request.end]).digest())
    request.writer.write(request.head(len(data), statement))
    for offset in range(request.start, request.end):
        request.writer.write(data[offset : offset + 1])
        await asyncio.sleep(0.2)


async def endless_head(rogue: Rogue, request: Request) -> None:
    request.writer.write(b"HTTP/1.1 206 Partial Content\r\nX: " + b"a" * 1_000_000)


async def too_long(rogue: Rogue, request: Request) -> None:
    data = rogue.blobs[request.digest]
    request.writer.write(request.head(len(data), None, length=10**15) + data)


async def too_short(rogue: Rogue, request: Request) -> None:
    data = rogue.blobs[request.digest]
    request.writer.write(request.head(len(data), None) + data[request.start : request.start + 10])
    request.writer.close()


async def no_http(rogue: Rogue, request: Request) -> None:
    request.writer.write(os.urandom(4096) + b"\r\n\r\n" + os.urandom(100))


@pytest.mark.parametrize(
    "answer",
    [
        wrong_bytes, false_statement, no_statement, replayed_statement, has_nothing, always_busy, says_nothing, drips,
        endless_head, too_long, too_short, no_http,
    ],
    ids=lambda answer: answer.__name__,
)  # fmt: skip
async def test_an_image_arrives_whole_past_a_member_that(tmp_path: Path, answer: Answer) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        image = registry.add_image("app/a", "1", [noise(3 * MIB, 1), noise(MIB, 2)])
        blobs = {str(layer): image.blobs[layer] for layer in image.layers}
        nodes = [await fleet.start() for _ in range(2)]
        async with Rogue(fleet, tmp_path / "rogue", blobs, answer, "127.0.0.99") as rogue:
            async with asyncio.timeout(60):
                await asyncio.gather(*(fleet.pull(node, image) for node in nodes))
            assert rogue.asked > 0, "nobody fell for it: the test is worth nothing"
        sent = sum(registry.bytes_sent(layer) for layer in image.layers)
        assert sent <= 2.1 * 4 * MIB  # at most one more copy
        for node in nodes:
            if answer in (wrong_bytes, no_statement, replayed_statement):
                assert node.transfer["refused_chunks"] >= 1 or not rogue.asked
