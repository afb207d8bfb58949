"""A dockerd in a network namespace of its own, the images that compose.yaml names, and docker-compose on it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lab.daemons import Containerd
from lab.lab import Lab
from lab.process import LabError, wait_until
from rootfs import PYTHON, REDIS, REGISTRY, archive

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "compose"
PROJECT = "fleet"
BASE, IMAGE = "p2pdist-test/python", "p2pdist-test/p2pdist"
_SYSTEM_PYTHON = "/usr/bin/python3"  # the wheels have to be for the interpreter of the base image, which is Debian's
# as in the official image; Debian's own asks for a password
_REGISTRY = {
    "version": "0.1",
    "storage": {"filesystem": {"rootdirectory": "/var/lib/registry"}, "cache": {"blobdescriptor": "inmemory"}},
    "http": {"addr": ":5000"},
}


class Engine:
    """Everything goes with the laboratory."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._host = host = lab.host("engine")
        containerd = Containerd(lab, host, hosts=None, registry="none")
        containerd.wait()
        directory = lab.path("docker")
        self.env = {
            "DOCKER_HOST": f"unix://{directory}/sock",
            "DOCKER_BUILDKIT": "0",
            "COMPOSE": "docker-compose",
            "COMPOSE_PROJECT_NAME": PROJECT,
            "HOME": str(lab.path("home")),
            "PATH": os.environ["PATH"],
            "P2PDIST_IMAGE": IMAGE,
            "P2PDIST_BASE": BASE,
            "REGISTRY_IMAGE": "p2pdist-test/registry",
            "REDIS_IMAGE": "p2pdist-test/redis",
        }
        (directory / "daemon.json").write_text(json.dumps({"deprecated-key-path": str(directory / "key.json")}))
        # containerd runs what dockerd mounts, so both are in one mount namespace
        argv = ["nsenter", "--target", str(containerd.process.pid), "--net", "--mount", "dockerd"]
        argv += ["--config-file", str(directory / "daemon.json"), "--containerd", containerd.socket]
        argv += [
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
            "--ip-masq=false",
            "-H",
            self.env["DOCKER_HOST"],
        ]
        argv += [
            "--data-root",
            str(directory / "data"),
            "--exec-root",
            str(directory / "exec"),
            "-p",
            str(directory / "pid"),
        ]
        self._dockerd = lab.start("dockerd", argv)
        wait_until("dockerd", self._answers, 60.0, every=0.1)

    def _answers(self) -> bool:
        if not self._dockerd.running:
            raise LabError(f"dockerd ended with status {self._dockerd.status}: {self._dockerd.tail()}")
        try:
            self.run(["docker", "version"])
        except LabError:
            return False
        return True

    def close(self) -> None:
        """No container is left: the laboratory knows only its own processes."""
        if left := self.run(["docker", "ps", "--all", "--quiet"]).split():
            self.run(["docker", "rm", "--force", "--volumes", *left])

    def import_images(self) -> None:
        """What the official images are to a user."""
        self._import(BASE, archive(PYTHON), 'CMD ["python3"]')
        self._import(
            "p2pdist-test/registry",
            archive(REGISTRY, {"etc/docker/registry/config.yml": json.dumps(_REGISTRY)}, {"var/lib/registry": 0}),
            'ENTRYPOINT ["docker-registry", "serve"]',
            'CMD ["/etc/docker/registry/config.yml"]',
        )
        self._import("p2pdist-test/redis", archive(REDIS, owned={"data": 999}), 'CMD ["redis-server"]', "WORKDIR /data")

    def _import(self, name: str, tar: bytes, *changes: str) -> None:
        options = [word for change in (*changes, "ENV PATH=/usr/local/bin:/usr/bin:/bin") for word in ("-c", change)]
        self.run(["docker", "import", *options, "-", name], data=tar)

    def build(self) -> None:
        """The image, from the Dockerfile that users build, with the wheels of the lock files beside it."""
        with ThreadPoolExecutor(1) as pool:
            wheels = pool.submit(self._wheels, self._lab.path("context", "compose", "wheels"))
            self.import_images()
            context = self._context()
            wheels.result()
        arguments = ["--build-arg", f"BASE={BASE}", "--build-arg", "PIP_OPTIONS=--no-index --find-links /build"]
        argv = ["docker", "build", "--network=none", "-f", "compose/Dockerfile", "-t", IMAGE, *arguments, "."]
        self.run(argv, cwd=context, timeout=500.0)

    def _context(self) -> Path:
        context = self._lab.path("context")
        for name in ("compose/Dockerfile", ".dockerignore", "pyproject.toml", "README.md", "LICENSE"):
            (context / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, context / name)
        for name in ("requirements.lock", "build.lock"):
            shutil.copy(COMPOSE / name, context / "compose" / name)
        for name in ("p2pdist", "tracker"):
            shutil.copytree(ROOT / name, context / name, ignore=shutil.ignore_patterns("__pycache__"))
        return context

    def _wheels(self, directory: Path) -> None:
        locks = [word for name in ("requirements.lock", "build.lock") for word in ("-r", str(COMPOSE / name))]
        argv = [sys.executable, "-m", "pip", "--python", _SYSTEM_PYTHON, "download", "--quiet", "--no-deps"]
        argv += ["--only-binary=:all:", "--require-hashes", *locks, "--dest", str(directory)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise LabError(f"the wheels of compose/*.lock: {done.stderr.strip()[-1500:]}")

    def compose(self, *argv: str, timeout: float = 110.0) -> str:
        """docker-compose on compose/compose.yaml."""
        return self.run(["docker-compose", *argv], cwd=COMPOSE, timeout=timeout)

    def image(self, name: str) -> dict[str, Any]:
        """What dockerd says of an image."""
        (found,) = json.loads(self.run(["docker", "image", "inspect", name]))
        return found

    def inspect(self, service: str) -> dict[str, Any]:
        """What dockerd says of the service's container."""
        (found,) = json.loads(self.run(["docker", "inspect", self._container(service)]))
        return found

    def inside(self, service: str, script: str) -> str:
        """What a shell script prints in the service's container."""
        return self.run(["docker", "exec", self._container(service), "sh", "-c", script])

    def health(self) -> dict[str, str]:
        """Of every container that has a health check and runs."""
        ids = self.run(["docker", "ps", "--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}"]).split()
        found = json.loads(self.run(["docker", "inspect", *ids])) if ids else []
        return {
            one["Config"]["Labels"]["com.docker.compose.service"]: one["State"]["Health"]["Status"]
            for one in found
            if "Health" in one["State"]
        }

    def reads(self) -> int:
        """Requests for blobs that the registry has answered so far."""
        return len(re.findall(r'"GET /v2/\S+/blobs/', self.run(["docker", "logs", self._container("registry")])))

    def get(self, url: str) -> int:
        """The status that a program on the machine of dockerd gets."""

        def ask() -> int:
            with urllib.request.urlopen(url, timeout=20) as answer:
                return int(answer.status)

        return self._host.call(ask)

    def _container(self, service: str) -> str:
        return f"{PROJECT}_{service}_1"

    def run(
        self,
        argv: Sequence[str],
        *,
        cwd: Path | None = None,
        data: bytes | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 110.0,
    ) -> str:
        """What it prints. LabError with what it said when it fails."""
        done = subprocess.run(
            list(argv),
            input=data,
            stdin=subprocess.DEVNULL if data is None else None,
            capture_output=True,
            env={**self.env, **(env or {})},
            cwd=cwd,
            timeout=timeout,
            check=False,
        )
        said = done.stdout.decode(errors="replace")
        if done.returncode != 0:
            wrong = done.stderr.decode(errors="replace")[-3000:]
            raise LabError(f"{' '.join(argv)}: status {done.returncode}: {said[-2000:]} {wrong}")
        return said
