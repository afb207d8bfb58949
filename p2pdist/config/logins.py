"""The mirror's password file: who wants to ask the mirror and the mirror itself read it alike."""

from __future__ import annotations

from pathlib import Path

from p2pdist.errors import ConfigError


def password_text(path: Path) -> str:
    """What is in the file. ConfigError if it can't be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"mirror.password_file: {path} can't be read: {error}") from error


def logins_in(text: str) -> list[str]:
    """A line `user:password` for each; empty lines and those with a # in front don't count.

    Raises:
        ConfigError: a line that is none, named by its number only; or there is none at all.
    """
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        user, colon, password = line.partition(":")
        if not user or not colon or not password:
            raise ConfigError(f"mirror.password_file: line {number} is not user:password")
        found.append(line)
    if not found:
        raise ConfigError("mirror.password_file: there is no user:password in it")
    return found
