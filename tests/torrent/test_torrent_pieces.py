"""The traps of libtorrent: dials that come too early, pieces that are not on disk yet, and loops that must not wait."""

from __future__ import annotations

import ast
import asyncio
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from engines.engine_networks import TorrentOnLoopback
from support.swarmlab import Lab, until
from torrent.torrent_lab import live_of, raw_peer, run_case

import p2pdist.torrent
from p2pdist.torrent.engine import TorrentEngine
from p2pdist.torrent.session import Session

CHUNK = 64 * 1024
DATA = random.Random(5).randbytes(12 * CHUNK + 5)
COUNT = 13
SOURCES = sorted(Path(p2pdist.torrent.__path__[0]).glob("*.py"))


def test_a_dial_that_comes_before_the_torrent_is_there_is_tried_again(tmp_path: Path) -> None:
    async def case(lab: Lab, network: TorrentOnLoopback) -> None:
        late, template = await lab.node("late"), await lab.node("template")
        wanted = await lab.fetch(template, DATA, CHUNK)
        async with AsyncExitStack() as stack:
            early = await raw_peer(stack, tmp_path, wanted, DATA)
            early.dial(late)
            await asyncio.sleep(1.5)  # refused at least once by now: the node knows no such torrent
            exchange = await lab.fetch(late, DATA, CHUNK)
            await until(lambda: live_of(late).arrived == exchange.full, seconds=20.0)

    run_case(tmp_path, case)


def test_no_piece_is_proved_before_the_flush_barrier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[tuple[Session, bytes]] = []
    flush = Session.flush
    monkeypatch.setattr(Session, "flush", lambda session, key: held.append((session, key)))

    async def case(lab: Lab, network: TorrentOnLoopback) -> None:
        seed, late = await lab.node("seed"), await lab.node("late")
        await lab.seed(seed, DATA, CHUNK)
        exchange = await lab.fetch(late, DATA, CHUNK)
        late.engine.link([seed.info])
        # libtorrent itself passes a barrier when it has all: that one is as good, but may come before the last pieces
        await until(lambda: live_of(late).arrived == exchange.full)
        assert held
        unproved = [k for k in live_of(late).came if exchange.have >> k & 1]
        assert not unproved
        monkeypatch.setattr(Session, "flush", flush)
        for session, key in held:
            session.flush(key)
        await until(lambda: exchange.whole)
        await exchange.commit(late.store)
        assert exchange.read(0, len(DATA)) == DATA

    run_case(tmp_path, case)


def test_a_piece_that_is_not_in_the_file_yet_is_looked_at_again_and_nobody_is_blamed(tmp_path: Path) -> None:
    async def case(lab: Lab, network: TorrentOnLoopback) -> None:
        seed, late = await lab.node("seed"), await lab.node("late")
        exchange = await lab.fetch(late, DATA, CHUNK)
        await lab.seed(seed, DATA, CHUNK)
        await until(lambda: live_of(late).current is not None)
        live, engine = live_of(late), late.engine
        assert isinstance(engine, TorrentEngine)
        live.mappable = False
        live.arrived |= 1 << 2
        live.came.add(2)  # as if libtorrent had said so, and its barrier came too early
        live.flushing, live.came = live.came, set()
        live.needs[2] = {seed.attestor.node: 0.0}
        live.proofs[2] = {seed.attestor.node: (seed.exchange.attestation(2) if seed.exchange else None) or b""}
        live.flush_over(0.0)
        engine.flushed(live)
        await until(lambda: 2 in live.doubtful)
        assert not engine.stats.refused and not exchange.have

    run_case(tmp_path, case)


def test_a_given_piece_of_which_a_peer_sent_the_last_block_does_not_end_the_process() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    program = [sys.executable, str(Path(__file__).with_name("half_piece.py"))]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert (done.returncode, done.stdout) == (0, "whole\n"), done.stderr


def test_a_node_that_stores_the_blob_at_once_still_answers_for_its_last_chunk(tmp_path: Path) -> None:
    async def case(lab: Lab, network: TorrentOnLoopback) -> None:
        first, second = await lab.node("first"), await lab.node("second")
        exchange, other = await lab.fetch(first, DATA, CHUNK), await lab.fetch(second, DATA, CHUNK)
        lab.link_all()
        for index in range(COUNT - 1):
            lab.give(first, DATA, index)
        await until(lambda: other.have.bit_count() == COUNT - 1)
        await until(lambda: live_of(first).current is not None)
        live_of(first).flushed_at = asyncio.get_running_loop().time() + 1.0  # its barrier is not due for a while
        lab.give(first, DATA, COUNT - 1)
        await exchange.commit(first.store)
        await until(lambda: other.whole, seconds=10.0)

    run_case(tmp_path, case)


