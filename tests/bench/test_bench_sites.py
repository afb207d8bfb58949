"""Two sites in the laboratory: what crosses the link between them, its rate and delay, and the other traffic on it."""

from __future__ import annotations

import json
import math
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rollout
from lab.lab import Lab
from lab.sites import SITE_TWO, Arrived, OtherFlow, SiteLink
from rollout_sites import Sites, trunk

LINE = 20e6 / 8  # bytes per second of the link


def run(*arguments: str) -> dict[str, object]:
    argv = [sys.executable, str(Path(rollout.__file__)), "--json", "--nice", "0", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stderr + done.stdout[-2000:]
    return dict(json.loads(done.stdout))


def flow_at(rate_alone: float, rate_beside: float, stop: float) -> Arrived:
    """A flow that begins 4 s before the transfer, with the given rates in bytes per second."""
    points = [(0.1 * n, min(0.1 * n, 0.0) * rate_alone + max(0.1 * n, 0.0) * rate_beside) for n in range(-40, 1000)]
    base = -4.0 * rate_alone
    return Arrived(tuple((second, round(count - base)) for second, count in points if second <= stop))


def test_shares_of_the_link_are_those_of_the_time_in_which_both_run_and_of_the_time_after() -> None:
    arrived = flow_at(0.9 * LINE, 0.7 * LINE, 10.0)

    def crossed_at(second: float) -> int:
        mine = min(second, 10.0) * 0.2 * LINE + max(0.0, min(second, 14.0) - 10.0) * 0.95 * LINE
        return round(mine + arrived.between(0.0, second) * 1514 / 1448)

    crossed = [(0.2 * n, crossed_at(0.2 * n)) for n in range(100)]
    size = 4 * 0.95 * LINE + 10 * 0.2 * LINE
    found = trunk(Sites(6, 6, other_flow=10.0), round(size), crossed, 5, arrived.between)
    assert found.copies == pytest.approx(1.0, abs=0.01)
    assert found.flow_alone == pytest.approx(0.9, abs=0.01)
    assert found.flow_while == pytest.approx(0.7, abs=0.01)
    assert found.transfer_after == pytest.approx(0.95, abs=0.02)


def test_without_other_traffic_everything_that_crossed_is_the_transfers() -> None:
    assert trunk(Sites(6, 6), 100, [(0.0, 0), (1.0, 110)], 7).copies == pytest.approx(1.1)


def test_nodes_behind_the_link_are_measured_against_its_rate_and_have_labels_of_their_own() -> None:
    chosen = rollout._settings(rollout._parser().parse_args(["--sites", "2+3", "--link-rate", "10", "--size", "10"]))
    assert chosen.nodes == 5
    bits = 10 * 8 * (1 << 20) / 1e6
    assert chosen.limits[1] == chosen.limits[2] == pytest.approx(bits / 50)
    assert chosen.limits[3] == chosen.limits[5] == pytest.approx(bits / 10)
    assert chosen.links[2].trunk == math.inf
    labels = [chosen.tables(number)["node"]["labels"][0] for number in (2, 3)]
    assert labels == ["zone=one", "zone=two"]


def test_gateways_are_two_of_each_site_and_the_second_site_is_far_from_upstream() -> None:
    chosen = rollout._settings(rollout._parser().parse_args(["--sites", "3+4", "--engine", "gateways"]))
    tables = {number: chosen.tables(number) for number in range(1, 8)}
    assert [number for number, one in tables.items() if one["site"]["gateway"]] == [1, 2, 4, 5]
    assert [number for number, one in tables.items() if one["site"]["far_from_upstream"]] == [4, 5, 6, 7]
    assert {one["peer"]["engine"] for one in tables.values()} == {"mesh"}


@pytest.mark.parametrize("wrong", [["--sites", "6"], ["--sites", "0+3"], ["--other-flow"], ["--engine", "gateways"]])
def test_sites_that_cannot_be_are_refused(wrong: list[str]) -> None:
    with pytest.raises(ValueError, match="--sites"):
        rollout._settings(rollout._parser().parse_args(wrong))


@pytest.mark.system
def test_the_link_has_its_delay_and_its_rate_and_counts_what_crosses_it(tmp_path: Path) -> None:
    with Lab(tmp_path) as lab:
        link = SiteLink(lab, rate=40, delay=30)
        here, there = lab.host("here"), lab.host("there", bridge=SITE_TWO)

        def answer() -> float:
            start = time.monotonic()
            with socket.socket() as one:
                one.settimeout(10)
                assert one.connect_ex((there.address, 81)) != 0  # nobody listens: the refusal has crossed twice
            return time.monotonic() - start

        here.call(answer)  # finds the address
        assert 0.06 <= min(here.call(answer) for _ in range(3)) < 0.4
        start = time.time()
        before = link.crossed()
        flow = OtherFlow(lab, until=start + 2.0)
        flow.wait()
        elapsed = time.time() - start
        payload = flow.arrived().points[-1][1]
        sent, back = (now - then for now, then in zip(link.crossed(), before, strict=True))
        assert payload < sent < 1.3 * payload
        assert 0 < back < 0.3 * sent
        assert 0.1 * 5e6 * elapsed < payload < 1.05 * 5e6 * elapsed


@pytest.mark.system
def test_real_agents_in_two_sites_bring_an_image_over_the_link_about_once_also_when_its_gateway_dies() -> None:
    row = run("--sites", "2+3", "--size", "4", "--engine", "gateways", "--kill", "3@90%")
    assert row["verified"] is True and not row["errors"]
    assert [node["seconds"] is None for node in row["runs"][0]["nodes"]] == [False, False, True, False, False]
    assert row["link_copies"] <= 1.6  # at most what its gateway had got and not passed on crosses again
    assert row["egress_log_ratio"] <= 1.3
