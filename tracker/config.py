"""The tracker's configuration: TOML and environment to frozen dataclasses, every option documented where it is defined.

Precedence: environment (`P2PDIST_TRACKER_PORT`, `P2PDIST_TRACKER_SWARM_DEGREE`), then the file, then the defaults.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from p2pdist.errors import ConfigError
from tracker.announce import AnnounceRules
from tracker.enrol_kubernetes import KubernetesSettings
from tracker.preheats import PreheatRules
from tracker.rules import BanRules, ContentRules, SwarmRules, option
from tracker.state import StateSettings
from tracker.webhooks import HookRules

ENVIRONMENT = "P2PDIST_TRACKER_"
LOG_LEVELS = ("debug", "info", "warning", "error")

# what Kubernetes sets in every pod beside a Service called p2pdist-tracker; not meant for us
_KUBERNETES = re.compile(ENVIRONMENT + r"(SERVICE_(HOST|PORT)\w*=|PORT_\d+_|PORT=(tcp|udp|sctp)://).*", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackerSettings:
    """Everything a tracker can be told."""

    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 for all")
    port: int = option(7070, "TCP port to listen on; 0: any free one", least=0, most=65535)
    data_directory: str = option(
        "",
        "where the cluster's keys, join tokens and bans are kept; empty: new keys at every start, nothing is kept",
    )
    insecure: bool = option(
        False,
        "neither encryption nor certificates: whoever reaches the tracker is a member; for closed test networks only",
    )
    authority_directory: str = option(
        "",
        "a certificate authority from outside: tls.crt and tls.key of an issuing authority, as cert-manager lays them "
        "out (Ed25519 or P-256); empty: one is made and kept in the data directory",
    )
    certificate_time: float = option(
        86_400.0, "seconds for which a node's certificate is valid; nodes renew it at half of it", least=60
    )
    session_timeout: float = option(
        30.0, "seconds of silence after which an agent's session is dropped", least=0.1, most=3600
    )
    hello_timeout: float = option(10.0, "seconds an agent has for its first message", least=0.1)
    send_timeout: float = option(
        10.0, "seconds a frame may wait for an agent that doesn't read before it is dropped", least=0.1
    )
    send_queue: int = option(20_000, "messages that may wait for one agent before its session is dropped")
    message_rate: int = option(
        2000, "messages that one agent may say in a second, in the long run; beyond it the tracker listens later"
    )
    message_burst: int = option(20_000, "messages that an agent which was quiet may say at once")
    message_patience: float = option(
        10.0, "seconds that the tracker may be behind with listening before the agent's session is dropped"
    )
    max_strangers: int = option(
        16_384, "connections at once that are no agent's session (health, metrics, enrolment, whoever says nothing)"
    )
    wrong_tokens_per_address: int = option(
        60,
        "wrong join tokens (and Kubernetes tokens) in a minute from one address, or /64 of IPv6; beyond it no token "
        "from there is looked at for a while. Behind a balancer that hides addresses all nodes are one",
    )
    wrong_tokens: int = option(
        1200, "the same from all addresses; beyond it those that were wrong within the last minute have to wait"
    )
    membership_time: float = option(
        86_400.0, "seconds for which a membership is signed; renewed at half of it", least=60
    )
    log_level: str = option("info", "how much is logged: debug, info, warning or error", choices=LOG_LEVELS)
    metrics_port: int = option(
        0,
        "port on which Prometheus gets the metrics, and nothing else, by plain HTTP and without asking who it is; "
        "0: none, members get them at /metrics",
        least=0,
        most=65535,
    )
    state: StateSettings = field(
        default_factory=StateSettings, metadata={"doc": "what must not be forgotten, and several replicas"}
    )
    swarm: SwarmRules = field(default_factory=SwarmRules, metadata={"doc": "leases, credits and neighbours"})
    content: ContentRules = field(default_factory=ContentRules, metadata={"doc": "tags and small content"})
    bans: BanRules = field(default_factory=BanRules, metadata={"doc": "when a node is shut out"})
    kubernetes: KubernetesSettings = field(
        default_factory=KubernetesSettings, metadata={"doc": "nodes that a Kubernetes cluster vouches for"}
    )
    announce: AnnounceRules = field(
        default_factory=AnnounceRules, metadata={"doc": "a BitTorrent tracker for exported images"}
    )
    preheat: PreheatRules = field(default_factory=PreheatRules, metadata={"doc": "images pulled ahead"})
    hooks: HookRules = field(default_factory=HookRules, metadata={"doc": "registries that report pushes"})


@dataclass(frozen=True, slots=True)
class Option:
    """One setting: `table` is empty at the top."""

    table: str
    name: str
    kind: type
    default: Any
    doc: str
    least: float
    most: float
    choices: tuple[str, ...]

    @property
    def key(self) -> str:
        """As error messages call it."""
        return f"{self.table}.{self.name}" if self.table else self.name

    @property
    def variable(self) -> str:
        """The environment variable that overrides it."""
        return ENVIRONMENT + self.key.replace(".", "_").upper()


def options() -> Iterator[Option]:
    """All of them, the top table first."""
    yield from _options("", TrackerSettings)


def _options(table: str, kind: type) -> Iterator[Option]:
    hints = get_type_hints(kind)
    nested = []
    for entry in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[entry.name]):
            nested.append((entry.name, hints[entry.name]))
        else:
            yield Option(table, entry.name, hints[entry.name], entry.default, **entry.metadata)
    for name, inner in nested:
        yield from _options(name, inner)


def example() -> str:
    """A commented configuration file with every option at its default."""
    lines = ["# p2pdist-tracker. Every option, at its default; the environment variable named after it overrides it."]
    table = ""
    for setting in options():
        if setting.table != table:
            table = setting.table
            lines += ["", f"[{table}]"]
        lines += ["", f"# {setting.doc} ({setting.variable})", f"# {setting.name} = {json.dumps(setting.default)}"]
    return "\n".join(lines) + "\n"


def load(path: Path | None, environment: Mapping[str, str]) -> TrackerSettings:
    """The settings from a TOML file (if one is named) and the environment.

    Raises:
        ConfigError: the file can't be read, a key is unknown (names the nearest known one) or a value is wrong.
    """
    known = {setting.key: setting for setting in options()}
    values: dict[str, Any] = {}
    for key, value in _read(path).items():
        if key not in known:
            raise ConfigError(f"{path}: unknown key {key!r}{_nearest(key, known)}")
        values[key] = _convert(value, known[key], f"{path}: {key}", strict=True)
    variables = {setting.variable: setting for setting in known.values()}
    for variable, text in environment.items():
        if not variable.startswith(ENVIRONMENT) or _KUBERNETES.fullmatch(f"{variable}={text}"):
            continue
        if variable not in variables:
            raise ConfigError(f"unknown environment variable {variable}{_nearest(variable, variables)}")
        setting = variables[variable]
        values[setting.key] = _convert(text, setting, variable, strict=False)
    return _build(values)


def _read(path: Path | None) -> dict[str, Any]:
    """The file's values by dotted key."""
    if path is None:
        return {}
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    values: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, dict):
            values.update({f"{key}.{name}": inner for name, inner in value.items()} or {f"{key}": value})
        else:
            values[key] = value
    tables = {setting.table for setting in options()}
    return {key: value for key, value in values.items() if not (key in tables and value == {})}


