"""A node's labels from a file that something else writes: a cloud's metadata, or Kubernetes' downward API.

Either one JSON object, or lines `key=value`; values may be quoted as the downward API does. `zone` is taken from
Kubernetes' own label where nothing else says it.
"""

from __future__ import annotations

import json
from pathlib import Path

from p2pdist.errors import ConfigError

MAX_LABELS, MAX_KEY, MAX_VALUE = 32, 63, 255  # what a tracker is told
ZONE_KEYS = ("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone")
_MAX_FILE = 256 * 1024


def labels_of(labels: dict[str, str]) -> dict[str, str]:
    """Those that fit, at most `MAX_LABELS`: the zone, by any of its names, then the last ones first."""
    zone = next((labels[key] for key in ("zone", *ZONE_KEYS) if labels.get(key)), None)
    ordered = {**({"zone": zone} if zone is not None else {}), **dict(reversed(labels.items()))}
    fitting = {key: value for key, value in ordered.items() if 0 < len(key) <= MAX_KEY and len(value) <= MAX_VALUE}
    return dict(list(fitting.items())[:MAX_LABELS])


def read_labels(path: Path) -> dict[str, str]:
    """What the file says. ConfigError."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE + 1)
        text = raw.decode()
    except OSError as error:
        raise ConfigError(f"node.labels_file: {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"node.labels_file: {path}: not text: {error}") from error
    if len(raw) > _MAX_FILE:
        raise ConfigError(f"node.labels_file: {path}: over {_MAX_FILE} bytes")
    try:
        return parse_labels(text)
    except ValueError as error:
        raise ConfigError(f"node.labels_file: {path}: {error}") from error


def parse_labels(text: str) -> dict[str, str]:
    """The labels in `text`; ValueError says where it can't be read. JSON values other than strings are left out."""
    if text.lstrip().startswith("{"):
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not a JSON object: {error}") from error
        return {str(key): value for key, value in parsed.items() if isinstance(value, str)}
    labels: dict[str, str] = {}
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        key, separator, value = (part.strip() for part in line.partition("="))
        if not (key and separator):
            raise ValueError(f'line {number}: wanted KEY=VALUE, got "{line[:60]}"')
        if len(value) >= 2 and value[0] == value[-1] == '"':
            try:
                value = str(json.loads(value))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
        labels[key] = value
    return labels
