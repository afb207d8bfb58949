"""Every option of an agent: its type, unit, default and what it does, said once, here.

The commented example file and the reference page are made from these declarations (`p2pdist.config.reference`), and
the loader (`p2pdist.config.load`) knows nothing else. An instance checks its values however it is made; a wrong one is
a ConfigError.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from p2pdist.config import values as v
from p2pdist.config.labels import labels_of, read_labels
from p2pdist.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Option:
    """What is known of one option besides its name and default. `shown`: the default in the reference, as TOML."""

    kind: v.Kind[Any]
    doc: str
    shown: str
    note: str = ""  # where the default depends on the machine: how


def _option(kind: v.Kind[Any], default: Any, doc: str) -> Any:
    return field(default=default, metadata={"option": Option(kind, doc, kind.show(default))})


def _derived(kind: v.Kind[Any], factory: Callable[[], Any], shown: str, note: str, doc: str) -> Any:
    return field(default_factory=factory, metadata={"option": Option(kind, doc, shown, note)})


class Section:
    """Base of a table of options: the values are checked however the instance was made."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for item in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            option = item.metadata["option"]
            try:
                object.__setattr__(self, item.name, option.kind.accept(getattr(self, item.name)))
            except ValueError as error:
                raise ConfigError(f"{item.name}: {error}") from error


def default_data_dir() -> Path:
    """Where an agent keeps its data unless told: the system's place for root, the user's own for everyone else."""
    if os.geteuid() == 0:
        return Path("/var/lib/p2pdist")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "p2pdist"


@dataclass(frozen=True, slots=True)
class NodeConfig(Section):
    """This node: its name, and where and how much it keeps."""

    name: str = _derived(
        v.TEXT,
        socket.gethostname,
        v.quoted("node-1"),
        "this host's name",
        "What this node is called in status and logs.",
    )
    data_dir: Path = _derived(
        v.PATH,
        default_data_dir,
        v.quoted("/var/lib/p2pdist"),
        "/var/lib/p2pdist for root, ~/.local/share/p2pdist for other users",
        "Directory of the store and the node's key. One agent per directory.",
    )
    labels: tuple[str, ...] = _option(
        v.list_of(v.LABEL),
        (),
        'What this node is told apart by, like "zone=a": nodes with the same zone are near each other.',
    )
    labels_file: Path | None = _option(
        v.optional(v.PATH, "", "none"),
        None,
        "More labels, read at the start: a JSON object or lines KEY=VALUE, as cloud metadata and Kubernetes' downward "
        'API give them. The zone is "zone", or else "topology.kubernetes.io/zone".',
    )
    max_store_bytes: int | None = _option(
        v.optional(v.SIZE, 0, "no bound"),
        50 * 1024**3,
        "Blobs kept on disk, at most. Beyond it the least recently used go; what is being read or fetched never does.",
    )
    shutdown_seconds: float = _option(
        v.SECONDS,
        10.0,
        "How long a stopping agent (SIGTERM, Ctrl-C) goes on serving what has begun before it closes.",
    )

    def __post_init__(self) -> None:
        """Checks the values and takes in the labels of the file. ConfigError."""
        Section.__post_init__(self)
        if self.labels_file is not None:  # once: what the file says later is not asked for
            read = tuple(f"{key}={value}" for key, value in read_labels(self.labels_file).items() if "=" not in key)
            object.__setattr__(self, "labels", (*read, *self.labels))

    @property
    def label_map(self) -> dict[str, str]:
        """The labels by key; the last one counts where a key is there twice."""
        return labels_of(dict(label.partition("=")[::2] for label in self.labels))


@dataclass(frozen=True, slots=True)
class StoreConfig(Section):
    """What is never evicted. An image is all that belongs to it: index, manifests, config, layers, signatures."""

    keep: tuple[str, ...] = _option(
        v.list_of(v.IMAGES),
        (),
        'Images that are kept once they were pulled: "docker.io/library/nginx:stable", "ghcr.io/acme/*:release-*", a '
        "repository for all its tags, a digest. Where a tag moves, what it named before may go. `p2pdist keep` adds "
        "more.",
    )
    running_seconds: float | None = _option(
        v.optional(v.SECONDS, 0, "none"),
        86_400.0,
        "Images that the daemon asked for within so long count as running and are kept too, the latest first, as far "
        "as they take half of node.max_store_bytes.",
    )


