"""Preheats: which nodes are to pull an image, and how far each of them is. Pure and synchronous."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from p2pdist.protocol import messages
from tracker.preheats import FINAL, Job, NodeProgress, NodeState, PreheatRules, Progress
from tracker.timers import Outbox

KEPT_NODES = 1000  # of a finished job, those that failed first: the rest is a count
ROWS_PER_SECOND = 1000  # nodes of a job whose progress is written down: a large job is written less often


@dataclass(slots=True)
class _Online:
    name: str
    labels: Mapping[str, str]


@dataclass(slots=True)
class _Running:
    job: Job
    progress: Progress
    dirty: bool = True
    written: float = 0.0
    open: set[str] = field(default_factory=set)  # nodes that are to pull and have not ended

    @property
    def wanted(self) -> int:
        return self.job.order.nodes

    def matches(self, online: _Online) -> bool:
        return all(online.labels.get(key) == value for key, value in self.job.order.labels.items())

    @property
    def message(self) -> messages.Preheat:
        order = self.job.order
        return messages.Preheat(self.job.id, order.reference, list(order.platforms), order.keep)


class Jobs:
    """The preheats of one cluster that run. What a method returns is to be sent; `now` never goes back."""

    def __init__(self, rules: PreheatRules, rng: random.Random, now: float) -> None:
        self._rules = rules
        self._rng = rng
        self._began = now
        self._online: dict[str, _Online] = {}
        self._running: dict[str, _Running] = {}
        self._ended: dict[str, Progress] = {}  # not written down yet
        self._stops: dict[str, tuple[float, set[str]]] = {}  # ended jobs: when, and nodes that don't know it yet

    @property
    def running(self) -> int:
        """How many."""
        return len(self._running)

    # --- what is asked for ---

    def define(
        self, now: float, jobs: Mapping[str, Job], known: Mapping[str, Progress], over: Collection[str]
    ) -> Outbox:
        """Take over what is written down: begin, go on with, cancel.

        `known`: progress that another leader, or this one in an earlier life, wrote down; `over`: jobs that are.
        """
        out: Outbox = []
        for one in [one for one in self._running.values() if one.job.id not in jobs]:
            self._end(now, one, "cancelled", out)
        for job in sorted(jobs.values(), key=lambda job: (job.created, job.id)):
            running = self._running.get(job.id)
            if running is None and job.id not in self._ended and job.id not in over:
                progress = known.get(job.id) or Progress()
                running = self._running[job.id] = _Running(job, progress, dirty=job.id not in known)
                self._resume(now, running)
                if not job.cancelled:
                    out += [(node, running.message) for node in map(bytes.fromhex, running.open & self._online.keys())]
                    self._assign(now, running, self._online, out)
            if running is not None and job.cancelled:
                self._end(now, running, "cancelled", out)
        return out

    def _resume(self, now: float, one: _Running) -> None:
        one.progress.nodes = dict(one.progress.nodes)
        for node, state in one.progress.nodes.items():
            if state.state not in FINAL:
                one.open.add(node)
                state.at = now

    def _assign(self, now: float, one: _Running, among: Iterable[str], out: Outbox) -> None:
        """Give it to those of these nodes that should have it."""
        nodes = one.progress.nodes
        able = [node for node in among if one.matches(self._online[node]) and not _counts(nodes.get(node))]
        room = self._rules.max_nodes - len(nodes.keys() - able)
        if one.wanted:
            room = min(room, one.wanted - sum(map(_counts, nodes.values())))
            able = self._rng.sample(able, max(0, min(room, len(able))))
        room = max(0, room)
        one.progress.left_out += len(able[room:])
        for node in able[:room]:
            nodes[node] = NodeProgress(self._online[node].name, at=now)
            one.open.add(node)
            one.dirty = True
            out.append((bytes.fromhex(node), one.message))

    # --- nodes ---

    def connected(self, now: float, node: bytes, name: str, labels: Mapping[str, str]) -> Outbox:
        """A node's session begins: it is told what it has to pull, again if it was told before."""
        out: Outbox = []
        self._online[node.hex()] = _Online(name, labels)
        for number, (_, nodes) in self._stops.items():
            if node.hex() in nodes:
                nodes.discard(node.hex())
                out.append((node, messages.CancelPreheat(number)))
        for one in self._running.values():
            if node.hex() in one.open:
                one.progress.nodes[node.hex()].at = now
                out.append((node, one.message))
            else:
                self._assign(now, one, [node.hex()], out)
        return out

    def disconnected(self, now: float, node: bytes) -> Outbox:
        """A node's session is over; it has a while to come back."""
        self._online.pop(node.hex(), None)
        for one in self._running.values():
            if node.hex() in one.open:
                one.progress.nodes[node.hex()].at = now
        return []

    def heard(self, now: float, node: bytes, message: messages.Preheated) -> Outbox:
        """A node says how far it is."""
        one = self._running.get(message.id)
        if one is None or node.hex() not in one.open:
            return []
        name = one.progress.nodes[node.hex()].name
        one.progress.nodes[node.hex()] = NodeProgress(
            name,
            message.state,
            message.digest,
            message.blobs_done,
            message.blobs,
            message.size_done,
            message.size,
            message.error,
            now,
        )
        one.dirty = True
        if message.state in FINAL:
            one.open.discard(node.hex())
        return []

    # --- time ---

    def tick(self, now: float) -> Outbox:
        """Give up nodes that are gone, fill their places, end what is done; about once a second."""
        out: Outbox = []
        self._stops = {number: stop for number, stop in self._stops.items() if now - stop[0] < self._rules.gone_after}
        for one in list(self._running.values()):
            away = [node for node in one.open if node not in self._online]
            gone = [node for node in away if now - one.progress.nodes[node].at >= self._rules.gone_after]
            for node in gone:
                self._give_up(one, node, "gone", "it has no session with the tracker any more")
            if gone and one.wanted:
                self._assign(now, one, self._online, out)
            if now - one.job.created >= self._rules.time:
                late = set(one.open)
                for node in late:
                    self._give_up(one, node, "failed", f"not done after {self._rules.time:g} s")
                one.open = late  # they are to stop
                self._end(now, one, "failed", out)
            elif self._complete(one) and now - self._began >= self._rules.settle:
                failed = any(node.state != "done" for node in one.progress.nodes.values())
                self._end(now, one, "failed" if failed else "done", out)
        return out

    def _give_up(self, one: _Running, node: str, state: NodeState, why: str) -> None:
        progress = one.progress.nodes[node]
        progress.state, progress.error = state, why
        one.open.discard(node)
        one.dirty = True

    def _complete(self, one: _Running) -> bool:
        nodes = one.progress.nodes
        return bool(nodes) and not one.open and sum(map(_counts, nodes.values())) >= one.wanted

    def _end(self, now: float, one: _Running, state: Literal["done", "failed", "cancelled"], out: Outbox) -> None:
        self._stops[one.job.id] = now, {node for node in one.open if node not in self._online}
        out += [(bytes.fromhex(node), messages.CancelPreheat(one.job.id)) for node in one.open if node in self._online]
        del self._running[one.job.id]
        progress = one.progress
        progress.state, progress.finished, progress.counts = state, now, _count(progress)
        rows = sorted(progress.nodes.items(), key=lambda row: row[1].state == "done")
        progress.nodes = dict(rows[:KEPT_NODES])
        self._ended[one.job.id] = progress

    # --- what is to be written down ---

    def changed(self, now: float) -> dict[str, Progress]:
        """The progress that has changed and is due to be written; `rewrite` what could not be."""
        due, self._ended = self._ended, {}
        for one in self._running.values():
            if one.dirty and now - one.written >= len(one.progress.nodes) / ROWS_PER_SECOND:
                one.dirty, one.written = False, now
                one.progress.counts = _count(one.progress)
                due[one.job.id] = one.progress
        return due

    def rewrite(self, due: Mapping[str, Progress]) -> None:
        """It could not be written: it is due again."""
        for number, progress in due.items():
            one = self._running.get(number)
            if one is not None:
                one.dirty = True
            else:
                self._ended[number] = progress


def _counts(node: NodeProgress | None) -> bool:
    """Whether a node takes one of the places: one that is gone gives its place back."""
    return node is not None and node.state != "gone"


def _count(progress: Progress) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in progress.nodes.values():
        counts[node.state] = counts.get(node.state, 0) + 1
    return counts
