"""Pushes that registries report, so that nodes have an image before anybody deploys it.

    POST /v1/hooks/distribution   CNCF distribution's notifications (its docs, "Notifications": envelopes of events)
    POST /v1/hooks/harbor         Harbor's webhook, event PUSH_ARTIFACT, payload format "Default"

Both need the token in Authorization, alone or as `Bearer TOKEN`, and start a preheat where a rule of `hooks.images`
fits. What is reported is believed in nothing but which image to look at: nodes pull it from the registry by its name,
with their own credentials.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import structlog
from aiohttp import web

from p2pdist.errors import ConfigError, InputError, StorageError
from p2pdist.oci import ImagePattern, Reference
from tracker.desk import Desk, TooMany
from tracker.durations import seconds_in
from tracker.ownport import OwnPort
from tracker.preheats import Order
from tracker.rules import option

PATHS = frozenset({"/v1/hooks/distribution", "/v1/hooks/harbor"})  # no certificate is asked for: a token is
MAX_BODY = 512 * 1024  # bytes of a report
MAX_EVENTS = 256  # of one report that are looked at
LEAST_TOKEN = 16  # characters
log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class HookRules:
    """Registries that report pushes, which start preheats."""

    token: str = option("", "what registries have to send in Authorization; empty (and no token_file): no such service")
    token_file: str = option("", "file with it, in place of token")
    images: str = option(
        "",
        "which images, as rules separated by commas: an image or pattern, then what to do with it, by spaces: "
        "label:KEY=VALUE nodes:N platform:OS/ARCH keep:7d; the first that fits counts. Example: "
        '"registry.example/acme/*:v* label:zone=a keep:7d, registry.example/base/*"',
    )
    registry: str = option(
        "", "what nodes call the registry whose reports these are; empty: the host in the report", least=0
    )
    again: float = option(60.0, "seconds in which the same image, reported again, starts nothing new")
    host: str = option("127.0.0.1", "address of a port of its own for reports, by plain HTTP")
    port: int = option(0, "that port; 0: reports come to the tracker's own port only", least=0, most=65535)

    def secret(self) -> bytes | None:
        """The token; None: no such service. ConfigError."""
        text = self.token
        if self.token_file:
            try:
                text = Path(self.token_file).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"hooks.token_file: {self.token_file}: {error}") from error
        if not text:
            return None
        if len(text) < LEAST_TOKEN:
            raise ConfigError(f"hooks.token: wanted at least {LEAST_TOKEN} characters, better 32 random ones")
        return text.encode()


@dataclass(frozen=True, slots=True)
class Rule:
    """For these images, this order (without its reference)."""

    images: ImagePattern
    order: Order

    @classmethod
    def parse(cls, text: str) -> Rule:
        """`IMAGES [label:K=V]... [nodes:N] [platform:P]... [keep:TIME]`. ConfigError."""
        words = text.split()
        labels: dict[str, str] = {}
        platforms: list[str] = []
        nodes = keep = 0
        try:
            for word in words[1:]:
                name, _, value = word.partition(":")
                key, sign, label = value.partition("=")
                if name == "label" and key and sign:
                    labels[key] = label
                elif name == "platform":
                    platforms.append(value)
                elif name == "nodes" and value.isdigit():
                    nodes = int(value)
                elif name == "keep" and (seconds := seconds_in(value)) is not None:
                    keep = seconds
                else:
                    raise ConfigError(
                        f"hooks.images: wanted label:K=V, nodes:N, platform:OS/ARCH or keep:7d; got {word!r}"
                    )
            order = Order("scratch", platforms, labels, nodes, keep).checked()
            return cls(ImagePattern.parse(words[0]), order)
        except (InputError, IndexError) as error:
            raise ConfigError(f"hooks.images: {text.strip()!r}: {error}") from error


class Webhooks:
    """The pages. Raises ConfigError for rules that can't be used."""

    def __init__(self, rules: HookRules, desk: Desk) -> None:
        self._rules = rules
        self._desk = desk
        self._secret = rules.secret()
        self._images = [Rule.parse(text) for text in rules.images.split(",") if text.strip()]
        self.port = 0
        self._own: OwnPort | None = None
        if self._secret is not None and not self._images:
            raise ConfigError("hooks.images: no rule says which images a report may start a preheat of")

    def routes(self, app: web.Application) -> None:
        """Add them, if there is such a service."""
        if self._secret is not None:
            app.router.add_post("/v1/hooks/distribution", self._distribution)
            app.router.add_post("/v1/hooks/harbor", self._harbor)

    async def __aenter__(self) -> Self:
        """Listen on a port of its own, where one is configured. OperationError."""
        if self._secret is None or not self._rules.port:
            return self
        app = web.Application()
        self.routes(app)
        host, port = self._rules.host, self._rules.port
        self._own = await OwnPort(
            app, host, port, f"can't listen on {host}:{port} (hooks.port)", backlog=64
        ).__aenter__()
        self.port = self._own.port
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._own is not None:
            await self._own.__aexit__(kind, error, trace)

    async def _distribution(self, request: web.Request) -> web.Response:
        return await self._answer(request, pushed_to_distribution)

    async def _harbor(self, request: web.Request) -> web.Response:
        return await self._answer(request, pushed_to_harbor)

    async def _answer(self, request: web.Request, pushed: Any) -> web.Response:
        self._must_know(request)
        body = bytearray()
        async for piece in request.content.iter_chunked(16 * 1024):
            body += piece
            if len(body) > MAX_BODY:
                raise web.HTTPRequestEntityTooLarge(MAX_BODY, len(body))
        try:
            images = pushed(bytes(body), self._rules.registry)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            log.warning("a registry's report can't be read", path=request.path, error=str(error))
            return web.json_response({"error": "not a report that this tracker knows"}, status=400)
        started = []
        try:
            for text in images[:MAX_EVENTS]:
                job = await self._start(text, f"{request.path.rpartition('/')[2]} webhook")
                if job is not None and job not in started:
                    started.append(job)
        except TooMany as error:  # registries try again
            return web.json_response({"error": str(error)}, status=429)
        except StorageError as error:
            log.warning("a registry's report waits", error=str(error))
            return web.json_response({"error": "the tracker's state can't be reached; try again"}, status=503)
        return web.json_response({"jobs": started})

    async def _start(self, text: str, by: str) -> str | None:
        """A preheat for one pushed image, if a rule fits; its id."""
        try:
            order = Order(text).checked()
            image = Reference.parse(order.reference)
        except InputError:  # the text is not logged: a registry may put anything into it
            log.warning("a registry reports what is no image")
            return None
        for rule in self._images:
            if rule.images.matches(str(image.repository), image.tag, image.digest):
                order = msgspec.structs.replace(rule.order, reference=order.reference)
                known = await self._desk.again(order, self._rules.again)
                return (known or await self._desk.take(order, by)).id
        return None

    def _must_know(self, request: web.Request) -> None:
        given = request.headers.get("Authorization", "")
        given = given[7:] if given[:7].lower() == "bearer " else given
        if self._secret is None or not hmac.compare_digest(given.strip().encode(), self._secret):
            log.warning("a report without the token is refused", address=request.remote, path=request.path)
            raise web.HTTPUnauthorized(text="the token of hooks.token is needed in Authorization\n")