@dataclass(frozen=True, slots=True)
class MirrorConfig(Section):
    """The registry mirror that this node's container daemon asks; on loopback, where daemons take plain HTTP."""

    host: str = _option(
        v.HOST, "127.0.0.1", "Address to listen on. Whoever reaches it can pull what this node may pull."
    )
    port: int = _option(v.PORT, 5050, "Port to listen on.")
    allow_remote: bool = _option(
        v.FLAG,
        False,
        "Listen on an address that isn't loopback. Set tls_certificate, and client_ca or password_file, unless "
        "something else keeps others away.",
    )
    names: tuple[str, ...] = _option(
        v.list_of(v.HOST),
        (),
        "By which host names, besides addresses and localhost, it may be called. Requests by others are refused: a web "
        "page can make any name lead here.",
    )
    tls_certificate: Path | None = _option(v.optional(v.PATH, "", "plain HTTP"), None, "Certificate chain (PEM).")
    tls_key: Path | None = _option(v.optional(v.PATH, "", "none"), None, "Its private key (PEM).")
    client_ca: Path | None = _option(
        v.optional(v.PATH, "", "no client certificate is needed"),
        None,
        "Only clients with a certificate of these authorities (PEM) get in.",
    )
    password_file: Path | None = _option(
        v.optional(v.PATH, "", "no password is needed"),
        None,
        "Only clients that send one of these get in: a line user:password for each. It is never asked for (a daemon "
        "would answer with its user's password for the registry): the client must send Authorization unasked.",
    )
    max_connections: int = _option(v.COUNT, 1024, "Connections at once; more are closed as they come.")
    serve: str = _option(
        v.one_of("auto", "proved"),
        "auto",
        "When a blob's bytes may leave. In both, no byte that isn't proved ever does. "
        '"auto": once its whole digest is proved; for a blob that takes longer than header_deadline_seconds, chunk by\n'
        "proved chunk, the last one withheld until the whole digest is proved. "
        '"proved": never before the whole digest is proved (containerd from 2.3 and Docker 29 give up after 30 s).',
    )
    header_deadline_seconds: float = _option(
        v.SECONDS,
        15.0,
        'With serve = "auto": response headers of a blob go out after at most this long.',
    )
    decide_deadline_seconds: float = _option(
        v.SECONDS,
        10.0,
        "A request that nothing has been found for after this long is answered 404: the daemon then asks the upstream.",
    )


@dataclass(frozen=True, slots=True)
class PeerConfig(Section):
    """The port on which the other nodes fetch chunks from this one."""

    host: str = _option(v.HOST, "0.0.0.0", "Address to listen on.")
    port: int = _option(v.PORT, 5051, "Port to listen on; the other nodes must reach it.")
    advertise_host: str | None = _option(
        v.optional(v.HOST, "", "the address that the tracker sees this node come from"),
        None,
        "Where the other nodes reach this one.",
    )
    engine: str = _option(
        v.one_of("mesh", "bittorrent"),
        "mesh",
        'How chunks move between nodes; the same on all nodes of a cluster. "mesh": the faster one, for nodes that a '
        'tracker introduces. "bittorrent": also finds nodes of the same network segment with no tracker at all; it '
        "listens on the two ports behind this one, too.",
    )


@dataclass(frozen=True, slots=True)
class SiteConfig(Section):
    """Places that are joined by a wide-area link. Which one a node is in, its label says: `node.labels = ["site=a"]`.

    Nodes of one site exchange chunks by peer.engine. One gateway of each site at a time carries a blob across, by
    BitTorrent over uTP, which leaves the link to other traffic; the tracker chooses it among those that pull the blob.
    """

    gateway: bool = _option(
        v.FLAG,
        False,
        "This node may be its site's gateway. Set it on several nodes of each site, or on all. Where a site has none "
        "in a rollout, its nodes exchange chunks with other sites as if there were no sites.",
    )
    gateway_port: int = _option(
        v.PORT, 5061, "Port on which gateways of other sites reach this one; it listens on the two behind it, too."
    )
    far_from_upstream: bool = _option(
        v.FLAG,
        False,
        "This site's way to the upstream registries is the expensive one: it reads there only what no other site's "
        "nodes can.",
    )
    upload_bytes_per_second: int | None = _option(
        v.optional(v.SIZE, 0, "no bound"), None, "What this gateway sends to other sites, at most."
    )
    download_bytes_per_second: int | None = _option(
        v.optional(v.SIZE, 0, "no bound"), None, "What it takes from them, at most."
    )


@dataclass(frozen=True, slots=True)
class TrackerConfig(Section):
    """Who tells this node which other nodes want or have a blob."""

    urls: tuple[str, ...] = _option(
        v.list_of(v.HTTP_URL),
        (),
        "Trackers, every address behind every name: nodes spread over them, and go over to another when one fails. "
        "None: this node fetches everything from upstream itself.",
    )


