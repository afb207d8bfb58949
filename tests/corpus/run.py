#!/usr/bin/env python3
"""Run a corpus of signed images, in the format of signature-corpus, against the agent's own code.

usage: run.py FOLDER [--level core,keyless,gpg,optional]

For each case the folder's serve.py is started on a loopback port with the case's state; the agent's registry client
and gate then pull through it as a daemon would, at the case's time. One line per case, then `N passed, N failed`;
exit status 1 when a case fails. A case passes when its verdict is the expected one, exactly its `servable` digests
may be served afterwards, and a refusal took less than 2 s and 64 MiB.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog

from p2pdist.errors import ConfigError, InvalidManifest, P2pdistError, PolicyError, UpstreamNotFound
from p2pdist.oci import Digest, Index, Manifest, Repository, parse_manifest
from p2pdist.trust import Enforcement, TrustGate, TrustSettings, UpstreamSource
from p2pdist.upstream import Credentials, Upstreams, UpstreamSettings

LEVELS = ("core", "keyless", "gpg", "optional")
MAX_SECONDS = 2.0
MAX_MEMORY = 64 * 1024  # KiB

# The corpus names what containers-policy.json lacks by x- types; these are the product's.
_TYPES = {
    b'"x-sigstoreBundle"': b'"p2pdist.sigstoreBundle"',
    b'"x-sigstoreSimpleKeyless"': b'"p2pdist.sigstoreSimpleKeyless"',
}


@dataclass(frozen=True)
class Result:
    """What became of one case. `problems` is empty when it passed."""

    case_id: str
    verdict: str
    seconds: float
    kib: int
    reason: str
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.problems


@dataclass(frozen=True)
class _Pull:
    state: str
    repository: Repository
    target: str


def load_cases(folder: Path, levels: Sequence[str] = LEVELS) -> list[dict[str, Any]]:
    """The cases of a corpus that are of one of `levels`; ConfigError when there is no corpus."""
    try:
        document = json.loads((folder / "cases.json").read_bytes())
    except OSError as error:
        raise ConfigError(f"there is no signature corpus at {folder}: {error.strerror} for cases.json") from error
    return [case for case in document["cases"] if case["level"] in levels]


async def run_case(folder: Path, case: Mapping[str, Any]) -> Result:
    """Run one case against a registry of its own."""
    last = _pull_of(case, case)
    priors = [
        _pull_of({"pull": prior} if isinstance(prior, str) else prior, case) for prior in case.get("prior_pulls") or []
    ]
    with (
        tempfile.TemporaryDirectory() as scratch,
        _registry(folder, [*priors, last], case.get("referrers_api", True)) as url,
    ):
        base, before = _memory(reset=True), time.monotonic()
        try:
            async with Upstreams(_registries([*priors, last], url), Credentials()) as upstreams:
                return await _run(folder, case, priors, last, upstreams, Path(scratch), base, before)
        except P2pdistError as error:
            return _result(case, "reject", str(error), [], before, base)


def _pull_of(pull: Mapping[str, Any], case: Mapping[str, Any]) -> _Pull:
    name = Repository.parse(pull.get("serve_as", case["serve_as"]))
    return _Pull(pull.get("state", case["state"]), name, pull["pull"])


def _registries(pulls: Sequence[_Pull], url: str) -> list[UpstreamSettings]:
    return [UpstreamSettings(name, url) for name in sorted({pull.repository.registry for pull in pulls})]


async def _run(
    folder: Path,
    case: Mapping[str, Any],
    priors: Sequence[_Pull],
    last: _Pull,
    upstreams: Upstreams,
    scratch: Path,
    base: int,
    before: float,
) -> Result:
    now = datetime.fromisoformat(case["now"]).timestamp()
    settings = TrustSettings(
        Enforcement.ENFORCE,
        _policy(folder, case["policy"], scratch),
        scratch / "ledger.sqlite",
        base=folder,
        lookaside={"": (folder / case["lookaside"]).absolute().as_uri()} if case.get("lookaside") else {},
    )
    gate = await TrustGate.open(settings, UpstreamSource(upstreams), clock=lambda: now)
    try:
        for prior in priors:
            try:
                await _pull(gate, upstreams, prior)
            except P2pdistError:
                continue  # a prior pull may well be refused
        earlier = gate.servable(last.repository)
        before = time.monotonic()
        try:
            await _pull(gate, upstreams, last)
        except P2pdistError as error:
            verdict, reason = "reject", str(error)
        else:
            verdict, reason = "accept", ""
        result = _result(case, verdict, reason, [], before, base)
        problems = _check_servable(folder, case, gate, last, verdict, earlier)
        return Result(*_parts(result), (*result.problems, *problems))
    finally:
        await gate.close()


def _parts(result: Result) -> tuple[str, str, float, int, str]:
    return result.case_id, result.verdict, result.seconds, result.kib, result.reason


def _result(
    case: Mapping[str, Any], verdict: str, reason: str, problems: list[str], before: float, base: int
) -> Result:
    seconds, kib = time.monotonic() - before, _memory() - base
    if verdict != case["expect"]:
        problems.append(f"expected {case['expect']} ({case['why']})")
    if verdict == "reject" and seconds >= MAX_SECONDS:
        problems.append(f"took {seconds:.2f} s")
    if verdict == "reject" and kib >= MAX_MEMORY:
        problems.append(f"took {kib // 1024} MiB")
    return Result(case["id"], verdict, seconds, kib, reason, tuple(problems))


def _policy(folder: Path, policy: Mapping[str, Any], scratch: Path) -> Path:
    path = scratch / "policy.json"
    if policy["type"] == "notation":
        requirement = {
            "type": "p2pdist.notation",
            "trustPolicyPath": policy["file"],
            "trustStorePath": policy["truststore"],
        }
        path.write_text(json.dumps({"default": [requirement]}))
    else:
        # As text: a policy that is malformed in some way must stay so.
        text = (folder / policy["file"]).read_bytes()
        for theirs, ours in _TYPES.items():
            text = text.replace(theirs, ours)
        path.write_bytes(text)
    return path


# --- what a daemon does -------------------------------------------------------------------------------------------


async def _pull(gate: TrustGate, upstreams: Upstreams, pull: _Pull) -> None:
    """Resolve, get by digest, get every child, ask for every blob; what is refused is raised."""
    first = await _manifest(gate, upstreams, pull.repository, pull.target)
    manifests = [await _manifest(gate, upstreams, pull.repository, str(first.digest))]
    for child in first.manifests if isinstance(first, Index) else ():
        try:
            manifests.append(await _manifest(gate, upstreams, pull.repository, str(child.digest)))
        except UpstreamNotFound:  # not every platform has to be there
            continue
    for manifest in manifests:
        if isinstance(manifest, Manifest):
            for blob in (manifest.config, *manifest.layers):
                gate.admit_blob(pull.repository, blob.digest)


async def _manifest(gate: TrustGate, upstreams: Upstreams, repository: Repository, target: str) -> Manifest | Index:
    fetched = await upstreams.registry(repository.registry).get_manifest(repository, target)
    manifest = parse_manifest(fetched.raw, fetched.media_type)
    await gate.admit_manifest(repository, target, manifest)
    return manifest


def _check_servable(
    folder: Path, case: Mapping[str, Any], gate: TrustGate, pull: _Pull, verdict: str, earlier: set[Digest]
) -> list[str]:
    served = gate.servable(pull.repository)
    if verdict == "reject":
        return [f"after the refusal {digest} may be served" for digest in sorted(served - earlier)]
    wanted = {Digest.parse(text) for text in case["servable"]}
    # What earlier pulls of the same agent let through is no fault of this one.
    problems = [f"{digest} may be served and should not" for digest in sorted(served - wanted - earlier)]
    problems += [f"{digest} may not be served and should" for digest in sorted(wanted - served)]
    others = _image_blobs(folder, pull.state) - wanted - earlier
    return problems + [
        f"the blob {digest} passes the gate" for digest in sorted(others) if _passes(gate, pull.repository, digest)
    ]


def _passes(gate: TrustGate, repository: Repository, digest: Digest) -> bool:
    try:
        gate.admit_blob(repository, digest)
    except PolicyError:
        return False
    return True


def _image_blobs(folder: Path, state: str) -> set[Digest]:
    """Every config and layer in a state that is not a signature's."""
    found: set[Digest] = set()
    for descriptor in json.loads((folder / state / "index.json").read_bytes())["manifests"]:
        name = descriptor["digest"].removeprefix("sha256:")
        path = next((one for one in (folder / state, folder) if (one / "blobs" / "sha256" / name).exists()), folder)
        try:
            manifest = parse_manifest((path / "blobs" / "sha256" / name).read_bytes(), descriptor["mediaType"])
        except (InvalidManifest, OSError):
            continue
        if isinstance(manifest, Manifest) and any("image.layer" in one.media_type for one in manifest.layers):
            found |= {manifest.config.digest, *(layer.digest for layer in manifest.layers)}
    return found


