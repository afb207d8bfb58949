"""Signatures of images, fetched once for all who ask at the same time, and kept for seconds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from p2pdist.errors import UpstreamError
from p2pdist.oci import Digest, Repository
from p2pdist.trust import limits
from p2pdist.trust.evidence import Evidence, Form
from p2pdist.trust.fetch import gather
from p2pdist.trust.flights import Flights
from p2pdist.trust.settings import TrustSettings
from p2pdist.trust.source import SignatureSource

_KEPT = 16
_KEPT_BYTES = 2 * limits.MIB  # of one image; more is fetched again when it is needed again

_Key = tuple[Repository, Digest, frozenset[Form]]


@dataclass(frozen=True, slots=True)
class Found:
    """Signatures with the moment (`monotonic` seconds) from which on they are too old to be used."""

    evidence: Evidence
    until: float


class Library:
    """Where the gate gets signatures from. `monotonic`: seconds that never go back."""

    def __init__(self, source: SignatureSource, settings: TrustSettings, monotonic: Callable[[], float]) -> None:
        self._source = source
        self._settings = settings
        self._monotonic = monotonic
        self._kept: OrderedDict[_Key, Found] = OrderedDict()
        self._gathering: Flights[tuple[_Key, str | None], Found] = Flights()

    async def find(
        self, repository: Repository, digest: Digest, forms: frozenset[Form], authorization: str | None
    ) -> Found:
        """What might be signatures of `digest`, of these forms; kept ones where they are fresh."""
        if not forms:
            return Found(Evidence(), self._monotonic() + limits.EVIDENCE_SECONDS)
        key = (repository, digest, forms)
        kept = self._kept.get(key)
        if kept is not None and kept.until > self._monotonic():
            return kept
        found = await self._gathering.join((key, authorization), lambda: self._gather(key, authorization))
        if found.evidence.bytes <= _KEPT_BYTES and not any(unread.fault for unread in found.evidence.unread):
            self._kept[key] = found
            self._kept.move_to_end(key)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return found

    async def _gather(self, key: _Key, authorization: str | None) -> Found:
        repository, digest, forms = key
        until = self._monotonic() + limits.EVIDENCE_SECONDS
        source, stores = self._asking(authorization), self._settings.stores_for(repository)
        return Found(await gather(source, repository, digest, forms, stores), until)

    async def blob(self, repository: Repository, digest: Digest, size: int, authorization: str | None) -> bytes | None:
        """A small blob; None when it can't be had or has another digest."""
        try:
            data = await self._asking(authorization).blob(repository, digest, size)
        except UpstreamError:
            return None
        return data if len(data) == size and Digest.of(data, digest.algorithm) == digest else None

    def _asking(self, authorization: str | None) -> SignatureSource:
        return self._source if authorization is None else self._source.on_behalf_of(authorization)
