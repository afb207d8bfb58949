"""Preheats as operators order them, on real agents and a real tracker with a fake registry upstream."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest
from preheat_kit import Operator, until_async
from support.fleet import Fleet, Node, until
from support.registry import BasicAuth, FakeRegistry, Hold, Image, Status, noise

from p2pdist.config import NodeConfig, TrustConfig, UpstreamConfig
from p2pdist.oci import Digest
from p2pdist.pki import JoinToken, Role
from tracker.preheats import PreheatRules
from tracker.state import LocalState
from tracker.tokens import Facts

MIB = 1 << 20
QUICK = {"preheat": PreheatRules(settle=0.0)}


def image_of(registry: FakeRegistry, tag: str = "1", *sizes: int, architecture: str = "amd64", seed: int = 0) -> Image:
    layers = [noise(size, seed + number) for number, size in enumerate(sizes or (3 * MIB, 2 * MIB))]
    return registry.add_image("app/a", tag, layers, architecture=architecture)


def has(node: Node, image: Image) -> bool:
    store = node.agent._store
    return all(store.find(digest) is not None for digest in (image.digest, *image.blobs))


def copies(registry: FakeRegistry, image: Image) -> float:
    return sum(registry.bytes_sent(layer) for layer in image.layers) / sum(len(image.blobs[d]) for d in image.layers)


async def test_a_preheated_image_is_on_every_node_at_the_cost_of_one_copy(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry, settings=QUICK) as fleet:
        image = image_of(registry)
        nodes = [await fleet.start() for _ in range(3)]
        operator = Operator(fleet)
        job = await operator.finished((await operator.order(f"{registry.name}/app/a:1"))["id"])
        assert (job["state"], job["counts"]) == ("done", {"done": 3}), job
        assert all(has(node, image) for node in nodes)
        assert copies(registry, image) <= 1.05
        row = job["nodes"][0]
        assert row["name"] == "node-2" and row["digest"] == str(image.digest)
        assert row["blobs_done"] == row["blobs"] == 3
        assert row["size_done"] == row["size"] == sum(map(len, image.blobs.values()))
        registry.fail(Status(503))
        await fleet.pull(nodes[2], image)  # and a daemon gets it with the upstream gone


async def test_platforms_choose_the_images_of_an_index_and_without_any_each_node_takes_its_own(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry, settings=QUICK) as fleet:
        amd, arm = (
            image_of(registry, f"only-{name}", MIB, architecture=name, seed=len(name)) for name in ("amd64", "arm64")
        )
        registry.add_index("app/a", "both", [amd, arm])
        node = await fleet.start()
        node.agent._orders._preheats._own = node.agent._orders._preheats._own.__class__("linux", "amd64")
        operator = Operator(fleet)
        job = await operator.finished((await operator.order(f"{registry.name}/app/a:both"))["id"])
        assert job["state"] == "done" and has(node, amd) and not has(node, arm)
        job = await operator.order(f"{registry.name}/app/a:both", platforms=["linux/arm64"])
        assert (await operator.finished(job["id"]))["state"] == "done" and has(node, arm)
        job = await operator.order(f"{registry.name}/app/a:both", platforms=["linux/s390x"])
        job = await operator.finished(job["id"])
        assert job["state"] == "failed" and "no image for linux/s390x" in job["nodes"][0]["error"]


async def test_labels_choose_the_nodes_their_own_and_those_of_the_token_they_came_in_with(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry, settings=QUICK) as fleet:
        image = image_of(registry, "1", 100_000)
        nodes = []
        for name in ("a1", "b1", "b2", "a2"):
            if name == "b2":  # whatever it says of itself
                assert fleet.tracker is not None and fleet.token is not None
                facts, fingerprint = Facts(fleet.tracker.state), JoinToken.parse(fleet.token).fingerprint
                fleet.token = str(await facts.new_token(fingerprint, time.time(), 3600.0, 1, {"zone": "a"}))
            node = NodeConfig(name=name, data_dir=tmp_path / name, labels=(f"zone={name[0]}",))
            nodes.append(await fleet.start(name, node=node))
            if name == "b2":
                fleet.token = str(await facts.new_token(fingerprint, time.time(), 3600.0, None, {}))
        operator = Operator(fleet)
        job = await operator.order(f"{registry.name}/app/a:1", labels={"zone": "a"})
        job = await operator.finished(job["id"])
        assert [row["name"] for row in job["nodes"]] == ["a1", "a2", "b2"]
        assert [has(node, image) for node in nodes] == [True, False, True, True]


async def test_a_node_that_comes_while_a_preheat_runs_gets_it_and_one_that_restarts_gets_it_again(
    tmp_path: Path,
) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry, settings=QUICK) as fleet:
        image = image_of(registry, "1", 2 * MIB)
        hold = registry.fail(Hold(), path="/blobs/", method="GET")
        first = await fleet.start()
        operator = Operator(fleet)
        number = (await operator.order(f"{registry.name}/app/a:1"))["id"]
        await hold.arrived.acquire()
        await fleet.stop(first)
        fleet.nodes.remove(first)
        late = await fleet.start("late")
        again = await fleet.run(first.config)
        registry.heal()
        hold.release.set()
        job = await operator.finished(number)
        assert (job["state"], job["counts"]) == ("done", {"done": 2}), job
        assert has(late, image) and has(again, image)


async def test_a_job_survives_the_tracker(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry, settings=QUICK) as fleet:
        image = image_of(registry, "1", 2 * MIB)
        hold = registry.fail(Hold(), path="/blobs/", method="GET")
        nodes = [await fleet.start() for _ in range(2)]
        operator = Operator(fleet)
        number = (await operator.order(f"{registry.name}/app/a:1", keep=3600))["id"]
        await hold.arrived.acquire()
        assert fleet.tracker is not None
        port = fleet.tracker.port
        await fleet.stop_tracker()
        await fleet.start_tracker(port)
        registry.heal()
        hold.release.set()
        job = await Operator(fleet).finished(number)
        assert (job["state"], job["counts"]) == ("done", {"done": 2}), job
        assert all(has(node, image) for node in nodes)


async def test_a_cancelled_preheat_stops_reading(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry, settings=QUICK) as fleet:
        image_of(registry, "1", 4 * MIB)
        hold = registry.fail(Hold(), path="/blobs/", method="GET")
        node = await fleet.start()
        operator = Operator(fleet)
        number = (await operator.order(f"{registry.name}/app/a:1"))["id"]
        await hold.arrived.acquire()
        assert (await operator.ask("DELETE", f"/v1/jobs/{number}"))["state"] == "cancelled"
        await until(lambda: not node.agent.status()["transfers"])
        assert node.agent.status()["orders"]["preheats_running"] == 0
        hold.release.set()
        job = await operator.finished(number)
        assert job["state"] == "cancelled"
        assert [one["state"] for one in (await operator.ask("GET", "/v1/jobs"))["jobs"]] == ["cancelled"]
        await operator.ask("DELETE", "/v1/jobs/none", 404)


async def test_a_node_that_cannot_get_the_image_says_why(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry, settings=QUICK) as fleet:
        await fleet.start()
        operator = Operator(fleet)
        job = await operator.finished((await operator.order(f"{registry.name}/app/a:missing"))["id"])
        assert job["state"] == "failed" and "404" in job["nodes"][0]["error"]


async def test_what_the_signature_policy_refuses_is_not_preheated(tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text('{"default": [{"type": "reject"}]}')
    trust = TrustConfig(enforcement="enforce", policy_file=tmp_path / "policy.json")
    async with FakeRegistry() as registry, Fleet(tmp_path, registry, settings=QUICK) as fleet:
        image = image_of(registry, "1", 200_000)
        node = await fleet.start(trust=trust)
        operator = Operator(fleet)
        job = await operator.finished((await operator.order(f"{registry.name}/app/a:1"))["id"])
        assert job["state"] == "failed"
        assert f"policy refuses {registry.name}/app/a:1" in job["nodes"][0]["error"]  # the image, before any blob
        assert node.agent._store.find(image.layers[0]) is None


async def test_as_many_preheats_run_as_may(tmp_path: Path) -> None:
    rules = {"preheat": PreheatRules(settle=0.0, max_running=1, history=2)}
    async with FakeRegistry() as registry, Fleet(tmp_path, registry, insecure=True, settings=rules) as fleet:
        operator = Operator(fleet)
        first = await operator.order("app/a:1")
        answer = await operator.ask("POST", "/v1/jobs", 429, json={"reference": "app/a:2"})
        assert "max_running" in answer["error"]
        numbers = [first["id"]]
        for _ in range(3):
            await operator.ask("DELETE", f"/v1/jobs/{numbers[-1]}")
            await operator.finished(numbers[-1])
            numbers.append((await operator.order("app/a:2"))["id"])
        await operator.ask("DELETE", f"/v1/jobs/{numbers[-1]}")

        async def forgotten() -> bool:
            listed = (await operator.ask("GET", "/v1/jobs"))["jobs"]
            return [one["id"] for one in listed] == [numbers[-1], numbers[-2]]

        await until_async(forgotten)


@pytest.mark.parametrize(("role", "status"), [(None, 401), (Role.NODE, 403), (Role.TRACKER, 403)])
async def test_who_is_no_operator_orders_nothing(role: Role | None, status: int, tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        operator = Operator(fleet, role)
        for method, path in (
            ("POST", "/v1/jobs"),
            ("GET", "/v1/jobs"),
            ("GET", "/v1/jobs/x"),
            ("DELETE", "/v1/jobs/x"),
        ):
            await operator.ask(method, path, status, json={"reference": "app/a:1"})


async def test_a_web_page_in_an_operators_browser_orders_nothing(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry, insecure=True) as fleet:
        operator = Operator(fleet)
        for kind in ("text/plain", "application/x-www-form-urlencoded"):  # what it may send without asking
            page = {"Content-Type": kind, "Origin": "https://evil.example"}
            await operator.ask("POST", "/v1/jobs", 415, data=b'{"reference": "acme/app:1"}', headers=page)
        assert await operator.ask("GET", "/v1/jobs") == {"jobs": []}


def everything_in(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in path.rglob("*") if file.is_file())


async def test_no_credential_is_ever_in_the_state(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    secret = "hunter2-very-secret"
    async with FakeRegistry(auth=BasicAuth({"robot": secret})) as registry:
        login = base64.b64encode(f"robot:{secret}".encode()).decode()
        (tmp_path / "config.json").write_text(json.dumps({"auths": {registry.name: {"auth": login}}}))
        async with Fleet(tmp_path, registry, settings=QUICK) as fleet:
            image = image_of(registry, "1", 200_000)
            node = await fleet.start(upstream=UpstreamConfig(credentials_file=tmp_path / "config.json"))
            operator = Operator(fleet)
            for reference in (
                f"robot:{secret}@{registry.name}/app/a:1",
                f"https://robot:{secret}@{registry.name}/app/a",
            ):
                answer = await operator.ask("POST", "/v1/jobs", 400, json={"reference": reference})
                assert secret not in json.dumps(answer)
            order: dict[str, Any] = {"reference": f"{registry.name}/app/a:1"}
            for more in ({"password": secret}, {"auth": {"username": "robot", "password": secret}}):
                answer = await operator.ask("POST", "/v1/jobs", 400, json=order | more)
                assert secret not in json.dumps(answer)
            job = await operator.finished((await operator.order(**order))["id"])
            assert job["state"] == "done" and has(node, image)  # by the node's own credentials
            assert fleet.tracker is not None
            tables = [await fleet.tracker.state.all(table) for table in ("jobs", "job_progress", "deny")]
            assert tables[0] and tables[1]
            for record in (*tables[0].values(), *tables[1].values()):
                assert secret.encode() not in record and login.encode() not in record
        kept = everything_in(tmp_path / "tracker")
        assert b"app/a:1" in kept
        assert secret.encode() not in kept and login.encode() not in kept
    printed = capfd.readouterr()
    assert "preheat ordered" in printed.out + printed.err
    assert secret not in printed.out + printed.err and login not in printed.out + printed.err


async def test_a_state_that_cannot_be_reached_is_said_and_nothing_is_promised(tmp_path: Path, monkeypatch: Any) -> None:
    from p2pdist.errors import StorageError

    async def gone(*_: object, **__: object) -> Any:
        raise StorageError("redis is away")

    async with FakeRegistry() as registry, Fleet(tmp_path, registry, insecure=True, settings=QUICK) as fleet:
        operator = Operator(fleet)
        number = (await operator.order("app/a:1"))["id"]
        with monkeypatch.context() as patched:
            for name in ("all", "get", "create", "replace", "put"):
                patched.setattr(LocalState, name, gone)
            await operator.ask("POST", "/v1/jobs", 503, json={"reference": "app/a:2"})
            await operator.ask("GET", "/v1/jobs", 503)
            await operator.ask("DELETE", f"/v1/jobs/{number}", 503)
        assert (await operator.show(number))["state"] == "running"


async def test_preheated_images_can_be_kept(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry, settings=QUICK) as fleet:
        image = image_of(registry, "1", 200_000)
        node = await fleet.start()
        operator = Operator(fleet)
        reference = f"{registry.name}/app/a:1@{image.digest}"
        job = await operator.finished((await operator.order(reference, keep=3600))["id"])
        assert job["state"] == "done"
        (row,) = node.agent._orders.retention.listed()
        assert row["pattern"] == f"{registry.name}/app/a:1" and row["origin"] == f"preheat {job['id']}"
        assert (row["blobs"], row["bytes"]) == (3, len(image.raw) + sum(map(len, image.blobs.values())))
        assert node.agent.status()["store"]["kept_bytes"] == row["bytes"]
        assert Digest.parse(node.agent._store.tags()[f"{registry.name}/app/a", "1"]) == image.digest
        await asyncio.sleep(0)
