"""A real HTTP proxy on loopback: CONNECT for https, whole URLs for http, with a login where one is wanted.

    async with FakeProxy(login="user:password", names={"registry.test": "127.0.0.1"}) as proxy:
        ... proxy.url, proxy.asked ...

It closes a connection after one request, so that every request is seen. `answer`: what it says instead of going there;
`silent`: it takes connections and says nothing.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Asked:
    """One request of a client: `target` is HOST:PORT, whatever the method."""

    method: str
    target: str
    headers: Mapping[str, str]  # names in small letters


class FakeProxy:
    """See the module. Start it as an asynchronous context manager."""

    def __init__(
        self,
        *,
        login: str | None = None,
        names: Mapping[str, str] | None = None,
        answer: int | None = None,
        silent: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.asked: list[Asked] = []
        self._login = None if login is None else "Basic " + base64.b64encode(login.encode()).decode()
        self._names = names or {}
        self._answer = answer
        self._silent = silent
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> FakeProxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def url_with(self, login: str) -> str:
        return self.url.replace("://", f"://{login}@")

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                await self._one(reader, writer)
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        method, target, _ = first.split(" ")
        url = urlsplit(f"//{target}" if method == "CONNECT" else target)
        host, port = url.hostname or "", url.port or (443 if method == "CONNECT" else 80)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self.asked.append(Asked(method, f"{host}:{port}", headers))
        if self._silent:
            await asyncio.sleep(3600)
        status = self._answer
        if self._login is not None and headers.get("proxy-authorization") != self._login:
            status = 407
        if status is not None:
            writer.write(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
            await writer.drain()
            return
        origin_reader, origin = await asyncio.open_connection(self._names.get(host, host), port)
        try:
            if method == "CONNECT":
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                kept = [line for line in lines if not line.lower().startswith(("proxy-", "connection:"))]
                path = f"{url.path}{'?' if url.query else ''}{url.query}"
                origin.write("\r\n".join([f"{method} {path} HTTP/1.1", *kept, "Connection: close", "", ""]).encode())
            there = asyncio.create_task(_pass_on(reader, origin))
            try:
                await _pass_on(origin_reader, writer)
            finally:
                there.cancel()
                await asyncio.gather(there, return_exceptions=True)
        finally:
            origin.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
