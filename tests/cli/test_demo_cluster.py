"""The small decisions about the demo's cluster."""

from __future__ import annotations

import socket
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pdist.cli.demo.cluster import free_port, own_network, toml


def test_two_demos_at_once_have_nothing_in_common_and_a_network_is_free_again_afterwards():
    with own_network() as one:
        with own_network() as two:
            assert one != two
            assert one.startswith("127.0.") and two.startswith("127.0.")
        with own_network() as three:
            assert three == two


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
