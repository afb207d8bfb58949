"""The small decisions about the demo's cluster."""

from __future__ import annotations

import socket
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pdist.cli.demo.cluster import free_port, node_address, toml


def test_every_node_has_an_address_of_its_own_that_is_not_the_registrys():
    addresses = {node_address(index) for index in range(300)}
    assert len(addresses) == 300
    assert all(address.startswith("127.0.") for address in addresses)
    assert "127.0.0.1" not in addresses and "127.0.0.0" not in addresses


def test_a_port_that_is_taken_is_not_given_out():
    with socket.socket() as other:
        other.bind(("127.0.0.9", 0))
        other.listen()
        taken = other.getsockname()[1]
        assert free_port("127.0.0.9", taken) != taken
        assert free_port("127.0.0.10", taken) == taken, "another address has ports of its own"


@pytest.mark.parametrize(
    "value", [{"a": 1}, {"t": {"urls": ["x"], "on": True}, "r": [{"n": "1"}, {"n": "2"}], "a": "b"}]
)
def test_what_is_written_as_toml_is_read_back(value):
    assert tomllib.loads(toml(value)) == value


@given(st.text(st.characters(exclude_characters="\x7f", exclude_categories=["Cs"])))
def test_any_path_survives_toml(path):
    assert tomllib.loads(toml({"node": {"data_dir": path}})) == {"node": {"data_dir": path}}
