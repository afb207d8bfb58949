"""Credentials as Docker's config.json keeps them: `auths`, `credHelpers`, `credsStore`.

The file is read anew at every look-up, so that a rotated password needs no restart; what was looked up is kept by
the caller until the registry refuses it. Nothing here ever fails a pull: where nothing can be found, the look-up says
why, and the registry is asked without.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import os
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_FILE = 1024 * 1024
MAX_HELPER_ANSWER = 256 * 1024

_HUB_KEY = "https://index.docker.io/v1/"  # what `docker login` writes for docker.io
_HUB_NAMES = {"docker.io", "index.docker.io", "registry-1.docker.io"}
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Login:
    """A user and a password."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class IdentityToken:
    """A refresh token, exchanged for access tokens at the token endpoint."""

    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class RegistryToken:
    """A Bearer token, used as it is."""

    token: str = field(repr=False)


Credential = Login | IdentityToken | RegistryToken


@dataclass(frozen=True, slots=True)
class Lookup:
    """What a look-up found; `note` says where, or why nothing, for a person to read. Never holds a secret."""

    credential: Credential | None
    note: str


class Credentials:
    """Where to look for credentials.

    Args:
        config_file: in the form of Docker's config.json; None: there are no credentials.
        helper_timeout: seconds that a `docker-credential-*` program may take.
    """

    def __init__(self, config_file: Path | None = None, *, helper_timeout: float = 10.0) -> None:
        self._file = config_file
        self._timeout = helper_timeout

    async def find(self, registry: str) -> Lookup:
        """The credential for `registry` (`docker.io`, `ghcr.io`, `127.0.0.1:5000`). Raises nothing of its own."""
        if self._file is None:
            return Lookup(None, "no credentials file is configured")
        try:
            config = await asyncio.to_thread(_read, self._file)
        except (OSError, ValueError) as error:
            return Lookup(None, f"the credentials file {self._file} can't be used: {_reason(error)}")
        note = f"{self._file} has none for {registry}"
        helper = _helper_for(config, registry)
        if helper is not None:
            found = await self._ask_helper(helper, _HUB_KEY if registry in _HUB_NAMES else registry)
            if found.credential is not None:
                return found
            note = found.note
        credential = _from_auths(config, registry)
        return Lookup(credential, f"{self._file}" if credential is not None else note)

    async def _ask_helper(self, helper: str, server: str) -> Lookup:
        program = f"docker-credential-{helper}"
        if _HELPER.fullmatch(helper) is None:
            return Lookup(None, f"{helper[:80]!r} is not a credential helper's name")
        try:
            code, answer = await self._run(program, server)
        except TimeoutError:
            return Lookup(None, f"{program} gave no answer within {self._timeout:g} s")
        except OSError as error:
            return Lookup(None, f"{program} can't be run: {error.strerror or type(error).__name__}")
        if code != 0 or len(answer) > MAX_HELPER_ANSWER:
            # Its output is not repeated: a helper that breaks may print what it holds.
            return Lookup(None, f"{program} has no credentials for {server}, or failed (exit status {code})")
        try:
            body = json.loads(answer)
            username, secret = body["Username"], body["Secret"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return Lookup(None, f"{program} answered something else than Username and Secret")
        if not (isinstance(username, str) and isinstance(secret, str) and secret):
            return Lookup(None, f"{program} answered something else than Username and Secret")
        if username == "<token>":  # docker-credential-helpers: then the secret is an identity token
            return Lookup(IdentityToken(secret), program)
        return Lookup(Login(username, secret), program)

    async def _run(self, program: str, server: str) -> tuple[int, bytes]:
        process = await asyncio.create_subprocess_exec(
            program,
            "get",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        assert process.stdin is not None and process.stdout is not None
        answer = b""
        try:
            async with asyncio.timeout(self._timeout):
                with contextlib.suppress(ConnectionError):  # it may answer without reading
                    process.stdin.write(server.encode() + b"\n")
                    await process.stdin.drain()
                process.stdin.close()
                while len(answer) <= MAX_HELPER_ANSWER and (piece := await process.stdout.read(64 * 1024)):
                    answer += piece
                if len(answer) <= MAX_HELPER_ANSWER:
                    await process.wait()
        finally:
            # The whole group: a child of a shell script would keep the pipe open.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            # What is left in the pipe, too: asyncio calls a process ended when its pipes are, and one that is full of
            # an answer nobody wants would never be.
            while await process.stdout.read(64 * 1024):
                pass
            await process.wait()
        return process.returncode or 0, answer


def _read(file: Path) -> Mapping[str, Any]:
    with file.open("rb") as opened:
        raw = opened.read(MAX_FILE + 1)
    if len(raw) > MAX_FILE:
        raise ValueError(f"more than {MAX_FILE} bytes")
    try:
        config = json.loads(raw)
    except (ValueError, RecursionError) as error:
        # Not the parser's words: they quote what may be a password.
        raise ValueError("it is not JSON") from error
    if not isinstance(config, dict):
        raise ValueError("it is not a JSON object")
    return config


def _reason(error: OSError | ValueError) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name)
    return section if isinstance(section, dict) else {}


def _helper_for(config: Mapping[str, Any], registry: str) -> str | None:
    for key, helper in _section(config, "credHelpers").items():
        if _same_registry(key, registry) and isinstance(helper, str) and helper:
            return helper
    store = config.get("credsStore")
    return store if isinstance(store, str) and store else None


def _from_auths(config: Mapping[str, Any], registry: str) -> Credential | None:
    auths = _section(config, "auths")
    # An exact key before one that only means the same.
    for key in sorted(auths, key=lambda key: key != registry):
        entry = auths[key]
        if _same_registry(key, registry) and isinstance(entry, dict):
            credential = _from_entry(entry)
            if credential is not None:
                return credential
    return None


def _from_entry(entry: Mapping[str, Any]) -> Credential | None:
    def text(name: str) -> str:
        value = entry.get(name)
        return value if isinstance(value, str) else ""

    if text("registrytoken"):
        return RegistryToken(text("registrytoken"))
    if text("identitytoken"):
        return IdentityToken(text("identitytoken"))
    username, password = text("username"), text("password")
    if text("auth"):
        try:
            username, _, password = base64.b64decode(text("auth"), validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        password = password.rstrip("\0")  # Docker's own decoder takes padding NULs off
    return Login(username, password) if username and password else None


def _same_registry(key: str, registry: str) -> bool:
    """Whether a key of the file, which may be a URL with a path, means `registry`."""
    host = key.partition("://")[2] if "://" in key else key
    host = host.partition("/")[0].lower()
    return host == registry or (host in _HUB_NAMES and registry in _HUB_NAMES)
