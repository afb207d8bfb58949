"""Registries that report pushes: who may, what starts, what doesn't, and that nothing secret is written down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from preheat_kit import Operator
from support.fleet import Fleet
from support.registry import FakeRegistry, noise

from p2pdist.errors import ConfigError
from p2pdist.oci import Digest
from tracker.preheats import PreheatRules
from tracker.webhooks import HookRules, Rule, Webhooks, pushed_to_distribution, pushed_to_harbor

TOKEN = "a-token-of-32-random-characters!"
D = str(Digest.of(b"image"))


def distribution(*targets: dict[str, Any], host: str = "registry.example:5000", action: str = "push") -> dict[str, Any]:
    """An envelope as CNCF distribution sends it (its docs, "Notifications")."""
    return {
        "events": [
            {
                "id": f"320678d8-ca14-430f-8bb6-4ca139cd83f{number}",
                "timestamp": "2026-11-24T23:00:00.000Z",
                "action": action,
                "target": {"mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 708, "length": 708,
                           "url": f"http://{host}/v2/x/manifests/{D}", **target},
                "request": {"id": "6df24a34", "addr": "192.168.64.11:42961", "host": host, "method": "PUT",
                            "useragent": "curl/7.38.0"},
                "actor": {},
                "source": {"addr": "xtal.local:5000", "instanceID": "a53db899-3b4b-4a62-a067-8dd013beaca4"},
            }
            for number, target in enumerate(targets)
        ]
    }  # fmt: skip


def harbor(*tags: str, kind: str = "PUSH_ARTIFACT") -> dict[str, Any]:
    """Harbor's payload, format "Default"."""
    return {
        "type": kind,
        "occur_at": 1680501893,
        "operator": "harbor-jobservice",
        "event_data": {
            "resources": [{"digest": D, "tag": tag, "resource_url": f"harbor.example/acme/app:{tag}"} for tag in tags],
            "repository": {"date_created": 1680501430, "name": "app", "namespace": "acme",
                           "repo_full_name": "acme/app", "repo_type": "private"},
        },
    }  # fmt: skip


def test_what_distribution_reports() -> None:
    said = distribution(
        {"repository": "acme/app", "tag": "1", "digest": D},
        {"repository": "acme/app", "digest": D},  # by digest: a child of an index
        {"repository": "acme/app", "tag": f"sha256-{'a' * 64}.sig", "digest": D},
    )
    assert pushed_to_distribution(json.dumps(said).encode(), "") == [f"registry.example:5000/acme/app:1@{D}"]
    assert pushed_to_distribution(json.dumps(said).encode(), "r.example") == [f"r.example/acme/app:1@{D}"]
    pulled = distribution({"repository": "acme/app", "tag": "1", "digest": D}, action="pull")
    assert pushed_to_distribution(json.dumps(pulled).encode(), "") == []


def test_what_harbor_reports() -> None:
    said = json.dumps(harbor("1", "latest", f"sha256-{'a' * 64}.sig")).encode()
    assert pushed_to_harbor(said, "") == [f"harbor.example/acme/app:{tag}@{D}" for tag in ("1", "latest")]
    assert pushed_to_harbor(json.dumps(harbor("1", kind="DELETE_ARTIFACT")).encode(), "") == []


def test_a_rule_says_which_images_and_what_to_do() -> None:
    rule = Rule.parse(" r.example/acme/*:v* label:zone=a label:rack=1 nodes:3 platform:linux/arm64 keep:7d ")
    assert rule.images.text == "r.example/acme/*:v*"
    assert (rule.order.labels, rule.order.nodes) == ({"zone": "a", "rack": "1"}, 3)
    assert (rule.order.platforms, rule.order.keep) == (["linux/arm64"], 7 * 86_400)


