"""A JSON object read field by field, by type and name; what was not asked for can be refused.

One reader for both kinds of document: the operator's (policy, trust root), where a mistake is a ConfigError, and
what a registry sent, where it is a Refused. Duplicate keys, depth and sizes are bounded before (`oci.boundedjson`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from p2pdist.errors import InvalidManifest
from p2pdist.oci import boundedjson
from p2pdist.trust import limits
from p2pdist.trust.refusal import shown

Fault = Callable[[str], Exception]


def parse_json(raw: bytes, limit: int, what: str, fault: Fault, crowd: int | None = None) -> object:
    """The value that `raw` encodes, at most `limit` bytes; strict (boundedjson's rules), else `fault`.

    `crowd`: how many commas and opening brackets it may have. Counting them is quick, parsing a megabyte of them is
    not, and what a stranger attached to an image comes by the dozen. None: what boundedjson takes.
    """
    if len(raw) > limit:
        raise fault(f"{what} has {len(raw)} bytes; at most {limit} are read")
    if crowd is not None and crowded(raw, crowd):
        raise fault(f"{what} has more than {crowd} values")
    try:
        return boundedjson.parse(raw)
    except InvalidManifest as error:
        raise fault(f"{what}: {error}") from error


def crowded(raw: bytes, most: int) -> bool:
    """Whether `raw` has more than `most` commas and opening brackets, or quotes for more than so many texts."""
    return raw.count(b",") + raw.count(b"{") + raw.count(b"[") > most or raw.count(b'"') > 4 * most


class Fields:
    """The object `value`, called `where` in messages; every problem is raised as `fault(message)`."""

    def __init__(self, value: object, where: str, fault: Fault) -> None:
        self.where = where
        self.fault = fault
        if not isinstance(value, dict):
            self.fail(f"must be an object; got {kind(value)}")
        self._value: dict[str, Any] = value
        self._asked: set[str] = set()

    @classmethod
    def parse(cls, raw: bytes, limit: int, where: str, fault: Fault, crowd: int | None = limits.CROWD) -> Fields:
        """The object that `raw` encodes; `crowd` as parse_json."""
        return cls(parse_json(raw, limit, where, fault, crowd), where, fault)

    def fail(self, problem: str) -> NoReturn:
        """Raise `problem` with this object's name before it."""
        raise self.fault(f"{self.where}: {problem}")

    def __contains__(self, name: str) -> bool:
        return name in self._value

    def names(self) -> list[str]:
        """Every key there is."""
        return list(self._value)

    def raw(self, name: str) -> object:
        """The value of `name` as it is; None where there is none."""
        self._asked.add(name)
        return self._value.get(name)

    def text(self, name: str) -> str:
        """A string that isn't empty."""
        value = self.raw(name)
        if not isinstance(value, str) or not value:
            self.fail(f"{name} must be text; got {kind(value)}")
        return value

    def optional_text(self, name: str) -> str | None:
        """A string that isn't empty, or None where the key is absent."""
        return self.text(name) if name in self._value else None

    def texts(self, name: str) -> tuple[str, ...]:
        """A list, not empty, of strings that aren't empty."""
        values = self.items(name)
        if not values or not all(isinstance(value, str) and value for value in values):
            self.fail(f"{name} must be a list of texts, not empty")
        return tuple(str(value) for value in values)

    def items(self, name: str) -> list[object]:
        """A list."""
        value = self.raw(name)
        if not isinstance(value, list):
            self.fail(f"{name} must be a list; got {kind(value)}")
        return value

    def number(self, name: str) -> int:
        """A whole number of at most 63 bits, not negative."""
        value = self.raw(name)
        if type(value) is not int or not 0 <= value < 2**63:  # a bool is an int to isinstance
            self.fail(f"{name} must be a whole number; got {kind(value)}")
        return value

    def object(self, name: str) -> Fields:
        """An object within this one."""
        return Fields(self.raw(name), f"{self.where}.{name}", self.fault)

    def optional_object(self, name: str) -> Fields | None:
        """An object within this one, or None where the key is absent."""
        return self.object(name) if name in self._value else None

    def only(self, *names: str) -> None:
        """Refuse every key but `names`."""
        for key in self._value:
            if key not in names:
                self.fail(f"unknown key {shown(key)!r}")

    def only_asked(self) -> None:
        """Refuse every key that nothing has asked for so far."""
        self.only(*self._asked)


def kind(value: object) -> str:
    """What a wrong value is, short enough for a message whoever wrote it."""
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, int) and abs(value) >= 2**63:  # too long to print
        return "a huge number"
    return f"{type(value).__name__} {ascii(value)[:60]}"