def _nearest(key: str, known: Mapping[str, Any]) -> str:
    found = difflib.get_close_matches(key, list(known), n=1, cutoff=0.0)
    return f"; did you mean {found[0]!r}?" if found else ""


def _convert(value: Any, setting: Option, where: str, *, strict: bool) -> Any:
    kind: Any = setting.kind
    try:
        converted = msgspec.convert(value, kind, strict=strict)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}; got {value!r}") from error
    if kind in {int, float} and not (setting.least <= converted <= setting.most and converted < math.inf):
        most = "" if setting.most == math.inf else f" and at most {setting.most}"
        raise ConfigError(f"{where}: wanted a number of at least {setting.least}{most}; got {value!r}")
    if setting.choices and converted not in setting.choices:
        raise ConfigError(f"{where}: wanted one of {', '.join(setting.choices)}; got {value!r}")
    return converted


def _build(values: Mapping[str, Any]) -> TrackerSettings:
    top = {key: value for key, value in values.items() if "." not in key}
    tables: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        table, dot, name = key.partition(".")
        if dot:
            tables.setdefault(table, {})[name] = value
    return TrackerSettings(
        **top,
        state=StateSettings(**tables.get("state", {})),
        swarm=SwarmRules(**tables.get("swarm", {})),
        content=ContentRules(**tables.get("content", {})),
        bans=BanRules(**tables.get("bans", {})),
        kubernetes=KubernetesSettings(**tables.get("kubernetes", {})),
        announce=AnnounceRules(**tables.get("announce", {})),
        preheat=PreheatRules(**tables.get("preheat", {})),
        hooks=HookRules(**tables.get("hooks", {})),
    )
