"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pdist.config import human_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("17", 17), ("64MiB", 67_108_864), ("64 mib", 67_108_864), ("1.5GB", 1_500_000_000), ("2TiB", 2 << 40)],
)
def test_a_size_is_read_in_its_unit(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1 2", "1e9", "64Mibit", "0x10", "\u0661", "1.MiB", "9" * 40])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="wanted a size"):
        parse_size(text)


@given(st.integers(0, 1 << 50))
def test_what_is_shown_is_read_back_as_the_same_size_within_its_rounding(size):
    assert abs(parse_size(human_size(size)) - size) <= size * 0.06