@pytest.mark.parametrize(
    "text", ["r.example/a zone=a", "r.example/a nodes:x", "r.example/a platform:Linux", "a b:", "!"]
)
def test_a_rule_that_is_not_understood_stops_the_start(text: str) -> None:
    with pytest.raises(ConfigError, match=r"hooks\.images"):
        Rule.parse(text)


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        (HookRules(token="short", images="a"), "characters"),
        (HookRules(token=TOKEN), "no rule"),
        (HookRules(token_file="/nonexistent/token", images="a"), "token_file"),
    ],
)
def test_a_service_that_would_be_open_or_idle_does_not_start(rules: HookRules, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Webhooks(rules, None)  # type: ignore[arg-type]


async def post(fleet: Fleet, path: str, body: Any, status: int, token: str | None = f"Bearer {TOKEN}") -> Any:
    headers = {} if token is None else {"Authorization": token}
    operator = Operator(fleet, None)  # a registry has no certificate
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await operator.ask("POST", f"/v1/hooks/{path}", status, data=data, headers=headers)


async def test_a_push_that_a_rule_fits_preheats_the_nodes_that_the_rule_names(tmp_path: Path) -> None:
    async with FakeRegistry() as registry:
        image = registry.add_image("acme/app", "v1", [noise(100_000)])
        rules = HookRules(token=TOKEN, images=f"{registry.name}/acme/*:v* nodes:1 keep:1h", registry=registry.name)
        settings = {"hooks": rules, "preheat": PreheatRules(settle=0.0)}
        async with Fleet(tmp_path, registry, settings=settings) as fleet:
            nodes = [await fleet.start() for _ in range(2)]
            pushed = {"repository": "acme/app", "tag": "v1", "digest": str(image.digest)}
            (number,) = (await post(fleet, "distribution", distribution(pushed, pushed), 200))["jobs"]
            job = await Operator(fleet).finished(number)
            assert (job["state"], job["counts"], job["by"]) == ("done", {"done": 1}, "distribution webhook")
            assert job["reference"] == f"{registry.name}/acme/app:v1@{image.digest}"
            assert sum(node.agent._store.find(image.digest) is not None for node in nodes) == 1
            again = await post(fleet, "distribution", distribution(pushed), 200)  # registries send it again
            assert again == {"jobs": [number]}
            other = {"repository": "acme/app", "tag": "dev", "digest": str(image.digest)}
            assert await post(fleet, "distribution", distribution(other), 200) == {"jobs": []}
            harbored = harbor("v2")
            (number,) = (await post(fleet, "harbor", harbored, 200, TOKEN))["jobs"]
            assert (await Operator(fleet).show(number))["by"] == "harbor webhook"


@pytest.mark.parametrize("token", [None, "", "Bearer", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", "Bearer \u00e9"])
async def test_without_the_token_nothing_starts(token: str | None, tmp_path: Path) -> None:
    settings = {"hooks": HookRules(token=TOKEN, images="*")}
    async with FakeRegistry() as registry, Fleet(tmp_path, registry, settings=settings) as fleet:
        pushed = distribution({"repository": "a", "tag": "1", "digest": D})
        for path in ("distribution", "harbor"):
            await post(fleet, path, pushed, 401, token)
        assert await Operator(fleet).ask("GET", "/v1/jobs") == {"jobs": []}


async def test_the_service_is_off_unless_configured_and_has_its_own_port_where_told(tmp_path: Path) -> None:
    from p2pdist.cli.demo.cluster import free_port

    pushed = distribution({"repository": "a", "tag": "1", "digest": D})
    async with FakeRegistry() as registry:
        port = free_port("127.0.0.1", 0)
        async with Fleet(tmp_path / "off", registry, settings={"hooks": HookRules(port=port)}) as fleet:
            await post(fleet, "distribution", pushed, 404)
            with pytest.raises(aiohttp.ClientConnectorError):
                await fleet.client.get(f"http://127.0.0.1:{port}/")
        (tmp_path / "token").write_text(TOKEN + "\n")
        rules = HookRules(token_file=str(tmp_path / "token"), images="*", port=port)
        async with Fleet(tmp_path / "on", registry, settings={"hooks": rules}) as fleet:
            url = f"http://127.0.0.1:{port}/v1/hooks/distribution"
            async with fleet.client.post(url, json=pushed, headers={"Authorization": TOKEN}) as answer:
                assert answer.status == 200 and len((await answer.json())["jobs"]) == 1
            async with fleet.client.get(f"http://127.0.0.1:{port}/v1/jobs") as answer:
                assert answer.status == 404  # nothing else is on it


async def test_junk_and_secrets_in_a_report_start_nothing_and_are_not_written_down(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = "hunter2-very-secret"
    settings = {"hooks": HookRules(token=TOKEN, images="*"), "preheat": PreheatRules(settle=0.0)}
    async with FakeRegistry() as registry, Fleet(tmp_path, registry, settings=settings) as fleet:
        for body in (b"", b"[", b"[]", b"[" * 100_000, b'{"events": 3}', b'{"events": [3]}'):
            await post(fleet, "distribution", body, 400)
        await post(fleet, "distribution", b'{"events": [' + b" " * 600_000 + b"]}", 413)
        for host in (f"robot:{secret}@registry.example", f"https://robot:{secret}@registry.example"):
            pushed = distribution({"repository": "a", "tag": "1", "digest": D}, host=host)
            assert await post(fleet, "distribution", pushed, 200) == {"jobs": []}
        pushed = distribution(
            {"repository": "a", "tag": "1", "digest": D}, {"repository": "A B", "tag": secret, "digest": D}
        )
        assert len((await post(fleet, "distribution", pushed, 200))["jobs"]) == 1
    kept = b"".join(file.read_bytes() for file in (tmp_path / "tracker").rglob("*") if file.is_file())
    printed = capfd.readouterr()
    for text in (secret, TOKEN):
        assert text.encode() not in kept and text not in printed.out + printed.err
    assert b"registry.example:5000/a" in kept
