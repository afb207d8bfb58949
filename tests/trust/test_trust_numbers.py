"""The numbers that a pull pays: CPU of a verdict, of a known one, round trips, and what a refusal may take."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from trust_kit import (
    ISSUER,
    NOW,
    REPOSITORY,
    SUBJECT,
    MemorySource,
    Sigstore,
    bundle,
    dumps,
    image,
    new_key,
    payload,
    pem,
    referrer,
    simple,
    statement,
)

from p2pdist.errors import PolicyError
from p2pdist.trust import Enforcement, TrustGate, TrustSettings
from p2pdist.trust.evidence import Candidate, Evidence, Form
from p2pdist.trust.policy import Policy, parse_policy
from p2pdist.trust.requirement_reader import Files
from p2pdist.trust.verdict import Verdict, judge

KEY, SIGSTORE, IMAGE = new_key(), Sigstore(), image(layers=20)
IDENTITY = {"subject": SUBJECT, "issuer": ISSUER}


class Two(Files):
    def read(self, path: str) -> bytes:
        return pem(KEY) if path == "k.pub" else SIGSTORE.trusted_root()

    def names(self, path: str) -> list[str]:
        return []


def policy(requirement: dict[str, object]) -> Policy:
    return parse_policy(dumps({"default": [requirement]}), Two(), "policy")


def best(work: Callable[[], object], times: int = 40) -> float:
    """Milliseconds of CPU of the quickest run: what it takes, whatever else the machine does."""
    found = []
    for _ in range(times):
        before = time.process_time()
        work()
        found.append(time.process_time() - before)
    return min(found) * 1000


def verdict(requirement: dict[str, object], candidate: Candidate) -> Callable[[], Verdict]:
    scope, evidence = policy(requirement).default, Evidence((candidate,))
    return lambda: judge(scope, REPOSITORY, "1.0", IMAGE, evidence, NOW, lambda _keys, _data: pytest.fail("no GPG"))


SIMPLE_DATA, SIMPLE_NOTES = simple(KEY, payload(IMAGE))
KEYLESS_DATA, KEYLESS_NOTES = SIGSTORE.simple(payload(IMAGE))
REPO = {"signedIdentity": {"type": "matchRepository"}}


@pytest.mark.parametrize(
    ("requirement", "candidate", "limit"),
    [
        (
            {"type": "sigstoreSigned", "keyPath": "k.pub", **REPO},
            Candidate(Form.SIMPLE, "x", SIMPLE_DATA, "", SIMPLE_NOTES),
            5.0,
        ),
        (
            {"type": "p2pdist.sigstoreBundle", "keyPath": "k.pub"},
            Candidate(Form.BUNDLE, "x", dumps(bundle(KEY, statement(IMAGE)))),
            5.0,
        ),
        (
            {"type": "p2pdist.sigstoreBundle", "trustedRootPath": "r", "identity": IDENTITY},
            Candidate(Form.BUNDLE, "x", dumps(SIGSTORE.bundle(statement(IMAGE)))),
            15.0,
        ),
        (
            {"type": "p2pdist.sigstoreSimpleKeyless", "trustedRootPath": "r", "identity": IDENTITY, **REPO},
            Candidate(Form.SIMPLE, "x", KEYLESS_DATA, "", KEYLESS_NOTES),
            15.0,
        ),
    ],
    ids=["simple by key", "bundle by key", "bundle keyless", "simple keyless"],
)
def test_a_verdict_takes_little_cpu(requirement: dict[str, object], candidate: Candidate, limit: float) -> None:
    judged = verdict(requirement, candidate)
    assert judged().accepted
    taken = best(judged)
    print(f"{requirement['type']}: {taken:.2f} ms")
    assert taken < limit


async def gate(directory: Path, source: MemorySource, requirement: dict[str, object]) -> TrustGate:
    (directory / "k.pub").write_bytes(pem(KEY))
    (directory / "policy.json").write_bytes(dumps({"default": [requirement]}))
    settings = TrustSettings(Enforcement.ENFORCE, directory / "policy.json", directory / "ledger.sqlite")
    return await TrustGate.open(settings, source)


async def test_what_is_known_takes_less_than_a_millisecond_and_asks_nothing(tmp_path: Path) -> None:
    source = MemorySource()
    source.attach(IMAGE, referrer(IMAGE, dumps(bundle(KEY, statement(IMAGE)))))
    one = await gate(tmp_path, source, {"type": "p2pdist.sigstoreBundle", "keyPath": "k.pub"})
    try:
        await one.admit_manifest(REPOSITORY, "1.0", IMAGE)
        assert len(source.asked) <= 4, "a cold check"
        asked, found = len(source.asked), []
        for _ in range(40):
            before = time.perf_counter()
            await one.admit_manifest(REPOSITORY, "1.0", IMAGE)
            found.append(time.perf_counter() - before)
        taken = min(found) * 1000
        blob = best(lambda: one.admit_blob(REPOSITORY, IMAGE.layers[7].digest))
        print(f"known manifest: {taken:.3f} ms, blob: {blob:.3f} ms")
        assert taken < 1
        assert blob < 1
        assert len(source.asked) == asked
    finally:
        await one.close()


CROWDED = [
    b'{"dsseEnvelope": [' + b"{}," * 60_000 + b"{}]}",
    b'{"dsseEnvelope": [' + b"0," * 120_000 + b"0]}",
    b'{"dsseEnvelope": {' + b",".join(b'"%d":""' % number for number in range(20_000)) + b"}}",
    b'{"dsseEnvelope": [' + b"{}," * 4_000 + b'"' + b"a" * 200_000 + b'"]}',
    b'{"dsseEnvelope": ' + b"[" * 240_000,
    b'"' * 240_000,
    b'"\\' * 120_000,
]


@pytest.mark.parametrize(
    ("most", "where"),
    [*((most, "envelope") for most in CROWDED), (CROWDED[0], "manifest"), (CROWDED[3], "manifest")],
    ids=range(len(CROWDED) + 2),
)
async def test_a_refusal_of_the_most_that_is_read_ends_in_two_seconds_and_64_mib(
    tmp_path: Path, most: bytes, where: str
) -> None:
    # As many referrers and bytes as are read, each of what takes a parser the most for its bytes.
    source = MemorySource()
    for number in range(64):
        raw, blobs = referrer(IMAGE, most + b" " * number)
        if where == "manifest":
            raw, blobs = referrer(IMAGE, b"%d" % number)
            raw = raw[:-1] + b', "more": ' + most + b"}"
        source.list_raw(IMAGE, raw, blobs)
    one = await gate(tmp_path, source, {"type": "p2pdist.sigstoreBundle", "keyPath": "k.pub"})
    try:
        before = time.process_time()
        with pytest.raises(PolicyError):
            await one.admit_manifest(REPOSITORY, "1.0", IMAGE)
        taken = time.process_time() - before
        print(f"refused in {taken:.2f} s of CPU")
        assert taken < 2
    finally:
        await one.close()


async def test_a_refusal_of_the_most_that_is_read_takes_under_64_mib(tmp_path: Path) -> None:
    source = MemorySource()
    for number in range(64):
        source.list_raw(IMAGE, *referrer(IMAGE, CROWDED[3] + b" " * number))
    one = await gate(tmp_path, source, {"type": "p2pdist.sigstoreBundle", "keyPath": "k.pub"})
    tracemalloc.start()
    try:
        with pytest.raises(PolicyError):
            await one.admit_manifest(REPOSITORY, "1.0", IMAGE)
        _, peak = tracemalloc.get_traced_memory()
        print(f"{peak / 1024 / 1024:.1f} MiB beside the bytes themselves")
        assert peak < 48 * 1024 * 1024
    finally:
        tracemalloc.stop()
        await one.close()
