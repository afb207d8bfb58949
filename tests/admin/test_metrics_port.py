"""The metrics' own port gives metrics, whoever asks, and nothing else of the agent."""

from __future__ import annotations

import socket

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Counter

from p2pdist.admin import MetricsServer
from p2pdist.errors import OperationError


async def test_prometheus_gets_the_metrics_and_nobody_anything_else() -> None:
    registry = CollectorRegistry()
    Counter("p2pdist_probe", "a probe", registry=registry).inc(3)
    async with MetricsServer("127.0.0.1", 0, registry) as server, aiohttp.ClientSession() as session:
        base = f"http://127.0.0.1:{server.port}"
        async with session.get(f"{base}/metrics") as answer:
            assert "p2pdist_probe_total 3.0" in await answer.text()
        for method, page in [("GET", "/status"), ("POST", "/import"), ("GET", "/"), ("POST", "/metrics")]:
            async with session.request(method, f"{base}{page}") as answer:
                assert answer.status in {404, 405}


async def test_a_port_that_is_taken_is_said_by_its_option() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OperationError, match=r"admin\.metrics_port"):
            async with MetricsServer("127.0.0.1", taken.getsockname()[1], CollectorRegistry()):
                raise AssertionError
