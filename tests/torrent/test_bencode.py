"""Bencoding: canonical or refused."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pdist.errors import InputError
from p2pdist.protocol.bencode import decode, encode

VALUES = st.recursive(
    st.integers() | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.binary(max_size=6), inner, max_size=4),
    max_leaves=10,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # whatever the machine does besides
@given(VALUES)
def test_what_is_encoded_is_read_back(value: object) -> None:
    try:
        encoded = encode(value)  # type: ignore[arg-type]
        assert decode(encoded) == value
    except InputError as error:
        assert "not a bencoded number" in str(error) or "deeply" in str(error)
        assert any(len(str(number)) > 20 for number in _numbers(value)) or "deeply" in str(error)


def _numbers(value: object) -> list[int]:
    if isinstance(value, int):
        return [value]
    if isinstance(value, list):
        return [number for item in value for number in _numbers(item)]
    return [number for item in value.values() for number in _numbers(item)] if isinstance(value, dict) else []


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # whatever the machine does besides
@given(st.binary(max_size=40))
def test_what_is_read_is_canonical(data: bytes) -> None:
    try:
        value = decode(data)
    except InputError:
        return
    assert encode(value) == data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"i01e",
        b"i-0e",
        b"ie",
        b"i1",
        b"1:",
        b"-1:a",
        b"01:a",
        b"l",
        b"d1:b0:1:a0:e",
        b"d1:a0:1:a0:e",
        b"di1e0:e",
        b"i1ei2e",
        b"l" * 5000 + b"e" * 5000,
        b"99999999999:a",
        b"i\xd9\xa1e",
    ],
)
def test_malformed_or_hostile_bencoding_is_refused(data: bytes) -> None:
    with pytest.raises(InputError):
        decode(data)
