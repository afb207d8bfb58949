"""Real daemons pull real images through the agents of their nodes; the upstream is read about once.

Sizes: layers above 64 KiB travel chunk by chunk, so a layer of 3 MiB is a swarm with dozens of chunks.
"""

from __future__ import annotations

import pytest
from lab.cluster import PROGRAMS, Cluster
from lab.daemons import pull_all
from lab.images import Image, Index, image, index
from lab.process import wait_until
from lab.registry import settle

pytestmark = pytest.mark.system

MIB = 1 << 20
ONCE = 1.10  # copies of a blob that may be called about one
SMALL = 64 * 1024  # bytes; small content is asked for by whoever comes first, some may come at the same moment


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_node_gets_what_a_direct_pull_gets_and_upstream_is_read_once(cluster: Cluster, program: str) -> None:
    what = image(f"layers-{program}", [3 * MIB, 3 * MIB, 2 * MIB, 32 * 1024], compression="gzip")
    repository = cluster.publish(what)
    mark = cluster.registry.mark()

    pull_all([(node.programs[program], repository, "v1") for node in cluster.nodes])

    assert_equal_to_direct(cluster, program, repository)
    assert_read_once(cluster, mark, what)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_multi_arch_index_arrives_on_every_node_as_it_is(cluster: Cluster, program: str) -> None:
    flavour = "docker" if program == "dockerd" else "oci"
    images = [
        image(f"multi-{program}", [2 * MIB, MIB], flavour=flavour, architecture=architecture)
        for architecture in ("amd64", "arm64")
    ]
    what = index(images, flavour=flavour)
    repository = cluster.publish(what)
    mark = cluster.registry.mark()

    pull_all([(node.programs[program], repository, "v1") for node in cluster.nodes])

    assert_equal_to_direct(cluster, program, repository)
    assert_read_once(cluster, mark, what if program == "skopeo" else images[0])  # only skopeo was asked for all


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_agent_killed_midway_costs_the_other_nodes_nothing(cluster: Cluster, program: str) -> None:
    what = image(f"agent-killed-{program}", [6 * MIB, 6 * MIB])
    repository = cluster.publish(what)
    mark = cluster.registry.mark()
    *others, victim = cluster.nodes
    assert victim.agent is not None
    before = victim.received()

    pulls = [node.programs[program].start(repository, "v1") for node in others]
    doomed = victim.programs[program].start(repository, "v1")
    wait_until("the victim to be midway", lambda: victim.received() - before > what.size / 3)
    victim.agent.kill()

    for pull in pulls:
        assert pull.wait(60) == 0, pull.tail()
    status = doomed.wait(60)
    if program in {"dockerd", "containerd"}:
        assert status == 0, f"{program} falls back by itself: {doomed.tail()}"
    victim.agent.restart()
    pull_all([(victim.programs[program], repository, "v1")])  # podman 4.3 and skopeo 1.9 need a second try
    assert_equal_to_direct(cluster, program, repository)
    sent = cluster.registry.blob_bytes(mark, without={cluster.direct.host.address, victim.host.address})
    for layer in what.layers:
        assert sent[layer.digest] <= 1.25 * layer.size, "the others took over what the victim had been reading"


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_tracker_killed_midway_fails_no_pull(cluster: Cluster, program: str) -> None:
    what = image(f"tracker-killed-{program}", [6 * MIB, 6 * MIB])
    repository = cluster.publish(what)
    mark = cluster.registry.mark()
    first = cluster.nodes[0]
    before = first.received()

    pulls = [node.programs[program].start(repository, "v1") for node in cluster.nodes]
    wait_until("the rollout to be midway", lambda: first.received() - before > what.size / 3)
    cluster.tracker.kill()

    for pull in pulls:
        assert pull.wait(60) == 0, pull.tail()
    assert_equal_to_direct(cluster, program, repository)
    sent = cluster.from_upstream(mark)
    for layer in what.layers:
        assert sent[layer.digest] <= 1.5 * layer.size, "the nodes went on sharing without a tracker"


@pytest.mark.parametrize("program", PROGRAMS)
def test_with_the_upstream_gone_the_other_nodes_still_get_it_all_by_tag(cluster: Cluster, program: str) -> None:
    what = image(f"upstream-gone-{program}", [3 * MIB, 2 * MIB, 32 * 1024], compression="gzip")
    repository = cluster.publish(what)
    first, *others = cluster.nodes

    pull_all([(first.programs[program], repository, "v1")])
    cluster.registry.stop()
    pull_all([(node.programs[program], repository, "v1") for node in others])

    cluster.registry.restart()
    assert_equal_to_direct(cluster, program, repository)


@pytest.mark.parametrize("program", PROGRAMS)
def test_with_the_agent_stopped_the_daemon_pulls_by_itself(cluster: Cluster, program: str) -> None:
    what = image(f"agent-stopped-{program}", [MIB, MIB])
    repository = cluster.publish(what)
    node = cluster.nodes[0]
    assert node.agent is not None
    node.agent.stop()
    mark = cluster.registry.mark()

    pull_all([(node.programs[program], repository, "v1")])

    settle(cluster.registry, [layer.digest for layer in what.layers], mark)
    asked = {request.address for request in cluster.registry.requests(mark) if request.blob}
    assert asked == {node.host.address}, "the daemon itself asked the registry"
    node.agent.restart()
    assert node.programs[program].holds(repository, "v1") == direct(cluster, program, repository)


def direct(cluster: Cluster, program: str, repository: str) -> object:
    """What a host without an agent gets from the registry."""
    pull_all([(cluster.direct.programs[program], repository, "v1")])
    return cluster.direct.programs[program].holds(repository, "v1")


def assert_equal_to_direct(cluster: Cluster, program: str, repository: str) -> None:
    wanted = direct(cluster, program, repository)
    for node in cluster.nodes:
        assert node.programs[program].holds(repository, "v1") == wanted, node.host.name


def assert_read_once(cluster: Cluster, mark: int, what: Image | Index) -> None:
    settle(cluster.registry, [blob.digest for blob in what.blobs], mark)
    sent = cluster.from_upstream(mark)
    for blob in what.blobs:
        allowed = ONCE * blob.size if blob.size > SMALL else 2 * blob.size
        assert blob.size <= sent[blob.digest] <= allowed, f"{blob.digest}: {sent[blob.digest]} of {blob.size} bytes"
