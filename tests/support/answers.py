"""How a `FakeRegistry` sends content: whole or a range of it, as the fault says."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import web
from support.faults import Corrupt, Cut, Endless, Fault, Headers, IgnoreRange, NoLength, ShiftRange, Stall, WrongLength

_PIECE = 64 * 1024


@dataclass
class Logged:
    """One request; `sent` (body bytes) grows while the answer is on its way."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    status: int = 0
    sent: int = 0
    body: bytes = b""


def error(status: int, code: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.json_response({"errors": [{"code": code, "message": code.lower()}]}, status=status, headers=headers)


async def send(
    request: web.Request, one: Logged, content: bytes, headers: dict[str, str], fault: Fault | None
) -> web.StreamResponse:
    """Answer with `content` or the range of it that was asked, as the fault says."""
    if isinstance(fault, Corrupt) and content:
        at = min(fault.at, len(content) - 1)
        content = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    if isinstance(fault, WrongLength):
        content = content + bytes(fault.delta) if fault.delta >= 0 else content[: fault.delta]
    start, end, status = 0, len(content), 200
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))
    headers["Accept-Ranges"] = "bytes"
    if asked and not isinstance(fault, IgnoreRange):
        start = int(asked[1]) if asked[1] else max(0, len(content) - int(asked[2]))
        end = min(len(content), int(asked[2]) + 1) if asked[1] and asked[2] else len(content)
        if start >= len(content):
            return web.Response(status=416, headers={"Content-Range": f"bytes */{len(content)}"})
        total = len(content)
        if isinstance(fault, ShiftRange):
            start, total = start + fault.by, fault.total or total
        status = 206
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{total}"
    response = web.StreamResponse(status=status, headers=headers)
    one.status = status
    chunked = isinstance(fault, NoLength | Endless)
    if chunked:
        response.enable_chunked_encoding()
    else:
        response.content_length = end - start
    if isinstance(fault, Headers):
        for name, value in fault.headers.items():
            response.headers.pop(name, None)
            if value is not None:
                response.headers[name] = value
    # A client that goes away is no error of the registry's.
    with contextlib.suppress(ConnectionError):
        await response.prepare(request)
        if request.method != "HEAD":
            await _body(request, response, one, memoryview(content)[start:end], fault)
    return response


async def _body(
    request: web.Request, response: web.StreamResponse, one: Logged, content: memoryview, fault: Fault | None
) -> None:
    async def write(data: memoryview | bytes) -> None:
        for at in range(0, len(data), _PIECE):
            piece = data[at : at + _PIECE]
            one.sent += len(piece)
            await response.write(piece)

    if isinstance(fault, Cut):
        await write(content[: fault.after])
        if request.transport is not None:
            (request.transport.abort if fault.reset else request.transport.close)()
        return
    if isinstance(fault, Stall) and fault.after is not None:
        await write(content[: fault.after])
        await fault.release.wait()
        await write(content[fault.after :])
    else:
        await write(content)
    while isinstance(fault, Endless):
        await write(bytes(_PIECE))
    await response.write_eof()
