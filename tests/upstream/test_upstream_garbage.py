"""A server that doesn't speak HTTP, or speaks it badly: only UpstreamError comes out, and in bounded time."""

import asyncio

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from p2pdist.errors import UpstreamError
from p2pdist.oci import Digest, Repository
from p2pdist.upstream import Credentials, Upstreams, UpstreamSettings

DIGEST = Digest.of(b"blob")
HEAD = b"HTTP/1.1 200 OK\r\n"
PARTS = [
    HEAD, b"HTTP/1.1 206 Partial Content\r\n", b"HTTP/1.1 307 Go\r\n", b"HTTP/1.1 401 No\r\n", b"HTTP/1.0 200\r\n",
    b"HTTP/9.9 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 101 Switch\r\n", b"HTTP/1.1 999 Odd\r\n",
    b"Content-Length: 4\r\n", b"Content-Length: -1\r\n", b"Content-Length: 99999999999999999999\r\n",
    b"Content-Length: x\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip\r\n",
    b"Content-Encoding: gzip\r\n", b"Content-Range: bytes 1-4/5\r\n", b"Location: http://[\r\n",
    b"Location: \xff\xfe\r\n", b"WWW-Authenticate: Bearer realm=\"http://127.0.0.1:1/\"\r\n",
    b"WWW-Authenticate: \xff\r\n", b"Set-Cookie: a=b\r\n", b"X: " + b"y" * 10_000 + b"\r\n", b"X\r\n", b": \r\n",
    b"Connection: close\r\n", b"\r\n", b"blob", b"4\r\nblob\r\n0\r\n\r\n", b"zz\r\n", b"ffffffffffffffffff\r\n",
    b"\x00" * 20,
]  # fmt: skip


async def ask_everything(answer: bytes) -> bytes | None:
    """What a blob of 4 bytes reads as; None if it can't be read."""
    blob: bytes | None = None

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    name = f"127.0.0.1:{port}"
    repository = Repository(name, "r")
    async with (
        server,
        Upstreams([UpstreamSettings(name, f"http://{name}", stall_timeout=0.5)], Credentials()) as upstreams,
    ):
        registry = upstreams.registry(name)

        async def read(**options: int) -> bytes:
            async with registry.read_blob(repository, DIGEST, **options) as body:
                return b"".join([piece async for piece in body])

        for call in (
            registry.head_manifest(repository, "t"),
            registry.get_manifest(repository, str(DIGEST)),
            registry.head_blob(repository, DIGEST),
            registry.tags_list(repository),
            read(),
            read(start=1, end=3, size=5),
            read(size=4),
        ):
            blob = None
            try:
                got = await call
            except UpstreamError as error:
                assert len(str(error)) < 700
                str(error).encode()
            else:
                if isinstance(got, bytes):
                    assert len(got) <= 4
                    blob = got
    return blob


@given(st.lists(st.sampled_from(PARTS) | st.binary(max_size=12), max_size=8).map(b"".join))
@example(HEAD + b"Content-Length: 4\r\n\r\nblob")
@example(HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\nblob\r\n0\r\n\r\n")
@example(HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\nblob\r\n4\r\nmore\r\n0\r\n\r\n")
@example(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n")
@example(HEAD + b"Content-Length: 4\r\n\r\nblob, and more than was announced")
@example(HEAD + b"\r\nblob until the end of the connection")
@example(b"")
@settings(max_examples=80, deadline=None)
def test_whatever_a_server_sends_only_upstream_errors_come_out(answer: bytes) -> None:
    asyncio.run(ask_everything(answer))


@pytest.mark.parametrize(
    "answer",
    [b"Transfer-Encoding: chunked\r\n\r\n4\r\nblob\r\n", b"\r\nblob"],
    ids=["the last chunk is missing", "until the connection ends"],
)
async def test_a_body_whose_bytes_all_came_is_complete_however_it_ends(answer: bytes) -> None:
    assert await ask_everything(HEAD + answer) == b"blob"


@pytest.mark.parametrize("junk", [b"X: y\r\n" * 100_000, b"a" * 5_000_000, b"HTTP/1.1 100 Continue\r\n\r\n" * 50_000])
async def test_headers_without_end_are_refused(junk: bytes) -> None:
    await ask_everything(HEAD + junk)
