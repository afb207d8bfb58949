"""What a registry's settings may be."""

import pytest

from p2pdist.errors import ConfigError, UpstreamError
from p2pdist.upstream import Credentials, Upstreams, UpstreamSettings


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("docker.io", "https://registry-1.docker.io"),
        ("ghcr.io", "https://ghcr.io"),
        ("reg.example:5000", "https://reg.example:5000"),
        ("127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("localhost:5000", "http://localhost:5000"),
        ("[::1]:5000", "http://[::1]:5000"),
        ("127.evil.example", "https://127.evil.example"),
    ],
)
def test_a_name_implies_its_url_and_http_only_on_loopback(name: str, url: str) -> None:
    assert UpstreamSettings.for_name(name).url == url


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "a/b"},
        {"name": ""},
        {"name": "A.x"},
        {"url": "ftp://a.x"},
        {"url": "a.x"},
        {"url": "https://"},
        {"url": "https://user:pw@a.x"},
        {"url": "https://a.x/?q"},
        {"url": "https://a.x/?q=1"},
        {"url": "https://a.x/#f"},
        {"url": "http://[::1"},
        {"connect_timeout": 0},
        {"stall_timeout": -1.0},
        {"max_connections": 0},
        {"connect_timeout": float("nan")},
    ],
)
def test_settings_that_can_not_be_used_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        UpstreamSettings(**({"name": "a.x", "url": "https://a.x"} | wrong))


def test_a_registry_is_listed_once() -> None:
    settings = UpstreamSettings.for_name("a.x")
    with pytest.raises(ConfigError, match="twice"):
        Upstreams([settings, settings], Credentials())


@pytest.mark.parametrize("content", [None, b"", b"not a certificate"])
async def test_a_ca_file_that_can_not_be_used_is_reported_at_the_start_by_name(tmp_path, content: bytes | None) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    upstreams = Upstreams(
        [UpstreamSettings("b.x", "https://b.x"), UpstreamSettings("a.x", "https://a.x", ca_file=file)], Credentials()
    )
    with pytest.raises(UpstreamError, match=r"ca\.pem"):
        async with upstreams:
            pass
