"""References as Docker reads them; nothing that means something in a path gets through."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pdist.errors import InvalidReference
from p2pdist.oci import Digest, Reference, Repository, valid_tag

SHA = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "registry", "name", "tag", "digest"),
    [
        ("alpine", "docker.io", "library/alpine", "latest", None),
        ("alpine:3.20", "docker.io", "library/alpine", "3.20", None),
        ("docker.io/alpine", "docker.io", "library/alpine", "latest", None),
        ("index.docker.io/alpine:1", "docker.io", "library/alpine", "1", None),
        ("grafana/grafana", "docker.io", "grafana/grafana", "latest", None),
        (f"alpine@{SHA}", "docker.io", "library/alpine", None, SHA),
        (f"alpine:3@{SHA}", "docker.io", "library/alpine", "3", SHA),
        ("ghcr.io/a/b/c:v1", "ghcr.io", "a/b/c", "v1", None),
        ("GHCR.io/a/b", "ghcr.io", "a/b", "latest", None),
        ("localhost/a", "localhost", "a", "latest", None),
        ("localhost:5000/a", "localhost:5000", "a", "latest", None),
        ("127.0.0.1:5000/a:b", "127.0.0.1:5000", "a", "b", None),
        ("[::1]:5000/a", "[::1]:5000", "a", "latest", None),
        ("a.b/c__d/e--f.g_h", "a.b", "c__d/e--f.g_h", "latest", None),
    ],
)
def test_a_reference_reads_as_docker_reads_it(text, registry, name, tag, digest) -> None:
    reference = Reference.parse(text)
    assert reference.repository == Repository(registry, name)
    assert reference.tag == tag
    assert reference.digest == (Digest.parse(digest) if digest else None)
    assert reference.target == (digest or tag)
    assert Reference.parse(str(reference)) == reference


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "@", "/", "a/", "/a", "a//b", "Host/a",
        "Alpine", "a/B", "a:b:c", "a:", "a:-x", "a:.x", "a:" + "x" * 129,
        f"a@{SHA}x", "a@md5:" + "a" * 32, "a@", f"a@{SHA}@{SHA}", "a/../b", "../a", "a/./b", "a/..", "ghcr.io/../x",
        "a%2f..%2fb", "a%00", "a\\b", "a b", "a\n", "a:b\n", "ghcr.io/a\n", "a\x00", "ä", "a?b", "a#b", "-a", "a-",
        "a_", "a___b", "a..b",
        "host:0/a", "host:65536/a", "host:x/a", "host:/a", "ho_st.x/a", "-h.x/a", "h-.x/a", "h..x/a",
        "[::1/a", "[zz]:1/a", "[1.2.3.4]:1/a", "user@host.x/a", "https://ghcr.io/a", "a" * 64, "b" * 256, "a:\u0661",
    ],
)  # fmt: skip
def test_traversal_odd_encodings_and_plain_nonsense_are_refused(text: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        Reference.parse(text)
    assert len(str(caught.value)) < 400


@given(
    st.text(alphabet=st.characters(codec="utf-8"), max_size=80)
    | st.from_regex(r"[a-zA-Z0-9.:/@_%\[\]-]*", fullmatch=True)
)
def test_any_text_is_a_reference_that_survives_its_text_or_is_refused(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except InvalidReference:
        return
    assert Reference.parse(str(reference)) == reference
    name = reference.repository.name
    assert ".." not in name.split("/") and "//" not in name and not name.startswith("/")
    assert name.isascii() and name == name.lower() and reference.repository.registry.isascii()


@pytest.mark.parametrize("name", ["..", "a/../b", "a//b", "a%2fb", "A", "", "a/", "/a", "a\n"])
def test_the_constructor_is_no_way_around_the_checks(name: str) -> None:
    with pytest.raises(InvalidReference):
        Repository("docker.io", name)


def test_a_reference_without_tag_and_digest_does_not_exist() -> None:
    with pytest.raises(InvalidReference, match="neither a tag nor a digest"):
        Reference(Repository("docker.io", "library/a"), None, None)
    with pytest.raises(InvalidReference, match="is not a tag"):
        Reference(Repository("docker.io", "library/a"), "../x", None)


def test_tags() -> None:
    assert all(map(valid_tag, ["a", "A.b-c_1", "_x", "x" * 128, "sha256-" + "a" * 64 + ".sig"]))
    assert not any(map(valid_tag, ["", ".a", "-a", "a/b", "a:b", "a b", "x" * 129, "a\n", "ä"]))
