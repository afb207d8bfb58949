"""Fetching what might be signatures of one image, within the limits of one decision.

Everything that the policy could use is asked for at once: the `.sig` and `.att` tags, the referrers (or the fallback
tag, where a registry has no such API), the GPG store. What one of them lacks never hides another: a candidate that
is too large, malformed, of wrong digest or out of reach is noted and the rest goes on, until the time is up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from p2pdist.oci import Digest, Repository
from p2pdist.trust import limits
from p2pdist.trust.collector import Collector
from p2pdist.trust.evidence import Candidate, Evidence, Form
from p2pdist.trust.referrers import collect_referrers
from p2pdist.trust.refusal import shown
from p2pdist.trust.signatures.simplesigning import MEDIA_TYPE as SIMPLE_TYPE
from p2pdist.trust.source import SignatureSource

DSSE_TYPE = "application/vnd.dsse.envelope.v1+json"
_STORE_ROUNDS = (8, 8, 16)  # signature-N is numbered without a gap; asked for in rounds, each at once

_Places = list[tuple[str, Mapping[str, str]]]


async def gather(
    source: SignatureSource,
    repository: Repository,
    digest: Digest,
    forms: frozenset[Form],
    stores: Sequence[str],
    *,
    seconds: float = limits.SECONDS,
) -> Evidence:
    """What might be signatures of `digest` in `repository`, of these forms.

    Args:
        source: the registry.
        repository: the image's.
        digest: of the image's manifest or index.
        forms: those that the policy could use; nothing else is asked for.
        stores: base URLs of GPG signature stores for this repository.
        seconds: for all of it.
    """
    collector = Collector(source, repository, digest)
    try:
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as tasks:
            if Form.SIMPLE in forms:
                tasks.create_task(_tag(collector, "sig", Form.SIMPLE, SIMPLE_TYPE, limits.PAYLOAD))
            if Form.DSSE in forms:
                tasks.create_task(_tag(collector, "att", Form.DSSE, DSSE_TYPE, limits.ENVELOPE))
            if forms & {Form.BUNDLE, Form.NOTATION}:
                tasks.create_task(collect_referrers(collector, forms))
            if Form.GPG in forms:
                for base in stores:
                    tasks.create_task(_store(collector, base))
    except TimeoutError:
        collector.miss(None, str(repository), f"not everything could be read in {seconds:g} s", fault=True)
    return collector.evidence()


async def _tag(collector: Collector, suffix: str, form: Form, layer_type: str, limit: int) -> None:
    """cosign's tags: the digest with a suffix, one signature per layer (cosign, SIGNATURE_SPEC.md)."""
    tag = f"{collector.digest.algorithm}-{collector.digest.hex}.{suffix}"
    if len(tag) > 128:  # a sha512 digest: no registry can have such a tag
        return
    where = f"{collector.repository}:{tag}"
    raw = await collector.manifest_by_tag(tag, form, where, 1)
    manifest = None if raw is None else collector.parsed(raw, form, where)
    if manifest is None:
        return
    wanted: dict[tuple[Digest, int], _Places] = {}
    for number, layer in enumerate(manifest.layers, 1):
        place = f"{where}, layer {number}"
        if number > limits.SIGNATURES:
            collector.miss(form, place, f"more than {limits.SIGNATURES} signatures")
            break
        if layer.media_type != layer_type:
            collector.miss(form, place, f"of type {shown(layer.media_type)}, not {layer_type}")
        elif (layer.digest, layer.size) in wanted or collector.take_bytes(form, place, layer.size, limit):
            wanted.setdefault((layer.digest, layer.size), []).append((place, layer.annotations))
    async with asyncio.TaskGroup() as tasks:
        for (digest, size), places in wanted.items():
            tasks.create_task(_layer(collector, digest, size, form, layer_type, places))


async def _layer(collector: Collector, digest: Digest, size: int, form: Form, type_: str, places: _Places) -> None:
    raw = await collector.blob(digest, size, form, places[0][0], 2)
    if raw is not None:
        for place, annotations in places:
            collector.found(Candidate(form, place, raw, type_, annotations))


async def _store(collector: Collector, base: str) -> None:
    """A GPG store: `<base>/<repository without host>@sha256=<hex>/signature-N` (containers-registries.d(5))."""
    path = f"{collector.repository.name}@{collector.digest.algorithm}={collector.digest.hex}"
    first = 1
    for depth, count in enumerate(_STORE_ROUNDS, 1):
        async with asyncio.TaskGroup() as tasks:
            asked = [
                tasks.create_task(_stored(collector, base, f"{path}/signature-{number}", depth))
                for number in range(first, first + count)
            ]
        for number, task in enumerate(asked, first):
            raw = task.result()
            if raw is None:
                return
            where = f"{base}/{path}/signature-{number}"
            if raw and collector.take_bytes(Form.GPG, where, len(raw), limits.GPG_SIGNATURE):
                collector.found(Candidate(Form.GPG, where, raw))
        first += count
    collector.miss(Form.GPG, f"{base}/{path}", f"at most {limits.SIGNATURES} signatures are looked at")


async def _stored(collector: Collector, base: str, path: str, depth: int) -> bytes | None:
    """None: there is none; empty: there is one that can't be read, which is noted."""
    raw: bytes | None = b""
    async with collector.request(Form.GPG, f"{base}/{path}", depth):
        raw = await collector.source.lookaside(base, path, limits.GPG_SIGNATURE)
    return raw
