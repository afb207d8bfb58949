"""The tracker's port for Prometheus: metrics for whoever asks, and nothing else."""

from __future__ import annotations

import socket

import aiohttp
import pytest

from p2pdist.errors import OperationError
from tracker.scraping import MetricsServer


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_prometheus_gets_what_is_rendered_now_and_nobody_anything_else() -> None:
    count = iter(range(9))
    port = free_port()
    server = MetricsServer("127.0.0.1", port, lambda: (b"probe %d\n" % next(count), "text/plain; version=0.0.4"))
    async with server, aiohttp.ClientSession() as session:
        for number in range(2):
            async with session.get(f"http://127.0.0.1:{port}/metrics") as answer:
                assert await answer.text() == f"probe {number}\n"
                assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        for method, page in [("GET", "/v1/status"), ("POST", "/v1/enrol"), ("GET", "/"), ("POST", "/metrics")]:
            async with session.request(method, f"http://127.0.0.1:{port}{page}") as answer:
                assert answer.status in {404, 405}


async def test_a_port_that_is_taken_is_said_by_its_option() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OperationError, match="metrics_port"):
            async with MetricsServer("127.0.0.1", taken.getsockname()[1], lambda: (b"", "text/plain")):
                raise AssertionError
