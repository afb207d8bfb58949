"""What every line of the log looks like: structlog for our events and for libraries', no secrets in either."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import TextIO

import structlog
from structlog.typing import Processor

from p2pdist.config import LogConfig

_SECRET = re.compile(r"authorization|password|passwd|secret|token|credential|cookie|api_?key", re.IGNORECASE)
_IN_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)[^/\s@]+@", re.IGNORECASE)
_IN_QUERY = re.compile(r"(?P<start>https?://[^\s?\"']+\?)[^\s\"']+", re.IGNORECASE)
_IN_HEADER = re.compile(r"\b(?P<scheme>Bearer|Basic) +[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)


def set_up_logging(config: LogConfig, stream: TextIO = sys.stderr) -> None:
    """Send this process's log to `stream`. Called once, by the command that runs a server."""
    as_text = config.format == "text" or (config.format == "auto" and stream.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Processor] = (
        [structlog.processors.format_exc_info, redact, structlog.processors.JSONRenderer()]
        if not as_text
        else [structlog.processors.format_exc_info, redact, structlog.dev.ConsoleRenderer(colors=stream.isatty())]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, config.level.upper())),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(config.level.upper())


def redact(_: object, __: str, event: MutableMapping[str, object]) -> MutableMapping[str, object]:
    """Take credentials out: values under telling names, users and queries (signed links) in URLs, headers."""
    for key, value in event.items():
        if _SECRET.search(key):
            event[key] = "[redacted]"
        elif isinstance(value, str):
            event[key] = redacted(value)
    return event


def redacted(text: str) -> str:
    """`text` without what could be a credential."""
    text = _IN_URL.sub(r"\g<scheme>[redacted]@", text)
    text = _IN_QUERY.sub(r"\g<start>[redacted]", text)
    return _IN_HEADER.sub(r"\g<scheme> [redacted]", text)
