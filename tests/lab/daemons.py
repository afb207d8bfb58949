"""The container programs of one host: dockerd, containerd, podman, skopeo, as Debian ships them.

Each is a `Puller`: it starts a pull of an image by tag and can say afterwards what it holds, in a form that is equal
for equal results. `mirror` is the URL of the agent on the same host, None for a host that asks the registry itself.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from lab.lab import Lab
from lab.net import Host
from lab.process import LabError, Process, wait_until


class Puller(Protocol):
    """One container program on one host."""

    name: str

    def start(self, repository: str, tag: str) -> Process:
        """Begins to pull; the process ends with status 0 when the image is complete."""

    def holds(self, repository: str, tag: str) -> Mapping[str, object]:
        """What the program has of the image: ids and digests, comparable with another host's."""


class Docker:
    """dockerd 20.10 with `registry-mirrors`. It asks mirrors for docker.io names only.

    `spare`: URL of a second mirror, behind the agent (there is no way to the real Docker Hub from here). Runs beside
    the host's containerd, as packaged installations do.
    """

    def __init__(
        self,
        lab: Lab,
        host: Host,
        containerd: Containerd,
        *,
        mirror: str | None,
        spare: str | None,
        registry: str,
    ) -> None:
        self.name = "dockerd"
        self._lab = lab
        self._host = host
        self._prefix = "docker.io" if mirror is not None else registry
        self.directory = lab.path(host.name, "docker")
        self._socket = f"unix://{self.directory}/sock"
        mirrors = [url for url in (mirror, spare) if url is not None]
        config = {
            "registry-mirrors": mirrors,
            "insecure-registries": [registry],
            "max-download-attempts": 2,  # the default of 5 only makes the wait longer when a mirror dies: 80 s
            "deprecated-key-path": str(self.directory / "key.json"),  # else it writes into /etc/docker
        }
        (self.directory / "daemon.json").write_text(json.dumps(config))
        argv = ["dockerd", "--config-file", str(self.directory / "daemon.json"), "--bridge=none", "--iptables=false"]
        argv += ["--ip6tables=false", "--ip-masq=false", "--data-root", str(self.directory / "data")]
        argv += ["--exec-root", str(self.directory / "exec"), "-p", str(self.directory / "pid"), "-H", self._socket]
        argv += ["--containerd", containerd.socket]
        self.process = lab.start(f"dockerd-{host.name}", argv, host)

    def wait(self) -> None:
        wait_until(f"dockerd on {self._host.name}", lambda: _works(self.process, self._answers), 60.0, every=0.1)

    def start(self, repository: str, tag: str) -> Process:
        argv = ["docker", "-H", self._socket, "pull", f"{self._prefix}/{repository}:{tag}"]
        return self._lab.start(f"docker-pull-{self._host.name}", argv)

    def holds(self, repository: str, tag: str) -> Mapping[str, object]:
        reference = f"{self._prefix}/{repository}:{tag}"
        (image,) = json.loads(self._lab.ask(["docker", "-H", self._socket, "image", "inspect", reference]))
        digests = {one.partition("@")[2] for one in image["RepoDigests"]}
        return {"id": image["Id"], "layers": image["RootFS"]["Layers"], "digests": digests, "size": image["Size"]}

    def _answers(self) -> bool:
        try:
            self._lab.ask(["docker", "-H", self._socket, "info"])
        except LabError:
            return False
        return True


class Containerd:
    """containerd 1.6 with `ctr images pull --hosts-dir`. `hosts`: the text of `_default/hosts.toml`, None for none."""

    def __init__(self, lab: Lab, host: Host, *, hosts: str | None, registry: str) -> None:
        self.name = "containerd"
        self._lab = lab
        self._host = host
        self._registry = registry
        self._directory = lab.path(host.name, "containerd")
        self.socket = str(self._directory / "sock")
        self._hosts = lab.path(host.name, "containerd", "certs.d")
        if hosts is not None:
            (lab.path(host.name, "containerd", "certs.d", "_default") / "hosts.toml").write_text(hosts)
        config = self._directory / "config.toml"
        # Nothing of Kubernetes is asked here, and the other one would make /opt/containerd.
        off = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
        config.write_text(f"version = 2\ndisabled_plugins = {json.dumps(off)}\n")
        argv = ["containerd", "--config", str(config), "--root", str(self._directory / "root")]
        argv += ["--state", str(self._directory / "state"), "--address", self.socket]
        self.process = lab.start(f"containerd-{host.name}", argv, host)

    def wait(self) -> None:
        wait_until(f"containerd on {self._host.name}", lambda: _works(self.process, self._answers), 60.0, every=0.1)

    def start(self, repository: str, tag: str) -> Process:
        # ctr itself asks the registry, so it runs inside the host.
        return self._lab.start(f"ctr-pull-{self._host.name}", self.command(repository, tag), self._host)

    def command(self, repository: str, tag: str) -> list[str]:
        """What has to be run inside the host to pull."""
        argv = ["images", "pull", "--hosts-dir", str(self._hosts), "--plain-http", self._reference(repository, tag)]
        return [*self._ctr(), *argv]

    def holds(self, repository: str, tag: str) -> Mapping[str, object]:
        """The image's target, and every blob below it with its size."""
        reference = self._reference(repository, tag)
        rows = [line.split() for line in self._lab.ask([*self._ctr(), "images", "ls"]).splitlines()]
        target = next((row[2] for row in rows if row[0] == reference), None)
        if target is None:
            raise LabError(f"containerd on {self._host.name} doesn't list {reference}")
        content = {row[0]: row[1] for row in self._rows("content", "ls")}
        below: dict[str, str] = {}
        self._collect(target, content, below)
        return {"target": target, "content": below}

    def _collect(self, digest: str, content: Mapping[str, str], below: dict[str, str]) -> None:
        if digest in content:
            below[digest] = content[digest]
            raw = self._lab.ask([*self._ctr(), "content", "get", digest]) if _small(content[digest]) else ""
            if raw.startswith("{"):
                document = json.loads(raw)
                for one in [*document.get("manifests", []), document.get("config"), *document.get("layers", [])]:
                    if one is not None and "digest" in one:
                        self._collect(one["digest"], content, below)

    def _rows(self, *argv: str) -> list[list[str]]:
        return [line.split() for line in self._lab.ask([*self._ctr(), *argv]).splitlines()[1:]]

    def _reference(self, repository: str, tag: str) -> str:
        return f"{self._registry}/{repository}:{tag}"

    def _ctr(self) -> list[str]:
        return ["ctr", "--address", self.socket]

    def _answers(self) -> bool:
        try:
            self._lab.ask([*self._ctr(), "version"])
        except LabError:
            return False
        return True


