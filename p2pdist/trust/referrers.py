"""Signatures that refer to an image: the referrers API with its pages, and the fallback tag where there is none.

distribution-spec, "Listing Referrers" and "Referrers Tag Schema". What a list says of a referrer's type is a hint:
it decides what is looked at first, not what counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from p2pdist.errors import InvalidDigest
from p2pdist.oci import Descriptor, Digest, Manifest, is_manifest
from p2pdist.trust import limits
from p2pdist.trust.collector import Collector
from p2pdist.trust.evidence import Candidate, Form
from p2pdist.trust.fields import Fields, parse_json
from p2pdist.trust.notation import ARTIFACT_TYPE as NOTATION_TYPE
from p2pdist.trust.refusal import Refused, shown
from p2pdist.trust.source import ReferrersPage

BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle"  # and what follows: versions have been spelt in two ways
_SAYS_NOTHING = {
    "",
    "application/vnd.oci.empty.v1+json",
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
}


@dataclass(frozen=True, slots=True)
class _Listed:
    digest: Digest
    size: int
    artifact_type: str


async def collect_referrers(collector: Collector, forms: frozenset[Form]) -> None:
    """Find every bundle and notation envelope that refers to the image, as far as `forms` has them."""
    listed, depth = await _list(collector)
    async with asyncio.TaskGroup() as tasks:
        for one in _choose(collector, listed, forms):
            tasks.create_task(_referrer(collector, one, forms, depth + 1))


async def _list(collector: Collector) -> tuple[list[_Listed], int]:
    """Every referrer listed, and how many requests one after the other it took."""
    listed: list[_Listed] = []
    following: str | None = None
    for number in range(1, limits.REFERRER_PAGES + 1):
        where = f"{collector.repository}: referrers of {collector.digest}, page {number}"
        page = None
        async with collector.request(None, where, number):
            page = await collector.source.referrers(
                collector.repository, collector.digest, following, limits.REFERRERS_PAGE
            )
            if page is None and number > 1:
                collector.miss(None, where, "the registry has no such page")
        if page is None:
            return (listed, number) if number > 1 else await _list_by_tag(collector)
        if not collector.take_bytes(None, where, len(page.body), limits.REFERRERS_PAGE):
            return listed, number
        listed += _descriptors(collector, page, where)
        following = page.next
        if following is None:
            return listed, number
    collector.miss(None, where, f"there are more than {limits.REFERRER_PAGES} pages")
    return listed, limits.REFERRER_PAGES


async def _list_by_tag(collector: Collector) -> tuple[list[_Listed], int]:
    tag = f"{collector.digest.algorithm}-{collector.digest.hex[:64]}"
    where = f"{collector.repository}:{tag}"
    raw = await collector.manifest_by_tag(tag, None, where, 2)
    return ([] if raw is None else _descriptors(collector, ReferrersPage(raw), where)), 2


def _descriptors(collector: Collector, page: ReferrersPage, where: str) -> list[_Listed]:
    try:
        body = parse_json(page.body, limits.REFERRERS_PAGE, "list of referrers", Refused, limits.CROWD_OF_LIST)
        items = Fields(body, "list of referrers", Refused).items("manifests")
    except Refused as error:
        collector.miss(None, where, str(error))
        return []
    listed = []
    for number, item in enumerate(items):
        try:
            listed.append(_listed(Fields(item, f"entry {number}", Refused)))
        except (Refused, InvalidDigest) as error:
            collector.miss(None, where, str(error))
    return listed


def _listed(fields: Fields) -> _Listed:
    artifact_type = fields.raw("artifactType")
    if not is_manifest(fields.text("mediaType")):
        fields.fail(f"of type {shown(fields.text('mediaType'))}, no manifest")
    return _Listed(
        Digest.parse(fields.text("digest")),
        fields.number("size"),
        artifact_type if isinstance(artifact_type, str) else "",
    )


def _choose(collector: Collector, listed: Sequence[_Listed], forms: frozenset[Form]) -> list[_Listed]:
    """Those that look like signatures, then those whose type says nothing; where there are neither, all."""
    once: dict[Digest, _Listed] = {}
    for one in listed:
        once.setdefault(one.digest, one)
    likely = [one for one in once.values() if _form_of_type(one.artifact_type, forms) is not None]
    silent = [one for one in once.values() if one.artifact_type in _SAYS_NOTHING]
    chosen = likely + silent or list(once.values())
    if len(chosen) > limits.REFERRERS:
        collector.miss(None, str(collector.repository), f"{len(chosen)} referrers; {limits.REFERRERS} are looked at")
    return chosen[: limits.REFERRERS]


async def _referrer(collector: Collector, listed: _Listed, forms: frozenset[Form], depth: int) -> None:
    where = f"{collector.repository}@{listed.digest}"
    raw = await collector.manifest_by_digest(listed.digest, listed.size, where, depth)
    manifest = None if raw is None else collector.parsed(raw, None, where)
    if manifest is None:
        return
    form = _form_of(manifest, forms)
    if form is None:
        collector.miss(None, where, f"no signature: its artifact type is {shown(_artifact_type(manifest))}")
    elif len(manifest.layers) != 1:
        collector.miss(form, where, f"{len(manifest.layers)} layers, wanted exactly 1")
    else:
        await _envelope(collector, manifest.layers[0], form, where, depth + 1)


async def _envelope(collector: Collector, layer: Descriptor, form: Form, where: str, depth: int) -> None:
    if not collector.take_bytes(form, where, layer.size, limits.ENVELOPE):
        return
    raw = await collector.blob(layer.digest, layer.size, form, where, depth)
    if raw is not None:
        collector.found(Candidate(form, where, raw, layer.media_type, layer.annotations))


def _form_of(manifest: Manifest, forms: frozenset[Form]) -> Form | None:
    form = _form_of_type(_artifact_type(manifest), forms)
    # A bundle in a manifest without a type is known by its layer; notation's specification asks for the type.
    if form is None and any(layer.media_type.startswith(BUNDLE_TYPE) for layer in manifest.layers):
        return Form.BUNDLE if Form.BUNDLE in forms else None
    return form


def _form_of_type(artifact_type: str, forms: frozenset[Form]) -> Form | None:
    if artifact_type == NOTATION_TYPE and Form.NOTATION in forms:
        return Form.NOTATION
    if artifact_type.startswith(BUNDLE_TYPE) and Form.BUNDLE in forms:
        return Form.BUNDLE
    return None


def _artifact_type(manifest: Manifest) -> str:
    return manifest.artifact_type or manifest.config.media_type
