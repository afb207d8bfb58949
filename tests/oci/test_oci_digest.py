"""A Digest that exists is right."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pdist.errors import InvalidDigest
from p2pdist.oci import Digest


@given(st.binary(max_size=200), st.sampled_from(["sha256", "sha512"]))
def test_a_digest_of_bytes_survives_its_text(data: bytes, algorithm: str) -> None:
    digest = Digest.of(data, algorithm)
    assert str(digest) == f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
    assert Digest.parse(str(digest)) == digest
    hasher = digest.hasher()
    hasher.update(data)
    assert hasher.hexdigest() == digest.hex


@given(st.text(max_size=150))
def test_text_is_a_digest_or_is_refused(text: str) -> None:
    try:
        digest = Digest.parse(text)
    except InvalidDigest:
        return
    assert str(digest) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256",
        "sha256:",
        ":" + "a" * 64,
        "sha256:" + "a" * 63,
        "sha256:" + "a" * 65,
        "sha256:" + "A" * 64,
        "sha256:" + "g" * 64,
        "sha256:" + "a" * 64 + "\n",
        " sha256:" + "a" * 64,
        "sha256:" + "٣" * 64,
        "sha256:../../../../etc/passwd",
        "sha256:" + "/" * 64,
        "SHA256:" + "a" * 64,
        "sha512:" + "a" * 64,
        "md5:" + "a" * 32,
        "sha384:" + "a" * 96,
        "sha256+b64:" + "a" * 64,
        "x" * 100_000,
    ],
)
def test_what_is_not_a_digest_of_a_known_algorithm_is_refused_in_few_words(text: str) -> None:
    with pytest.raises(InvalidDigest) as caught:
        Digest.parse(text)
    assert len(str(caught.value)) < 250


def test_a_digest_of_an_unknown_algorithm_names_the_known_ones() -> None:
    with pytest.raises(InvalidDigest, match="'blake3' is unknown; known are sha256, sha512"):
        Digest.parse("blake3:" + "a" * 64)
    with pytest.raises(InvalidDigest, match="'md5' is unknown"):
        Digest.of(b"", "md5")


def test_the_constructor_is_no_way_around_the_checks() -> None:
    with pytest.raises(InvalidDigest):
        Digest("sha256", "nonsense")
