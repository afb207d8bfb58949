"""An export among other clients: Debian's aria2 takes and seeds it, our tracker introduces them, agents import it."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support.fleet import Fleet
from support.images import make_image, noise
from support.registry import FakeRegistry
from torrent.test_torrent_export import Source
from typer.testing import CliRunner

from p2pdist.cli import app
from p2pdist.errors import InputError, OperationError, StorageError
from p2pdist.oci import Digest, Reference
from p2pdist.torrent.download import ClientSettings, Progress, download, seed
from p2pdist.torrent.export import Exported, export_image
from tracker.announce import AnnounceRules, AnnounceServer

REFERENCE = Reference.parse("registry.test/app/a:1")
IMAGE = make_image([noise(900_000, 1), noise(200_000, 2), noise(10, 3)])


def _for_a_minute() -> Callable[[Progress], bool]:
    end = time.monotonic() + 60
    return lambda _: time.monotonic() < end


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def seeding(made: Exported) -> AsyncIterator[int]:
    """Our own client seeds; its port."""
    loop = asyncio.get_running_loop()
    listening: asyncio.Future[int] = loop.create_future()
    stop = threading.Event()

    def report(port: int, _: Progress) -> bool:
        loop.call_soon_threadsafe(lambda: listening.done() or listening.set_result(port))
        return not stop.is_set()

    settings = ClientSettings(discover=False, listen=f"127.0.0.1:{_free_port()}")
    work = asyncio.ensure_future(asyncio.to_thread(seed, made.file, made.directory.parent, settings, report))
    try:
        await asyncio.wait([work, listening], return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            await work
        yield await listening
    finally:
        stop.set()
        await work


@asynccontextmanager
async def _aria2(port: int, *arguments: str | Path) -> AsyncIterator[asyncio.subprocess.Process]:
    plain = ["--no-conf", "--quiet", "--disable-ipv6", f"--listen-port={port}"]
    plain += ["--enable-dht=false", "--enable-dht6=false", "--bt-enable-lpd=false"]
    client = await asyncio.create_subprocess_exec(
        "aria2c", *plain, *map(str, arguments), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield client
    finally:
        if client.returncode is None:
            client.kill()
        await client.wait()


def _digests_match(layout: Path) -> bool:
    blobs = [path for path in (layout / "blobs").rglob("*") if path.is_file()]
    return len(blobs) == 5 and all(Digest.of(path.read_bytes()).hex == path.name for path in blobs)


async def test_aria2_takes_an_export_through_our_tracker_and_every_files_digest_matches(tmp_path: Path) -> None:
    async with AnnounceServer(AnnounceRules(port=_free_port()), lambda: asyncio.get_running_loop().time()) as tracker:
        url = f"http://127.0.0.1:{tracker.port}/announce"
        made = await export_image(Source(IMAGE), REFERENCE, tmp_path / "image.oci", trackers=[url])
        async with (
            seeding(made),
            _aria2(_free_port(), "--seed-time=0", f"--dir={tmp_path / 'got'}", made.file) as client,
            asyncio.timeout(60),
        ):
            assert await client.wait() == 0
    assert _digests_match(tmp_path / "got" / "image.oci")


async def test_what_aria2_seeds_comes_back_by_file_and_by_magnet_and_is_served_with_the_registry_gone(
    tmp_path: Path,
) -> None:
    made = await export_image(Source(IMAGE), REFERENCE, tmp_path / "image.oci")
    port = _free_port()
    async with _aria2(port, "--seed-ratio=0.0", "--check-integrity=true", f"--dir={tmp_path}", made.file):
        for name, what in (("file", str(made.file)), ("magnet", made.torrent.magnet)):
            settings = ClientSettings(discover=False, listen="127.0.0.1:0", peers=(("127.0.0.1", port),))
            await asyncio.to_thread(download, what, tmp_path / name, settings, _for_a_minute())
            assert _digests_match(tmp_path / name / "image.oci")
    registry = FakeRegistry()
    async with registry:
        pass  # it was there, and is out of reach now
    async with Fleet(tmp_path, registry, tracked=False, insecure=True) as fleet:
        node = await fleet.start()
        name = f"{registry.name}/app/a:1"
        assert await node.agent._import(tmp_path / "magnet", name) == [(name, str(IMAGE.digest))]
        await fleet.pull(node, IMAGE)


async def test_an_agent_exports_what_it_serves_and_another_imports_it_by_command(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry, tracked=False, insecure=True) as fleet:
        image = registry.add_image("app/a", "1", [noise(300_000, 5)])
        node = await fleet.start()
        config = tmp_path / "agent.toml"
        host, _, port = node.url.removeprefix("http://").partition(":")
        config.write_text(f'[mirror]\nhost = "{host}"\nport = {port}\n[node]\ndata_dir = "{tmp_path / "none"}"\n')
        runner = CliRunner()
        arguments = [
            "torrent",
            "export",
            f"{registry.name}/app/a:1",
            "-o",
            str(tmp_path / "out.oci"),
            "--config",
            str(config),
        ]
        result = await asyncio.to_thread(runner.invoke, app, arguments)
        assert result.exit_code == 0, result.output
        assert str(image.digest) in result.output and "magnet:?xt=urn:btih:" in result.output

        second = await fleet.start()
        config.write_text(f'[node]\ndata_dir = "{second.config.node.data_dir}"\n')
        arguments = ["torrent", "import", str(tmp_path / "out.oci"), "--config", str(config)]
        result = await asyncio.to_thread(runner.invoke, app, arguments)
        assert result.exit_code == 0, result.output
        assert str(image.digest) in result.output
        before = len(registry.log)
        await fleet.pull(second, image)
        assert not [entry for entry in registry.log[before:] if "/blobs/" in str(entry)]
        arguments = ["torrent", "import", str(second.config.node.data_dir), "--config", str(config)]
        bad = await asyncio.to_thread(runner.invoke, app, arguments)
        assert bad.exit_code == 1 and "OCI image layouts" in str(bad.exception)


async def test_without_an_agent_the_command_imports_into_the_store_itself(tmp_path: Path) -> None:
    made = await export_image(Source(IMAGE), REFERENCE, tmp_path / "image.oci")
    config = tmp_path / "agent.toml"
    config.write_text(f'[node]\ndata_dir = "{tmp_path / "data"}"\n[mirror]\nport = 1\n')
    runner = CliRunner()
    arguments = ["torrent", "import", str(made.directory), "--config", str(config)]
    result = await asyncio.to_thread(runner.invoke, app, arguments)
    assert result.exit_code == 0, result.output
    arguments = ["torrent", "export", str(REFERENCE), "-o", str(tmp_path / "again.oci"), "--config", str(config)]
    result = await asyncio.to_thread(runner.invoke, app, arguments)
    assert result.exit_code == 0, result.output
    assert made.torrent.info_hash.hex() not in result.output  # another name of the directory
    assert _digests_match(tmp_path / "again.oci")


@pytest.mark.parametrize("content", [b"", b"d4:infod", b"le", b"\x00" * 100, b"d4:infod6:lengthi-1eee"])
def test_what_is_no_torrent_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.torrent"
    path.write_bytes(content)
    with pytest.raises(InputError, match="no torrent"):
        download(str(path), tmp_path / "got", ClientSettings(discover=False, listen="127.0.0.1:0"), lambda _: False)


def test_a_magnet_that_is_none_and_a_file_that_is_not_there_are_refused(tmp_path: Path) -> None:
    for what, error in (("magnet:?xt=urn:btih:zz", InputError), (str(tmp_path / "none.torrent"), StorageError)):
        with pytest.raises(error):
            download(what, tmp_path, ClientSettings(discover=False, listen="127.0.0.1:0"), lambda _: False)


async def test_a_torrent_that_is_too_large_and_one_that_nobody_has_are_given_up(tmp_path: Path) -> None:
    made = await export_image(Source(IMAGE), REFERENCE, tmp_path / "image.oci")
    for most, error in ((1000, InputError), (1 << 40, OperationError)):
        settings = ClientSettings(discover=False, listen="127.0.0.1:0", max_bytes=most)
        with pytest.raises(error):
            await asyncio.to_thread(download, str(made.file), tmp_path / "got", settings, lambda _: False)


async def test_files_that_are_not_the_torrents_are_not_seeded(tmp_path: Path) -> None:
    made = await export_image(Source(IMAGE), REFERENCE, tmp_path / "image.oci")
    path = made.directory / "blobs" / "sha256" / IMAGE.layers[0].hex
    path.write_bytes(bytes(900_000))
    with pytest.raises(StorageError, match="not those of"):
        async with seeding(made):
            pass
