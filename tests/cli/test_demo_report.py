"""The demo's verdict: every broken promise is a problem, and the numbers are the ones that were measured."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from p2pdist.cli.demo.image import Blob, DemoImage
from p2pdist.cli.demo.pull import Pull
from p2pdist.cli.demo.report import Report
from p2pdist.cli.demo.rollout import NodeProgress
from p2pdist.oci import Digest

MIB = 1024 * 1024


def blob(name: str, size: int) -> Blob:
    return Blob("x", Digest.of(name.encode()), size)


@pytest.fixture
def image(tmp_path):
    return DemoImage(tmp_path, b"m" * 1024, blob("config", 1024), tuple(blob(f"l{i}", MIB) for i in range(2)))


def node(image, index: int, **changes) -> NodeProgress:
    pull = Pull(f"http://127.0.0.{index}:5050", "demo/rollout", "latest", "registry.demo")
    pull.seconds, pull.proved = 1.0 + index, set(image.digests)
    entry = NodeProgress(f"node-{index}", f"127.0.0.{index}", pull, from_upstream=MIB, from_peers=MIB)
    for name, value in changes.items():
        setattr(entry if hasattr(entry, name) else pull, name, value)
    return entry


def report(image, nodes, *, kill=0, copies=1.0, ended_badly=()) -> Report:
    return Report(image, kill, nodes, {"sha256:0": int(copies * image.size)}, ended_badly)


def test_a_rollout_as_promised_has_no_problem(image):
    assert report(image, [node(image, i) for i in range(3)]).problems == []


def test_json_has_what_scripts_rely_on(image):
    got = json.loads(json.dumps(report(image, [node(image, i) for i in range(3)], copies=1.03).as_json()))
    assert got["nodes"] == 3
    assert got["seconds"] == {"p50": 2.0, "last": 3.0}
    assert got["bytes_from_upstream"] == got["bytes_from_peers"] == 3 * MIB
    assert got["copies_from_upstream"] == pytest.approx(1.03, abs=1e-3)
    assert got["verified"] is True
    assert got["digests_proved"] == 3 * 4
    assert got["problems"] == []


@pytest.mark.parametrize(
    ("kill", "copies", "well"), [(0, 1.05, True), (0, 1.06, False), (1, 1.10, True), (1, 1.11, False)]
)
def test_more_copies_from_upstream_than_promised_are_a_problem(image, kill, copies, well):
    nodes = [node(image, i) for i in range(3)]
    for victim in nodes[3 - kill :]:
        victim.killed = True
    assert (report(image, nodes, kill=kill, copies=copies - 1e-6).problems == []) is well


def test_a_failed_node_is_a_problem_with_its_reason(image):
    nodes = [node(image, 0), node(image, 1, error="the mirror answers 404", seconds=None)]
    failed = report(image, nodes)
    assert failed.problems == ["node-1: the mirror answers 404"]
    assert failed.as_json()["seconds"]["last"] is None, "the last one never finished"


def test_an_image_with_other_digests_is_a_problem_even_if_the_node_is_content(image):
    other = {Digest.of(b"other"), *image.digests} - {image.config.digest}
    bad = report(image, [node(image, 0), node(image, 1, proved=other)])
    assert bad.problems and bad.as_json()["verified"] is False


def test_one_more_digest_than_the_image_has_is_not_the_image(image):
    assert report(image, [node(image, 0, proved={Digest.of(b"more"), *image.digests})]).problems


def test_a_killed_node_need_not_finish(image):
    nodes = [node(image, 0), node(image, 1, killed=True, seconds=None, error="cut", proved=set())]
    good = report(image, nodes, kill=1)
    assert good.problems == []
    assert good.as_json()["killed"] == 1 and good.as_json()["verified"] is True


def test_a_kill_that_came_too_late_is_a_problem_not_a_success(image):
    assert "0 of 1" in report(image, [node(image, 0), node(image, 1)], kill=1).problems[0]


def test_a_process_that_did_not_end_well_is_a_problem(image):
    assert report(image, [node(image, 0)], ended_badly=["node-0 ended with status -9"]).problems


def test_nothing_left_alive_is_not_verified(image):
    assert report(image, [node(image, 0, killed=True)], kill=1).as_json()["verified"] is False


def test_the_text_names_every_node_and_every_problem(image):
    console = Console(width=120, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(report(image, [node(image, 0), node(image, 1, error="cut", seconds=None)], copies=2).as_text())
    text = console.export_text()
    for wanted in (
        "node-0",
        "1.00",
        "4/4",
        "failed",
        "node-1: cut",
        "2.00 copies",
        "at most 1.05",
        "without p2pdist: 2",
    ):
        assert wanted in text
