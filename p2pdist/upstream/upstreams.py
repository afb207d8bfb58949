"""All upstream registries that may be asked."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from types import TracebackType

from yarl import URL

from p2pdist.errors import ConfigError, UpstreamNotAllowed
from p2pdist.oci import valid_registry
from p2pdist.proxies import DIRECT, Proxies
from p2pdist.upstream.auth import Authenticator
from p2pdist.upstream.credentials import Credentials
from p2pdist.upstream.registry import Registry
from p2pdist.upstream.settings import UpstreamSettings
from p2pdist.upstream.transport import Transport

MAX_UNLISTED = 256  # registries remembered that aren't in the list, when any is allowed


class Upstreams:
    """The allow list, and the connections to it. An asynchronous context manager; nothing is sent before a call.

    Args:
        registries: the allow list; each name once.
        credentials: where to look for credentials, by the registry's name.
        allow_any: also ask registries that aren't listed, at the address their name implies. Whoever reaches the
            mirror can then make this node send requests to any host.
        proxies: through which proxies those that aren't listed are reached.
        clock: monotonic seconds; `wall`: Unix time.

    Raises:
        ConfigError: a name twice.
    """

    def __init__(
        self,
        registries: Sequence[UpstreamSettings],
        credentials: Credentials,
        *,
        allow_any: bool = False,
        proxies: Proxies = DIRECT,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._credentials = credentials
        self._clock = clock
        self._wall = wall
        self._transports: list[Transport] = []
        self._listed: dict[str, Registry] = {}
        for settings in registries:
            if settings.name in self._listed:
                raise ConfigError(f"the registry {settings.name} is listed twice")
            transport = Transport(settings)
            self._transports.append(transport)
            self._listed[settings.name] = self._made(settings, transport)
        self._unlisted: OrderedDict[str, Registry] = OrderedDict()
        self._shared: Transport | None = None
        if allow_any:
            # One pool for all of them, so that names from outside can't open pools without end.
            self._shared = Transport(UpstreamSettings("unlisted", "https://unlisted.invalid", proxies=proxies))
            self._transports.append(self._shared)

    async def __aenter__(self) -> Upstreams:
        """Open the pools; UpstreamError if a CA file can't be used."""
        try:
            for transport in self._transports:
                await transport.start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    def registry(self, name: str) -> Registry:
        """The registry that references call `name`.

        Raises:
            UpstreamNotAllowed: it is not in the list. Nothing was sent.
        """
        found = self._listed.get(name) or self._unlisted.get(name)
        if found is not None:
            return found
        if self._shared is None or not valid_registry(name):
            raise UpstreamNotAllowed(
                f"the registry {name[:255]!r} is not in the list of registries that may be asked; add it to the"
                " agent's configuration if its images should come through p2pdist"
            )
        made = self._unlisted[name] = self._made(UpstreamSettings.for_name(name), self._shared)
        while len(self._unlisted) > MAX_UNLISTED:
            self._unlisted.popitem(last=False)
        return made

    async def anonymous(self, name: str) -> bool:
        """Whether this node has no credentials of its own for the registry; all such nodes get the same answers."""
        return (await self._credentials.find(name)).credential is None

    def _made(self, settings: UpstreamSettings, transport: Transport) -> Registry:
        url = URL(settings.url)
        authenticator = Authenticator(
            settings.name, url, self._credentials, transport, clock=self._clock, wall=self._wall
        )
        return Registry(settings, transport, authenticator, clock=self._clock, wall=self._wall)

    async def _stop(self) -> None:
        for transport in self._transports:
            await transport.stop()