# --- what registries say ------------------------------------------------------------------------------------------


class _Target(msgspec.Struct):
    repository: str = ""
    tag: str = ""
    digest: str = ""


class _Request(msgspec.Struct):
    host: str = ""


class _Event(msgspec.Struct):
    action: str = ""
    target: _Target = msgspec.field(default_factory=_Target)
    request: _Request = msgspec.field(default_factory=_Request)


class _Envelope(msgspec.Struct):
    events: list[_Event] = []


def pushed_to_distribution(body: bytes, registry: str) -> list[str]:
    """The images that a report says were pushed by tag, each with its digest. msgspec.DecodeError."""
    events = msgspec.json.decode(body, type=_Envelope).events
    pushed = (event for event in events if event.action == "push" and _is_image(event.target.tag))
    return [_image(registry or event.request.host, event.target) for event in pushed]


class _Resource(msgspec.Struct):
    resource_url: str = ""
    tag: str = ""
    digest: str = ""


class _Repository(msgspec.Struct):
    repo_full_name: str = ""


class _Data(msgspec.Struct):
    resources: list[_Resource] = []
    repository: _Repository = msgspec.field(default_factory=_Repository)


class _Harbor(msgspec.Struct):
    type: str = ""
    event_data: _Data = msgspec.field(default_factory=_Data)


def pushed_to_harbor(body: bytes, registry: str) -> list[str]:
    """The same for Harbor. msgspec.DecodeError."""
    report = msgspec.json.decode(body, type=_Harbor)
    if report.type != "PUSH_ARTIFACT":
        return []
    name = report.event_data.repository.repo_full_name
    return [
        _image(registry or one.resource_url.partition("/")[0], _Target(name, one.tag, one.digest))
        for one in report.event_data.resources
        if _is_image(one.tag)
    ]


def _is_image(tag: str) -> bool:
    """Not what was pushed by digest, nor a signature, which comes with the image that it signs."""
    return bool(tag) and not re.match(r"sha(256|512)[-:][0-9a-f]{64}", tag)


def _image(registry: str, target: _Target) -> str:
    """By tag and digest: the tag may have been asked for a moment ago, and its old digest be remembered."""
    digest = f"@{target.digest}" if target.digest else ""
    return f"{registry}/{target.repository}:{target.tag}{digest}"
