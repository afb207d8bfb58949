"""Options of the upstream registries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from p2pdist.config import values as v
from p2pdist.config.declare import Section, option
from p2pdist.proxies import Proxies


@dataclass(frozen=True, slots=True)
class UpstreamConfig(Section):
    """What holds for every upstream registry."""

    allow_any: bool = option(
        v.FLAG,
        False,
        "Take blobs from any registry that a daemon names, not only from those in [[registries]]. Then whoever "
        "reaches the mirror can make this node send requests to any host.",
    )
    credentials_file: Path | None = option(
        v.optional(v.PATH, "", "no credentials"),
        None,
        "Credentials for the registries, in the form of Docker's config.json (auths, credHelpers).",
    )
    rights_seconds: float = option(
        v.SECONDS,
        300.0,
        "For how long the upstream's word holds that a credential (the client's own Authorization, else this node's "
        "credentials) may read a repository. Then it is asked again, whatever is in the cache.",
    )
    rights_outage_seconds: float = option(
        v.SECONDS, 86_400.0, "For how long it holds while the upstream can't be reached."
    )
    rights_unreachable: str = option(
        v.one_of("known", "serve"),
        "known",
        'Who is served from the cache while the upstream can\'t be reached. "known": whom it accepted in the last '
        'rights_outage_seconds, and everybody for images that were imported here. "serve": everybody who reaches the '
        "mirror; for clusters without an upstream.",
    )


@dataclass(frozen=True, slots=True)
class RegistryConfig(Section):
    """One upstream registry that blobs may be taken from; a registry that isn't listed is answered 404.

    Without any table the list is docker.io alone; with one, exactly what is listed.
    """

    name: str = option(v.REGISTRY, "docker.io", 'As image names spell it: "docker.io", "ghcr.io", "10.0.0.5:5000".')
    url: str | None = option(
        v.optional(v.HTTP_URL, "", "https:// and the name, http:// on loopback, Docker Hub's own host for docker.io"),
        None,
        "Where it is reached.",
    )
    ca_file: Path | None = option(
        v.optional(v.PATH, "", "the system's"),
        None,
        "Certificate authorities (PEM) that its certificate must come from.",
    )
    proxy: Proxies | None = option(
        v.optional(v.PROXY, "", "as HTTPS_PROXY, HTTP_PROXY and NO_PROXY in the environment say"),
        None,
        "HTTP proxy through which it is reached, and whatever it names: its token service, the storage that it "
        'redirects to. "none": directly.',
    )
    connect_timeout_seconds: float = option(v.SECONDS, 5.0, "Longest wait for a connection.")
    stall_timeout_seconds: float = option(v.SECONDS, 20.0, "Longest wait for the next bytes of a body.")
    max_connections: int = option(v.COUNT, 16, "Connections at once.")

    @property
    def endpoint(self) -> str:
        """The address requests go to: `url`, or what follows from the name."""
        if self.url is not None:
            return self.url
        if self.name == "docker.io":
            return "https://registry-1.docker.io"
        return f"{'http' if v.is_loopback(urlsplit(f'//{self.name}').hostname or '') else 'https'}://{self.name}"
