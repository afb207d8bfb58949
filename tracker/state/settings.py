"""Where a tracker keeps its state, and how its replicas reach each other."""

from __future__ import annotations

import re
from dataclasses import dataclass

from p2pdist.errors import ConfigError
from tracker.rules import option


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSettings:
    """The Redis or Valkey that the replicas of one tracker share."""

    url: str = option(
        "",
        "Redis or Valkey, 6.2 or newer, for a tracker of several replicas: redis://[USER:PASSWORD@]HOST[:PORT][/DB], "
        "with TLS rediss://; redis+sentinel://HOST[:PORT],.../SERVICE; redis+cluster://HOST[:PORT],...; "
        "empty: this tracker is alone and keeps its state in the data directory",
    )
    prefix: str = option("p2pdist", "begins every key in Redis: each cluster that shares a server needs its own")
    password_file: str = option("", "file with the password, so that it stands in no configuration")
    sentinel_password_file: str = option("", "file with the password of the Sentinels themselves, if they have one")
    ca_file: str = option("", "PEM file of the authority that signed the server's certificate; empty: the system's")
    address: str = option(
        "",
        "HOST or HOST:PORT at which the other replicas reach this one; empty: where it listens, if that is one address",
    )

    def reached_at(self, host: str, port: int) -> str:
        """HOST:PORT at which the others reach a replica that listens at `host` and `port`. ConfigError: not known."""
        text = self.address
        if not text:
            if host in {"0.0.0.0", "::", ""}:
                raise ConfigError("state.address: say at which HOST or HOST:PORT the other replicas reach this one")
            text = host
        if text.count(":") > 1 and not text.startswith("["):
            text = f"[{text}]"
        return text if re.search(r"[^:\]]:\d+$|\]:\d+$", text) else f"{text}:{port}"