# --- the registry and the machine ---------------------------------------------------------------------------------


@contextmanager
def _registry(folder: Path, pulls: Sequence[_Pull], referrers_api: bool) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    arguments = [sys.executable, str(folder / "serve.py"), str(port)]
    if not referrers_api:
        arguments.append("--no-referrers")
    for state, name in dict.fromkeys((pull.state, pull.repository.name) for pull in pulls):
        arguments += ["--load", str(folder / state), name]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise ConfigError("the corpus's serve.py did not start") from None
            time.sleep(0.01)
        else:
            return


def _memory(*, reset: bool = False) -> int:
    """KiB: the most that this process has had since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


async def _main(folder: Path, levels: Sequence[str]) -> int:
    passed = failed = 0
    for case in load_cases(folder, levels):
        result = await run_case(folder, case)
        passed += result.passed
        failed += not result.passed
        line = f"{'ok  ' if result.passed else 'FAIL'} {result.case_id}: {result.verdict}"
        line += f" in {result.seconds * 1000:.0f} ms, {max(0, result.kib) / 1024:.1f} MiB"
        print(line + "".join(f"; {problem}" for problem in result.problems), flush=True)
        if not result.passed and result.reason:
            print(f"     {result.reason}", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--level", default=",".join(LEVELS), help="levels to run, with commas between them")
    arguments = parser.parse_args()
    levels = arguments.level.split(",")
    if not set(levels) <= set(LEVELS):
        parser.error(f"--level takes {', '.join(LEVELS)}")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    try:
        return asyncio.run(_main(arguments.folder.absolute(), levels))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
