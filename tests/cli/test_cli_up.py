"""`p2pdist up` says exactly what to do next."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from pathlib import Path

from p2pdist.cli.daemons import snippets
from p2pdist.cli.up import own_address, welcome
from p2pdist.config import AgentConfig, ClusterConfig, MirrorConfig, PeerConfig, TrackerConfig


def test_the_welcome_has_every_snippet_whole():
    text = welcome(AgentConfig(), 7070)
    for snippet in snippets("127.0.0.1:5050", ["docker.io"]):
        assert snippet.path in text
        assert "\n".join(f"    {line}".rstrip() for line in snippet.text.split("\n")) in text


def test_a_mirror_with_tls_is_named_by_https_everywhere_and_none_without():
    config = AgentConfig(mirror=MirrorConfig(tls_certificate=Path("m.crt"), tls_key=Path("m.key")))
    text = welcome(config, 7070)
    assert "docker.io at https://127.0.0.1:5050," in text
    for snippet in snippets("127.0.0.1:5050", ["docker.io"], tls=True):
        assert "\n".join(f"    {line}".rstrip() for line in snippet.text.split("\n")) in text
    assert "http://127" not in text
    assert "https://127" not in welcome(AgentConfig(), 7070)


def test_a_mirror_on_all_addresses_is_named_by_one_that_can_be_asked():
    text = welcome(AgentConfig(mirror=MirrorConfig(host="0.0.0.0", allow_remote=True)), 7070)
    assert "http://127.0.0.1:5050" in text and "0.0.0.0" not in text


def test_the_first_node_says_how_the_others_join():
    text = welcome(replace(AgentConfig(), peer=PeerConfig(advertise_host="10.1.2.3")), 7171, "p2pdist1.a.b")
    assert "p2pdist up --join https://10.1.2.3:7171 --token p2pdist1.a.b\n" in text
    assert "closed networks" not in text


def test_an_insecure_first_node_says_that_the_network_must_be_closed():
    config = replace(AgentConfig(), peer=PeerConfig(advertise_host="10.1.2.3"), cluster=ClusterConfig(insecure=True))
    text = welcome(config, 7171)
    assert "p2pdist up --insecure --join http://10.1.2.3:7171\n" in text
    assert "closed networks only" in text


def test_a_joined_node_names_its_tracker():
    text = welcome(replace(AgentConfig(), tracker=TrackerConfig(urls=("https://10.1.2.3:7070",))), None)
    assert "https://10.1.2.3:7070" in text
    assert "--join" not in text


def test_the_own_address_is_one_that_could_be_reached():
    assert not ipaddress.ip_address(own_address()).is_unspecified
