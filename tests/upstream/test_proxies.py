"""Which proxy a URL goes through: read as dockerd and containerd read the same variables."""

import base64

import pytest
from yarl import URL

from p2pdist.errors import ConfigError
from p2pdist.proxies import DIRECT, Proxies, Proxy

PROXY = {"HTTPS_PROXY": "http://secure:3128", "HTTP_PROXY": "http://plain:3128"}


@pytest.mark.parametrize(
    ("env", "url", "proxy"),
    [
        (PROXY, "https://ghcr.io/v2/", "http://secure:3128"),
        (PROXY, "http://ghcr.io/v2/", "http://plain:3128"),
        ({"https_proxy": "small:1"}, "https://ghcr.io/", "http://small:1"),
        ({"HTTPS_PROXY": "capital:1", "https_proxy": "small:1"}, "https://ghcr.io/", "http://capital:1"),
        ({"HTTPS_PROXY": "", "https_proxy": "small:1"}, "https://ghcr.io/", "http://small:1"),
        ({"HTTP_PROXY": "http://plain:3128"}, "https://ghcr.io/", None),
        ({"ALL_PROXY": "http://any:3128"}, "https://ghcr.io/", None),
        ({"HTTPS_PROXY": "https://tls:3129"}, "https://ghcr.io/", "https://tls:3129"),
        ({"HTTPS_PROXY": "http://[fd00::1]:3128/"}, "https://ghcr.io/", "http://[fd00::1]:3128"),
        ({}, "https://ghcr.io/", None),
        # What is on this machine is never asked through a proxy: it would be the proxy's machine.
        (PROXY, "http://localhost:5000/", None),
        (PROXY, "http://127.8.0.1:5000/", None),
        (PROXY, "https://[::1]:5000/", None),
    ],
)
def test_the_proxy_of_the_environment(env: dict[str, str], url: str, proxy: str | None) -> None:
    found = Proxies.of_environment(env).choose(URL(url))
    assert (str(found) if found else None) == proxy


@pytest.mark.parametrize(
    ("entry", "spared", "others"),
    [
        ("*", ["https://ghcr.io/", "http://10.0.0.1/"], []),
        ("ghcr.io", ["https://ghcr.io/", "https://GHCR.io./", "https://a.ghcr.io/"], ["https://notghcr.io/"]),
        (".corp", ["https://r.corp/", "https://a.r.corp:5000/"], ["https://corp/", "https://corp.io/"]),
        ("*.corp", ["https://r.corp/"], ["https://corp/"]),
        ("r.corp:5000", ["https://r.corp:5000/", "https://a.r.corp:5000/"], ["https://r.corp/"]),
        ("r.corp:443", ["https://r.corp/"], ["http://r.corp/"]),
        ("10.0.0.5", ["http://10.0.0.5:5000/"], ["http://10.0.0.50/"]),
        ("10.0.0.5:5000", ["http://10.0.0.5:5000/"], ["http://10.0.0.5/"]),
        ("10.0.0.0/8", ["http://10.9.8.7:5000/"], ["http://11.0.0.1/", "http://ten.test/", "http://[fd00::1]/"]),
        ("10.1.2.3/8", ["http://10.9.8.7/"], ["http://11.0.0.1/"]),
        ("fd00::/8", ["http://[fd12::1]:5000/"], ["http://[fe80::1]/", "http://10.0.0.1/"]),
        ("fd00::1", ["http://[fd00::1]/"], ["http://[fd00::2]/"]),
        ("[fd00::1]:80", ["http://[fd00::1]/"], ["https://[fd00::1]/"]),
        (" a.test , .svc ,, ", ["http://a.test/", "http://r.ns.svc/"], ["http://b.test/"]),
        ("10.0.0.0/99,r.corp:port,[,:80,.,a.test", ["http://a.test/"], ["http://10.0.0.1/", "http://r.corp/"]),
    ],
)
def test_what_no_proxy_spares_and_what_it_does_not(entry: str, spared: list[str], others: list[str]) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        proxies = Proxies.of_environment({**PROXY, name: entry})
        assert [url for url in spared if proxies.choose(URL(url)) is not None] == []
        assert [url for url in others if proxies.choose(URL(url)) is None] == []


def test_a_configured_proxy_is_for_everything_and_none_for_nothing() -> None:
    proxy = Proxy.parse("http://proxy:3128")
    for url in ("https://ghcr.io/", "http://127.0.0.1:5000/", "http://localhost/"):
        assert Proxies.only(proxy).choose(URL(url)) is proxy
        assert DIRECT.choose(URL(url)) is None


def test_user_and_password_become_a_login_and_are_shown_nowhere() -> None:
    proxy = Proxy.parse("http://us%40er:se%3Acret%2F@proxy.test:3128")
    assert proxy.authorization == "Basic " + base64.b64encode(b"us@er:se:cret/").decode()
    assert str(proxy) == "http://proxy.test:3128"
    assert "cret" not in repr(Proxies.only(proxy)) and proxy.authorization not in repr(proxy)


@pytest.mark.parametrize(
    "text",
    [
        "socks5://u:secret@proxy:1080",
        "http://u:secret@proxy:99999",
        "http://u:secret@",
        "http://u:secret@proxy/path",
        "http://u:secret@proxy/?q",
        "http://u:secret@[::1/",
        "u:secret",
        "secret://",
    ],
)
def test_what_is_no_proxy_is_refused_by_the_variables_name_and_without_its_text(text: str) -> None:
    with pytest.raises(ConfigError, match="the environment variable https_proxy: wanted a proxy like") as refused:
        Proxies.of_environment({"https_proxy": text})
    error: BaseException | None = refused.value
    while error is not None:
        assert "secret" not in str(error)
        error = error.__cause__
