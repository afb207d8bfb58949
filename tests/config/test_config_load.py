"""Loading an agent's configuration: what wins over what, and that no mistake becomes a silent default."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from p2pdist.config import AgentConfig, MirrorConfig, RegistryConfig, load_agent
from p2pdist.errors import ConfigError


@pytest.fixture
def load(tmp_path):
    def from_text(text: str, **env: str) -> AgentConfig:
        file = tmp_path / "agent.toml"
        file.write_text(text)
        return load_agent(file, env)

    return from_text


def test_without_a_file_and_variables_the_defaults_hold():
    assert load_agent(None, {}) == AgentConfig()


def test_an_empty_file_is_the_defaults(load):
    assert load("") == AgentConfig()


def test_the_file_sets_options_and_leaves_the_others(load):
    config = load('[mirror]\nport = 6000\nserve = "proved"\n[node]\nmax_store_bytes = "64MiB"')
    assert config.mirror == MirrorConfig(port=6000, serve="proved")
    assert config.node.max_store_bytes == 64 * 1024 * 1024


def test_a_variable_wins_over_the_file(load):
    assert load("[mirror]\nport = 6000", P2PDIST_MIRROR_PORT="7000").mirror.port == 7000


@pytest.mark.parametrize(
    ("variable", "text", "section", "option", "value"),
    [
        (
            "P2PDIST_TRACKER_URLS",
            "https://a:7070, https://b:7070/",
            "tracker",
            "urls",
            ("https://a:7070", "https://b:7070"),
        ),
        ("P2PDIST_TRACKER_URLS", "", "tracker", "urls", ()),
        ("P2PDIST_UPSTREAM_ALLOW_ANY", "yes", "upstream", "allow_any", True),
        ("P2PDIST_NODE_MAX_STORE_BYTES", "1.5GB", "node", "max_store_bytes", 1_500_000_000),
        ("P2PDIST_NODE_MAX_STORE_BYTES", "4096", "node", "max_store_bytes", 4096),
        ("P2PDIST_NODE_SHUTDOWN_SECONDS", "2.5", "node", "shutdown_seconds", 2.5),
        ("P2PDIST_PEER_ADVERTISE_HOST", "10.1.2.3", "peer", "advertise_host", "10.1.2.3"),
        ("P2PDIST_NODE_LABELS", "zone=a,rack=r 1", "node", "label_map", {"zone": "a", "rack": "r 1"}),
        ("P2PDIST_ADMIN_SOCKET", "/run/p2pdist.sock", "admin", "socket", Path("/run/p2pdist.sock")),
    ],
)
def test_a_variable_is_read_in_its_options_unit(variable, text, section, option, value):
    assert getattr(getattr(load_agent(None, {variable: text}), section), option) == value


def test_registries_are_exactly_those_listed(load):
    config = load('[[registries]]\nname = "ghcr.io"\n[[registries]]\nname = "r:5000"\nurl = "http://r:5000/"')
    assert [(r.name, r.endpoint) for r in config.registries] == [
        ("ghcr.io", "https://ghcr.io"),
        ("r:5000", "http://r:5000"),
    ]


def test_the_registries_variable_replaces_the_files_list(load):
    config = load(
        '[[registries]]\nname = "ghcr.io"', P2PDIST_REGISTRIES="docker.io, 10.0.0.5:5000=http://10.0.0.5:5000"
    )
    assert [(r.name, r.endpoint) for r in config.registries] == [
        ("docker.io", "https://registry-1.docker.io"),
        ("10.0.0.5:5000", "http://10.0.0.5:5000"),
    ]


@pytest.mark.parametrize("name", ["127.0.0.1:5000", "localhost:5000", "localhost", "[::1]:5000"])
def test_only_registries_on_loopback_are_spoken_to_without_tls_unasked(name):
    assert RegistryConfig(name=name).endpoint == f"http://{name}"
    assert RegistryConfig(name="localhost.example.com").endpoint.startswith("https://")
    assert RegistryConfig(name="127.evil.example").endpoint.startswith("https://")


@pytest.mark.parametrize(
    ("text", "unknown", "nearest"),
    [
        ("[mirror]\nprot = 1", "mirror.prot", "mirror.port"),
        ("[miror]\nport = 1", "miror", "mirror"),
        ('[mirror]\ndata_dir = "x"', "mirror.data_dir", "node.data_dir"),
        ("[node]\nmax_bytes = 1", "node.max_bytes", "node.max_store_bytes"),
        ('[[registries]]\nnam = "x"\nname = "ghcr.io"', "registries.nam", "registries.name"),
        ('[[registry]]\nname = "ghcr.io"', "registry", "registries"),
    ],
)
def test_an_unknown_key_is_an_error_that_names_the_nearest_known_one(load, text, unknown, nearest):
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert f'"{unknown}"' in str(caught.value)
    assert f'did you mean "{nearest}"?' in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [("P2PDIST_MIROR_PORT", "P2PDIST_MIRROR_PORT"), ("P2PDIST_REGISTRYS", "P2PDIST_REGISTRIES")],
)
def test_an_unknown_variable_is_an_error_that_names_the_nearest_known_one(variable, nearest):
    with pytest.raises(ConfigError, match=f"{variable}; did you mean {nearest}"):
        load_agent(None, {variable: "1"})


def test_variables_of_kubernetes_services_are_no_options():
    env = {
        "P2PDIST_TRACKER_PORT": "tcp://10.0.0.1:7070",
        "P2PDIST_TRACKER_SERVICE_HOST": "10.0.0.1",
        "P2PDIST_TRACKER_SERVICE_PORT_HTTP": "7070",
        "P2PDIST_MIRROR_PORT": "tcp://10.0.0.2:5050",
        "P2PDIST_MIRROR_PORT_5050_TCP_ADDR": "10.0.0.2",
    }
    assert load_agent(None, env) == AgentConfig()


@pytest.mark.parametrize(
    ("text", "where", "why"),
    [
        ("[mirror]\nport = 70000", "mirror.port", "wanted a port"),
        ('[mirror]\nport = "5050"', "mirror.port", "wanted a port"),
        ("[mirror]\nport = true", "mirror.port", "wanted a port"),
        ('[mirror]\nserve = "fast"', "mirror.serve", 'wanted one of "auto", "proved"'),
        ('[mirror]\nhost = "http://127.0.0.1"', "mirror.host", "without scheme and port"),
        ("[mirror]\ndecide_deadline_seconds = 0", "mirror.decide_deadline_seconds", "above 0"),
        ("[mirror]\ndecide_deadline_seconds = nan", "mirror.decide_deadline_seconds", "above 0"),
        ('[node]\nmax_store_bytes = "64 parsecs"', "node.max_store_bytes", "wanted a size"),
        ("[node]\nmax_store_bytes = -1", "node.max_store_bytes", "wanted a size"),
        ('[node]\nlabels = ["zone"]', "node.labels", "wanted a label"),
        ('[node]\ndata_dir = ""', "node.data_dir", "empty"),
        ('[tracker]\nurls = "http://a"', "tracker.urls", "wanted a list"),
        ('[tracker]\nurls = ["a:7070"]', "tracker.urls", "https://"),
        ('[tracker]\nurls = ["http://a:70700"]', "tracker.urls", "can't be parsed"),
        ('[[registries]]\nname = "https://ghcr.io"', "registries.name", "as image names spell it"),
        ('[[registries]]\nname = "ghcr.io/app"', "registries.name", "as image names spell it"),
        ('[[registries]]\nname = "g"\nurl = "ftp://g"', "registries.url", "https://"),
        ('[[registries]]\nurl = "https://g"', "registries", "without a name"),
        ('[registries]\nname = "g"', "registries", "[[registries]]"),
        ('[[registries]]\nname = "g.io"\n[[registries]]\nname = "G.io"', "registries", "twice"),
        ("mirror = 1", "mirror", "[mirror]"),
        ("[mirror", "agent.toml", "not TOML"),
        (f'[admin]\nsocket = "/{"s" * 120}"', "admin.socket", "107 bytes"),
        (f'[node]\ndata_dir = "/{"d" * 120}"', "admin.socket", "shorter directory"),
    ],
)
def test_a_value_that_cannot_be_is_an_error_that_says_where_and_why(load, text, where, why):
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert where in str(caught.value)
    assert why in str(caught.value)


def test_a_secret_in_a_url_is_refused_and_not_repeated(load):
    with pytest.raises(ConfigError) as caught:
        load('[[registries]]\nname = "g.io"\nurl = "https://bob:hunter2@g.io"')
    assert "hunter2" not in str(caught.value)


def test_relative_paths_in_the_file_start_at_the_file(load, tmp_path):
    config = load('[node]\ndata_dir = "data"\n[[registries]]\nname = "g.io"\nca_file = "ca.pem"')
    assert config.node.data_dir == tmp_path / "data"
    assert config.registries[0].ca_file == tmp_path / "ca.pem"


def test_the_admin_socket_lies_in_the_data_directory_unless_told(load):
    assert load('[node]\ndata_dir = "/d"').admin_socket == Path("/d/admin.sock")
    assert load('[admin]\nsocket = "/run/a.sock"').admin_socket == Path("/run/a.sock")


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load_agent(tmp_path / "none.toml", {})


def test_a_huge_file_is_refused_without_being_read_whole(tmp_path):
    file = tmp_path / "agent.toml"
    with file.open("wb") as out:
        out.truncate(1 << 40)
    with pytest.raises(ConfigError, match="not a configuration file"):
        load_agent(file, {})


def test_a_configuration_made_in_code_is_checked_as_well():
    with pytest.raises(ConfigError, match="port"):
        MirrorConfig(port=-1)


def test_a_configuration_cannot_be_changed_after_it_was_checked():
    with pytest.raises(dataclasses.FrozenInstanceError):
        AgentConfig().mirror.port = 1  # type: ignore[misc]


def test_only_root_keeps_its_data_in_the_systems_place(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert load_agent(None, {}).node.data_dir == tmp_path / "p2pdist"
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert load_agent(None, {}).node.data_dir == Path("/var/lib/p2pdist")
