"""Frames and heads from the network: whatever comes, the answer is a value or ProtocolError, within bounds."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pdist.errors import ProtocolError
from p2pdist.mesh.wire import (
    Alive,
    Claim,
    Close,
    FrameReader,
    Have,
    Open,
    bitmap,
    encode,
    mask,
    parse_head,
    parse_range,
)

DIGEST = "sha256:" + "a" * 64
FRAMES = [
    Open(1, DIGEST, 5, 65536, b"\x01"),
    Have(1, 2, 3, 4),
    Claim(1, 0),
    Close(1),
    Alive(),
]


@given(st.lists(st.integers(1, 40), max_size=40))
def test_frames_come_out_whole_however_the_stream_is_cut(cuts: list[int]) -> None:
    stream = b"".join(encode(frame) for frame in FRAMES)
    reader, got, start = FrameReader(), [], 0
    for cut in [*cuts, len(stream)]:
        got += reader.feed(stream[start : start + cut])
        start += cut
    assert got == FRAMES


@given(st.binary(max_size=400))
def test_any_bytes_on_a_control_link_are_frames_or_an_error(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        FrameReader().feed(data)


def test_text_that_is_not_utf8_is_an_error_like_any_other() -> None:
    """Found by the fuzzer: the decoder raises something else then."""
    body = b"\x96\xa1o\x01\xa2\xff\xfe\x05\xcd\x80\x00\xc4\x01\x01"
    with pytest.raises(ProtocolError):
        FrameReader().feed(len(body).to_bytes(4, "big") + body)


def test_an_endless_frame_is_refused_by_its_length() -> None:
    with pytest.raises(ProtocolError, match="at most"):
        FrameReader().feed(b"\x7f\xff\xff\xff")


@pytest.mark.parametrize(
    "frame",
    [
        b"\x93\xa1c\x01\x02\x03",
        encode(Have(1, 70_000, 0, 0))[4:],
        encode(Open(1, "../etc/passwd", 5, 65536, b""))[4:],
        encode(Have(1, 1, -1, 0))[4:],
    ],
)
def test_frames_out_of_bounds_are_refused(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        FrameReader().feed(len(frame).to_bytes(4, "big") + frame)


@given(st.integers(0, (1 << 70) - 1))
def test_bitmaps_survive_the_wire(value: int) -> None:
    assert mask(bitmap(value, 70)) == value


@given(st.binary(max_size=300))
def test_any_bytes_are_a_head_or_an_error(data: bytes) -> None:
    try:
        head = parse_head(data)
    except ProtocolError:
        return
    assert head.status >= 0


@pytest.mark.parametrize(
    "head",
    [
        b"GET /",
        b"GET / HTTP/1.1\r\nno colon",
        b"GET / HTTP/1.1\r\nA: 1\r\na: 2",
        b"GET / HTTP/1.1\r\n folded: 1",
        b"GET / HTTP/1.1\r\nA : 1",
        b"GET / HTTP/1.1\r\nA: 1\nB: 2",
        "GET /é HTTP/1.1".encode(),
    ],
)
def test_heads_that_two_parsers_could_read_differently_are_refused(head: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_head(head)


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("bytes=0-9", (0, 10)),
        ("bytes=5-5", (5, 6)),
        ("bytes=9-0", None),
        ("bytes=-5", None),
        ("bytes=5-", None),
        ("bytes=0-1,3-4", None),
        ("lines=0-9", None),
        ("bytes=0-9999999999999999", None),
        ("", None),
    ],
)
def test_ranges(text: str, span: tuple[int, int] | None) -> None:
    assert parse_range(text) == span
