"""What an export is taken from, where the agent's mirror has TLS: that mirror, and nobody who only has its port."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from support.fleet import Fleet
from support.registry import FakeRegistry, noise
from typer.testing import CliRunner

from p2pdist.cli import app
from p2pdist.config import MirrorConfig
from p2pdist.errors import ConfigError
from p2pdist.pki import Authority, Role
from p2pdist.torrent.sources import MirrorSource


def issue(directory: Path, name: str) -> tuple[Path, Path]:
    """A certificate, with its authority behind it in the file, and its key."""
    authority, key = Authority.create(time.time()), Ed25519PrivateKey.generate()
    certificate, private = directory / f"{name}.crt", directory / f"{name}.key"
    pem = authority.issue(key.public_key(), Role.NODE, {}, time.time(), 3600)
    certificate.write_bytes(pem + authority.pem)
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return certificate, private


async def test_an_export_from_a_mirror_with_tls_goes_by_https_and_to_its_certificate_only(tmp_path: Path) -> None:
    certificate, key = issue(tmp_path, "mirror")
    other, _ = issue(tmp_path, "other")
    async with FakeRegistry() as registry, Fleet(tmp_path, registry, tracked=False, insecure=True) as fleet:
        image = registry.add_image("app/a", "1", [noise(300_000, 5)])
        mirror = MirrorConfig(host="127.0.0.2", port=0, tls_certificate=certificate, tls_key=key)
        node = await fleet.start(mirror=mirror)
        url = node.url.replace("http://", "https://")
        host, _, port = node.url.removeprefix("http://").partition(":")
        config = tmp_path / "agent.toml"
        config.write_text(
            f'[node]\ndata_dir = "{tmp_path / "none"}"\n[mirror]\nhost = "{host}"\nport = {port}\n'
            f'tls_certificate = "{certificate}"\ntls_key = "{key}"\n'
        )
        name, out = f"{registry.name}/app/a:1", tmp_path / "out.oci"
        arguments = ["torrent", "export", name, "-o", str(out), "--config", str(config)]
        result = await asyncio.to_thread(CliRunner().invoke, app, arguments)
        assert result.exit_code == 0, result.output
        assert str(image.digest) in result.output
        for shown, ours in ((certificate, True), (other, False)):
            async with MirrorSource(url, shown) as source:
                assert await source.answers() is ours


async def test_an_export_shows_the_mirrors_password_and_a_client_certificate_or_says_that_one_is_wanted(
    tmp_path: Path,
) -> None:
    certificate, key = issue(tmp_path, "mirror")
    mine, my_key = issue(tmp_path, "mine")
    passwords = tmp_path / "passwords"
    passwords.write_text("# who may\nexport:s3cret:with colons\n")
    async with FakeRegistry() as registry, Fleet(tmp_path, registry, tracked=False, insecure=True) as fleet:
        image = registry.add_image("app/a", "1", [noise(300_000, 6)])
        shut = {"tls_certificate": certificate, "tls_key": key, "client_ca": mine, "password_file": passwords}
        node = await fleet.start(mirror=MirrorConfig(host="127.0.0.2", port=0, **shut))
        host, _, port = node.url.removeprefix("http://").partition(":")
        lines = [f'{name} = "{path}"' for name, path in shut.items()]
        config = tmp_path / "agent.toml"
        config.write_text(
            f'[node]\ndata_dir = "{node.config.node.data_dir}"\n[mirror]\nhost = "{host}"\nport = {port}\n'
            + "\n".join(lines)
        )
        export = ["torrent", "export", f"{registry.name}/app/a:1", "--config", str(config), "-o"]
        shown = ["--client-certificate", str(mine), "--client-key", str(my_key)]
        refused = await asyncio.to_thread(CliRunner().invoke, app, [*export, str(tmp_path / "no.oci")])
        assert isinstance(refused.exception, ConfigError) and "--client-certificate" in str(refused.exception)
        taken = await asyncio.to_thread(CliRunner().invoke, app, [*export, str(tmp_path / "yes.oci"), *shown])
        assert taken.exit_code == 0, taken.output
        assert str(image.digest) in taken.output


def test_a_certificate_that_cannot_be_read_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "bad.crt").write_text("nothing")
    for name in ("bad.crt", "none.crt"):
        with pytest.raises(ConfigError, match=r"mirror\.tls_certificate"):
            MirrorSource("https://127.0.0.1:1", tmp_path / name)


def test_client_certificates_and_passwords_that_cannot_be_read_are_configuration_errors(tmp_path: Path) -> None:
    certificate, _ = issue(tmp_path, "mirror")
    with pytest.raises(ConfigError, match="no certificate with its key"):
        MirrorSource("https://127.0.0.1:1", certificate, own=(certificate, tmp_path / "none.key"))
    with pytest.raises(ConfigError, match=r"mirror\.password_file"):
        MirrorSource("http://127.0.0.1:1", passwords=tmp_path / "none")
