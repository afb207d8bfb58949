"""JSON from outside as Python values: bounded before it is parsed, and meaning one thing to every parser.

Rules, each an InvalidManifest when broken:
1. Size, nesting depth and the number of values are bounded by a scan before anything is built.
2. Strict UTF-8 (no BOM, no UTF-16, no lone surrogates), no NaN or Infinity, nothing after the value.
3. No key twice in one object: parsers differ in which one wins, so what we check would not be what a client reads.
   No encoder writes such a thing; registries store it unread.
"""

from __future__ import annotations

import json
import re

from p2pdist.errors import InvalidManifest

MAX_BYTES = 4 * 1024 * 1024  # distribution-spec, "Pushing Manifests": registries should take at least that
MAX_DEPTH = 32  # an index with platforms in its descriptors needs 4
MAX_CONTAINERS = 65_536  # objects and arrays together
MAX_VALUES = 131_072  # parsed, a value takes a hundred times the memory of the two bytes it can be written in

# Always matches from the quote on, with possessive repeats: linear time and constant memory on any input.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.?)*+"?', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def parse(raw: bytes) -> object:
    """The value that `raw` encodes; InvalidManifest if it isn't JSON by the rules above."""
    if len(raw) > MAX_BYTES:
        raise InvalidManifest(f"{len(raw)} bytes; a manifest of at most {MAX_BYTES} is taken")
    _check_shape(raw)
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_object, parse_constant=_refuse_constant)
    except InvalidManifest:
        raise
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, an integer of more than 4300 digits
        raise InvalidManifest(f"not JSON: {str(error)[:200]}") from error


def check_text(text: str, what: str, longest: int) -> str:
    """`text` if it has at most `longest` characters and can be encoded; `what` names it in the InvalidManifest."""
    if len(text) > longest:
        raise InvalidManifest(f"{what} has {len(text)} characters; at most {longest} are taken")
    if _SURROGATE.search(text):
        raise InvalidManifest(f"{what} has half a surrogate pair")
    return text


def _check_shape(raw: bytes) -> None:
    # Quotes first: taking out a million empty strings one by one would itself take hundreds of megabytes.
    if raw.count(b'"') > 4 * MAX_VALUES or (structure := _STRING.sub(b"", raw)).count(b",") >= MAX_VALUES:
        raise InvalidManifest(f"JSON with more than {MAX_VALUES} values")
    depth = containers = 0
    for bracket in _BRACKET.finditer(structure):
        if bracket[0] in b"[{":
            depth += 1
            containers += 1
            if depth > MAX_DEPTH:
                raise InvalidManifest(f"JSON nested deeper than {MAX_DEPTH}")
            if containers > MAX_CONTAINERS:
                raise InvalidManifest(f"JSON with more than {MAX_CONTAINERS} objects and arrays")
        else:
            depth -= 1


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # add() is None
        raise InvalidManifest(f"the key {twice[:80]!r} is twice in one JSON object")
    return result


def _refuse_constant(name: str) -> object:
    raise InvalidManifest(f"not JSON: {name}")
