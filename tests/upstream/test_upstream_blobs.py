"""A blob's bytes: exactly those asked, resumed after a cut, and never more than there can be."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.registry import (
    Corrupt,
    Cut,
    FakeRegistry,
    Headers,
    Hold,
    IgnoreRange,
    NoLength,
    Stall,
    Status,
    noise,
)

from p2pdist.errors import UpstreamError, UpstreamInvalid, UpstreamNotFound, UpstreamUnreachable
from p2pdist.oci import Digest, Repository
from p2pdist.upstream import Credentials, Upstreams, UpstreamSettings
from p2pdist.upstream.body import RESUMES

SIZE = 3 * 1024 * 1024 + 17
DATA = noise(SIZE)


@pytest.fixture
def digest(fake: FakeRegistry) -> Digest:
    return fake.add_blob(DATA)


async def test_a_whole_blob_comes_in_one_request_without_range(client_of, fake, digest) -> None:
    client = await client_of(fake)
    for size in (SIZE, None):
        async with client.registry.read_blob(client.repository, digest, size=size) as body:
            assert (body.start, body.end, body.total, body.ranged) == (0, SIZE, SIZE, True)
            assert b"".join([piece async for piece in body]) == DATA
    assert ["Range" in one.headers for one in fake.log] == [False, False]


@pytest.mark.parametrize(
    ("start", "end"), [(0, 1), (0, SIZE - 1), (1, SIZE), (SIZE - 1, SIZE), (1000, 2_000_000), (5, None), (0, SIZE)]
)
@pytest.mark.parametrize("known", [True, False])
async def test_a_range_brings_exactly_its_bytes_and_no_others_are_sent(
    client_of, fake, digest, start, end, known
) -> None:
    client = await client_of(fake)
    assert await client.read(digest, start=start, end=end, size=SIZE if known else None) == DATA[start:end]
    assert fake.bytes_sent(digest) == (SIZE if end is None else end) - start


async def test_an_empty_blob_and_an_empty_range_are_empty(client_of, fake, digest) -> None:
    empty = fake.add_blob(b"")
    client = await client_of(fake)
    assert await client.read(empty) == b""
    assert await client.read(empty, size=0) == b""
    assert await client.read(digest, start=7, end=7, size=SIZE) == b""
    assert fake.bytes_sent(digest) == 0


async def test_head_tells_the_size(client_of, fake, digest) -> None:
    client = await client_of(fake)
    assert await client.registry.head_blob(client.repository, digest) == SIZE
    with pytest.raises(UpstreamNotFound):
        await client.registry.head_blob(client.repository, Digest.of(b"other"))
    assert fake.bytes_sent(digest) == 0


@pytest.mark.parametrize("fault", [NoLength(), Headers({"Content-Encoding": "gzip"}), Headers({"Accept-Ranges": None})])
async def test_odd_but_right_answers_bring_the_bytes_as_they_are(client_of, fake, digest, fault) -> None:
    fake.fail(fault)
    client = await client_of(fake)
    assert await client.read(digest, size=SIZE) == DATA
    assert await client.read(digest, start=10, end=1_000_000, size=SIZE) == DATA[10:1_000_000]


async def test_a_registry_that_ignores_range_costs_the_bytes_before_but_brings_the_right_ones(
    client_of, fake, digest
) -> None:
    fake.fail(IgnoreRange())
    client = await client_of(fake)
    async with client.registry.read_blob(client.repository, digest, start=1_000_000, end=1_000_100, size=SIZE) as body:
        assert not body.ranged
        assert b"".join([piece async for piece in body]) == DATA[1_000_000:1_000_100]


async def test_wrong_bytes_are_passed_on_for_the_reader_to_find_out(client_of, fake, digest) -> None:
    fake.fail(Corrupt(at=5))
    client = await client_of(fake)
    assert Digest.of(await client.read(digest, size=SIZE)) != digest


# --- cuts ---


@pytest.mark.parametrize("reset", [False, True])
async def test_a_cut_is_resumed_by_range_from_where_it_was(client_of, fake, digest, reset: bool) -> None:
    fake.fail(Cut(1_000_000, reset=reset), times=1)
    client = await client_of(fake)
    assert await client.read(digest, size=SIZE) == DATA
    second = fake.log[1]
    assert len(fake.log) == 2
    at = int(second.headers["Range"].removeprefix("bytes=").partition("-")[0])
    assert second.headers["Range"].endswith(f"-{SIZE - 1}") and (at == 1_000_000 or (reset and at <= 1_000_000))


@given(st.lists(st.integers(0, 200_000), max_size=RESUMES), st.integers(0, 250_000), st.integers(0, 250_000))
@settings(max_examples=25, deadline=None)
def test_however_it_is_cut_the_range_comes_whole(cuts: list[int], a: int, b: int) -> None:
    async def run() -> None:
        data = noise(250_000)
        start, end = min(a, b), max(a, b)
        async with FakeRegistry() as fake:
            digest = fake.add_blob(data)
            for cut in cuts:
                fake.fail(Cut(cut), times=1)
            async with Upstreams([UpstreamSettings(fake.name, fake.url)], Credentials()) as upstreams:
                registry = upstreams.registry(fake.name)
                async with registry.read_blob(
                    Repository(fake.name, "r"), digest, start=start, end=end, size=len(data)
                ) as body:
                    assert b"".join([piece async for piece in body]) == data[start:end]

    asyncio.run(run())


async def test_cuts_with_progress_in_between_are_resumed_as_often_as_it_takes(client_of) -> None:
    async with FakeRegistry() as fake:
        data = noise(12 * 1024 * 1024)
        digest = fake.add_blob(data)
        fake.fail(Cut(1024 * 1024), times=11)
        client = await client_of(fake)
        assert await client.read(digest, size=len(data)) == data
        assert fake.bytes_sent(digest) == len(data)


@pytest.mark.parametrize("after", [0, 10])
async def test_a_body_that_is_cut_again_and_again_is_given_up(client_of, fake, digest, after: int) -> None:
    fake.fail(Cut(after))
    client = await client_of(fake)
    with pytest.raises(UpstreamUnreachable, match="cut off"):
        await client.read(digest, size=SIZE)
    assert len(fake.log) == RESUMES + 1


async def test_a_cut_where_the_rest_is_refused_is_that_refusal(client_of, fake, digest) -> None:
    fake.fail(Cut(1000), times=1)
    fake.fail(Status(404))
    client = await client_of(fake)
    with pytest.raises(UpstreamNotFound):
        await client.read(digest, size=SIZE)


async def test_a_cut_and_a_registry_that_ignores_range_is_skipped_to_where_it_was(client_of, fake, digest) -> None:
    fake.fail(Cut(1_000_000), times=1)
    fake.fail(IgnoreRange())
    client = await client_of(fake)
    assert await client.read(digest, size=SIZE) == DATA


async def test_a_chunked_body_that_ends_early_is_truncated_not_complete(client_of, fake, digest) -> None:
    fake.blobs[digest] = DATA[:1000]
    fake.fail(NoLength())
    client = await client_of(fake)
    with pytest.raises(UpstreamInvalid):
        await client.read(digest, size=SIZE)


# --- stalls ---


async def test_a_stalled_body_is_resumed_elsewhere(client_of, fake, digest) -> None:
    fake.fail(Stall(1_000_000), times=1)
    client = await client_of(fake, stall_timeout=0.3)
    assert await client.read(digest, size=SIZE) == DATA
    assert fake.bytes_sent(digest) == SIZE


@pytest.mark.parametrize("after", [None, 0, 1000])
async def test_an_upstream_that_stalls_for_good_is_unreachable(client_of, fake, digest, after: int | None) -> None:
    fake.fail(Stall(after))
    client = await client_of(fake, stall_timeout=0.05)
    with pytest.raises(UpstreamUnreachable, match="in time"):
        await client.read(digest, size=SIZE)


async def test_a_trickle_of_bytes_is_a_stall(client_of, fake, digest) -> None:
    # Every read takes almost the stall timeout by the clock that is injected, and brings little.
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 4.0
        return now

    fake.fail(Cut(5), times=1)
    client = await client_of(fake, clock=clock, stall_timeout=5.0)
    fake.blobs[digest] = DATA[:10]
    async with client.registry.read_blob(client.repository, digest, size=10) as body:
        body._waited = 4.0
        with pytest.raises(UpstreamUnreachable, match="only 5 bytes in 8 s"):
            body._allowance = 1
            await anext(body)


async def test_a_reader_that_takes_its_time_is_no_stall_of_the_registry(client_of, fake, digest) -> None:
    now = 0.0
    client = await client_of(fake, clock=lambda: now, stall_timeout=5.0)
    got = b""
    async with client.registry.read_blob(client.repository, digest, size=SIZE) as body:
        async for piece in body:
            now += 3600.0
            got += piece
    assert got == DATA and len(fake.log) == 1


# --- leaving ---


async def test_a_reader_that_leaves_early_ends_the_transfer_and_keeps_the_client_usable(client_of, fake) -> None:
    data = noise(64 * 1024 * 1024)
    digest = fake.add_blob(data)
    client = await client_of(fake, max_connections=1)
    for _ in range(3):
        async with client.registry.read_blob(client.repository, digest, size=len(data)) as body:
            async for piece in body:
                assert data.startswith(piece)
                break
    assert await client.read(digest, start=5, end=10, size=len(data)) == data[5:10]
    assert all(one.sent < 32 * 1024 * 1024 for one in fake.log)


async def test_a_cancelled_read_frees_its_connection(client_of, fake, digest) -> None:
    hold = fake.fail(Hold(), times=1)
    client = await client_of(fake, max_connections=1)
    task = asyncio.get_running_loop().create_task(client.read(digest, size=SIZE))
    await hold.arrived.acquire()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await client.read(digest, size=SIZE) == DATA


async def test_manifests_do_not_wait_behind_blobs(client_of, fake, digest) -> None:
    fake.add_image("library/a", "latest", [])
    stall = fake.fail(Stall(1000), path="blobs", times=2)
    client = await client_of(fake, max_connections=2)
    loop = asyncio.get_running_loop()
    reads = [loop.create_task(client.read(digest, size=SIZE)) for _ in range(2)]
    assert (await client.registry.get_manifest(client.repository, "latest")).raw
    stall.release.set()
    assert await asyncio.gather(*reads) == [DATA, DATA]


async def test_a_finished_read_gives_its_connection_back(client_of, fake, digest) -> None:
    client = await client_of(fake)
    for _ in range(5):
        await client.read(digest, start=1, end=100, size=SIZE)
    connections = client.registry._transport._large.connector._conns
    assert sum(map(len, connections.values())) == 1


async def test_errors_of_a_missing_blob_name_repository_and_registry(client_of, fake) -> None:
    client = await client_of(fake)
    digest = Digest.of(b"nowhere")
    with pytest.raises(UpstreamError, match=f"{fake.name}: GET library/a/blobs/{digest}: 404"):
        await client.read(digest)
