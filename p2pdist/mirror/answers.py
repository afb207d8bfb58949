"""Answers that need nobody else: the ping, errors as distribution-spec words them, the headers of content."""

from __future__ import annotations

import json

from aiohttp import web

from p2pdist.errors import PolicyError, UpstreamDenied
from p2pdist.mirror.door import Asked, BlobAsked, Refusal, TagsAsked
from p2pdist.oci import Digest

EVERYWHERE = {"Docker-Distribution-Api-Version": "registry/2.0", "Server": "p2pdist"}
_STATUS_LINE = 600  # characters of a reason in it


def ping() -> web.Response:
    """200 always: containers/image skips a mirror that doesn't say it here."""
    return web.Response(body=b"{}", headers={**EVERYWHERE, "Content-Type": "application/json"})


def refused(refusal: Refusal) -> web.Response:
    """The error body of distribution-spec, "Error Codes"."""
    body = {"errors": [{"code": refusal.code, "message": refusal.message, "detail": None}]}
    response = web.Response(
        status=refusal.status,
        reason=_in_status_line(refusal) if refusal.status == 403 else None,
        body=json.dumps(body).encode(),
        headers={**EVERYWHERE, "Content-Type": "application/json"},
    )
    if refusal.challenge:
        response.headers["WWW-Authenticate"] = refusal.challenge
    if refusal.status == 405:
        response.headers["Allow"] = "GET, HEAD"
        response.force_close()  # else the body of a push would be read to its end
    return response


def _in_status_line(refusal: Refusal) -> str:
    """The reason where containerd shows it: it resolves by HEAD, whose answer has no body (RFC 9112, section 4)."""
    text = "".join(c if c.isascii() and c.isprintable() else " " for c in f"{refusal.code}: {refusal.message}")
    return text if len(text) <= _STATUS_LINE else text[:_STATUS_LINE] + "..."


def content_headers(digest: Digest, media_type: str) -> dict[str, str]:
    """What content named by `digest` carries, in whole and in part. Never a Content-Encoding: containerd decodes it."""
    return {
        **EVERYWHERE,
        "Content-Type": media_type,
        "Docker-Content-Digest": str(digest),
        "ETag": etag(digest),
    }


def etag(digest: Digest) -> str:
    """A strong validator: the same digest is the same bytes."""
    return f'"{digest}"'


def not_servable(asked: Asked, error: BaseException | str) -> Refusal:
    """What `error` means for the client: 404 (it asks the upstream itself), or 403 when policy refuses.

    Never 5xx or 429 (Docker needs 50 to 80 s for each, containers/image fails): design page "clients", sections 2, 3
    and 5.6. A 401 only with the upstream's own challenge for a token, which containerd answers with its user's login at
    the upstream's token service and everybody else by going to the upstream; never one for a password, which clients
    would hand over to us. And never for a blob, where containers/image has no way on.
    """
    if isinstance(error, PolicyError):
        return Refusal(403, "DENIED", str(error))
    if isinstance(error, UpstreamDenied) and error.challenge and not isinstance(asked, BlobAsked):
        return Refusal(401, "UNAUTHORIZED", str(error), error.challenge)
    match asked:
        case BlobAsked():
            code = "BLOB_UNKNOWN"
        case TagsAsked():
            code = "NAME_UNKNOWN"
        case _:
            code = "MANIFEST_UNKNOWN"
    return Refusal(404, code, str(error) or type(error).__name__)
