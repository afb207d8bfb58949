"""What a request asks for, decided at the door. Design page "clients", 5.1 and 5.2; the odd ones are attacks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pdist.mirror.door import (
    BlobAsked,
    ManifestAsked,
    Ping,
    ReferrersAsked,
    Refusal,
    TagsAsked,
    parse,
)
from p2pdist.oci import Digest, Repository

DIGEST = Digest.of(b"x")


def repository_of(target: str, *header: str) -> str:
    asked = parse("GET", target, header)
    assert isinstance(asked, ManifestAsked | BlobAsked | ReferrersAsked | TagsAsked), asked
    return str(asked.repository)


def test_every_route_is_recognised() -> None:
    alpine = Repository("docker.io", "library/alpine")
    assert parse("GET", "/v2/") == Ping()
    assert parse("GET", "/v2/library/alpine/manifests/3.20") == ManifestAsked(alpine, "3.20", None)
    assert parse("HEAD", f"/v2/library/alpine/manifests/{DIGEST}") == ManifestAsked(alpine, str(DIGEST), DIGEST)
    assert parse("GET", f"/v2/library/alpine/blobs/{DIGEST}") == BlobAsked(alpine, DIGEST)
    assert parse("GET", f"/v2/library/alpine/referrers/{DIGEST}") == ReferrersAsked(alpine, DIGEST, None)
    filtered = f"/v2/library/alpine/referrers/{DIGEST}?artifactType=application%2Fvnd.cncf.notary.signature"
    assert parse("GET", filtered) == ReferrersAsked(alpine, DIGEST, "application/vnd.cncf.notary.signature")
    listed = parse("GET", "/v2/library/alpine/tags/list?n=10&last=3.19&other=1&ns=docker.io")
    assert listed == TagsAsked(alpine, "n=10&last=3.19", "/v2/library/alpine/tags/list", "docker.io")


def test_a_colon_of_a_digest_may_be_encoded() -> None:
    asked = parse("GET", f"/v2/library/alpine/blobs/sha256%3A{DIGEST.hex}")
    assert asked == BlobAsked(Repository("docker.io", "library/alpine"), DIGEST)


def test_signature_tags_are_tags() -> None:
    tag = f"sha256-{DIGEST.hex}.sig"
    assert parse("GET", f"/v2/library/alpine/manifests/{tag}") == ManifestAsked(
        Repository("docker.io", "library/alpine"), tag, None
    )


@pytest.mark.parametrize(
    ("target", "header", "repository"),
    [
        # ?ns= as containerd and Docker's containerd store send it
        ("/v2/library/alpine/tags/list?ns=docker.io", (), "docker.io/library/alpine"),
        ("/v2/org/app/tags/list?ns=ghcr.io", (), "ghcr.io/org/app"),
        ("/v2/app/tags/list?ns=127.0.0.1%3A5000", (), "127.0.0.1:5000/app"),
        ("/v2/app/tags/list?ns=GHCR.io", (), "ghcr.io/app"),
        # ?ns= before the header before the path
        ("/v2/quay.io/app/tags/list?ns=ghcr.io", ("registry.k8s.io",), "ghcr.io/quay.io/app"),
        ("/v2/quay.io/app/tags/list", ("registry.k8s.io",), "registry.k8s.io/quay.io/app"),
        ("/v2/app/tags/list", ("127.0.0.1:5000",), "127.0.0.1:5000/app"),
        ("/v2/app/tags/list", ("ghcr.io", "ghcr.io"), "ghcr.io/app"),
        # the path form that podman's location= makes
        ("/v2/ghcr.io/org/app/tags/list", (), "ghcr.io/org/app"),
        ("/v2/host__5000/app/tags/list", (), "host:5000/app"),
        ("/v2/127.0.0.1__5000/app/tags/list", (), "127.0.0.1:5000/app"),
        ("/v2/localhost/app/tags/list", (), "localhost/app"),
        ("/v2/localhost__5000/a/b/tags/list", (), "localhost:5000/a/b"),
        ("/v2/docker.io/library/alpine/tags/list", (), "docker.io/library/alpine"),
        # Docker Hub, whose library needn't be named
        ("/v2/alpine/tags/list", (), "docker.io/library/alpine"),
        ("/v2/docker.io/alpine/tags/list", (), "docker.io/library/alpine"),
        ("/v2/alpine/tags/list?ns=index.docker.io", (), "docker.io/library/alpine"),
        ("/v2/alpine/tags/list?ns=registry-1.docker.io", (), "docker.io/library/alpine"),
        ("/v2/org/app/tags/list", (), "docker.io/org/app"),
        # a name may be made of the words of the API
        ("/v2/blobs/manifests/tags/list", (), "docker.io/blobs/manifests"),
        ("/v2/tags/list/tags/list", (), "docker.io/tags/list"),
    ],
)
def test_which_registry_is_meant(target: str, header: tuple[str, ...], repository: str) -> None:
    assert repository_of(target, *header) == repository


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE", "get"])
@pytest.mark.parametrize("target", ["/v2/", "/v2/library/alpine/blobs/uploads/", "/", "*"])
def test_writes_are_refused_as_methods(method: str, target: str) -> None:
    refusal = parse(method, target)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.code) == (405, "UNSUPPORTED")


@pytest.mark.parametrize(
    "target",
    [
        "/", "/v1/_ping", "/v2", "/v2/_catalog", "/v2//", "/V2/", "/v3/", "//v2/", "v2/", "*", "", "?", "/v2/x",
        "/v2/tags/list",
        "/v2/manifests/latest", f"/v2/blobs/{DIGEST}", "/v2/library/alpine/blobs/uploads/1", "/v2/library/alpine/tags/",
        f"/v2/library/alpine/blobs/{DIGEST}/", "/metrics", "/v2/../admin",
    ],
)  # fmt: skip
def test_everything_else_is_not_found(target: str) -> None:
    refusal = parse("GET", target)
    assert isinstance(refusal, Refusal)
    assert refusal.status == 404


@pytest.mark.parametrize(
    "name",
    [
        "..", "../..", "a/..", "../a", "a/../b", ".", "a/./b", "a//b", "/a", "a/", "%2e%2e", "%2e%2e/a", "a/%2E%2E/b",
        "a%2fb", "a%2F..%2Fb", "%252e%252e", "a%255c", "a\\b", "a%5cb", "a%00b", "a%0d%0aX:%20y", "a%0a",
        "%c0%ae%c0%ae",
        "%e2%80%ae", "a\x80b", "ä", "A", "Library/alpine", "a b", "a%20b", "a+b", "a;b", "a:b", "a@b", "a%", "a%4",
        "a%zz",
        "~root", "a.", ".a", "a..b", "a___b", "-a", "a-", "_a", "a#b", "a<b>", "a" * 256, "/etc/passwd", "C%3A",
        "ghcr.io", "host__5000", "ghcr.io/..", "ghcr.io/%2e%2e/a", "evil.com%2f", "evil.com%40ghcr.io/a",
        "host__99999/a",
        "host__0/a", "[::1]/a", "..ghcr.io/a", "ghcr..io/a", "ghcr.io./a",
    ],
)  # fmt: skip
@pytest.mark.parametrize("rest", [f"blobs/{DIGEST}", "manifests/latest", f"referrers/{DIGEST}", "tags/list"])
def test_traversal_and_odd_encodings_in_names_are_refused(name: str, rest: str) -> None:
    refusal = parse("GET", f"/v2/{name}/{rest}")
    assert isinstance(refusal, Refusal), refusal
    assert (refusal.status, refusal.code) == (404, "NAME_INVALID")


@pytest.mark.parametrize(
    "ns",
    [
        "", "%20", "evil.com/path", "user@evil.com", "evil.com%2fx", "a%00b", "a%0d%0ab", "http://evil.com", "..",
        "a..b",
        "evil.com:0", "evil.com:99999", "evil.com:", "[::1", "%ff", "evil.com?x", "evil.com%23", "-a", "ä.com",
    ],
)  # fmt: skip
def test_a_registry_that_is_not_a_host_is_refused(ns: str) -> None:
    refusal = parse("GET", f"/v2/library/alpine/manifests/latest?ns={ns}")
    assert isinstance(refusal, Refusal), refusal
    assert (refusal.status, refusal.code) == (404, "NAME_INVALID")


def test_two_different_registries_in_one_request_are_refused() -> None:
    assert isinstance(parse("GET", "/v2/a/tags/list?ns=ghcr.io&ns=quay.io"), Refusal)
    assert isinstance(parse("GET", "/v2/a/tags/list", ["ghcr.io", "quay.io"]), Refusal)


@pytest.mark.parametrize(
    "digest",
    [
        "md5:d41d8cd98f00b204e9800998ecf8427e", "sha256:", "sha256:abc", f"SHA256:{DIGEST.hex}",
        f"sha256:{DIGEST.hex.upper()}",
        f"sha256:{DIGEST.hex}0", f"sha512:{DIGEST.hex}", f"sha256:../{DIGEST.hex}", f"blake3:{DIGEST.hex}",
        "sha256:..%2f..%2fetc%2fpasswd", f"sha256:{DIGEST.hex[:-1]}%00", DIGEST.hex, "latest", "",
    ],
)  # fmt: skip
def test_a_digest_of_an_unknown_algorithm_or_form_is_refused(digest: str) -> None:
    for route in ("blobs", "referrers"):
        refusal = parse("GET", f"/v2/library/alpine/{route}/{digest}")
        assert isinstance(refusal, Refusal), refusal
        assert refusal.status == 404
    if ":" in digest:
        assert isinstance(parse("GET", f"/v2/library/alpine/manifests/{digest}"), Refusal)


@pytest.mark.parametrize("tag", ["", ".a", "-a", "a" * 129, "a%2fb", "a b", "a%00", "..", "ä", "a~"])
def test_what_is_no_tag_is_refused(tag: str) -> None:
    assert isinstance(parse("GET", f"/v2/library/alpine/manifests/{tag}"), Refusal)


def test_a_query_with_very_many_fields_is_refused() -> None:
    refusal = parse("GET", "/v2/a/tags/list?" + "&".join(f"f{i}=1" for i in range(1000)))
    assert isinstance(refusal, Refusal)


def test_a_proxy_s_absolute_form_means_the_same() -> None:
    assert parse("GET", "http://127.0.0.1:5050/v2/") == Ping()
    assert repository_of("HTTP://evil.com/v2/a/tags/list?ns=ghcr.io") == "ghcr.io/a"


@given(st.text(alphabet=st.characters(max_codepoint=255), max_size=200), st.text(max_size=30))
def test_any_request_target_is_answered_and_never_leaves_the_grammar(target: str, ns: str) -> None:
    for text in (target, f"/v2/{target}", f"/v2/{target}/tags/list?ns={ns}", f"/v2/a/manifests/{target}"):
        asked = parse("GET", text)
        if isinstance(asked, ManifestAsked | BlobAsked | ReferrersAsked | TagsAsked):
            name = str(asked.repository)
            assert ".." not in name and "//" not in name and "%" not in name and name == name.lower()
