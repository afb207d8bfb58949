"""Real daemons whose only way out is an agent with a signature policy: what they get, what their users are told."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from lab.agents import MIRROR_PORT
from lab.agents import program as program_file
from lab.confined import HOSTS, NAMES, Confined
from lab.images import Image, image
from lab.lab import Lab
from lab.process import Process
from support.program import content, program_image

from p2pdist.cli.bypass import Dockerd, Ran
from p2pdist.oci import OCI_MANIFEST, Digest, parse_manifest

sys.path.insert(0, str(Path(__file__).parents[1] / "trust"))
import trust_kit as kit

pytestmark = pytest.mark.system

MIB = 1 << 20
PROGRAMS = tuple(NAMES)


@dataclass
class Policy:
    """A policy file: every team's namespace has the team's key, all else is refused. The agent sees each change."""

    path: Path
    scopes: dict[str, object] = field(default_factory=dict)

    def trust(self, team: str, key: ec.EllipticCurvePrivateKey) -> None:
        identity = {"type": "matchRepository"}
        self._require(team, {"type": "sigstoreSigned", "keyData": kit.b64(kit.pem(key)), "signedIdentity": identity})

    def open(self, team: str) -> None:
        self._require(team, {"type": "insecureAcceptAnything"})

    def _require(self, team: str, requirement: dict[str, object]) -> None:
        self.scopes |= {f"{registry}/{team}": [requirement] for registry in NAMES.values()}
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps({"default": [{"type": "reject"}], "transports": {"docker": self.scopes}}))
        os.replace(new, self.path)


class Site(Confined):
    """One node, and the policy of its agent."""

    def __init__(self, lab: Lab) -> None:
        self.policy = Policy(lab.path("policy") / "policy.json")
        self.policy.trust("nobody", kit.new_key())
        super().__init__(lab, agent={"trust": {"enforcement": "enforce", "policy_file": str(self.policy.path)}})

    def publish(self, team: str) -> tuple[str, Image]:
        """An unsigned image as `v1` in a repository of the team."""
        what = image(f"trust-{team}", [MIB, 128 * 1024])
        self.registry.push(f"{team}/app", "v1", what)
        return f"{team}/app", what

    def sign(self, repository: str, what: Image, key: ec.EllipticCurvePrivateKey) -> None:
        """As `cosign sign --key` does, under the name that each daemon's users write."""
        manifest = parse_manifest(what.manifest, what.media_type)
        payloads = [kit.payload(manifest, f"{registry}/{repository}:v1") for registry in NAMES.values()]
        raw, (config, *layers) = kit.signature_manifest([kit.simple(key, payload) for payload in payloads])
        signature = Image(
            *(raw, OCI_MANIFEST, str(Digest.of(raw)), content(config), tuple(map(content, layers)), (), "")
        )
        self.registry.push(repository, f"sha256-{manifest.digest.hex}.sig", signature)

    def docker(self, *argv: str) -> Process:
        return self.run("docker", *argv)

    def ctr(self, *argv: str) -> Process:
        return self.run("ctr", *argv)

    def doctor(self, program: str, repository: str, hosts: Path) -> tuple[int, dict[str, str]]:
        """Its exit status, and what it found of the daemon."""
        argv = [
            "doctor",
            "--config",
            str(self.lab.directory / "agent-node.toml"),
            "--image",
            self.name(program, repository),
            "--json",
        ]
        argv += ["--daemon", "docker" if program == "dockerd" else "containerd", "--hosts-dir", str(hosts)]
        ended = self.run(program_file("p2pdist"), *argv)
        assert ended.status is not None
        return ended.status, json.loads(ended.tail(20_000))["checks"][-1]

    def ran(self, argv: Sequence[str]) -> Ran:
        ended = self.run(*argv)
        return Ran(ended.status, ended.tail())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Lab(logs=tmp_path_factory.mktemp("trust-logs")) as lab:
        yield Site(lab)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_signed_image_is_pulled_and_complete(site: Site, program: str) -> None:
    key = kit.new_key()
    site.policy.trust(f"signed-{program}", key)
    repository, what = site.publish(f"signed-{program}")
    site.sign(repository, what, key)

    pull = site.pull(program, repository)

    assert pull.status == 0, pull.tail()
    held = site.programs[program].holds(repository, "v1")
    if program == "dockerd":
        assert held["layers"] == list(what.diff_ids), "unpacked: each layer's digest is computed anew"
        assert held["id"] == what.config.digest and held["digests"] == {what.digest}
        container = site.docker("create", "--network=none", site.name(program, repository))
        assert container.status == 0, container.tail()
        copied = site.docker("cp", f"{container.tail().split()[-1]}:/data/0.bin", str(site.lab.path("copied")))
        assert copied.status == 0, copied.tail()
        assert (site.lab.path("copied") / "0.bin").stat().st_size == what.layers[0].size - 1536
    else:
        assert held["target"] == what.digest
        assert set(held["content"]) == {what.digest, *(blob.digest for blob in what.blobs)}
        mounted = site.ctr("images", "mount", site.name(program, repository), str(site.lab.path("mounted")))
        assert mounted.status == 0, mounted.tail()
        site.ctr("images", "unmount", str(site.lab.path("mounted")))


