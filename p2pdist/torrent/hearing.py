"""What neighbours say on control links, and what follows from it."""

from __future__ import annotations

import asyncio

from p2pdist.errors import ProtocolError
from p2pdist.torrent import wire
from p2pdist.torrent.alone import bits
from p2pdist.torrent.answers import Answers
from p2pdist.torrent.dials import Dials
from p2pdist.torrent.links import Link
from p2pdist.torrent.live import COLD, MAPPED, Live, Theirs
from p2pdist.torrent.parts import Parts
from p2pdist.torrent.seeds import Seeds


class Hearing:
    """See the module."""

    def __init__(self, parts: Parts, dials: Dials, seeds: Seeds) -> None:
        self._parts = parts
        self._answers = Answers(parts)
        self._dials = dials
        self._seeds = seeds

    def frame(self, link: Link, frame: wire.AnyFrame) -> None:
        """A neighbour says something. ProtocolError if it is out of place."""
        node, near = link.node, self._parts.near
        if isinstance(frame, wire.Open):
            self._opened(node, frame)
            return
        if isinstance(frame, (wire.Hello, wire.Alive)):
            return
        if isinstance(frame, wire.Have):
            theirs = near.has(node, frame.number, frame.indexes)
        elif isinstance(frame, wire.Proof) and not frame.attestation:
            theirs = near.lacks(node, frame.number, frame.index)
        elif isinstance(frame, wire.Close):
            theirs = near.closed(node, frame.number)
        else:
            theirs = near.find(node, frame.number)
        live = self._parts.lives.get(theirs.digest) if theirs is not None else None
        if theirs is not None and live is not None and live.fits(theirs):
            self._heard(node, live, frame)

    def meet(self, live: Live, node: bytes, theirs: Theirs) -> None:
        """A neighbour is in the swarm, or says anew what it has."""
        if not live.fetching and not theirs.whole:
            live.wanted_at = asyncio.get_running_loop().time()
            if theirs.torrents == MAPPED:
                self._parts.maps.serve(live)
            else:
                self._seeds.want(live, COLD)
        self._parts.maps.met(live, node, theirs)
        if not theirs.torrents & live.torrents:
            self._dials.gone(live, node)
        self._dials.look(live)

    def left(self, live: Live, node: bytes) -> None:
        """A neighbour is not in the swarm any more."""
        live.blame.left(node)
        self._dials.gone(live, node)
        self._parts.maps.gone(live, node)

    def _heard(self, node: bytes, live: Live, frame: wire.AnyFrame) -> None:
        match frame:
            case wire.Have():
                waiting = live.arrived & ~live.exchange.have
                self._claimed(node, live, [index for index in frame.indexes if waiting >> index & 1])
            case wire.Close():
                self.left(live, node)
            case wire.Bad():
                if frame.index < live.exchange.count:
                    live.blame.disowned(node, frame.index)
            case wire.Need():
                self._answers.asked(node, live, frame.indexes)
            case wire.Proof():
                if frame.attestation and live.vouched(frame.index, node, frame.attestation):
                    self._parts.prover.pump(live)
            case wire.Dial():
                live.edges.add(node)
            case wire.Claim():
                live.claims[frame.index] = asyncio.get_running_loop().time()
            case wire.NeedMap():
                self._parts.maps.asked(live, node)
            case wire.MapPart():
                self._parts.maps.part(live, node, frame)
            case _:
                raise ProtocolError("a frame out of place")

    def _opened(self, node: bytes, frame: wire.Open) -> None:
        theirs = self._parts.near.opened(node, frame)
        live = self._parts.lives.get(frame.digest)
        if live is None or (live.exchange.stored and not live.fits(theirs)):
            self._parts.host.wanted_by_peer(frame.digest, frame.size, frame.chunk_size)
        elif live.fits(theirs):
            self.meet(live, node, theirs)
            self._claimed(node, live, list(bits(live.arrived & ~live.exchange.have & theirs.have)))

    def _claimed(self, node: bytes, live: Live, waiting: list[int]) -> None:
        """A neighbour answers for chunks that are here and not proved."""
        self._parts.prover.ask(live, waiting)
        for index in waiting:
            if node in live.proofs.get(index, ()):
                live.learnt(index)
        self._parts.prover.pump(live)
