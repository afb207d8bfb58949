"""The state that all replicas of a tracker share: Redis or Valkey, from 6.2 on.

A table is one hash; whatever reads or changes a record is one Lua script, so it is atomic, and what has expired is
decided by the server's clock, never by a replica's. All keys carry one hash tag: they stay together in cluster mode.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from redis.exceptions import RedisError

from p2pdist.errors import StorageError
from tracker.state.protocol import Leader

PATIENCE = 1.0  # seconds for a call, whatever it waits for

# Stored: the end in ms (0: never), a colon, the value. KEYS: the table, the version. ARGV: the record's key...
_RECORDS = """
local time = redis.call('TIME')
local micros = time[1] * 1000000 + time[2]
local function live(raw)
  if not raw then return false end
  local colon = string.find(raw, ':', 1, true)
  local ends = tonumber(string.sub(raw, 1, colon - 1))
  if ends > 0 and ends <= micros / 1000 then return false end
  return string.sub(raw, colon + 1)
end
local function changed()  -- beyond every version there was, also after the data was lost or an older copy restored
  local old = tonumber(redis.call('GET', KEYS[2]) or '0')
  redis.call('SET', KEYS[2], string.format('%.0f', math.max(old + 1, micros)))
  return 1
end
local function write(value, ends)
  local some = redis.call('HRANDFIELD', KEYS[1], 16, 'WITHVALUES')
  for i = 1, #some, 2 do  -- clean up as we go, a bounded share each time
    if not live(some[i + 1]) then redis.call('HDEL', KEYS[1], some[i]) end
  end
  redis.call('HSET', KEYS[1], ARGV[1], ends .. ':' .. value)
  return changed()
end
"""
_GET = _RECORDS + "return live(redis.call('HGET', KEYS[1], ARGV[1]))"
_ALL = (
    _RECORDS
    + """
local every, kept = redis.call('HGETALL', KEYS[1]), {}
for i = 1, #every, 2 do
  local value = live(every[i + 1])
  if value then kept[#kept + 1] = every[i]; kept[#kept + 1] = value end
end
return kept
"""
)
_PUT = _RECORDS + "return write(ARGV[2], ARGV[3])"
_CREATE = _RECORDS + "if live(redis.call('HGET', KEYS[1], ARGV[1])) then return 0 end\nreturn write(ARGV[2], ARGV[3])"
_REPLACE = (
    _RECORDS
    + "if live(redis.call('HGET', KEYS[1], ARGV[1])) ~= ARGV[4] then return 0 end\nreturn write(ARGV[2], ARGV[3])"
)
_REMOVE = (
    _RECORDS
    + """
local value = live(redis.call('HGET', KEYS[1], ARGV[1]))
redis.call('HDEL', KEYS[1], ARGV[1])
return value and changed() or 0
"""
)
# KEYS: the leader (expires by itself), the last term. ARGV: owner, address, lifetime in ms.
_LEAD = """
local owner = redis.call('HGET', KEYS[1], 'owner')
if not owner then
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  local term = math.max(tonumber(redis.call('GET', KEYS[2]) or '0') + 1, now)  -- later than any, also without data
  redis.call('SET', KEYS[2], string.format('%.0f', term))
  redis.call('HSET', KEYS[1], 'term', string.format('%.0f', term))
end
if not owner or owner == ARGV[1] then
  redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'address', ARGV[2])
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return redis.call('HMGET', KEYS[1], 'owner', 'address', 'term')
"""
_RESIGN = "if redis.call('HGET', KEYS[1], 'owner') == ARGV[1] then redis.call('DEL', KEYS[1]) end"


class Client(Protocol):
    """What is used of redis-py's clients: one server's, Sentinel's or a cluster's."""

    async def execute_command(self, *args: Any) -> Any:
        """Send a command; its answer."""

    async def aclose(self) -> None:
        """Close every connection."""


class RedisState:
    """See `State`; `open_state` makes one. `clients`: the one to use, then those it needs. `where`: for errors."""

    def __init__(self, clients: Sequence[Client], prefix: str, where: str) -> None:
        self._client = clients[0]
        self._clients = clients  # all of them, to be closed
        self._prefix = "{" + prefix + "}:"
        self._where = where
        self._closed = False

    def _key(self, *parts: str) -> str:
        return self._prefix + ":".join(parts)

    async def _ask(self, *command: object) -> Any:
        if self._closed:
            raise StorageError(f"the state at {self._where} is closed")
        task = asyncio.current_task()
        asked_to_end = task.cancelling() if task is not None else 0
        try:
            async with asyncio.timeout(PATIENCE):
                return await self._client.execute_command(*command)
        except TimeoutError as error:
            raise StorageError(f"the state at {self._where}: no answer within {PATIENCE} s") from error
        except (RedisError, OSError) as error:
            raise StorageError(f"the state at {self._where}: {error or type(error).__name__}") from error
        finally:
            if task is not None and task.cancelling() > asked_to_end:  # redis-py loses cancellations now and then
                raise asyncio.CancelledError

    async def _run(self, script: str, keys: Sequence[str], *values: object) -> Any:
        return await self._ask("EVAL", script, len(keys), *keys, *values)

    async def _records(self, script: str, table: str, *values: object) -> Any:
        return await self._run(script, [self._key("table", table), self._key("version")], *values)

    async def get(self, table: str, key: str) -> bytes | None:
        """See `State`."""
        value: bytes | None = await self._records(_GET, table, key)
        return value

    async def all(self, table: str) -> dict[str, bytes]:
        """See `State`."""
        flat: list[bytes] = await self._records(_ALL, table)
        return {flat[place].decode(): flat[place + 1] for place in range(0, len(flat), 2)}

    async def put(self, table: str, key: str, value: bytes, expires: float | None = None) -> None:
        """See `State`."""
        await self._records(_PUT, table, key, value, _milliseconds(expires))

    async def create(self, table: str, key: str, value: bytes, expires: float | None = None) -> bool:
        """See `State`."""
        return bool(await self._records(_CREATE, table, key, value, _milliseconds(expires)))

    async def replace(self, table: str, key: str, old: bytes, new: bytes, expires: float | None = None) -> bool:
        """See `State`."""
        return bool(await self._records(_REPLACE, table, key, new, _milliseconds(expires), old))

    async def remove(self, table: str, key: str) -> bool:
        """See `State`."""
        return bool(await self._records(_REMOVE, table, key))

    async def version(self) -> int:
        """See `State`."""
        return int(await self._ask("GET", self._key("version")) or 0)

    async def lead(self, owner: str, address: str, lifetime: float) -> Leader:
        """See `State`."""
        keys = [self._key("leader"), self._key("term")]
        who, where, term = await self._run(_LEAD, keys, owner, address, max(1, round(lifetime * 1000)))
        return Leader(who.decode(), where.decode(), int(term))

    async def resign(self, owner: str) -> None:
        """See `State`."""
        await self._run(_RESIGN, [self._key("leader")], owner)

    async def close(self) -> None:
        """See `State`."""
        self._closed = True
        try:
            for client in self._clients:
                await client.aclose()
        except (RedisError, OSError) as error:
            raise StorageError(f"the state at {self._where}: {error or type(error).__name__}") from error


def _milliseconds(expires: float | None) -> int:
    """0: never. What ends before 1970 ended then."""
    return 0 if expires is None else max(1, int(expires * 1000))
