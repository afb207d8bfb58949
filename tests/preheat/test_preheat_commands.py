"""The commands as an operator types them, on a tracker and an agent that are processes of their own, under TLS."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import typer
from preheat_kit import until_async
from support.registry import FakeRegistry, noise
from typer.testing import CliRunner

from p2pdist.cli import app as p2pdist
from p2pdist.cli.demo.cluster import free_port
from p2pdist.errors import InputError, P2pdistError
from tracker.__main__ import cli as tracker

WHY = "CVE-2026-1"


class Site:
    """One tracker, one agent, and a shell."""

    def __init__(self, directory: Path, registry: FakeRegistry) -> None:
        self.directory = directory
        self.registry = registry
        self.tracker_port, self.mirror_port = free_port("127.0.0.1", 0), free_port("127.0.0.1", 0)
        self.data = directory / "tracker"
        self.config = directory / "agent.toml"
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *command: object) -> None:
        with (self.directory / f"log-{len(self.processes)}").open("wb") as log:
            self.processes.append(subprocess.Popen([sys.executable, "-m", *map(str, command)], stdout=log, stderr=log))

    async def run(self, *command: object, status: int = 0) -> tuple[str, str]:
        """In a process of its own."""
        words = [sys.executable, "-m", *map(str, command)]
        done = await asyncio.to_thread(subprocess.run, words, capture_output=True, timeout=120, check=False)
        assert done.returncode == status, (command, done)
        return done.stdout.decode(), done.stderr.decode()

    async def p2pdist(self, *words: object, status: int = 0) -> tuple[str, str]:
        """`p2pdist` in this process, as `main` runs it: starting it anew takes a second each time."""
        return await self._invoke(p2pdist, words, status)

    async def tracker(self, *words: object, status: int = 0) -> tuple[str, str]:
        return await self._invoke(tracker, (*words, "--data", self.data), status)

    async def _invoke(self, app: typer.Typer, words: tuple[object, ...], status: int) -> tuple[str, str]:
        result = await asyncio.to_thread(CliRunner().invoke, app, list(map(str, words)))
        code, said = result.exit_code, result.stderr
        if isinstance(result.exception, P2pdistError):
            code, said = 2 if isinstance(result.exception, InputError) else 1, str(result.exception)
        assert code == status, (words, code, result.stdout, said, result.exception)
        return result.stdout, said

    async def up(self) -> None:
        token = (await self.tracker("token", "create"))[0].strip()
        self.config.write_text(
            f'[node]\nname = "n1"\ndata_dir = "{self.directory / "n1"}"\n'
            f'[mirror]\nport = {self.mirror_port}\n[peer]\nport = 0\nhost = "127.0.0.1"\n'
            f'[tracker]\nurls = ["https://127.0.0.1:{self.tracker_port}"]\n[cluster]\ntoken = "{token}"\n'
            f'[[registries]]\nname = "{self.registry.name}"\nurl = "{self.registry.url}"\n'
        )
        self.start("tracker", "--port", self.tracker_port, "--data", self.data)
        self.start("p2pdist.cli", "agent", "--config", self.config)


@asynccontextmanager
async def site(directory: Path) -> AsyncIterator[Site]:
    async with FakeRegistry() as registry:
        here = Site(directory, registry)
        try:
            await here.up()
            yield here
        finally:
            for process in here.processes:
                process.terminate()
            for process in here.processes:
                await asyncio.to_thread(process.wait, 30)


@pytest.mark.timeout(300)
async def test_the_life_of_a_preheat_a_kept_image_and_a_denied_one(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        image = here.registry.add_image("app/a", "1", [noise(300_000)])
        reference = f"{here.registry.name}/app/a:1"
        common = ("--config", here.config)

        out, err = await here.p2pdist("preheat", reference, *common, status=2)
        assert "p2pdist-tracker admin create" in err
        key = (await here.tracker("admin", "create", "-o", tmp_path / "admin"))[0].strip()
        assert len(key) == 64 and (tmp_path / "admin" / "tls.key").stat().st_mode & 0o77 == 0
        operator = (*common, "--admin", tmp_path / "admin")

        async def tracker_answers() -> bool:
            try:
                await here.p2pdist("preheat", "list", *operator)
            except AssertionError:
                return False
            return True

        await until_async(tracker_answers, 120.0)

        # pulled ahead, and waited for
        words = ("preheat", "--all", "--wait", "--keep-for", "7d", reference, *operator)
        out, err = await here.run("p2pdist.cli", *words)
        assert "done" in out and "n1" in out, out
        assert "node" in err  # progress
        out, _ = await here.p2pdist("preheat", "list", "--json", *operator)
        (job,) = json.loads(out)["jobs"]
        assert job["state"] == "done" and job["by"] == f"admin {key[:16]}"
        out, _ = await here.p2pdist("preheat", "show", job["id"], "--json", *operator)
        assert json.loads(out)["nodes"][0]["size_done"] == sum(map(len, image.blobs.values()))
        out, _ = await here.p2pdist(
            "preheat", f"{here.registry.name}/app/a:none", "--wait", "--json", *operator, status=1
        )
        assert json.loads(out)["state"] == "failed"
        out, _ = await here.p2pdist("preheat", reference, "--nodes", "1", "--labels", "zone=a", *operator)
        assert (await here.p2pdist("preheat", "cancel", out.strip(), *operator))[0] == "cancelled\n"
        _, err = await here.p2pdist("preheat", "https://u:hunter2@h/a", *operator, status=2)
        assert "hunter2" not in err and "no user or password" in err

        # kept
        out, _ = await here.p2pdist("keep", "list", "--json", *common)
        assert [row["pattern"] for row in json.loads(out)] == [reference]
        assert (await here.p2pdist("keep", "add", "nginx", *common))[0] == "docker.io/library/nginx\n"
        out, _ = await here.p2pdist("keep", "list", *common)
        assert "docker.io/library/nginx" in out and "for ever" in out
        await here.p2pdist("keep", "remove", "nginx", *common)
        await here.p2pdist("keep", "remove", "nginx", *common, status=1)

        # denied
        out, _ = await here.run("tracker", "deny", "add", reference, "--why", WHY, "--data", here.data)
        assert out == f"denied: {reference}\n"
        url = f"http://127.0.0.1:{here.mirror_port}/v2/app/a/manifests/1?ns={here.registry.name.replace(':', '%3A')}"
        async with aiohttp.ClientSession() as client:

            async def answers(status: int) -> bool:
                async with client.get(url) as answer:
                    return answer.status == status and (status == 200 or WHY in await answer.text())

            await until_async(lambda: answers(403), 60.0)
            assert f"{reference}  since" in (await here.tracker("deny", "list"))[0]
            await here.tracker("deny", "remove", reference)
            await until_async(lambda: answers(200), 60.0)
        await here.tracker("deny", "remove", reference, status=1)
        await here.tracker("deny", "add", "not an image!", "--why", WHY, status=1)

        # an operator who is shut out orders nothing more
        await here.tracker("bans", "add", key)

        async def shut_out() -> bool:
            try:
                await here.p2pdist("preheat", "list", *operator, status=1)
            except AssertionError:
                return False
            return True

        await until_async(shut_out, 60.0)
