"""Sets of images by name or digest."""

from __future__ import annotations

import pytest

from p2pdist.errors import InvalidReference
from p2pdist.oci import Digest, ImagePattern

A, B = Digest.of(b"a"), Digest.of(b"b")
HUB = "docker.io/library/nginx"


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("nginx", HUB),
        ("nginx:1.2", f"{HUB}:1.2"),
        ("ngin?:1.*", "docker.io/library/ngin?:1.*"),
        ("acme/*", "docker.io/acme/*"),
        ("ghcr.io/acme/*:v[0-9]", "ghcr.io/acme/*:v[0-9]"),
        ("*", "*"),
        ("*/acme/app:1", "*/acme/app:1"),
        ("10.0.0.5:5000/a", "10.0.0.5:5000/a"),
        (f"nginx@{A}", f"{HUB}@{A}"),
        (f"nginx:1@{A}", f"{HUB}:1@{A}".replace(":1@", "@")),
        (str(A), str(A)),
    ],
)
def test_a_pattern_is_written_out_with_docker_hubs_defaults(text: str, written: str) -> None:
    assert ImagePattern.parse(text).text == written
    assert ImagePattern.parse(written) == ImagePattern.parse(text)


@pytest.mark.parametrize(
    ("text", "repository", "tag", "digest", "matches"),
    [
        (str(A), "ghcr.io/x", None, A, True),
        (str(A), "ghcr.io/x", "1", B, False),
        ("nginx", HUB, "1", A, True),
        ("nginx", HUB, None, A, True),
        ("nginx", HUB + "x", "1", A, False),
        ("nginx:1", HUB, "1", A, True),
        ("nginx:1", HUB, "1.2", A, False),
        ("nginx:1", HUB, None, A, False),
        (f"nginx@{A}", HUB, None, A, True),
        (f"nginx@{A}", "ghcr.io/nginx", None, A, False),
        ("ghcr.io/acme/*", "ghcr.io/acme/deep/app", None, A, True),
        ("ghcr.io/acme/*:1.*", "ghcr.io/acme/app", "1.2", A, True),
        ("ghcr.io/acme/*:1.*", "ghcr.io/acme/app", "2.1", A, False),
        ("ghcr.io/acme/*:1.*", "ghcr.io/acme/app", None, A, False),
        ("ghcr.io/acme/*", "ghcr.io/acmes/app", "1", A, False),
        ("ghcr.io/a.c", "ghcr.io/abc", "1", A, False),
        ("*", "ghcr.io/x", None, A, True),
    ],
)
def test_what_is_in_a_set(text: str, repository: str, tag: str | None, digest: Digest, matches: bool) -> None:
    assert ImagePattern.parse(text).matches(repository, tag, digest) is matches


@pytest.mark.parametrize(
    "text", ["", "a b", "app@sha256:12", "user:hunter2@host/app", "https://host/app", "A/b:", "x:"]
)
def test_what_is_no_set_is_refused_without_its_passwords(text: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        ImagePattern.parse(text)
    assert "hunter2" not in str(caught.value)