@dataclass(frozen=True, slots=True)
class ClusterConfig(Section):
    """Which cluster this node is a member of. docs/security.md says what members can do and who else can't."""

    insecure: bool = _option(
        v.FLAG,
        False,
        "Neither encryption nor certificates, towards other nodes and trackers: whoever reaches the ports is a member. "
        "For closed test networks; the tracker must be set the same.",
    )
    token: str | None = _option(
        v.optional(v.SECRET, "", "none"),
        None,
        "Join token, needed until this node has its first certificate: `p2pdist-tracker token create` makes one.",
    )
    token_file: Path | None = _option(
        v.optional(v.PATH, "", "none"), None, "File with the join token, in place of cluster.token."
    )
    kubernetes_token_file: Path | None = _option(
        v.optional(v.PATH, "", "none"),
        None,
        "In a pod, in place of a join token: a projected service account token, which the tracker shows to "
        "Kubernetes. Read at each attempt, since it is renewed in its file.",
    )
    authority_file: Path | None = _option(
        v.optional(v.PATH, "", "none"),
        None,
        "With cluster.kubernetes_token_file: the certificate (PEM) of the cluster's authority. A join token names it "
        "by itself.",
    )


@dataclass(frozen=True, slots=True)
class UpstreamConfig(Section):
    """What holds for every upstream registry."""

    allow_any: bool = _option(
        v.FLAG,
        False,
        "Take blobs from any registry that a daemon names, not only from those in [[registries]]. Then whoever "
        "reaches the mirror can make this node send requests to any host.",
    )
    credentials_file: Path | None = _option(
        v.optional(v.PATH, "", "no credentials"),
        None,
        "Credentials for the registries, in the form of Docker's config.json (auths, credHelpers).",
    )
    rights_seconds: float = _option(
        v.SECONDS,
        300.0,
        "For how long the upstream's word holds that a credential (the client's own Authorization, else this node's "
        "credentials) may read a repository. Then it is asked again, whatever is in the cache.",
    )
    rights_outage_seconds: float = _option(
        v.SECONDS, 86_400.0, "For how long it holds while the upstream can't be reached."
    )
    rights_unreachable: str = _option(
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

    name: str = _option(v.REGISTRY, "docker.io", 'As image names spell it: "docker.io", "ghcr.io", "10.0.0.5:5000".')
    url: str | None = _option(
        v.optional(v.HTTP_URL, "", "https:// and the name, http:// on loopback, Docker Hub's own host for docker.io"),
        None,
        "Where it is reached.",
    )
    ca_file: Path | None = _option(
        v.optional(v.PATH, "", "the system's"),
        None,
        "Certificate authorities (PEM) that its certificate must come from.",
    )
    connect_timeout_seconds: float = _option(v.SECONDS, 5.0, "Longest wait for a connection.")
    stall_timeout_seconds: float = _option(v.SECONDS, 20.0, "Longest wait for the next bytes of a body.")
    max_connections: int = _option(v.COUNT, 16, "Connections at once.")

    @property
    def endpoint(self) -> str:
        """The address requests go to: `url`, or what follows from the name."""
        if self.url is not None:
            return self.url
        if self.name == "docker.io":
            return "https://registry-1.docker.io"
        return f"{'http' if _is_loopback(urlsplit(f'//{self.name}').hostname or '') else 'https'}://{self.name}"


@dataclass(frozen=True, slots=True)
class TrustConfig(Section):
    """Which images may reach the daemon: a signature policy. docs/policy.md has an example for each common case."""

    enforcement: str = _option(
        v.one_of("off", "warn", "enforce"),
        "off",
        '"enforce": what the policy refuses is answered 403; it holds only where the agent is the daemon\'s only way '
        'out. "warn": everything passes, what would have been refused is logged, counted and shown. "off": no policy.',
    )
    policy_file: Path | None = _option(
        v.optional(v.PATH, "", "none"),
        None,
        "The policy, in the form of containers-policy.json(5) with the additions of docs/policy.md. Read again when it "
        "changes; a wrong one is refused as a whole and the old one stays in force.",
    )
    lookaside: tuple[str, ...] = _option(
        v.list_of(v.TEXT),
        (),
        "GPG signature stores as SCOPE=URL, for example registry.example/team=https://sigs.example/team; "
        "the most specific scope wins.",
    )
    ttl_seconds: float = _option(v.SECONDS, 86_400.0, "How long a verdict holds, at most.")


@dataclass(frozen=True, slots=True)
class AdminConfig(Section):
    """The agent's own interface, for `p2pdist status` and metrics: HTTP on a Unix socket that only its user opens."""

    socket: Path | None = _option(
        v.optional(v.SOCKET, "", "admin.sock in the data directory"),
        None,
        "Where the socket is made.",
    )
    metrics_port: int | None = _option(
        v.optional(v.PORT, 0, "none"),
        None,
        "Port on which Prometheus gets the metrics, and nothing else, by plain HTTP and without asking who it is.",
    )
    metrics_host: str = _option(v.HOST, "127.0.0.1", "Address of that port.")


@dataclass(frozen=True, slots=True)
class LogConfig(Section):
    """What is written to standard error."""

    level: str = _option(v.one_of("debug", "info", "warning", "error"), "info", "The least important level written.")
    format: str = _option(
        v.one_of("auto", "text", "json"),
        "auto",
        '"text": one readable line each; "json": one object each; "auto": text on a terminal, json elsewhere.',
    )


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Everything an agent is told. Made by `p2pdist.config.load_agent`, or directly in code."""

    node: NodeConfig = field(default_factory=NodeConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    mirror: MirrorConfig = field(default_factory=MirrorConfig)
    peer: PeerConfig = field(default_factory=PeerConfig)
    site: SiteConfig = field(default_factory=SiteConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    upstream: UpstreamConfig = field(default_factory=UpstreamConfig)
    registries: tuple[RegistryConfig, ...] = field(default_factory=lambda: (RegistryConfig(),))
    trust: TrustConfig = field(default_factory=TrustConfig)
    admin: AdminConfig = field(default_factory=AdminConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        names = [registry.name for registry in self.registries]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"registries: {v.quoted(twice)} is there twice")
        plain = next((url for url in self.tracker.urls if url.startswith("http:")), None)
        if plain is not None and not self.cluster.insecure:
            raise ConfigError(
                f"tracker.urls: {v.quoted(plain)} is not encrypted: wanted https://, or cluster.insecure = true"
            )
        if self.cluster.token is not None and self.cluster.token_file is not None:
            raise ConfigError("cluster.token and cluster.token_file: give one of them")
        account, authority = self.cluster.kubernetes_token_file, self.cluster.authority_file
        if account is not None and (self.cluster.token is not None or self.cluster.token_file is not None):
            raise ConfigError("cluster.kubernetes_token_file is in place of a join token: give one of them")
        if (account is None) != (authority is None):
            raise ConfigError("cluster.kubernetes_token_file and cluster.authority_file: one needs the other")
        self._check_mirror()
        if self.trust.enforcement != "off" and self.trust.policy_file is None:
            raise ConfigError(f'trust.policy_file: enforcement = "{self.trust.enforcement}" needs a policy')
        for store in self.trust.lookaside:
            if not all(store.partition("=")):
                raise ConfigError(f"trust.lookaside: {v.quoted(store)} is not SCOPE=URL")
        if self.admin.socket is None:
            try:
                v.SOCKET.accept(self.admin_socket)
            except ValueError as error:
                raise ConfigError(f"admin.socket: {error}; set one in a shorter directory") from error

    def _check_mirror(self) -> None:
        mirror = self.mirror
        remote = not _is_loopback(mirror.host)
        if remote and not mirror.allow_remote:
            raise ConfigError(
                f"mirror.host: {v.quoted(mirror.host)} is not loopback, and whoever reaches the mirror can pull what "
                "this node may pull: set mirror.allow_remote = true if that is meant"
            )
        if (mirror.tls_certificate is None) != (mirror.tls_key is None):
            raise ConfigError("mirror.tls_certificate and mirror.tls_key: one without the other")
        if mirror.client_ca is not None and mirror.tls_key is None:
            raise ConfigError("mirror.client_ca: a client can show a certificate with mirror.tls_certificate only")
        if mirror.password_file is not None and mirror.tls_key is None and remote:
            raise ConfigError("mirror.password_file: passwords would travel in clear: set mirror.tls_certificate")

    @property
    def mirror_is_remote(self) -> bool:
        """Whether the mirror listens beyond loopback."""
        return not _is_loopback(self.mirror.host)

    @property
    def admin_socket(self) -> Path:
        """Where the admin socket is."""
        return self.admin.socket if self.admin.socket is not None else self.node.data_dir / "admin.sock"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def section_types() -> dict[str, type[Section]]:
    """The tables of an agent's file by name, in the order of the reference; `registries` is an array of tables."""
    return {
        "node": NodeConfig,
        "store": StoreConfig,
        "mirror": MirrorConfig,
        "peer": PeerConfig,
        "site": SiteConfig,
        "tracker": TrackerConfig,
        "cluster": ClusterConfig,
        "upstream": UpstreamConfig,
        "registries": RegistryConfig,
        "trust": TrustConfig,
        "admin": AdminConfig,
        "log": LogConfig,
    }
