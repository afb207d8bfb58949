"""Range headers: RFC 9110 section 14, and what clients send (design page "clients", 5.5)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pdist.mirror.ranges import Part, Unsatisfiable, Whole, parse_range


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        (None, Whole()),
        ("bytes=0-", Part(0, 1000)),
        ("bytes=500-", Part(500, 1000)),
        ("bytes=0-0", Part(0, 1)),
        ("bytes=0-999", Part(0, 1000)),
        ("bytes=0-5000", Part(0, 1000)),
        ("bytes=999-", Part(999, 1000)),
        ("BYTES= 10-19 ", Part(10, 20)),
        ("bytes=-1", Part(999, 1000)),
        ("bytes=-1000", Part(0, 1000)),
        ("bytes=-5000", Part(0, 1000)),
        ("bytes=1000-", Unsatisfiable()),
        ("bytes=1000-2000", Unsatisfiable()),
        ("bytes=-0", Unsatisfiable()),
        ("bytes=" + "9" * 5000 + "-", Unsatisfiable()),
        ("bytes=5-" + "9" * 5000, Part(5, 1000)),
        ("bytes=-" + "9" * 5000, Part(0, 1000)),
        ("bytes=" + "0" * 5000 + "7-", Part(7, 1000)),
        # ignored: several ranges, other units, no grammar
        ("bytes=0-1,5-6", Whole()),
        ("bytes=0-1, bytes=5-6", Whole()),
        ("bytes=9-5", Whole()),
        ("bytes=-", Whole()),
        ("bytes=", Whole()),
        ("bytes", Whole()),
        ("items=0-5", Whole()),
        ("bytes=a-b", Whole()),
        ("bytes=+1-2", Whole()),
        ("bytes=1-2x", Whole()),
        ("bytes=0x1-2", Whole()),
        ("bytes=\u0661-\u0662", Whole()),
        ("", Whole()),
    ],
)
def test_what_a_range_header_asks_for(header: str | None, wanted: object) -> None:
    assert parse_range(header, 1000) == wanted


def test_an_empty_blob_has_no_range() -> None:
    assert parse_range("bytes=0-", 0) == Unsatisfiable()
    assert parse_range("bytes=-5", 0) == Unsatisfiable()


@given(st.text(alphabet="bytes=-,0123456789 ", max_size=40), st.integers(0, 10**6))
def test_a_part_always_lies_within_the_blob(header: str, size: int) -> None:
    part = parse_range(header, size)
    if isinstance(part, Part):
        assert 0 <= part.start < part.end <= size
