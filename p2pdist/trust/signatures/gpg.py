"""GPG simple signing: gpgv says whether one of the policy's keys made a signature, and what was signed.

gpgv runs once per signature, on bytes handed over in memory, without a home directory, with limits on memory and
time. What it prints is read up to the size a payload may have; more, and it is killed: a few kilobytes of OpenPGP can
inflate to gigabytes. What it found comes by its status lines (GnuPG, doc/DETAILS), on a descriptor of their own.
"""

from __future__ import annotations

import os
import re
import resource
import selectors
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from p2pdist.trust import encodings, limits
from p2pdist.trust.identity import Name, SignedIdentity
from p2pdist.trust.refusal import Refused, shown
from p2pdist.trust.signatures.bundle import Signed
from p2pdist.trust.signatures.simplesigning import GPG_TYPE, check_payload, parse_payload

_STATUS_LIMIT = 64 * limits.KIB
_MEMORY = 256 * limits.MIB
_ARMOR = re.compile(
    rb"-----BEGIN PGP PUBLIC KEY BLOCK-----\r?\n(?:[A-Za-z-]+: [^\r\n]*\r?\n)*\r?\n"
    rb"([A-Za-z0-9+/=\r\n]+?)\r?\n=[A-Za-z0-9+/]{4}\r?\n-----END PGP PUBLIC KEY BLOCK-----"
)
_BAD = {"BADSIG", "ERRSIG", "EXPSIG", "EXPKEYSIG", "REVKEYSIG", "NODATA", "UNEXPECTED", "FAILURE"}
_WEAK_HASHES = {"1", "2", "3"}  # MD5, SHA-1, RIPEMD-160 (RFC 9580 section 9.5)


@dataclass(frozen=True, slots=True)
class Opened:
    """What gpgv found: the signed text, and the fingerprint of the primary key."""

    payload: bytes
    fingerprint: str
    expires: datetime | None


OpenSignature = Callable[[bytes, bytes], Opened]
"""Keyring and signature in, what was signed out; Refused when it is not by one of the keyring's keys."""


def verify_gpg(
    raw: bytes,
    manifest: bytes,
    pulled: Name,
    keyring: bytes,
    identity: SignedIdentity,
    now: datetime,
    open_signature: OpenSignature,
) -> Signed:
    """Who signed `manifest` by the OpenPGP message `raw`, for which name; Refused as the other formats."""
    opened = open_signature(keyring, raw)
    if opened.expires is not None and now >= opened.expires:
        raise Refused(f"the signature expired at {opened.expires:%FT%TZ}")
    said = parse_payload(opened.payload, GPG_TYPE)
    check_payload(said, manifest, pulled, identity)
    return Signed(f"GPG key {opened.fingerprint}", "GPG simple signing", said.digest, str(said.name), opened.expires)


def within(open_signature: OpenSignature, seconds: float, monotonic: Callable[[], float]) -> OpenSignature:
    """`open_signature` for so many seconds in all; what is asked later is refused unread."""
    end = monotonic() + seconds

    def hurried(keyring: bytes, signature: bytes) -> Opened:
        if monotonic() >= end:
            raise Refused(f"no time left: the GPG signatures before it took {seconds:.1f} s")
        return open_signature(keyring, signature)

    return hurried


def dearmored(data: bytes, what: str) -> bytes:
    """A keyring in binary: gpgv reads no ASCII armour (RFC 9580 section 6.2; its checksum is optional and unread)."""
    if b"-----BEGIN PGP" not in data:
        return data
    blocks = [
        encodings.base64_bytes(re.sub(rb"[\r\n]", b"", m[1]).decode("ascii"), what) for m in _ARMOR.finditer(data)
    ]
    if not blocks:
        raise Refused(f"{what} holds no readable PGP public key block")
    return b"".join(blocks)


