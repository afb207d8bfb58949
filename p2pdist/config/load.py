"""From a TOML file and environment variables to an AgentConfig, or a ConfigError that says which key, where and why.

Variables win over the file. Their names follow from the options': `mirror.port` is `P2PDIST_MIRROR_PORT`. A key or
variable that doesn't exist is an error that names the nearest one that does: a typing error must not be a silent
default.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from p2pdist.config import values as v
from p2pdist.config.agent import AgentConfig, section_types
from p2pdist.config.declare import Option, Section
from p2pdist.config.registries import RegistryConfig
from p2pdist.errors import ConfigError
from p2pdist.proxies import Proxies

PREFIX = "P2PDIST_"
REGISTRIES = "registries"
_MAX_FILE = 1024 * 1024

# Kubernetes sets variables of these forms for every Service of a namespace; one named `p2pdist` is no typing error.
_SERVICE_LINK = re.compile(r"_(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$")
# Other programs of the project read these.
_FOREIGN = ("P2PDIST_CONFIG", "P2PDIST_TRACKER_", "P2PDIST_ADMIN_DIR")


def load_agent(path: Path | None, env: Mapping[str, str]) -> AgentConfig:
    """The configuration in the TOML file at `path` (None: defaults) with the `P2PDIST_` variables of `env` over it.

    HTTPS_PROXY, HTTP_PROXY and NO_PROXY are read from `env`, too.
    Relative paths in the file start at the file's directory. Raises ConfigError.
    """
    tables = {} if path is None else _read(path)
    where = str(path)
    known = section_types()
    for name, table in tables.items():
        if name not in known:
            raise ConfigError(f"{where}: unknown key {v.quoted(name)}; did you mean {v.quoted(_nearest(name, known))}?")
        if name == REGISTRIES and not (isinstance(table, list) and all(isinstance(item, dict) for item in table)):
            raise ConfigError(f"{where}: registries: wanted tables, each headed [[registries]]")
        if name != REGISTRIES and not isinstance(table, dict):
            raise ConfigError(f"{where}: {name}: wanted a table, headed [{name}]")
    overrides = _overrides(env)
    sections: dict[str, Any] = {}
    for name, section in known.items():
        if name == REGISTRIES:
            continue
        given = _values(section, tables.get(name, {}), where, name)
        if path is not None:
            given = v.resolve_relative(given, path.absolute().parent)
        sections[name] = section(**{**given, **overrides.get(name, {})})
    if REGISTRIES in tables:
        base = Path() if path is None else path.absolute().parent
        sections[REGISTRIES] = tuple(_registry(table, where, base) for table in tables[REGISTRIES])
    if PREFIX + "REGISTRIES" in env:
        sections[REGISTRIES] = _registries_from_text(env[PREFIX + "REGISTRIES"])
    return AgentConfig(**sections, proxies=Proxies.of_environment(env))


def options_of(section: type[Section]) -> dict[str, Option]:
    """A section's options by name, in the order in which they are declared."""
    return {item.name: item.metadata["option"] for item in fields(section)}  # type: ignore[arg-type]


def variable_of(section: str, option: str) -> str:
    """The environment variable that overrides an option."""
    return f"{PREFIX}{section}_{option}".upper()


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE + 1)
        if len(raw) > _MAX_FILE:
            raise ConfigError(f"{path}: over {v.human_size(_MAX_FILE)}: not a configuration file")
        return tomllib.loads(raw.decode())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error


def _values(section: type[Section], table: Mapping[str, object], where: str, name: str) -> dict[str, object]:
    known = options_of(section)
    values = {}
    for key, value in table.items():
        if key not in known:
            near = _near_key(name, key)
            raise ConfigError(f"{where}: unknown key {v.quoted(f'{name}.{key}')}; did you mean {v.quoted(near)}?")
        try:
            values[key] = known[key].kind.accept(value)
        except ValueError as error:
            raise ConfigError(f"{where}: {name}.{key}: {error}") from error
    return values


def _registry(table: Mapping[str, object], where: str, base: Path) -> RegistryConfig:
    if "name" not in table:
        raise ConfigError(f"{where}: registries: a table without a name; say which registry it is, as image names do")
    return RegistryConfig(**v.resolve_relative(_values(RegistryConfig, table, where, REGISTRIES), base))  # type: ignore[arg-type]


def _registries_from_text(text: str) -> tuple[RegistryConfig, ...]:
    registries = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, url = item.partition("=")
        try:
            registries.append(RegistryConfig(name=name, url=url or None))
        except ConfigError as error:
            raise ConfigError(f"{PREFIX}REGISTRIES: {error}") from error
    return tuple(registries)


def _overrides(env: Mapping[str, str]) -> dict[str, dict[str, object]]:
    known = {
        variable_of(name, key): (name, key, option)
        for name, section in section_types().items()
        if name != REGISTRIES
        for key, option in options_of(section).items()
    }
    overrides: dict[str, dict[str, object]] = {}
    for variable in sorted(env):
        if not variable.startswith(PREFIX) or variable == PREFIX + "REGISTRIES":
            continue
        if _SERVICE_LINK.search(variable) or (variable.endswith("_PORT") and "://" in env[variable]):
            continue
        if variable not in known and variable.startswith(_FOREIGN):
            continue
        if variable not in known:
            near = _nearest(variable, [*known, PREFIX + "REGISTRIES"])
            raise ConfigError(f"unknown environment variable {variable}; did you mean {near}?")
        name, key, option = known[variable]
        try:
            overrides.setdefault(name, {})[key] = option.kind.from_text(env[variable])
        except ValueError as error:
            raise ConfigError(f"{variable}: {error}") from error
    return overrides


def _near_key(section: str, key: str) -> str:
    """The option most like `key`; the same section's first, another's if it is spelled much more alike."""
    everywhere = {
        f"{name}.{option}": SequenceMatcher(None, key, option).ratio() + (0.2 if name == section else 0.0)
        for name, kind in section_types().items()
        for option in options_of(kind)
    }
    return max(everywhere, key=lambda dotted: everywhere[dotted])


def _nearest(word: str, known: Iterable[str]) -> str:
    return max(known, key=lambda other: SequenceMatcher(None, word, other).ratio())
