"""What the tests of preheats share: a fleet's tracker asked over HTTP, with an operator's certificate."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from support.fleet import Fleet

from p2pdist.pki import Role, TlsCredentials
from tracker.app import RunningTracker
from tracker.authority import open_authority


def credentials(tracker: RunningTracker, role: Role | None = Role.ADMIN) -> TlsCredentials:
    """A certificate of this role, made as the tracker's command line makes one; None: no certificate."""
    settings = tracker.settings
    authority = open_authority(settings.data_directory, settings.authority_directory, time.time())
    key = Ed25519PrivateKey.generate()
    made = TlsCredentials()
    made.trust(authority.pem)
    if role is None:
        return made
    made.use(authority.issue(key.public_key(), role, {}, time.time(), 3600.0), key, authority.pem)
    return made


class Operator:
    """Asks the API of a fleet's tracker; its HTTP status is checked."""

    def __init__(self, fleet: Fleet, role: Role | None = Role.ADMIN) -> None:
        assert fleet.tracker is not None
        self.url = fleet.tracker.url
        self.client = fleet.client
        self.tls: dict[str, Any] = {}
        if not fleet.insecure:
            made = credentials(fleet.tracker, role)
            self.tls = {"ssl": made.client, "server_hostname": Role.TRACKER.host}

    async def ask(self, method: str, path: str, status: int = 200, **options: Any) -> Any:
        async with self.client.request(method, self.url + path, **self.tls, **options) as answer:
            text = await answer.text()
            assert answer.status == status, (answer.status, text)
            return await answer.json() if answer.content_type == "application/json" else text

    async def order(self, reference: str, **order: Any) -> dict[str, Any]:
        found: dict[str, Any] = await self.ask("POST", "/v1/jobs", 201, json={"reference": reference, **order})
        return found

    async def show(self, number: str) -> dict[str, Any]:
        found: dict[str, Any] = await self.ask("GET", f"/v1/jobs/{number}")
        return found

    async def finished(self, number: str, seconds: float = 60.0) -> dict[str, Any]:
        """The job when it is over."""
        found: dict[str, Any] = {}

        async def over() -> bool:
            found.update(await self.show(number))
            return found["state"] != "running"

        await until_async(over, seconds)
        return found


async def until_async(condition: Any, seconds: float = 60.0) -> None:
    """As `until`, for a coroutine."""
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.05)
