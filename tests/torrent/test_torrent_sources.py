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


def test_a_certificate_that_cannot_be_read_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "bad.crt").write_text("nothing")
    for name in ("bad.crt", "none.crt"):
        with pytest.raises(ConfigError, match=r"mirror\.tls_certificate"):
            MirrorSource("https://127.0.0.1:1", tmp_path / name)
