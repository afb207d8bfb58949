"""What a tracker must not forget: join tokens (hashed), who came in with them, and who is shut out.

Tables of the State: `tokens` (a token by its hash), `enrolled HASH` (who came in, where a token lets in any number),
`bans` (a ban by its node), `mark` (see `Facts.mark`). Replicas and command lines change them at the same time; each
change is one step.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from p2pdist.errors import StorageError
from p2pdist.pki import JoinToken, hash_secret
from tracker.state import State

FOREVER = 2.0**40  # Unix seconds: beyond every certificate
TOKENS, BANS, MARK = "tokens", "bans", "mark"
_SHORT = 16  # bytes of a node's hash in a token's record: nobody finds a second key with the same ones


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is listed. Times in Unix seconds; `uses` None: any number."""

    number: str
    labels: Mapping[str, str]
    created: float
    expires: float
    uses: int | None
    used: int


@dataclass(frozen=True, slots=True)
class Ban:
    """Who is shut out, until when (Unix seconds), why, and what proves it (`trials.Proof`, packed; empty: nothing)."""

    node: bytes
    until: float
    reason: str
    evidence: bytes = b""


class _Token(msgspec.Struct, frozen=True, array_like=True):
    labels: dict[str, str]
    created: float
    expires: float
    uses: int | None
    nodes: list[bytes] = []  # who came in, shortened: the place is taken and the node noted in one step


class _Ban(msgspec.Struct, frozen=True, array_like=True):
    until: float
    reason: str
    evidence: bytes


class Facts:
    """Join tokens and bans in a State. Its methods raise StorageError when it can't be reached."""

    def __init__(self, state: State) -> None:
        self._state = state

    # --- tokens ---

    async def new_token(
        self, fingerprint: bytes, now: float, lifetime: float, uses: int | None, labels: Mapping[str, str]
    ) -> JoinToken:
        """A token that only its receiver will know. `fingerprint`: of the cluster's authority; seconds."""
        token = JoinToken(fingerprint, secrets.token_bytes(32))
        record = _Token(dict(labels), now, now + lifetime, uses)
        await self._state.create(TOKENS, token.hashed.hex(), msgspec.msgpack.encode(record), record.expires)
        return token

    async def tokens(self) -> list[Token]:
        """Those that still open the door, or did until they were used up; the oldest first."""
        found = []
        for hashed, record in (await self._state.all(TOKENS)).items():
            token = _read(record, _Token)
            used = len(token.nodes) if token.uses is not None else len(await self._state.all(_enrolled(hashed)))
            found.append(Token(_number(hashed), token.labels, token.created, token.expires, token.uses, used))
        return sorted(found, key=lambda token: token.created)

    async def revoke(self, number: str) -> bool:
        """The token (by its number) opens nothing any more; False: there is none. Members stay: ban them."""
        known = await self._state.all(TOKENS)
        return any([await self._state.remove(TOKENS, hashed) for hashed in known if _number(hashed) == number])

    async def redeem(self, secret: bytes, node: bytes, now: float) -> Mapping[str, str] | None:
        """Let `node` in by this token: the labels it gets, or None.

        A node that comes again with the same token (its answer was lost) takes no second use.
        """
        hashed, short = hash_secret(secret).hex(), hashlib.sha256(node).digest()[:_SHORT]
        while True:
            record = await self._state.get(TOKENS, hashed)
            if record is None:
                return None
            token = _read(record, _Token)
            if token.expires <= now:
                return None
            if token.uses is None:
                await self._state.create(_enrolled(hashed), node.hex(), b"", token.expires)
                return token.labels
            if short in token.nodes:
                return token.labels
            if len(token.nodes) >= token.uses:
                return None
            taken = msgspec.msgpack.encode(msgspec.structs.replace(token, nodes=[*token.nodes, short]))
            if await self._state.replace(TOKENS, hashed, record, taken, token.expires):
                return token.labels

    # --- bans ---

    async def mark(self) -> bytes:
        """What this State was given when it was new: another one means that everything in it was lost."""
        while True:
            found = await self._state.get(MARK, MARK)
            if found is not None:
                return found
            await self._state.create(MARK, MARK, secrets.token_bytes(16))

    async def bans(self) -> dict[bytes, Ban]:
        """Those in force."""
        return {bytes.fromhex(node): _ban(node, record) for node, record in (await self._state.all(BANS)).items()}

    async def ban(self, ban: Ban, *, replace: bool = True) -> None:
        """Shut a node out; an older ban stays unless it is to be replaced."""
        write = self._state.put if replace else self._state.create
        await write(BANS, ban.node.hex(), _packed(ban), ban.until)

    async def lift(self, node: bytes) -> bool:
        """Let it in again; False: it wasn't banned."""
        return await self._state.remove(BANS, node.hex())


def _number(hashed: str) -> str:
    return hashed[:12]


def _enrolled(hashed: str) -> str:
    return f"enrolled {hashed}"


def _ban(node: str, record: bytes) -> Ban:
    found = _read(record, _Ban)
    return Ban(bytes.fromhex(node), found.until, found.reason, found.evidence)


def _packed(ban: Ban) -> bytes:
    return msgspec.msgpack.encode(_Ban(ban.until, ban.reason, ban.evidence))


T = TypeVar("T")


def _read(record: bytes, kind: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(record, type=kind)
    except msgspec.DecodeError as error:
        raise StorageError(f"a record of the tracker's state isn't what it should be: {error}") from error
