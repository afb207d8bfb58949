"""Text encodings: one text, one meaning; nothing is skipped over."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from p2pdist.trust import encodings
from p2pdist.trust.refusal import Refused
from p2pdist.trust.signatures.der import utf8_string

PEM = b"-----BEGIN PUBLIC KEY-----\nQUJD\n-----END PUBLIC KEY-----\n"


@pytest.mark.parametrize("text", ["QUI", "QUJD\n", "QU JD", "Q*JD", "QUJD====", "\u0051\u0055\u004a\u00e9"])
def test_base64_takes_no_junk(text: str) -> None:
    with pytest.raises(Refused):
        encodings.base64_bytes(text, "x")


@pytest.mark.parametrize("text", ["QUJ=", "QUI=", "QUJ", "QR", "Q", "QU+D", "QUJD\n", "QU\u0660D"])
def test_base64url_takes_one_canonical_form(text: str) -> None:
    if text == "QUJ":  # three digits whose last bits are not zero
        assert encodings.base64url_bytes("QUI", "x") == b"AB"
    with pytest.raises(Refused):
        encodings.base64url_bytes(text, "x")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        PEM + PEM,
        b"x" + PEM,
        PEM + b"x",
        PEM.replace(b"PUBLIC", b"PRIVATE"),
        PEM.replace(b"END PUBLIC", b"END OTHER"),
        PEM.replace(b"QUJD", b"QUJ*"),
        PEM.replace(b"QUJD", b"Proc-Type: 4\n\nQUJD"),
    ],
    ids=range(8),
)
def test_pem_is_exactly_one_block_of_the_kind(data: bytes) -> None:
    assert encodings.pem_block(PEM, ("PUBLIC KEY",), "x") == b"ABC"
    with pytest.raises(Refused):
        encodings.pem_block(data, ("PUBLIC KEY",), "x")


def test_times_are_read_with_their_zone() -> None:
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    for text in ("2026-01-01T12:00:00Z", "2026-01-01T13:00:00+01:00", "2026-01-01t12:00:00.000000001z"):
        assert encodings.time_rfc3339(text, "x") == noon
    for text in (
        "2026-01-01",
        "2026-01-01T12:00:00",
        "2026-13-01T12:00:00Z",
        "2026-01-01T12:00:00+99:00",
        "0001-01-01T00:00:00+14:00",
    ):
        with pytest.raises(Refused):
            encodings.time_rfc3339(text, "x")
    with pytest.raises(Refused):
        encodings.time_unix(2**62, "x")


def test_hexadecimal_is_lower_case_and_whole() -> None:
    assert encodings.hex_bytes("0aff", "x") == b"\x0a\xff"
    for text in ("0AFF", "0af", "0a ff", "0x0a"):
        with pytest.raises(Refused):
            encodings.hex_bytes(text, "x")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x0c",
        b"\x0c\x02a",
        b"\x0c\x01ab",
        b"\x13\x01a",
        b"\x0c\x81\x01a",
        b"\x0c\x80a",
        b"\x0c\x01\xff",
        b"\x0c\x83\x00\x00\x01a",
    ],
)
def test_a_der_text_is_exactly_one_in_its_shortest_form(data: bytes) -> None:
    assert utf8_string(b"\x0c\x81\x80" + b"a" * 128, "x") == "a" * 128
    with pytest.raises(Refused):
        utf8_string(data, "x")
