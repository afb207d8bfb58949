"""Which nodes a preheat is given to, what becomes of it when nodes and leaders come and go. Pure."""

from __future__ import annotations

import random
from typing import Any

import pytest

from p2pdist.errors import InputError
from p2pdist.protocol import messages as wire
from tracker.jobs import Jobs
from tracker.preheats import Job, Order, PreheatRules, Progress, checked_reference, outdated

IMAGE = "docker.io/library/app:1"


def node(number: int) -> bytes:
    return number.to_bytes(32, "big")


class Cluster:
    """Jobs with a clock, and what their messages leave each node with."""

    def __init__(self, **rules: Any) -> None:
        self.rules = PreheatRules(**{"settle": 0.0, **rules})
        self.now = 1000.0
        self.jobs = Jobs(self.rules, random.Random(7), self.now)
        self.defined: dict[str, Job] = {}
        self.told: list[tuple[int, Any]] = []
        self.progress: dict[str, Progress] = {}

    def do(self, out: list[tuple[bytes, Any]]) -> list[tuple[int, Any]]:
        said = [(int.from_bytes(to, "big"), message) for to, message in out]
        self.told += said
        self.progress.update(self.jobs.changed(self.now))
        return said

    def order(self, number: str = "j1", **order: Any) -> list[tuple[int, Any]]:
        self.defined[number] = Job(number, Order(IMAGE, **order), self.now)
        return self.define()

    def define(self) -> list[tuple[int, Any]]:
        over = {key for key, one in self.progress.items() if one.state != "running"}
        return self.do(self.jobs.define(self.now, self.defined, {}, over))

    def cancel(self, number: str) -> list[tuple[int, Any]]:
        job = self.defined[number]
        self.defined[number] = Job(job.id, job.order, job.created, cancelled=self.now)
        return self.define()

    def connect(self, *numbers: int, **labels: str) -> list[tuple[int, Any]]:
        said = []
        for number in numbers:
            said += self.do(self.jobs.connected(self.now, node(number), f"n{number}", labels))
        return said

    def disconnect(self, number: int) -> None:
        self.do(self.jobs.disconnected(self.now, node(number)))

    def say(self, number: int, state: Any, job: str = "j1", **more: Any) -> None:
        self.do(self.jobs.heard(self.now, node(number), wire.Preheated(job, state, **more)))

    def later(self, seconds: float) -> list[tuple[int, Any]]:
        self.now += seconds
        return self.do(self.jobs.tick(self.now))

    def another_leader(self) -> None:
        """All that is left is what was written down."""
        self.later(100.0)
        self.jobs = Jobs(self.rules, random.Random(8), self.now)
        over = {key for key, one in self.progress.items() if one.state != "running"}
        known = {key: one for key, one in self.progress.items() if key not in over}
        self.do(self.jobs.define(self.now, self.defined, known, over))


def asked(said: list[tuple[int, Any]]) -> list[int]:
    return sorted(number for number, message in said if isinstance(message, wire.Preheat))


def cancelled(said: list[tuple[int, Any]]) -> list[int]:
    return sorted(number for number, message in said if isinstance(message, wire.CancelPreheat))


def test_every_node_gets_it_and_the_job_is_done_when_they_are() -> None:
    cluster = Cluster()
    cluster.connect(1, 2, 3)
    assert asked(cluster.order()) == [1, 2, 3]
    for number in (1, 2):
        cluster.say(number, "done", size_done=5, size=5)
    cluster.later(1.0)
    assert cluster.progress["j1"].state == "running"
    assert cluster.progress["j1"].counts == {"done": 2, "waiting": 1}
    cluster.say(3, "done")
    cluster.later(1.0)
    assert cluster.progress["j1"].state == "done"
    assert cluster.progress["j1"].nodes[node(1).hex()].size_done == 5


