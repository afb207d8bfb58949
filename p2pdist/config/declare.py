"""How an option is declared: its type, unit, default and what it does, said once, where it is defined.

The commented example file and the reference page are made from these declarations (`p2pdist.config.reference`), and
the loader (`p2pdist.config.load`) knows nothing else. An instance checks its values however it is made; a wrong one is
a ConfigError.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from p2pdist.config import values as v
from p2pdist.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Option:
    """What is known of one option besides its name and default. `shown`: the default in the reference, as TOML."""

    kind: v.Kind[Any]
    doc: str
    shown: str
    note: str = ""  # where the default depends on the machine: how


def option(kind: v.Kind[Any], default: Any, doc: str) -> Any:
    """A field of a section whose default is `default`."""
    return field(default=default, metadata={"option": Option(kind, doc, kind.show(default))})


def derived(kind: v.Kind[Any], factory: Callable[[], Any], shown: str, note: str, doc: str) -> Any:
    """A field whose default depends on the machine; `shown` and `note` say in the reference how."""
    return field(default_factory=factory, metadata={"option": Option(kind, doc, shown, note)})


class Section:
    """Base of a table of options: the values are checked however the instance was made."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for item in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            declared = item.metadata["option"]
            try:
                object.__setattr__(self, item.name, declared.kind.accept(getattr(self, item.name)))
            except ValueError as error:
                raise ConfigError(f"{item.name}: {error}") from error