class Gpgv:
    """Opens signatures by running `program`. Blocks: for a worker thread."""

    def __init__(self, program: str = "gpgv") -> None:
        self._program = program

    def __call__(self, keyring: bytes, signature: bytes) -> Opened:
        """See OpenSignature."""
        with (
            os.fdopen(os.memfd_create("keyring"), "wb") as keys,
            os.fdopen(os.memfd_create("signature"), "wb") as message,
        ):
            keys.write(keyring)
            keys.flush()
            message.write(signature)
            message.flush()
            status_read, status_write = os.pipe()
            try:
                process = self._start(keys.fileno(), message.fileno(), status_write)
            except BaseException:
                os.close(status_read)
                raise
            finally:
                os.close(status_write)
            with process, os.fdopen(status_read, "rb") as status_file:
                try:
                    return _result(*_collect(process, status_file.fileno()))
                finally:
                    process.kill()

    def _start(self, keyring: int, signature: int, status: int) -> subprocess.Popen[bytes]:
        arguments = [
            *(self._program, "--quiet", "--ignore-time-conflict", "--weak-digest", "SHA1"),
            *("--weak-digest", "RIPEMD160", "--status-fd", str(status), "--output", "-"),
            *("--keyring", f"/proc/self/fd/{keyring}", f"/proc/self/fd/{signature}"),
        ]
        try:
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=(keyring, signature, status),
                env={"GNUPGHOME": "/nonexistent", "LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath)},
            )
        except OSError as error:
            raise Refused(f"{self._program} can't be run ({error}); GPG signatures need GnuPG's gpgv") from error
        for limit, value in ((resource.RLIMIT_AS, _MEMORY), (resource.RLIMIT_CPU, int(limits.GPG_SECONDS))):
            try:
                resource.prlimit(process.pid, limit, (value, value))
            except ProcessLookupError:  # it has already ended
                break
        return process


def _collect(process: subprocess.Popen[bytes], status_fd: int) -> tuple[bytes, bytes, int]:
    """Everything it prints within the limits, its status lines, and its exit status."""
    assert process.stdout is not None
    payload, status = bytearray(), bytearray()
    deadline = time.monotonic() + limits.GPG_SECONDS
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout.fileno(), selectors.EVENT_READ, (payload, limits.PAYLOAD, "text"))
        selector.register(status_fd, selectors.EVENT_READ, (status, _STATUS_LIMIT, "status"))
        while selector.get_map():
            left = deadline - time.monotonic()
            events = selector.select(left) if left > 0 else []
            if not events:
                raise Refused(f"gpgv took longer than {limits.GPG_SECONDS:g} s")
            for key, _ in events:
                buffer, limit, what = key.data
                data = os.read(key.fd, limit + 1 - len(buffer))
                buffer += data
                if len(buffer) > limit:
                    raise Refused(f"gpgv printed more than {limit} bytes of {what}")
                if not data:
                    selector.unregister(key.fd)
    try:
        return bytes(payload), bytes(status), process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired as error:
        raise Refused(f"gpgv took longer than {limits.GPG_SECONDS:g} s") from error


def _result(payload: bytes, status: bytes, returned: int) -> Opened:
    lines = [
        line.split(" ")
        for line in status.decode("utf-8", "replace").splitlines()
        if line.startswith("[GNUPG:] ") and len(line) > 9
    ]
    found = [line[1:] for line in lines]
    bad = sorted({line[0] for line in found} & _BAD)
    if bad:
        raise Refused(f"gpgv: {', '.join(bad)}")
    valid = [line for line in found if line[0] == "VALIDSIG"]
    texts = sum(line[0] == "PLAINTEXT" for line in found)
    made = sum(line[0] == "NEWSIG" for line in found)
    if len(valid) != 1 or texts != 1 or made != 1 or not any(line[0] == "GOODSIG" for line in found):
        raise Refused(f"gpgv found {len(valid)} good of {made} signatures over {texts} texts, wanted one")
    if returned != 0:
        named = signal.Signals(-returned).name if returned < 0 else str(returned)
        raise Refused(f"gpgv ended with {named}")
    fields = valid[0]
    if len(fields) < 11 or not fields[4].isdigit() or re.fullmatch(r"[0-9A-F]{32,64}", fields[10]) is None:
        raise Refused(f"gpgv's answer can't be read: {shown(' '.join(fields))}")
    if fields[8] in _WEAK_HASHES or fields[9] != "00":
        raise Refused("the signature's hash is weak, or it is not of a document")
    expires = None if fields[4] == "0" else encodings.time_unix(int(fields[4]), "the signature's expiry")
    return Opened(payload, fields[10], expires)
