"""How one option's value is read, checked and shown: the units of the configuration. Pure.

A `Kind` takes what TOML gives or what an environment variable says and returns the typed value, or raises ValueError
with what is wanted in the operator's words; `load` adds which key it was and where it stood.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar
from urllib.parse import urlsplit

from p2pdist.errors import InvalidReference
from p2pdist.oci import ImagePattern
from p2pdist.proxies import DIRECT, Proxies, Proxy

T = TypeVar("T")

_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _UNITS[f"{_letter}iB"] = 1024**_power
    _UNITS[f"{_letter}B"] = 1000**_power

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_REGISTRY = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?|\[[0-9a-f:]+\](:[0-9]{1,5})?")
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")
_MAX_SOCKET_PATH = 107  # sun_path in unix(7) is 108 bytes, the last one NUL


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """`name` is what the reference calls it; `accept` checks a TOML value; `parse` makes one from a variable's text."""

    name: str
    accept: Callable[[object], T]
    parse: Callable[[str], object] = str
    show: Callable[[T], str] = str

    def from_text(self, text: str) -> T:
        """The value an environment variable gives. Raises ValueError."""
        return self.accept(self.parse(text))


def quoted(text: object) -> str:
    """`text` as a TOML basic string."""
    escaped = str(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def human_size(size: int) -> str:
    """`size` in bytes as people write it: `64MiB` where that is exact, else one decimal: `1.5GiB`."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size >= _UNITS[unit]:
            amount = size / _UNITS[unit]
            return f"{amount:.0f}{unit}" if amount == int(amount) else f"{amount:.1f}{unit}"
    return f"{size}B"


def parse_size(text: str) -> int:
    """Bytes from `64MiB`, `1.5GB`, `4096`. Raises ValueError."""
    match = re.fullmatch(r"\s*([0-9]{1,15}(?:\.[0-9]{1,3})?)\s*([A-Za-z]*)\s*", text)
    unit = next((u for u in _UNITS if match and u.lower() == match[2].lower()), None)
    if match is None or unit is None:
        raise ValueError(f'wanted a size like "64MiB", "1.5GB" or a number of bytes, got {text!r}')
    return int(float(match[1]) * _UNITS[unit]) if "." in match[1] else int(match[1]) * _UNITS[unit]


def _text(value: object) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"wanted a string, got {value!r}")
    return value


def _secret(value: object) -> str:
    """As text, and never shown."""
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("wanted a string")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"wanted true or false, got {value!r}")
    return value


def _flag_text(text: str) -> object:
    return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(text.lower(), text)


def _number_text(text: str) -> object:
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        return text


def _port(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 65535:
        raise ValueError(f"wanted a port, 1 to 65535 (0: any free one), got {value!r}")
    return value


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"wanted a number from 1 on, got {value!r}")
    return value


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise ValueError(f"wanted a number of seconds above 0, got {value!r}")
    return float(value)


def _size(value: object) -> int:
    if isinstance(value, str):
        return parse_size(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f'wanted a size like "64MiB" or a number of bytes, got {value!r}')
    return value


def _host(value: object) -> str:
    text = _text(value)
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        if not _HOST.fullmatch(text) or len(text) > 253:
            raise ValueError(f"wanted a host name or an IP address, without scheme and port, got {text!r}") from None
        return text


def _path(value: object) -> Path:
    if isinstance(value, Path):
        return value
    if not (text := _text(value)):
        raise ValueError("wanted a path, got an empty one")
    return Path(text).expanduser()


def _socket_path(value: object) -> Path:
    path = _path(value)
    if len(bytes(path)) > _MAX_SOCKET_PATH:
        raise ValueError(f"a Unix socket's path has at most {_MAX_SOCKET_PATH} bytes, this one {len(bytes(path))}")
    return path


def _web_address(value: object, schemes: tuple[str, ...]) -> str:
    text = _text(value).rstrip("/")
    wanted = " or ".join(f"{scheme}://" for scheme in schemes)
    try:
        parts = urlsplit(text)
        valid = parts.scheme in schemes and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        raise ValueError(f"wanted an address with {wanted}, got one that can't be parsed") from None
    if parts.username is not None or parts.password is not None:
        raise ValueError("an address with a user or password in it isn't taken; credentials belong in their own file")
    if not valid or parts.query or parts.fragment:
        raise ValueError(f"wanted an address like {schemes[0]}://host:port, with {wanted}, got {text!r}")
    return text


def _proxy(value: object) -> Proxies:
    """Never shown: there may be a password in it."""
    if isinstance(value, Proxies):
        return value
    return DIRECT if value == "none" else Proxies.only(Proxy.parse(_secret(value)))


def _registry_name(value: object) -> str:
    text = _text(value).lower()
    if not _REGISTRY.fullmatch(text):
        raise ValueError(f'wanted a registry as image names spell it, like "ghcr.io" or "10.0.0.5:5000", got {value!r}')
    return text


def _label(value: object) -> str:
    text = _text(value)
    key, separator, meaning = text.partition("=")
    if not (_LABEL.fullmatch(key) and separator and meaning and len(meaning) <= 255):
        raise ValueError(f'wanted a label like "zone=a", got {value!r}')
    return text


def _images(value: object) -> str:
    try:
        return ImagePattern.parse(_text(value)).text
    except InvalidReference as error:
        raise ValueError(str(error)) from error


def one_of(*choices: str) -> Kind[str]:
    """One of a few words."""

    def accept(value: object) -> str:
        if value not in choices:
            raise ValueError(f"wanted one of {', '.join(map(quoted, choices))}, got {value!r}")
        return str(value)

    return Kind("one of " + ", ".join(map(quoted, choices)), accept, show=quoted)


def optional(kind: Kind[T], absent: object, meaning: str) -> Kind[T | None]:
    """`kind`, or None where the value is `absent` (what TOML, which has no null, says for it)."""

    def accept(value: object) -> T | None:
        return None if value is None or value == absent else kind.accept(value)

    def show(value: T | None) -> str:
        return (quoted(absent) if isinstance(absent, str) else str(absent)) if value is None else kind.show(value)

    return Kind(
        f"{kind.name}; {quoted(absent) if isinstance(absent, str) else absent}: {meaning}", accept, kind.parse, show
    )


def list_of(kind: Kind[T]) -> Kind[tuple[T, ...]]:
    """An array; in an environment variable separated by commas."""

    def accept(value: object) -> tuple[T, ...]:
        if not isinstance(value, list | tuple):
            raise ValueError(f"wanted a list, got {value!r}")
        return tuple(kind.accept(item) for item in value)

    def parse(text: str) -> object:
        return [kind.parse(item.strip()) for item in text.split(",") if item.strip()]

    return Kind(f"list of {kind.name}", accept, parse, lambda values: f"[{', '.join(map(kind.show, values))}]")


TEXT: Kind[str] = Kind("text", _text, show=quoted)
SECRET: Kind[str] = Kind("text", _secret, show=quoted)
FLAG: Kind[bool] = Kind("true or false", _flag, _flag_text, lambda value: str(value).lower())
PORT: Kind[int] = Kind("port", _port, _number_text)
COUNT: Kind[int] = Kind("number", _count, _number_text)
SECONDS: Kind[float] = Kind("seconds", _seconds, _number_text, lambda value: f"{value:g}")
SIZE: Kind[int] = Kind('size: bytes, or text like "64MiB"', _size, show=lambda value: quoted(human_size(value)))
HOST: Kind[str] = Kind("host name or address", _host, show=quoted)
PATH: Kind[Path] = Kind("path", _path, show=quoted)
SOCKET: Kind[Path] = Kind("path", _socket_path, show=quoted)
REGISTRY: Kind[str] = Kind("registry name", _registry_name, show=quoted)
LABEL: Kind[str] = Kind("KEY=VALUE", _label, show=quoted)
IMAGES: Kind[str] = Kind("images", _images, show=quoted)
HTTP_URL: Kind[str] = Kind("address", lambda value: _web_address(value, ("https", "http")), show=quoted)
PROXY: Kind[Proxies] = Kind('"none", or a URL like http://proxy:3128 or http://user:password@proxy:3128', _proxy)


def is_loopback(host: str) -> bool:
    """Whether a host name or address, as `HOST` takes it, means this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def resolve_relative(values: Mapping[str, object], base: Path) -> dict[str, object]:
    """`values` with every relative Path placed under `base`: a configuration file's paths start where it lies."""
    return {name: base / value if isinstance(value, Path) else value for name, value in values.items()}
