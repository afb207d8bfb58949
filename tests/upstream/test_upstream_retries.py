"""What is tried again, how often, and who decides to wait."""

import pytest
import stamina
from stamina.instrumentation import RetryDetails, set_on_retry_hooks
from support.registry import FakeRegistry, Status, noise

from p2pdist.errors import UpstreamError, UpstreamNotAllowed, UpstreamThrottled, UpstreamUnreachable
from p2pdist.oci import Repository
from p2pdist.upstream import Credentials, Upstreams, UpstreamSettings


async def test_a_temporary_failure_is_tried_again_and_forgotten(client_of, fake) -> None:
    image = fake.add_image("library/a", "latest", [noise(10)])
    client = await client_of(fake)
    fake.fail(Status(502), times=2)
    assert (await client.registry.head_manifest(client.repository, "latest")).digest == image.digest
    fake.fail(Status(500), times=2)
    assert await client.read(image.layers[0]) == noise(10)
    assert [one.status for one in fake.log] == [502, 502, 200, 500, 500, 200]


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(("value", "seconds"), [("7", 7.0), ("Thu, 01 Jan 1970 00:16:50 GMT", 10.0)])
async def test_throttling_is_raised_at_once_with_the_wait_that_was_asked(
    client_of, fake, status, value, seconds
) -> None:
    fake.fail(Status(status, {"Retry-After": value}))
    client = await client_of(fake, wall=lambda: 1000.0)
    with pytest.raises(UpstreamThrottled) as caught:
        await client.registry.get_manifest(client.repository, "latest")
    assert (caught.value.status, caught.value.retry_after, caught.value.temporary) == (status, seconds, True)
    assert len(fake.log) == 1


async def test_throttling_without_a_time_is_throttling_too(client_of, fake) -> None:
    fake.fail(Status(429))
    client = await client_of(fake)
    with pytest.raises(UpstreamThrottled) as caught:
        await client.read(fake.add_blob(b"x"))
    assert caught.value.retry_after is None and len(fake.log) == 1


async def test_with_patience_the_wait_is_kept_and_the_answer_comes(client_of, fake, monkeypatch) -> None:
    fake.add_image("library/a", "latest", [])
    fake.fail(Status(429, {"Retry-After": "7"}), times=2)
    client = await client_of(fake)
    assert (await client.registry.get_manifest(client.repository, "latest", patience=14.0)).raw
    assert len(fake.log) == 3


async def test_patience_that_does_not_reach_is_not_spent(client_of, fake) -> None:
    fake.fail(Status(429, {"Retry-After": "7"}))
    client = await client_of(fake)
    with pytest.raises(UpstreamThrottled):
        await client.registry.get_manifest(client.repository, "latest", patience=13.0)
    assert len(fake.log) == 2  # 7 s once, and 7 more would be over 13
    with pytest.raises(UpstreamThrottled):
        await client.registry.get_manifest(client.repository, "latest", patience=6.9)
    assert len(fake.log) == 3


async def test_the_wait_is_the_one_that_the_registry_asked(client_of, fake) -> None:
    waits: list[float] = []

    def stop(details: RetryDetails) -> None:
        waits.append(details.wait_for)
        raise KeyboardInterrupt  # instead of waiting

    fake.fail(Status(429, {"Retry-After": "7"}))
    client = await client_of(fake)
    set_on_retry_hooks([stop])
    try:
        with stamina.set_testing(False), pytest.raises(KeyboardInterrupt):
            await client.registry.get_manifest(client.repository, "latest", patience=60.0)
    finally:
        set_on_retry_hooks(None)
    assert waits == [7.0]


async def test_nobody_there_is_unreachable_and_names_where() -> None:
    async with FakeRegistry() as gone:
        pass
    async with Upstreams([UpstreamSettings(gone.name, gone.url)], Credentials()) as upstreams:
        with pytest.raises(
            UpstreamUnreachable, match=f"{gone.url}/v2/r/manifests/latest: no connection: Connect"
        ) as caught:
            await upstreams.registry(gone.name).get_manifest(Repository(gone.name, "r"), "latest")
        assert caught.value.__cause__ is None


async def test_a_name_that_does_not_resolve_is_unreachable() -> None:
    async with Upstreams([UpstreamSettings("x.invalid", "http://x.invalid")], Credentials()) as upstreams:
        with pytest.raises(UpstreamUnreachable, match="no connection"):
            await upstreams.registry("x.invalid").get_manifest(Repository("x.invalid", "r"), "latest")


# --- the allow list ---


async def test_a_registry_that_is_not_listed_is_never_asked(client_of, fake) -> None:
    async with FakeRegistry() as other:
        client = await client_of(fake)
        for name in (other.name, "docker.io", "", "a/b", "169.254.169.254"):
            with pytest.raises(UpstreamNotAllowed, match="not in the list") as caught:
                client.upstreams.registry(name)
            assert not caught.value.temporary and isinstance(caught.value, UpstreamError)
        assert not other.log


async def test_with_allow_any_an_unlisted_registry_is_asked_where_its_name_says() -> None:
    async with FakeRegistry() as fake:
        image = fake.add_image("r", "latest", [])
        async with Upstreams([], Credentials(), allow_any=True) as upstreams:
            registry = upstreams.registry(fake.name)
            assert (await registry.get_manifest(Repository(fake.name, "r"), "latest")).digest == image.digest
            assert upstreams.registry(fake.name) is registry
            with pytest.raises(UpstreamNotAllowed):
                upstreams.registry("a/../b")


async def test_with_allow_any_unlisted_names_do_not_pile_up() -> None:
    from p2pdist.upstream.upstreams import MAX_UNLISTED

    async with Upstreams([], Credentials(), allow_any=True) as upstreams:
        for number in range(MAX_UNLISTED + 10):
            upstreams.registry(f"r{number}.example")
        assert len(upstreams._unlisted) == MAX_UNLISTED
