"""What a user is told to put into the daemons' files is what those daemons were measured to accept."""

from __future__ import annotations

import json
import tomllib

from p2pdist.cli.daemons import snippets

DOCKERD, CONTAINERD, CONTAINERS = snippets("127.0.0.1:5050", ["docker.io", "ghcr.io", "10.0.0.5:5000"])


def test_daemon_json_names_the_mirror_without_a_path():
    assert json.loads(DOCKERD.text) == {"registry-mirrors": ["http://127.0.0.1:5050"]}


def test_hosts_toml_leaves_the_origin_as_last_host():
    document = tomllib.loads(CONTAINERD.text)
    assert "server" not in document, "with a server of its own, containerd has no way back to the registry"
    assert list(document["host"]) == ["http://127.0.0.1:5050"]


def test_hosts_toml_has_nothing_that_old_containerd_ignores_the_file_for():
    host = tomllib.loads(CONTAINERD.text)["host"]["http://127.0.0.1:5050"]
    assert host == {"capabilities": ["pull", "resolve"]}


def test_registries_conf_has_one_block_for_each_registry_with_the_origin_kept():
    blocks = tomllib.loads(CONTAINERS.text)["registry"]
    assert [(block["prefix"], block["location"]) for block in blocks] == [
        (name, name) for name in ("docker.io", "ghcr.io", "10.0.0.5:5000")
    ]


def test_registries_conf_says_insecure_since_podman_skips_an_http_mirror_silently_otherwise():
    for block in tomllib.loads(CONTAINERS.text)["registry"]:
        assert [mirror["insecure"] for mirror in block["mirror"]] == [True]


def test_registries_conf_names_the_origin_in_the_path_since_podman_sends_no_ns():
    mirrors = [block["mirror"][0]["location"] for block in tomllib.loads(CONTAINERS.text)["registry"]]
    assert mirrors == [
        "127.0.0.1:5050/docker.io",
        "127.0.0.1:5050/ghcr.io",
        "127.0.0.1:5050/10.0.0.5__5000",
    ]


def test_a_mirror_with_tls_is_asked_by_https_and_its_certificate_is_checked():
    dockerd, containerd, containers = snippets("10.0.0.1:5050", ["docker.io"], tls=True)
    assert json.loads(dockerd.text) == {"registry-mirrors": ["https://10.0.0.1:5050"]}
    assert tomllib.loads(containerd.text)["host"] == {
        "https://10.0.0.1:5050": {"capabilities": ["pull", "resolve"]},
    }
    (block,) = tomllib.loads(containers.text)["registry"]
    assert block["mirror"] == [{"location": "10.0.0.1:5050/docker.io"}], "insecure would take any certificate"
    assert "/etc/docker/certs.d/10.0.0.1:5050/ca.crt" in dockerd.note
    assert "ca = " in containerd.note
    assert "/etc/containers/certs.d/10.0.0.1:5050/ca.crt" in containers.note