def test_labels_choose_and_a_number_of_nodes_is_a_choice_among_them() -> None:
    cluster = Cluster()
    cluster.connect(1, 2, 3, zone="a", rack="1")
    cluster.connect(4, 5, zone="b")
    assert asked(cluster.order("j1", labels={"zone": "a"})) == [1, 2, 3]
    chosen = asked(cluster.order("j2", labels={"zone": "a"}, nodes=2))
    assert len(chosen) == 2 and set(chosen) < {1, 2, 3}
    assert asked(cluster.order("j3", labels={"zone": "c"})) == []


def test_a_node_that_comes_later_gets_it_as_long_as_the_job_runs() -> None:
    cluster = Cluster()
    cluster.connect(1)
    cluster.order()
    assert asked(cluster.connect(2)) == [2]
    cluster.say(1, "done")
    cluster.say(2, "done")
    cluster.later(1.0)
    assert asked(cluster.connect(3)) == []


def test_a_node_that_restarts_gets_it_again_and_one_that_is_done_does_not() -> None:
    cluster = Cluster()
    cluster.connect(1, 2)
    cluster.order()
    cluster.say(2, "done")
    for number in (1, 2):
        cluster.disconnect(number)
    cluster.later(10.0)
    assert asked(cluster.connect(1, 2)) == [1]


def test_a_node_that_stays_away_is_given_up_and_its_place_goes_to_another() -> None:
    cluster = Cluster(gone_after=60.0)
    cluster.connect(1, 2, 3)
    (first,) = asked(cluster.order(nodes=1))
    cluster.disconnect(first)
    assert asked(cluster.later(59.0)) == []
    (second,) = asked(cluster.later(2.0))
    assert second != first
    cluster.say(second, "done")
    cluster.later(1.0)
    assert cluster.progress["j1"].state == "failed"
    assert cluster.progress["j1"].counts == {"gone": 1, "done": 1}


def test_a_place_that_no_node_takes_is_waited_for() -> None:
    cluster = Cluster()
    cluster.connect(1)
    cluster.order(nodes=2)
    cluster.say(1, "done")
    cluster.later(5.0)
    assert cluster.progress["j1"].state == "running"
    assert asked(cluster.connect(2)) == [2]


def test_one_node_that_fails_fails_the_job_and_says_why() -> None:
    cluster = Cluster()
    cluster.connect(1, 2)
    cluster.order()
    cluster.say(1, "failed", error="DENIED: unsigned")
    cluster.say(2, "done")
    cluster.later(1.0)
    assert cluster.progress["j1"].state == "failed"
    assert cluster.progress["j1"].nodes[node(1).hex()].error == "DENIED: unsigned"


def test_a_cancelled_job_stops_the_nodes_that_are_not_done() -> None:
    cluster = Cluster()
    cluster.connect(1, 2)
    cluster.order()
    cluster.say(1, "done")
    assert cancelled(cluster.cancel("j1")) == [2]
    assert cluster.progress["j1"].state == "cancelled"
    assert asked(cluster.connect(3)) == []
    assert asked(cluster.define()) == []


def test_a_node_that_was_away_when_the_job_was_cancelled_is_told_when_it_comes_back() -> None:
    cluster = Cluster()
    cluster.connect(1, 2)
    cluster.order()
    cluster.disconnect(2)
    assert cancelled(cluster.cancel("j1")) == [1]
    assert cancelled(cluster.connect(2)) == [2]
    cluster.disconnect(2)
    assert cancelled(cluster.connect(2)) == []


def test_another_leader_cancels_what_was_cancelled_while_nobody_led() -> None:
    cluster = Cluster()
    cluster.connect(1, 2)
    cluster.order()
    cluster.say(1, "done")
    job = cluster.defined["j1"]
    cluster.defined["j1"] = Job(job.id, job.order, job.created, cancelled=cluster.now)
    cluster.another_leader()
    said = cluster.connect(1, 2)
    assert (cancelled(said), asked(said)) == ([2], [])
    assert cluster.progress["j1"].state == "cancelled"


