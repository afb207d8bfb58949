"""What is written down of preheats: what was ordered, how it goes, and what can be set about them. Pure.

What is asked for (`Job`) and how it goes (`Progress`) are two records: the first is written by whichever replica is
asked, the second only by the one that leads, which goes on from both when it begins to. Times are Unix seconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from p2pdist.errors import InputError, InvalidReference
from p2pdist.oci import Reference
from p2pdist.protocol import limits, messages
from tracker.rules import option

_PLATFORM = re.compile(r"[a-z0-9]{1,32}/[a-z0-9_]{1,32}(/[a-z0-9.]{1,32})?")

NodeState = Literal["waiting", "pulling", "done", "failed", "gone"]
FINAL = frozenset({"done", "failed", "gone"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PreheatRules:
    """Images pulled before a daemon asks (p2pdist preheat). Times in seconds."""

    max_running: int = option(16, "preheats at once; further ones are refused")
    max_nodes: int = option(10_000, "nodes of one preheat; those over it are left out, and counted")
    time: float = option(86_400.0, "seconds after which a preheat that is not done is ended", least=1)
    gone_after: float = option(
        300.0, "seconds without a session after which a node of a preheat is given up", least=0.1
    )
    settle: float = option(
        10.0, "seconds after a tracker's start in which no preheat is called done: nodes are still coming back"
    )
    history: int = option(50, "finished preheats that are remembered")
    history_time: float = option(604_800.0, "seconds for which a finished preheat is remembered", least=1)


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be pulled, and by whom: `nodes` of those that have all the `labels`; 0: all of them.

    `keep`: seconds for which the image is not to be evicted; 0: no matter. There is no room for credentials in it.
    """

    reference: str
    platforms: Annotated[list[str], Meta(max_length=limits.MAX_PLATFORMS)] = []
    labels: messages.Labels = {}
    nodes: Annotated[int, Meta(ge=0)] = 0
    keep: Annotated[int, Meta(ge=0, le=10 * 365 * 86_400)] = 0

    def checked(self) -> Order:
        """The order with its reference written out. InputError, without the text: there may be a password in it."""
        for platform in self.platforms:
            if not _PLATFORM.fullmatch(platform):
                raise InputError(f"wanted a platform like linux/amd64 or linux/arm/v7, got {platform[:80]!r}")
        return msgspec.structs.replace(self, reference=checked_reference(self.reference))


def checked_reference(text: str) -> str:
    """An image reference, written out. InputError, which does not repeat the text: there may be a password in it."""
    if "://" in text or "@" in text.partition("@sha")[0]:
        raise InputError("wanted an image reference like ghcr.io/acme/app:1: no URL, and no user or password in it")
    try:
        return str(Reference.parse(text))
    except InvalidReference:
        raise InputError("wanted an image reference like ghcr.io/acme/app:1 or app@sha256:...") from None


class Job(msgspec.Struct, frozen=True):
    """An accepted order. `by`: who ordered it, for people. `cancelled`: when, 0: not."""

    id: str
    order: Order
    created: float
    by: str = ""
    cancelled: float = 0.0


class NodeProgress(msgspec.Struct):
    """One node's part. Sizes in bytes; `at`: when it was last heard of."""

    name: str
    state: NodeState = "waiting"
    digest: str = ""
    blobs_done: int = 0
    blobs: int = 0
    size_done: int = 0
    size: int = 0
    error: str = ""
    at: float = 0.0


class Progress(msgspec.Struct):
    """How a job goes. `counts`: nodes by state. `left_out`: nodes that would have been too many. `finished`: when."""

    state: Literal["running", "done", "failed", "cancelled"] = "running"
    finished: float = 0.0
    counts: dict[str, int] = {}
    left_out: int = 0
    nodes: dict[str, NodeProgress] = {}


class Summary(msgspec.Struct):
    """A Progress without its nodes: what a list shows."""

    state: str = "running"
    finished: float = 0.0
    counts: dict[str, int] = {}
    left_out: int = 0


def outdated(rules: PreheatRules, now: float, finished: Mapping[str, float]) -> list[str]:
    """Of finished jobs (when, by id) those that are to be forgotten."""
    newest = sorted(finished, key=lambda number: finished[number], reverse=True)
    return [
        number
        for place, number in enumerate(newest)
        if place >= rules.history or now - finished[number] >= rules.history_time
    ]
