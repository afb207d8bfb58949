"""Fetching what might be signatures of one image, within the limits of one decision.

Everything that the policy could use is asked for at once: the `.sig` and `.att` tags, the referrers (or the fallback
tag, where a registry has no such API), the GPG store. What one of them lacks never hides another: a candidate that
is too large, malformed, of wrong digest or out of reach is noted and the rest goes on, until the time is up.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from p2pdist.errors import InvalidDigest, InvalidManifest, UpstreamError
from p2pdist.oci import Descriptor, Digest, Manifest, Repository, is_manifest, parse_manifest
from p2pdist.trust import limits
from p2pdist.trust.evidence import Candidate, Evidence, Form, Unread
from p2pdist.trust.fields import Fields
from p2pdist.trust.notation import ARTIFACT_TYPE as NOTATION_TYPE
from p2pdist.trust.refusal import Refused, shown
from p2pdist.trust.signatures.simplesigning import MEDIA_TYPE as SIMPLE_TYPE
from p2pdist.trust.source import ReferrersPage, SignatureSource

BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle"  # and what follows: versions have been spelt in two ways
DSSE_TYPE = "application/vnd.dsse.envelope.v1+json"
_SAYS_NOTHING = {
    "",
    "application/vnd.oci.empty.v1+json",
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
}
_LOOKASIDE_ROUNDS = (8, 8, 16)  # signature-N is numbered without a gap; asked for in rounds, each at once


@dataclass(frozen=True, slots=True)
class _Listed:
    digest: Digest
    size: int
    artifact_type: str


async def gather(
    source: SignatureSource,
    repository: Repository,
    digest: Digest,
    forms: frozenset[Form],
    lookaside: Sequence[str],
    *,
    seconds: float = limits.SECONDS,
) -> Evidence:
    """What might be signatures of `digest` in `repository`, of these forms.

    Args:
        source: the registry.
        repository: the image's.
        digest: of the image's manifest or index.
        forms: those that the policy could use; nothing else is asked for.
        lookaside: base URLs of GPG signature stores for this repository.
        seconds: for all of it.
    """
    return await _Gathering(source, repository, digest, forms, lookaside).run(seconds)


class _Gathering:
    def __init__(
        self,
        source: SignatureSource,
        repository: Repository,
        digest: Digest,
        forms: frozenset[Form],
        lookaside: Sequence[str],
    ) -> None:
        self._source = source
        self._repository = repository
        self._digest = digest
        self._forms = forms
        self._lookaside = lookaside
        self._parallel = asyncio.Semaphore(limits.PARALLEL)
        self._found: list[Candidate] = []
        self._unread: list[Unread] = []
        self._signatures = 0
        self._bytes = 0
        self._requests = 0
        self._deepest = 0

    async def run(self, seconds: float) -> Evidence:
        prefix = f"{self._digest.algorithm}-{self._digest.hex}"
        try:
            async with asyncio.timeout(seconds), asyncio.TaskGroup() as tasks:
                if Form.SIMPLE in self._forms:
                    tasks.create_task(self._tag(f"{prefix}.sig", Form.SIMPLE, SIMPLE_TYPE, limits.PAYLOAD))
                if Form.DSSE in self._forms:
                    tasks.create_task(self._tag(f"{prefix}.att", Form.DSSE, DSSE_TYPE, limits.ENVELOPE))
                if self._forms & {Form.BUNDLE, Form.NOTATION}:
                    tasks.create_task(self._referrers(prefix))
                if Form.GPG in self._forms:
                    for base in self._lookaside:
                        tasks.create_task(self._store(base))
        except TimeoutError:
            self._miss(None, str(self._repository), f"not everything could be read in {seconds:g} s", fault=True)
        order = sorted(self._found, key=lambda candidate: _natural(candidate.where))
        return Evidence(tuple(order), tuple(self._unread), self._requests, self._deepest, self._bytes)

    # --- limits -----------------------------------------------------------------------------------------------

    def _miss(self, form: Form | None, where: str, reason: str, *, fault: bool = False) -> None:
        if len(self._unread) < 2 * (limits.REFERRERS + limits.SIGNATURES):
            self._unread.append(Unread(form, where, shown(reason), fault))

    def _take_signature(self, form: Form, where: str) -> bool:
        if self._signatures == limits.SIGNATURES:
            self._miss(form, where, f"more than {limits.SIGNATURES} signatures")
            return False
        self._signatures += 1
        return True

    def _take_bytes(self, form: Form | None, where: str, size: int, limit: int) -> bool:
        if size > limit:
            self._miss(form, where, f"declares {size} bytes; at most {limit} are read")
            return False
        if self._bytes + size > limits.TOTAL:
            self._miss(form, where, f"more than {limits.TOTAL} bytes of signatures")
            return False
        self._bytes += size
        return True

    @asynccontextmanager
    async def _request(self, form: Form | None, where: str, depth: int) -> AsyncIterator[None]:
        """One request: counted, few at a time, its failure noted and not raised."""
        async with self._parallel:
            self._requests += 1
            self._deepest = max(self._deepest, depth)
            try:
                yield
            except UpstreamError as error:
                self._miss(form, where, f"can't be fetched: {error}", fault=error.temporary)

    # --- tags -------------------------------------------------------------------------------------------------

    async def _tag(self, tag: str, form: Form, layer_type: str, limit: int) -> None:
        where = f"{self._repository}:{tag}"
        raw = await self._fetch_manifest(tag, form, where, 1)
        manifest = self._parsed(raw, form, where)
        if manifest is None:
            return
        wanted: dict[tuple[Digest, int], list[tuple[str, Mapping[str, str]]]] = {}
        for number, layer in enumerate(manifest.layers, 1):
            place = f"{where}, layer {number}"
            if not self._take_signature(form, place):
                break
            if layer.media_type != layer_type:
                self._miss(form, place, f"of type {shown(layer.media_type)}, not {layer_type}")
            elif (layer.digest, layer.size) in wanted or self._take_bytes(form, place, layer.size, limit):
                wanted.setdefault((layer.digest, layer.size), []).append((place, layer.annotations))
        async with asyncio.TaskGroup() as tasks:
            for (digest, size), places in wanted.items():
                tasks.create_task(self._layer(digest, size, form, layer_type, places))

    async def _layer(
        self, digest: Digest, size: int, form: Form, type_: str, places: Sequence[tuple[str, Mapping[str, str]]]
    ) -> None:
        raw = await self._fetch_blob(digest, size, form, places[0][0], 2)
        if raw is not None:
            self._found += [Candidate(form, place, raw, type_, annotations) for place, annotations in places]

    # --- referrers --------------------------------------------------------------------------------------------

    async def _referrers(self, prefix: str) -> None:
        listed, depth = await self._list(prefix)
        chosen = self._choose(listed)
        async with asyncio.TaskGroup() as tasks:
            for one in chosen:
                tasks.create_task(self._referrer(one, depth + 1))

    async def _list(self, prefix: str) -> tuple[list[_Listed], int]:
        """Every referrer listed, and how many requests one after the other it took."""
        listed: list[_Listed] = []
        following: str | None = None
        for number in range(1, limits.REFERRER_PAGES + 1):
            where = f"{self._repository}: referrers of {self._digest}, page {number}"
            answered, page = False, None
            async with self._request(None, where, number):
                page = await self._source.referrers(self._repository, self._digest, following, limits.REFERRERS_PAGE)
                answered = True
            if page is None and number == 1:
                return await self._list_by_tag(prefix)
            if page is None or not self._take_bytes(None, where, len(page.body), limits.REFERRERS_PAGE):
                if answered and page is None:
                    self._miss(None, where, "the registry has no such page")
                return listed, number
            listed += self._descriptors(page, where)
            following = page.next
            if following is None:
                return listed, number
        self._miss(None, where, f"more than {limits.REFERRER_PAGES} pages")
        return listed, limits.REFERRER_PAGES

    async def _list_by_tag(self, prefix: str) -> tuple[list[_Listed], int]:
        # distribution-spec, "Referrers Tag Schema": sha256-<hex>, cut to the length of a tag.
        tag = prefix[:128]
        where = f"{self._repository}:{tag}"
        raw = await self._fetch_manifest(tag, None, where, 2)
        return ([] if raw is None else self._descriptors(ReferrersPage(raw), where)), 2

    def _descriptors(self, page: ReferrersPage, where: str) -> list[_Listed]:
        try:
            items = Fields.parse(page.body, limits.REFERRERS_PAGE, "list of referrers", Refused).items("manifests")
        except Refused as error:
            self._miss(None, where, str(error))
            return []
        listed = []
        for number, item in enumerate(items):
            try:
                listed.append(_listed(Fields(item, f"entry {number}", Refused)))
            except (Refused, InvalidDigest) as error:
                self._miss(None, where, str(error))
        return listed

    def _choose(self, listed: Sequence[_Listed]) -> list[_Listed]:
        """Those that look like signatures by their artifact type, then those that say nothing.

        What a list says of a type is a hint. So others are looked at too where there are none of these.
        """
        once = list({one.digest: one for one in reversed(listed)}.values())[::-1]
        likely = [one for one in once if self._likely(one.artifact_type)]
        silent = [one for one in once if one.artifact_type in _SAYS_NOTHING]
        chosen = likely + silent or once
        if len(chosen) > limits.REFERRERS:
            self._miss(None, str(self._repository), f"{len(chosen)} referrers; {limits.REFERRERS} are looked at")
        return chosen[: limits.REFERRERS]

    def _likely(self, artifact_type: str) -> bool:
        return (Form.NOTATION in self._forms and artifact_type == NOTATION_TYPE) or (
            Form.BUNDLE in self._forms and artifact_type.startswith(BUNDLE_TYPE)
        )

    async def _referrer(self, listed: _Listed, depth: int) -> None:
        where = f"{self._repository}@{listed.digest}"
        if not self._take_bytes(None, where, listed.size, limits.SIGNATURE_MANIFEST):
            return
        raw = await self._fetch_manifest(str(listed.digest), None, where, depth, counted=True)
        if raw is not None and Digest.of(raw, listed.digest.algorithm) != listed.digest:
            self._miss(None, where, "its bytes have another digest")
            return
        manifest = self._parsed(raw, None, where)
        if manifest is None:
            return
        form = self._form_of(manifest)
        if form is None:
            self._miss(None, where, f"no signature: artifact type {shown(_artifact_type(manifest)) or 'none'}")
        elif len(manifest.layers) != 1:
            self._miss(form, where, f"{len(manifest.layers)} layers, wanted exactly 1")
        else:
            await self._envelope(manifest.layers[0], form, where, depth + 1)

    async def _envelope(self, layer: Descriptor, form: Form, where: str, depth: int) -> None:
        if not self._take_signature(form, where) or not self._take_bytes(form, where, layer.size, limits.ENVELOPE):
            return
        raw = await self._fetch_blob(layer.digest, layer.size, form, where, depth)
        if raw is not None:
            self._found.append(Candidate(form, where, raw, layer.media_type, layer.annotations))

    def _form_of(self, manifest: Manifest) -> Form | None:
        type_ = _artifact_type(manifest)
        if Form.NOTATION in self._forms and type_ == NOTATION_TYPE:
            return Form.NOTATION
        layers = [layer.media_type for layer in manifest.layers]
        if Form.BUNDLE in self._forms and any(text.startswith(BUNDLE_TYPE) for text in (type_, *layers)):
            return Form.BUNDLE
        return None

    # --- GPG store --------------------------------------------------------------------------------------------

    async def _store(self, base: str) -> None:
        path = f"{self._repository.name}@{self._digest.algorithm}={self._digest.hex}"
        first = 1
        for depth, count in enumerate(_LOOKASIDE_ROUNDS, 1):
            async with asyncio.TaskGroup() as tasks:
                asked = [
                    tasks.create_task(self._stored(base, f"{path}/signature-{number}", depth))
                    for number in range(first, first + count)
                ]
            for number, task in enumerate(asked, first):
                raw = task.result()
                where = f"{base}/{path}/signature-{number}"
                if raw is None or not self._take_signature(Form.GPG, where):
                    return
                if raw and self._take_bytes(Form.GPG, where, len(raw), limits.GPG_SIGNATURE):
                    self._found.append(Candidate(Form.GPG, where, raw))
            first += count

    async def _stored(self, base: str, path: str, depth: int) -> bytes | None:
        """None: there is none; empty: there is one that can't be read, which is noted."""
        raw: bytes | None = b""
        async with self._request(Form.GPG, f"{base}/{path}", depth):
            raw = await self._source.lookaside(base, path, limits.GPG_SIGNATURE)
        return raw

    # --- requests ---------------------------------------------------------------------------------------------

    async def _fetch_manifest(
        self, target: str, form: Form | None, where: str, depth: int, *, counted: bool = False
    ) -> bytes | None:
        """A manifest within the limits; None where there is none, or it can't be had and that is noted."""
        raw = None
        async with self._request(form, where, depth):
            raw = await self._source.manifest(self._repository, target, limits.SIGNATURE_MANIFEST)
            if raw is None and counted:
                self._miss(form, where, "listed, but not there")
        if raw is not None and not counted and not self._take_bytes(form, where, len(raw), limits.SIGNATURE_MANIFEST):
            return None
        return raw

    async def _fetch_blob(self, digest: Digest, size: int, form: Form, where: str, depth: int) -> bytes | None:
        raw = None
        async with self._request(form, where, depth):
            raw = await self._source.blob(self._repository, digest, size)
        if raw is None:
            return None
        if len(raw) != size or Digest.of(raw, digest.algorithm) != digest:
            self._miss(form, where, "its bytes have another digest or size than the manifest says")
            return None
        return raw

    def _parsed(self, raw: bytes | None, form: Form | None, where: str) -> Manifest | None:
        if raw is None:
            return None
        try:
            manifest = parse_manifest(raw, None)
        except InvalidManifest as error:
            self._miss(form, where, str(error))
            return None
        if not isinstance(manifest, Manifest):
            self._miss(form, where, "an index where a manifest with signatures is wanted")
            return None
        return manifest


def _natural(text: str) -> list[str | int]:
    """A key that sorts layer 10 after layer 2."""
    return [int(part) if number % 2 else part for number, part in enumerate(re.split(r"(\d{1,9})", text))]


def _listed(fields: Fields) -> _Listed:
    artifact_type = fields.raw("artifactType")
    if not is_manifest(fields.text("mediaType")):
        fields.fail(f"of type {shown(fields.text('mediaType'))}, no manifest")
    return _Listed(
        Digest.parse(fields.text("digest")),
        fields.number("size"),
        artifact_type if isinstance(artifact_type, str) else "",
    )


def _artifact_type(manifest: Manifest) -> str:
    return manifest.artifact_type or manifest.config.media_type