class Podman:
    """podman 4.3. `registries`: the text of its registries.conf."""

    def __init__(self, lab: Lab, host: Host, *, registries: str, registry: str) -> None:
        self.name = "podman"
        self._lab = lab
        self._host = host
        self._registry = registry
        directory = lab.path(host.name, "podman")
        (directory / "registries.conf").write_text(registries)
        self._env = {"CONTAINERS_REGISTRIES_CONF": str(directory / "registries.conf")}
        self._base = ["podman", "--root", str(directory / "root"), "--runroot", str(directory / "run")]
        self._base += ["--events-backend", "none", "--cgroup-manager", "cgroupfs", "--storage-driver", "overlay"]
        self._base += ["--network-config-dir", str(directory / "networks")]

    def start(self, repository: str, tag: str) -> Process:
        # tls-verify speaks of the origin, which has no TLS here; the mirror's own line says `insecure`.
        argv = [*self._base, "pull", "--tls-verify=false", f"{self._registry}/{repository}:{tag}"]
        return self._lab.start(f"podman-pull-{self._host.name}", argv, self._host, env=self._env)

    def holds(self, repository: str, tag: str) -> Mapping[str, object]:
        text = self._lab.ask([*self._base, "image", "inspect", f"{self._registry}/{repository}:{tag}"])
        (image,) = json.loads(text)
        return {"id": image["Id"], "layers": image["RootFS"]["Layers"], "digest": image["Digest"]}


class Skopeo:
    """skopeo 1.9 copying every platform of an image into a directory, bytes as they came."""

    def __init__(self, lab: Lab, host: Host, *, registries: str, registry: str) -> None:
        self.name = "skopeo"
        self._lab = lab
        self._host = host
        self._registry = registry
        self._directory = lab.path(host.name, "skopeo")
        (self._directory / "registries.conf").write_text(registries)

    def start(self, repository: str, tag: str) -> Process:
        target = self._target(repository, tag)
        shutil.rmtree(target, ignore_errors=True)
        source = f"docker://{self._registry}/{repository}:{tag}"
        # An option that its help doesn't list; the environment variable that podman knows is not read.
        argv = ["skopeo", "--insecure-policy", "--registries-conf", str(self._directory / "registries.conf")]
        argv += ["copy", "--all", "--src-tls-verify=false", source, f"dir:{target}"]
        return self._lab.start(f"skopeo-{self._host.name}", argv, self._host)

    def holds(self, repository: str, tag: str) -> Mapping[str, object]:
        """File name -> sha256: blobs are named by their digests, manifests by what they are."""
        held: dict[str, object] = {}
        for path in sorted(self._target(repository, tag).iterdir()):
            with path.open("rb") as file:
                held[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
        return held

    def _target(self, repository: str, tag: str) -> Path:
        return self._directory / f"{repository.replace('/', '_')}-{tag}"


def pull_all(pulls: Sequence[tuple[Puller, str, str]], timeout: float = 90.0) -> None:
    """Starts every pull (program, repository, tag) at once and waits for all. `LabError` with a failed one's log."""
    wait_for([puller.start(repository, tag) for puller, repository, tag in pulls], timeout)


def wait_for(processes: Sequence[Process], timeout: float = 90.0) -> None:
    """Until all have ended well."""
    for process in processes:
        if process.wait(timeout) != 0:
            raise LabError(f"{process.name} ended with status {process.status}: {process.tail()}")


def _works(process: Process, answers: object) -> bool:
    if not process.running:
        raise LabError(f"{process.name} ended with status {process.status}: {process.tail()}")
    return bool(answers()) if callable(answers) else False


def _small(size: str) -> bool:
    """ctr prints sizes for people: "735 B", "1.1 kB"."""
    return size.endswith("B") and not size.endswith(("MB", "GB", "MiB", "GiB"))
