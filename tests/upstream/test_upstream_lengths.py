"""A registry that lies about how long a blob is: found out before, or with, the first byte that can't be."""

import pytest
from support.registry import Cut, Endless, FakeRegistry, Headers, ShiftRange, WrongLength, noise

from p2pdist.errors import UpstreamInvalid
from p2pdist.oci import Digest

SIZE = 3 * 1024 * 1024 + 17
DATA = noise(SIZE)


@pytest.fixture
def digest(fake: FakeRegistry) -> Digest:
    return fake.add_blob(DATA)


@pytest.mark.parametrize("fault", [WrongLength(5), WrongLength(-5), WrongLength(-SIZE)])
@pytest.mark.parametrize("span", [(0, None), (10, 1000)])
async def test_another_length_than_the_manifest_says_is_refused_before_a_byte_is_given(
    client_of, fake, digest, fault, span
) -> None:
    fake.fail(fault)
    client = await client_of(fake)
    got = 0
    with pytest.raises(UpstreamInvalid):
        async with client.registry.read_blob(client.repository, digest, start=span[0], end=span[1], size=SIZE) as body:
            async for piece in body:
                got += len(piece)
    assert not got and len(fake.log) == 1


async def test_an_endless_body_ends_at_the_size_with_an_error(client_of, fake, digest) -> None:
    fake.fail(Endless())
    client = await client_of(fake)
    for start, end in ((0, SIZE), (10, 1000)):
        got = b""
        with pytest.raises(UpstreamInvalid, match="more bytes came"):
            async with client.registry.read_blob(client.repository, digest, start=start, end=end, size=SIZE) as body:
                async for piece in body:
                    got += piece
        assert DATA[start:end].startswith(got)
    assert all(one.sent < SIZE + 32 * 1024 * 1024 for one in fake.log)


async def test_a_body_without_any_length_is_refused(client_of, fake, digest) -> None:
    fake.fail(Endless())
    client = await client_of(fake)
    with pytest.raises(UpstreamInvalid, match="how long it is"):
        await client.read(digest)


@pytest.mark.parametrize(
    "fault",
    [
        ShiftRange(by=3),
        ShiftRange(total=SIZE + 1),
        Headers({"Content-Range": None}),
        Headers({"Content-Range": f"bytes 10-9/{SIZE}"}),
        Headers({"Content-Range": f"bytes 10-1999/{SIZE}"}),
        Headers({"Content-Range": "bytes */100"}),
        Headers({"Content-Range": f"lines 10-999/{SIZE}"}),
        Headers({"Content-Range": "bytes 10-" + "9" * 5000 + "/*"}),
        Headers({"Content-Range": f"bytes 1\N{ARABIC-INDIC DIGIT ZERO}-999/{SIZE}"}),
    ],
)
async def test_a_wrong_content_range_is_refused_before_a_byte_is_given(client_of, fake, digest, fault) -> None:
    fake.fail(fault)
    client = await client_of(fake)
    got = 0
    with pytest.raises(UpstreamInvalid):
        async with client.registry.read_blob(client.repository, digest, start=10, end=1000, size=SIZE) as body:
            async for piece in body:
                got += len(piece)
    assert not got


async def test_a_range_that_ends_after_its_own_total_is_refused(client_of, fake, digest) -> None:
    fake.fail(ShiftRange(total=500))
    client = await client_of(fake)
    with pytest.raises(UpstreamInvalid, match="asked from byte 10"):
        await client.read(digest, start=10, end=1000)


async def test_a_range_beyond_the_blobs_end_is_refused(client_of, fake, digest) -> None:
    fake.blobs[digest] = DATA[:100]
    client = await client_of(fake)
    with pytest.raises(UpstreamInvalid, match="416"):
        await client.read(digest, start=1000, end=2000, size=SIZE)


async def test_a_resumed_blob_that_changed_its_size_is_refused(client_of, fake, digest) -> None:
    fake.fail(Cut(1000), times=1)
    fake.fail(ShiftRange(total=SIZE + 1))
    client = await client_of(fake)
    with pytest.raises(UpstreamInvalid, match="announces"):
        await client.read(digest)


async def test_an_absurd_length_is_refused(client_of, fake, digest) -> None:
    fake.fail(ShiftRange(total=1 << 62))
    client = await client_of(fake)
    with pytest.raises(UpstreamInvalid, match="at most"):
        await client.read(digest, start=1)
