"""What comes over the wire of an attacker: frames and bytes, valid, almost valid, and not at all."""

from __future__ import annotations

import socket
import ssl
import struct
from contextlib import suppress

import msgspec
from hypothesis import strategies as st
from rogue import LINK

from p2pdist.mesh.wire import Alive, Claim, Close, Have, Open
from p2pdist.protocol import messages as wire

NUMBERS = st.one_of(
    st.integers(-2, 70),
    st.sampled_from([2**16, 2**31, 2**32 - 1, 2**48, 2**63 - 1, -(2**63)]),
    st.integers(0, 2**64 - 1),
)
DIGESTS = st.one_of(
    st.sampled_from(
        ["sha256:" + "a" * 64, "sha256:", "md5:00", "sha256:../../x", "", "a" * 300, "sha512:" + "0" * 128]
    ),
    st.text(max_size=20),
)
BYTES = st.one_of(st.binary(max_size=80), st.sampled_from([b"\xff" * 8192, b"\xff" * 9000, bytes(32), bytes(64)]))
FRAMES = st.one_of(
    st.builds(Open, NUMBERS, DIGESTS, NUMBERS, st.one_of(NUMBERS, st.sampled_from([65536, 1 << 20])), BYTES),
    st.builds(Have, NUMBERS, NUMBERS, NUMBERS, NUMBERS),
    st.builds(Claim, NUMBERS, NUMBERS),
    st.builds(Close, NUMBERS),
    st.just(Alive()),
)
STATEMENTS = st.builds(wire.Attestation, BYTES, st.builds(wire.Membership, BYTES, NUMBERS, BYTES), BYTES)
WANTS = st.lists(st.builds(wire.Want, DIGESTS, NUMBERS, NUMBERS, BYTES), max_size=4)
MESSAGES = st.one_of(
    st.builds(wire.Join, DIGESTS, st.text(max_size=9), WANTS),
    st.builds(wire.Holds, st.lists(DIGESTS, max_size=5)),
    st.builds(wire.Drops, st.lists(DIGESTS, max_size=5)),
    st.builds(wire.Half, DIGESTS, NUMBERS),
    st.builds(wire.Got, DIGESTS, NUMBERS, BYTES, BYTES),
    st.builds(wire.Failed, DIGESTS, NUMBERS, NUMBERS, st.booleans(), st.floats(), st.text(max_size=9)),
    st.builds(wire.Returned, DIGESTS, BYTES),
    st.builds(wire.Done, DIGESTS),
    st.builds(wire.Leave, DIGESTS),
    st.builds(wire.Dead, BYTES),
    st.builds(wire.Miss, DIGESTS, st.lists(NUMBERS, max_size=5)),
    st.builds(wire.More, DIGESTS, NUMBERS),
    st.builds(wire.Accuse, BYTES, DIGESTS, NUMBERS),
    st.builds(wire.Convict, DIGESTS, NUMBERS, NUMBERS, NUMBERS, STATEMENTS, st.one_of(st.none(), STATEMENTS)),
    st.builds(wire.Shown, DIGESTS, NUMBERS, BYTES),
    st.builds(wire.Doubts, DIGESTS, NUMBERS, NUMBERS),
    st.builds(wire.Settled, DIGESTS, NUMBERS, st.lists(NUMBERS, max_size=5)),
    st.builds(wire.Ask, NUMBERS, st.text(max_size=40)),
    st.builds(wire.Offer, st.text(max_size=40), DIGESTS, st.text(max_size=9), NUMBERS, BYTES),
    st.builds(wire.Refuse, st.text(max_size=40), NUMBERS, st.booleans(), st.floats()),
    st.just(wire.Ping()),
)  # fmt: skip
CHANGES = st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=4)
CUTS = st.one_of(st.none(), st.integers(0, 1 << 16))
SMUGGLED = [
    b"GET /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: 44\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    b"GET /v2/x/manifests/1 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 0\r\n\r\nGET /",
    b"GET /v2/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: a\r\nX: a\n b\r\nY : c\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: a\r\nX\x00: b\r\n\r\n",
    b"GET http://169.254.169.254/latest/meta-data/ HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET //169.254.169.254/v2/ HTTP/1.1\r\nHost: a\r\n\r\n",
    b"CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: 169.254.169.254:80\r\n\r\n",
    b"GET /v2/%2e%2e/%2e%2e/etc/passwd/manifests/1 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /v2/../../../etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /v2/app/a/blobs/sha256:%2e%2e%2f%2e%2e HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /v2/app/a/manifests/1%0d%0aX-Injected:%20yes HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /v2/app/a/manifests/1?ns=a%0d%0aHost:%20b HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: a\r\n" + b"X-Long: " + b"a" * 200_000 + b"\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X%d: y\r\n" % n for n in range(20_000)) + b"\r\n",
    b"GET /v2/" + b"a/" * 60_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /v2/app/a/blobs/uploads/ HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\nxx",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
]


def packed(message: msgspec.Struct) -> bytes:
    """As it would travel, whatever is in it."""
    return msgspec.msgpack.encode(message)


def framed(body: bytes) -> bytes:
    """A frame of the control link."""
    return struct.pack("!I", len(body)) + body


def changed(data: bytes, changes: list[tuple[int, int]], cut: int | None = None) -> bytes:
    """With some bytes replaced, and all from `cut` on gone."""
    out = bytearray(data)
    for where, value in changes:
        if out:
            out[where % len(out)] = value
    return bytes(out if cut is None else out[: cut % (len(out) + 1)])


def sent(address: tuple[str, int], context: ssl.SSLContext | None, name: str | None, *pieces: bytes) -> bytes:
    """Connect, send the pieces, and return what comes back until nothing does for a moment, or it is closed."""
    got = b""
    with suppress(OSError, ssl.SSLError), socket.create_connection(address, 10.0) as plain:
        stream = context.wrap_socket(plain, server_hostname=name) if context is not None else plain
        with stream:
            for piece in pieces:
                stream.sendall(piece)
            stream.settimeout(0.1)
            while data := stream.recv(65536):
                got += data
    return got


def linked(address: tuple[str, int], context: ssl.SSLContext, name: str, frames: bytes) -> bytes:
    """A control link on which `frames` are said."""
    return sent(address, context, name, LINK.encode(), frames)