def test_what_is_said_late_or_by_others_changes_nothing() -> None:
    cluster = Cluster()
    cluster.connect(1)
    cluster.order()
    cluster.connect(2, zone="a")
    cluster.say(9, "done")
    cluster.say(1, "done", job="other")
    cluster.say(1, "done")
    cluster.say(1, "failed")
    cluster.say(2, "done")
    cluster.later(1.0)
    assert cluster.progress["j1"].state == "done"


def test_another_leader_goes_on_where_the_first_was() -> None:
    cluster = Cluster()
    cluster.connect(1, 2, 3)
    cluster.order()
    cluster.say(1, "done")
    cluster.another_leader()
    assert asked(cluster.connect(1, 2)) == [2]
    cluster.say(2, "done")
    cluster.later(1.0)
    assert cluster.progress["j1"].state == "running"
    assert asked(cluster.connect(3)) == [3]
    cluster.say(3, "done")
    cluster.later(1.0)
    assert cluster.progress["j1"].counts == {"done": 3}


def test_right_after_a_start_no_job_is_done_because_few_have_come_back() -> None:
    cluster = Cluster(settle=10.0)
    cluster.connect(1)
    cluster.order()
    cluster.say(1, "done")
    cluster.later(9.0)
    assert cluster.progress["j1"].state == "running"
    assert asked(cluster.connect(2)) == [2]


def test_a_job_does_not_run_for_ever() -> None:
    cluster = Cluster(time=100.0)
    cluster.connect(1)
    cluster.order()
    assert cancelled(cluster.later(100.0)) == [1]
    assert cluster.progress["j1"].state == "failed"
    assert "not done" in cluster.progress["j1"].nodes[node(1).hex()].error


def test_nodes_over_the_limit_are_left_out_and_counted() -> None:
    cluster = Cluster(max_nodes=3)
    cluster.connect(*range(1, 6))
    assert len(asked(cluster.order())) == 3
    assert cluster.progress["j1"].left_out == 2


def test_a_large_finished_job_keeps_the_nodes_that_failed() -> None:
    cluster = Cluster()
    cluster.connect(*range(1, 1102))
    cluster.order()
    for number in range(1, 1101):
        cluster.say(number, "done")
    cluster.say(1101, "failed", error="why")
    cluster.later(1.0)
    progress = cluster.progress["j1"]
    assert progress.counts == {"done": 1100, "failed": 1}
    assert len(progress.nodes) == 1000
    assert progress.nodes[node(1101).hex()].error == "why"


def test_progress_that_could_not_be_written_is_due_again() -> None:
    cluster = Cluster()
    cluster.connect(1)
    cluster.order()
    cluster.jobs.heard(cluster.now, node(1), wire.Preheated("j1", "done"))
    cluster.jobs.tick(cluster.now)
    due = cluster.jobs.changed(cluster.now)
    assert due["j1"].state == "done" and cluster.jobs.changed(cluster.now) == {}
    cluster.jobs.rewrite(due)
    assert cluster.jobs.changed(cluster.now)["j1"].state == "done"


def test_old_jobs_are_forgotten_and_so_are_too_many() -> None:
    rules = PreheatRules(history=2, history_time=100.0)
    assert outdated(rules, 1000.0, {"a": 999.0, "b": 998.0, "c": 997.0}) == ["c"]
    assert outdated(rules, 1000.0, {"a": 999.0, "b": 900.0}) == ["b"]


@pytest.mark.parametrize(
    "text",
    ["user:hunter2@host/app:1", "https://host/hunter2", "hunter2@shady.io/app", "hunter2 x", "a:hunter2@b@sha256:1"],
)
def test_a_reference_with_a_password_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(InputError) as caught:
        checked_reference(text)
    assert "hunter2" not in str(caught.value) and caught.value.__cause__ is None


def test_an_order_is_written_out() -> None:
    assert Order("nginx", platforms=["linux/arm/v7"]).checked().reference == "docker.io/library/nginx:latest"
    with pytest.raises(InputError, match="platform"):
        Order("nginx", platforms=["Linux"]).checked()