def test_the_loop_is_not_kept_busy_for_50_ms_while_data_moves(tmp_path: Path) -> None:
    size, chunk = 48 * 1024 * 1024, 256 * 1024
    data = random.Random(6).randbytes(size)
    busy: list[float] = []

    async def probe() -> None:
        """CPU time of the loop's thread between two turns: what others on this machine take does not count."""
        while True:
            began = time.thread_time()
            await asyncio.sleep(0.002)
            busy.append(time.thread_time() - began)

    async def case(lab: Lab, network: TorrentOnLoopback) -> None:
        nodes = [await lab.node(name) for name in ("seed", "one", "two")]
        await lab.seed(nodes[0], data, chunk)
        exchanges = [await lab.fetch(node, data, chunk) for node in nodes[1:]]
        async with asyncio.TaskGroup() as tasks:
            probing = tasks.create_task(probe())
            lab.link_all()
            await until(lambda: all(exchange.whole for exchange in exchanges))
            probing.cancel()

    run_case(tmp_path, case)
    assert max(busy) < 0.05
    assert statistics.median(busy) < 0.01


def test_stopping_while_data_moves_leaves_no_thread_and_no_descriptor(tmp_path: Path) -> None:
    data = random.Random(7).randbytes(8 * 1024 * 1024)

    def open_files() -> set[str]:
        return {str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}

    async def case(lab: Lab, network: TorrentOnLoopback) -> None:
        one, two = await lab.node("one"), await lab.node("two")
        await lab.seed(one, data, CHUNK)
        exchange = await lab.fetch(two, data, CHUNK)
        lab.link_all()
        await until(lambda: bool(exchange.have), step=0.001)
        await two.engine.stop()
        assert not [name for name in open_files() if "torrent-two" in name]
        assert not network.sockets("two")

    threads = threading.active_count()
    run_case(tmp_path, case)
    assert threading.active_count() <= threads
    assert not [name for name in open_files() if str(tmp_path) in name]


def test_no_call_that_waits_for_libtorrent_is_made_on_the_loop() -> None:
    """These were seen to block for up to 118 ms; what is left of them runs in a thread (`making.make_session`)."""
    waiting = {
        "status", "get_peer_info", "have_piece", "add_torrent", "is_valid", "get_torrents", "torrent_file", "is_paused",
        "get_torrent_status", "listen_port", "get_settings", "get_download_queue", "file_progress", "find_torrent",
        "wait_for_alert", "create_peer_class", "get_peer_class", "set_peer_class",
    }  # fmt: skip
    found = []
    for path in SOURCES:
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                found += [
                    f"{path.name}:{node.lineno} {node.func.attr}"
                    for node in ast.walk(function)
                    if isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and node.func.attr in waiting
                    and path.name == "session.py"
                ]
    assert not found


def test_nothing_of_libtorrent_leaks_out_of_the_room() -> None:
    allowed = {"session.py", "making.py", "settings.py", "download.py"}
    for path in Path(p2pdist.__path__[0]).rglob("*.py"):
        imports = [
            name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in [*(alias.name for alias in node.names), getattr(node, "module", "") or ""]
        ]
        if "libtorrent" in {name.split(".")[0] for name in imports}:
            assert path in SOURCES and path.name in allowed, path


def test_no_piece_is_given_to_a_torrent_once_it_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """libtorrent 2.1.1 writes it to a storage that is gone, and dies."""
    events: list[str] = []
    add, remover, injector = Session.add, Session.remover, Session.injector

    def seen_add(self: Session, *arguments: Any, **options: Any) -> None:
        events.append("add")
        add(self, *arguments, **options)

    def seen_remover(self: Session, key: bytes) -> Callable[[], None]:
        remove = remover(self, key)
        return lambda: (events.append("remove"), remove())[0]

    def slow_injector(self: Session, key: bytes) -> Callable[[int, bytes], None] | None:
        inject = injector(self, key)

        def give(index: int, data: bytes) -> None:
            events.append("give")
            time.sleep(0.005)
            assert inject is not None
            inject(index, data)

        return give if inject is not None else None

    monkeypatch.setattr(Session, "add", seen_add)
    monkeypatch.setattr(Session, "remover", seen_remover)
    monkeypatch.setattr(Session, "injector", slow_injector)

    async def case(lab: Lab, network: TorrentOnLoopback) -> None:
        one = await lab.node("one")
        exchange = await lab.fetch(one, DATA, CHUNK)
        await until(lambda: live_of(one).current is not None)
        for index in range(COUNT):
            lab.give(one, DATA, index)
            if index in (3, 7, 11):
                await asyncio.sleep(0.005)  # some of the four are given by now, some are not
                one.engine.remove(exchange)
                one.engine.add(exchange)
                await until(lambda: live_of(one).current is not None)
        await until(lambda: live_of(one).sound == exchange.full)

    run_case(tmp_path, case)
    assert events.count("remove") == 3 and "give" in events
    loaded = False
    for event in events:
        assert event != "give" or loaded
        loaded = event == "add" or (loaded and event != "remove")
