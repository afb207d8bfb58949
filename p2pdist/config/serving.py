"""Options of what daemons get: the mirror, and the policy of what may reach them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from p2pdist.config import values as v
from p2pdist.config.declare import Section, option


@dataclass(frozen=True, slots=True)
class MirrorConfig(Section):
    """The registry mirror that this node's container daemon asks; on loopback, where daemons take plain HTTP."""

    host: str = option(
        v.HOST, "127.0.0.1", "Address to listen on. Whoever reaches it can pull what this node may pull."
    )
    port: int = option(v.PORT, 5050, "Port to listen on.")
    allow_remote: bool = option(
        v.FLAG,
        False,
        "Listen on an address that isn't loopback. Set tls_certificate, and client_ca or password_file, unless "
        "something else keeps others away.",
    )
    names: tuple[str, ...] = option(
        v.list_of(v.HOST),
        (),
        "By which host names, besides addresses and localhost, it may be called. Requests by others are refused: a web "
        "page can make any name lead here.",
    )
    tls_certificate: Path | None = option(v.optional(v.PATH, "", "plain HTTP"), None, "Certificate chain (PEM).")
    tls_key: Path | None = option(v.optional(v.PATH, "", "none"), None, "Its private key (PEM).")
    client_ca: Path | None = option(
        v.optional(v.PATH, "", "no client certificate is needed"),
        None,
        "Only clients with a certificate of these authorities (PEM) get in.",
    )
    password_file: Path | None = option(
        v.optional(v.PATH, "", "no password is needed"),
        None,
        "Only clients that send one of these get in: a line user:password for each. It is never asked for (a daemon "
        "would answer with its user's password for the registry): the client must send Authorization unasked.",
    )
    max_connections: int = option(v.COUNT, 1024, "Connections at once; more are closed as they come.")
    serve: str = option(
        v.one_of("auto", "proved"),
        "auto",
        "When a blob's bytes may leave. In both, no byte that isn't proved ever does. "
        '"auto": once its whole digest is proved; for a blob that takes longer than header_deadline_seconds, chunk by\n'
        "proved chunk, the last one withheld until the whole digest is proved. "
        '"proved": never before the whole digest is proved (containerd from 2.3 and Docker 29 give up after 30 s).',
    )
    header_deadline_seconds: float = option(
        v.SECONDS,
        15.0,
        'With serve = "auto": response headers of a blob go out after at most this long.',
    )
    decide_deadline_seconds: float = option(
        v.SECONDS,
        10.0,
        "A request that nothing has been found for after this long is answered 404: the daemon then asks the upstream.",
    )


@dataclass(frozen=True, slots=True)
class TrustConfig(Section):
    """Which images may reach the daemon: a signature policy. docs/policy.md has an example for each common case."""

    enforcement: str = option(
        v.one_of("off", "warn", "enforce"),
        "off",
        '"enforce": what the policy refuses is answered 403; it holds only where the agent is the daemon\'s only way '
        'out. "warn": everything passes, what would have been refused is logged, counted and shown. "off": no policy.',
    )
    policy_file: Path | None = option(
        v.optional(v.PATH, "", "none"),
        None,
        "The policy, in the form of containers-policy.json(5) with the additions of docs/policy.md. Read again when it "
        "changes; a wrong one is refused as a whole and the old one stays in force.",
    )
    lookaside: tuple[str, ...] = option(
        v.list_of(v.TEXT),
        (),
        "GPG signature stores as SCOPE=URL, for example registry.example/team=https://sigs.example/team; "
        "the most specific scope wins.",
    )
    ttl_seconds: float = option(v.SECONDS, 86_400.0, "How long a verdict holds, at most.")
