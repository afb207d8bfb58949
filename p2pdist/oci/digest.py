"""Content digests: `algorithm:hex`, impossible to construct wrong."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2pdist.errors import InvalidDigest

if TYPE_CHECKING:
    from hashlib import _Hash

HEX_LENGTHS = {"sha256": 64, "sha512": 128}  # the registered algorithms (OCI image-spec, descriptor.md)
_HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A digest of a known algorithm: lower-case hex of exactly its length (OCI image-spec, descriptor.md, "Digests").

    Safe as a file name and in a URL path: nothing but `[a-z0-9:]` can be in it.

    Raises:
        InvalidDigest: an unknown algorithm, a wrong length or anything that isn't lower-case hex.
    """

    algorithm: str
    hex: str

    def __post_init__(self) -> None:
        length = HEX_LENGTHS.get(self.algorithm)
        if length is None:
            raise InvalidDigest(
                f"digest algorithm {_shown(self.algorithm)} is unknown; known are {', '.join(HEX_LENGTHS)}"
            )
        if len(self.hex) != length or _HEX.fullmatch(self.hex) is None:
            raise InvalidDigest(
                f"a {self.algorithm} digest has {length} lower-case hex digits; got {_shown(self.hex)}"
                f" ({len(self.hex)} characters)"
            )

    @classmethod
    def parse(cls, text: str) -> Digest:
        """The digest that `text` (`sha256:...`) names; InvalidDigest if it doesn't."""
        algorithm, colon, hexadecimal = text.partition(":")
        if not colon:
            raise InvalidDigest(f"a digest is algorithm:hex; got {_shown(text)}")
        return cls(algorithm, hexadecimal)

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview, algorithm: str = "sha256") -> Digest:
        """The digest of `data`."""
        if algorithm not in HEX_LENGTHS:
            raise InvalidDigest(f"digest algorithm {_shown(algorithm)} is unknown; known are {', '.join(HEX_LENGTHS)}")
        return cls(algorithm, hashlib.new(algorithm, data).hexdigest())

    def hasher(self) -> _Hash:
        """A fresh hash object of this digest's algorithm; compare its `hexdigest()` with `hex`."""
        return hashlib.new(self.algorithm)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")
