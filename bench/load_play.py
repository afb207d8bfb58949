"""One process of the load driver: its agents' sessions, their pings, and the rollouts they play when told to."""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, MutableSequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop
from load_agents import Agent, Image, Rollout, Watch

from p2pdist.pki import Authority, Role, TlsCredentials

PROBE = 0.05  # seconds between the pings of the agent that measures the tracker's lag
LOOK = 0.02  # seconds between two looks at what the other processes have read
PATIENCE = 60.0  # seconds for one session to open
OPENING = 64  # sessions being opened at once: what a fleet does that comes back with jitter


@dataclass(frozen=True)
class Plan:
    """What a process plays. Times in seconds."""

    process: int
    processes: int
    agents: int
    urls: tuple[str, ...]
    authority: Path | None  # of the tracker: with TLS every agent has a certificate of its own
    layers: int
    chunks: int
    rollouts: int
    half_seconds: float
    lag: float
    rate: float  # starts per second in this process; 0: all at once
    seed: str


class Player:
    """All agents of one process."""

    def __init__(self, plan: Plan, shared: MutableSequence[int]) -> None:
        self._plan = plan
        self._shared = shared
        self._watch = Watch([], [], [], Counter(), Counter())
        self._rng = random.Random(f"{plan.seed} {plan.process}")
        self._agents: list[Agent] = []
        self._left = 0
        self._finished = asyncio.Event()
        self._timeout = 0.0
        self._loop = asyncio.get_running_loop()

    # --- sessions ---

    async def connect(self) -> None:
        """Open every agent's session."""
        gate = asyncio.Semaphore(OPENING)
        authority = Authority.load(self._plan.authority) if self._plan.authority else None

        async def open_one(number: int) -> None:
            async with gate:
                agent = Agent(number, self._watch, self._rng, self._agent_done)
                self._agents.append(agent)
                url = urlsplit(self._plan.urls[number % len(self._plan.urls)])
                context = _context(authority, agent) if authority is not None else None
                name = Role.TRACKER.host if context is not None else None
                async with asyncio.timeout(PATIENCE):
                    await self._loop.create_connection(
                        lambda: agent.socket, url.hostname, url.port, ssl=context, server_hostname=name
                    )
                    self._timeout = await agent.welcomed

        async with asyncio.TaskGroup() as tasks:
            for number in range(self._plan.agents):
                tasks.create_task(open_one(number))

    async def keep_alive(self) -> None:
        """Every agent pings every third of the session's timeout, one after the other."""
        while not self._timeout:
            await asyncio.sleep(0.1)
        while True:
            begun = self._loop.time()
            for place in range(20):
                for agent in self._agents[place::20]:
                    if agent.welcomed.done() and not agent.lost:
                        agent.ping()
                await asyncio.sleep(max(0.0, begun + (place + 1) * self._timeout / 60 - self._loop.time()))

    async def probe(self) -> None:
        """How long the tracker takes for the smallest question, and how late this process itself is."""
        while True:
            due = time.perf_counter() + PROBE
            if self._agents and self._agents[0].welcomed.done():
                self._agents[0].ping()
            await asyncio.sleep(PROBE)
            self._watch.driver_lag = max(self._watch.driver_lag, time.perf_counter() - due)

    # --- a rollout ---

    async def roll_out(self, number: int) -> None:
        """All agents pull one image; returns when each has it."""
        plan = self._plan
        width = plan.layers * plan.processes
        base = number * width + plan.process * plan.layers
        share = memoryview(self._shared).cast("B").cast("i")[base : base + plan.layers]  # type: ignore[arg-type]
        rollout = Rollout(Image(number, plan.layers, plan.chunks, plan.seed), share, plan.half_seconds, plan.lag)
        self._left = len(self._agents)
        self._finished.clear()
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(self._watch_layers(rollout, number * width))
            for agent in self._agents:
                agent.start(rollout)
                if plan.rate:
                    await asyncio.sleep(self._rng.expovariate(plan.rate))
            while not self._finished.is_set():
                lost = next((agent.lost for agent in self._agents if agent.lost), "")
                if lost:
                    raise ConnectionError(f"an agent's session was lost: {lost}")
                await asyncio.wait([tasks.create_task(self._finished.wait())], timeout=1.0)
            watching.cancel()

    async def _watch_layers(self, rollout: Rollout, base: int) -> None:
        plan = self._plan
        waiting = set(range(plan.layers))
        while waiting:
            for layer in sorted(waiting):
                read = sum(self._shared[base + process * plan.layers + layer] for process in range(plan.processes))
                if read >= plan.chunks:
                    waiting.discard(layer)
                    rollout.whole.add(rollout.digests[layer])
                    for agent in self._agents:
                        agent.layer_whole(rollout.digests[layer])
            await asyncio.sleep(LOOK)

    def _agent_done(self, agent: Agent) -> None:
        self._left -= 1
        if not self._left:
            self._finished.set()

    def take_watch(self) -> dict[str, Any]:
        """What was seen since the last time."""
        taken = dict(vars(self._watch))
        watch = self._watch
        watch.joins, watch.asks, watch.pings = [], [], []
        watch.sent, watch.received = Counter(), Counter()
        watch.frames, watch.driver_lag = 0, 0.0
        return taken


def _context(authority: Authority, agent: Agent) -> ssl.SSLContext:
    credentials = TlsCredentials()
    certificate = authority.issue(agent.key.public_key(), Role.NODE, {}, time.time(), 86_400)
    credentials.use(certificate, agent.key, authority.pem)
    return credentials.client


def play(plan: Plan, shared: MutableSequence[int], pipe: Connection) -> None:
    """The process: does what it is told by `pipe` (`connect`, a rollout's number, `idle`, `end`) and answers each."""
    uvloop.run(_play(plan, shared, pipe))


async def _play(plan: Plan, shared: MutableSequence[int], pipe: Connection) -> None:
    loop = asyncio.get_running_loop()
    player = Player(plan, shared)

    async def answer(work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
            pipe.send(player.take_watch())
        except* (OSError, TimeoutError) as group:
            pipe.send(str(group.exceptions[0]))

    async with asyncio.TaskGroup() as tasks:
        background = []
        while (order := await loop.run_in_executor(None, pipe.recv)) != "end":
            if order == "connect":
                background = [tasks.create_task(player.keep_alive()), tasks.create_task(player.probe())]
                await answer(player.connect)
            elif order == "idle":
                pipe.send(player.take_watch())
            else:
                await answer(lambda number=order: player.roll_out(number))
        for task in background:
            task.cancel()
