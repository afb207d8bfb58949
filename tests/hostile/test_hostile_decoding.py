"""Whatever an attacker sends, decoding it gives a value or our error: nothing else comes out of any decoder."""

from __future__ import annotations

from contextlib import suppress

import pytest
from attacks import CHANGES, FRAMES, MESSAGES, changed, framed, packed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pdist.errors import ProtocolError
from p2pdist.mesh.wire import FrameReader
from p2pdist.protocol import messages as wire
from p2pdist.swarm.attest import unpack

FEW = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
NOT_UTF8 = b"\x91\x92\xa4Done\xa2\xff\xfe"
DEEP = b"\x91" * 100_000


@FEW
@given(st.lists(MESSAGES, max_size=4), CHANGES)
def test_frames_of_a_session_are_messages_or_an_error(said: list[object], changes: list[tuple[int, int]]) -> None:
    body = packed(said)  # type: ignore[arg-type]
    for data in (body, changed(body, changes)):
        with suppress(ProtocolError):
            wire.decode_from_agent(data)
        with suppress(ProtocolError):
            wire.decode_from_tracker(data)


@FEW
@given(st.lists(FRAMES, max_size=4), CHANGES)
def test_frames_of_a_control_link_are_frames_or_an_error(said: list[object], changes: list[tuple[int, int]]) -> None:
    body = b"".join(framed(packed(frame)) for frame in said)  # type: ignore[arg-type]
    with suppress(ProtocolError):
        FrameReader().feed(changed(body, changes))


@pytest.mark.parametrize("data", [NOT_UTF8, DEEP, b"", b"\xc1", b"\xdd\xff\xff\xff\xff"])
def test_text_that_is_not_utf8_and_endless_nesting_are_errors_like_any_other(data: bytes) -> None:
    """Found by the fuzzer: for these the decoder raises errors of other kinds."""
    for decode in (wire.decode_from_agent, wire.decode_from_tracker, unpack):
        with pytest.raises(ProtocolError):
            decode(data)
