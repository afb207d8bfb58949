"""Errors by whose fault they are. Nothing else is raised across a room's border; library errors are translated there.

Two trees: `InputError` (what somebody handed us is wrong: a digest, a manifest, a message) and `OperationError`
(something we tried did not work: the upstream registry, a peer, the tracker, the disk, a policy that says no).
Every message says what was wanted, what was got and, where there is one, what the operator can do.
"""

from __future__ import annotations


class P2pdistError(Exception):
    """Root of both trees."""


# --- what we were given is wrong ---------------------------------------------------------------------------------


class InputError(P2pdistError, ValueError):
    """Bytes or text from outside that can't be what they claim to be."""


class InvalidDigest(InputError):
    """Not `algorithm:hex` of a known algorithm and its exact length (OCI image-spec, descriptor.md, "Digests")."""


class InvalidReference(InputError):
    """Not an image reference (CNCF distribution's reference grammar)."""


class InvalidManifest(InputError):
    """A manifest or index that isn't JSON, is over a limit, or lacks what the OCI image-spec demands."""


class ProtocolError(InputError):
    """A message between agents and trackers that is malformed, too large or of an unknown version."""


class ConfigError(InputError):
    """A configuration file, environment variable or command line that can't be used; says which key and why."""


# --- what we tried did not work -----------------------------------------------------------------------------------


class OperationError(P2pdistError):
    """Root of what can go wrong at run time through nobody's wrong input."""


class UpstreamError(OperationError):
    """The upstream registry's fault, or the way to it. `temporary`: trying again later may help."""

    temporary = True

    def __init__(self, message: str, *, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class UpstreamNotFound(UpstreamError):
    """The upstream says that it does not exist (404)."""

    temporary = False


class UpstreamDenied(UpstreamError):
    """The upstream refuses us (401 after authentication, 403).

    `challenge`: a `WWW-Authenticate` value that says where a client can get a token of its own; empty: it can't.
    """

    temporary = False

    def __init__(
        self, message: str, *, status: int | None = None, retry_after: float | None = None, challenge: str = ""
    ) -> None:
        super().__init__(message, status=status, retry_after=retry_after)
        self.challenge = challenge


class UpstreamNotAllowed(UpstreamError):
    """The registry is not in the agent's allow list; nothing was sent to it."""

    temporary = False


class UpstreamThrottled(UpstreamError):
    """429 or 503 with Retry-After; `retry_after` in seconds."""


class UpstreamUnreachable(UpstreamError):
    """No connection, a timeout, or a body that stalled or was cut for good."""


class UpstreamInvalid(UpstreamError):
    """The upstream sent something that can't be right: wrong length, wrong digest, an endless body."""

    temporary = False


class PeerError(OperationError):
    """A peer's fault; `peer` is its node id in hex."""

    def __init__(self, message: str, *, peer: str = "") -> None:
        super().__init__(message)
        self.peer = peer


class SignerRefused(PeerError):
    """A chunk signed by somebody whom this node does not believe (any more); who passed it on may be honest."""


class TrackerError(OperationError):
    """No tracker answers, or it refuses us."""


class StorageError(OperationError):
    """The data directory: unreadable, locked by another process, broken."""


class DiskFull(StorageError):
    """No room (ENOSPC, EDQUOT) or over the configured size."""


class DigestMismatch(StorageError):
    """The bytes are complete and their digest is another one."""

    def __init__(self, wanted: str, got: str, size: int) -> None:
        super().__init__(f"wanted {wanted}, got {got} ({size} bytes)")
        self.wanted = wanted
        self.got = got
        self.size = size


class PolicyError(OperationError):
    """The policy refuses the image; the text names scope and requirement and reaches the daemon's user."""