def test_a_signed_program_runs(site: Site) -> None:
    # In the laboratory containerd's shims don't see what dockerd mounts, so that it runs nothing; copying out is above.
    key = kit.new_key()
    site.policy.trust("runs", key)
    what = program_image("signed and running")
    site.registry.push("runs/app", "v1", what)
    site.sign("runs/app", what, key)
    assert site.pull("containerd", "runs/app").status == 0

    ran = site.ctr("run", "--rm", site.name("containerd", "runs/app"), "one")

    assert ran.status == 0, ran.tail()
    assert "signed and running" in ran.tail()


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_unsigned_image_is_refused_and_its_user_reads_why(site: Site, program: str) -> None:
    site.policy.trust(f"unsigned-{program}", kit.new_key())
    repository, _ = site.publish(f"unsigned-{program}")
    assert_refused(site, program, repository, "no signature was found")


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_image_signed_by_another_key_is_refused_and_its_user_reads_why(site: Site, program: str) -> None:
    site.policy.trust(f"foreign-{program}", kit.new_key())
    repository, what = site.publish(f"foreign-{program}")
    site.sign(repository, what, kit.new_key())
    assert_refused(site, program, repository, "none of 2 signatures counts")


def test_a_signature_added_later_makes_an_image_pullable_within_30_s(site: Site) -> None:
    key = kit.new_key()
    site.policy.trust("later", key)
    repository, what = site.publish("later")
    for program in PROGRAMS:
        assert site.pull(program, repository).status != 0

    site.sign(repository, what, key)
    begin = time.monotonic()
    waiting, passed = set(PROGRAMS), 0.0
    while waiting and passed < 30:  # the last try begins at 30 s
        time.sleep(1.0)
        passed = time.monotonic() - begin
        waiting -= {program for program in waiting if site.pull(program, repository).status == 0}
    assert not waiting, f"{waiting} after {passed:.0f} s"


def test_a_revoked_key_refuses_at_once(site: Site) -> None:
    key = kit.new_key()
    site.policy.trust("revoked", key)
    repository, what = site.publish("revoked")
    site.sign(repository, what, key)
    for program in PROGRAMS:
        assert site.pull(program, repository).status == 0

    site.policy.trust("revoked", kit.new_key())
    for program in PROGRAMS:
        assert_refused(site, program, repository, "none of 2 signatures counts")


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_doctor_says_that_the_daemon_has_no_way_round(site: Site, program: str) -> None:
    site.policy.trust(f"doctor-{program}", kit.new_key())
    repository, _ = site.publish(f"doctor-{program}")
    status, finding = site.doctor(program, repository, site.hosts)
    assert (status, finding["state"]) == (0, "ok"), finding
    assert "did not get" in finding["detail"]


def test_the_doctor_finds_the_way_round_says_what_to_do_and_removes_what_came_by_it(site: Site) -> None:
    site.policy.trust("round", kit.new_key())
    repository, _ = site.publish("round")
    open_hosts = site.lab.path("open-certs.d", "_default")
    (open_hosts / "hosts.toml").write_text(HOSTS.replace(site.agent.url, site.registry.url, 1))

    status, finding = site.doctor("containerd", repository, open_hosts.parent)

    assert (status, finding["state"]) == (1, "failed"), finding
    assert "after the agent had refused it" in finding["detail"]
    assert f'server = "{site.agent.url}"' in finding["remedy"] and "nftables" in finding["remedy"]
    assert repository not in site.ctr("images", "ls").tail()

    pulled = site.ctr("images", "pull", "--hosts-dir", str(open_hosts.parent), site.name("containerd", repository))
    assert pulled.status == 0, pulled.tail()
    assert site.doctor("containerd", repository, open_hosts.parent)[1]["state"] == "failed"
    assert repository in site.ctr("images", "ls").tail(), "what was there before stays"


def test_the_doctor_removes_what_dockerd_got_and_no_image_that_it_had(site: Site) -> None:
    site.policy.trust("hub", kit.new_key())
    repository, _ = site.publish("hub")
    docker, name = Dockerd(), f"docker.io/{repository}:v1"
    assert docker.has(site.ran(docker.look(name))) is False

    site.policy.open("hub")
    assert site.ran(docker.pull(name)).status == 0
    assert docker.has(site.ran(docker.look(name))) is True
    assert site.ran(docker.remove(name)).status == 0
    assert docker.has(site.ran(docker.look(name))) is False


def assert_refused(site: Site, program: str, repository: str, why: str) -> None:
    pull = site.pull(program, repository)
    assert pull.status != 0
    if program == "dockerd":
        # After a mirror's refusal dockerd asks Docker Hub itself, and its user reads what came of that; why the agent
        # refused stands in dockerd's log. Asked for by the agent's address, it says so to its user.
        assert "registry-1.docker.io" in pull.tail()
        assert f"denied: policy refuses docker.io/{repository}:v1" in site.programs[program].process.tail(20_000)
        pull = site.docker("pull", f"127.0.0.1:{MIRROR_PORT}/docker.io/{repository}:v1")
        assert pull.status != 0
    else:
        assert "403 DENIED" in pull.tail()
    assert f"policy refuses {site.name(program, repository)}" in pull.tail()
    assert why in pull.tail()
