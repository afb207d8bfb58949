"""`p2pdist install` writes one file of the daemon's, exactly, and no file that somebody else wrote."""

from __future__ import annotations

import stat
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from p2pdist.cli import app
from p2pdist.cli.daemons import snippets
from p2pdist.errors import ConfigError

HOSTS = Path("etc/containerd/certs.d/_default/hosts.toml")


def install(*argv: str, **env: str) -> str:
    done = CliRunner().invoke(app, ["install", *argv], env=env, catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_containerd_asks_the_mirror_of_the_configuration_first_and_the_registry_after_it(tmp_path: Path) -> None:
    everywhere = {"P2PDIST_MIRROR_HOST": "0.0.0.0", "P2PDIST_MIRROR_ALLOW_REMOTE": "true"}
    install("containerd", "--root", str(tmp_path), P2PDIST_MIRROR_PORT="5099", **everywhere)
    text = (tmp_path / HOSTS).read_text()
    assert tomllib.loads(text) == {"host": {"http://127.0.0.1:5099": {"capabilities": ["pull", "resolve"]}}}
    assert stat.S_IMODE((tmp_path / HOSTS).stat().st_mode) == 0o644, "containerd may not run as us"
    assert [entry.name for entry in (tmp_path / HOSTS).parent.iterdir()] == ["hosts.toml"]


def test_the_second_time_there_is_nothing_to_do_and_a_changed_port_replaces_it(tmp_path: Path) -> None:
    root = ["--root", str(tmp_path)]
    install("containerd", *root)
    before = (tmp_path / HOSTS).stat().st_mtime_ns
    assert "nothing to do" in install("containerd", *root)
    assert (tmp_path / HOSTS).stat().st_mtime_ns == before
    assert "written" in install("containerd", *root, P2PDIST_MIRROR_PORT="5098")
    assert "5098" in (tmp_path / HOSTS).read_text()


@pytest.mark.parametrize("option", [[], ["--remove"]])
def test_a_file_that_an_administrator_wrote_is_never_touched(tmp_path: Path, option: list[str]) -> None:
    path = tmp_path / HOSTS
    path.parent.mkdir(parents=True)
    path.write_text('server = "https://mirror.example"\n')
    with pytest.raises(ConfigError, match="not ours"):
        CliRunner().invoke(app, ["install", "containerd", "--root", str(tmp_path), *option], catch_exceptions=False)
    assert path.read_text() == 'server = "https://mirror.example"\n'


def test_remove_takes_away_what_install_wrote_and_nothing_more(tmp_path: Path) -> None:
    root = ["--root", str(tmp_path)]
    install("containerd", *root)
    other = (tmp_path / HOSTS).parent.parent / "registry.example"
    other.mkdir()
    assert "removed" in install("containerd", *root, "--remove")
    assert not (tmp_path / HOSTS).exists()
    assert other.is_dir()
    assert "nothing to do" in install("containerd", *root, "--remove")


def test_podman_gets_a_block_for_each_registry(tmp_path: Path) -> None:
    install("podman", "--root", str(tmp_path), P2PDIST_REGISTRIES="docker.io,ghcr.io")
    text = (tmp_path / "etc/containers/registries.conf.d/50-p2pdist.conf").read_text()
    assert tomllib.loads(text) == tomllib.loads(snippets("127.0.0.1:5050", ["docker.io", "ghcr.io"])[2].text)


def test_a_mirror_with_tls_is_not_written_as_one_without(tmp_path: Path) -> None:
    tls = {"P2PDIST_MIRROR_TLS_CERTIFICATE": "/tls.crt", "P2PDIST_MIRROR_TLS_KEY": "/tls.key"}
    argv = ["install", "containerd", "--root", str(tmp_path)]
    with pytest.raises(ConfigError, match="by hand"):
        CliRunner().invoke(app, argv, env=tls, catch_exceptions=False)
    assert list(tmp_path.iterdir()) == []
