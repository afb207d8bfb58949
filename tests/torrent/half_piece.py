"""A torrent of one piece, whose last block comes from a peer before all is given to it: a program of its own.

libtorrent 2.1.1 dies there (a null picker in `torrent::add_piece`) unless it keeps its piece picker for ever, which it
does for the sake of `suggest_mode`. Ends with status 0 and says `whole` if the piece came together.
"""

from __future__ import annotations

import asyncio
import os
import struct
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from p2pdist.oci import Digest
from p2pdist.torrent.metainfo import of_blob
from p2pdist.torrent.session import Session
from p2pdist.torrent.settings import TorrentSettings

BLOCK = 16 * 1024
LAST = BLOCK
DATA = os.urandom(2 * BLOCK)


sent = asyncio.Event()


class Owner:
    def __init__(self) -> None:
        self.ready, self.piece = asyncio.Event(), asyncio.Event()

    def torrent_ready(self, key: bytes) -> None:
        self.ready.set()

    def torrent_piece(self, key: bytes, index: int) -> None:
        self.piece.set()

    def torrent_failed(self, key: bytes, why: str) -> None:
        raise AssertionError(why)

    def torrents_pace(self) -> float:
        return 0.0

    def __getattr__(self, name: str) -> object:
        return lambda *_: None


async def stingy_peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A seed that answers requests for the last block only."""
    handshake = await reader.readexactly(68)
    writer.write(handshake[:48] + b"-STINGY-000000000000")
    writer.write(struct.pack("!IBB", 2, 5, 0x80) + struct.pack("!IB", 1, 1))  # bitfield: all; unchoke
    try:
        while True:
            (length,) = struct.unpack("!I", await reader.readexactly(4))
            message = await reader.readexactly(length)
            if message[:1] == b"\x06":  # request
                index, start, size = struct.unpack("!III", message[1:13])
                if start == LAST:
                    writer.write(struct.pack("!IBII", 9 + size, 7, index, start) + DATA[start : start + size])
                    sent.set()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def main(directory: Path) -> None:
    owner, pool = Owner(), ThreadPoolExecutor(1)
    session = Session(TorrentSettings(directory, host="127.0.0.1", discover=False), "A" * 20, owner, checks=False)
    server = await asyncio.start_server(stingy_peer, "127.0.0.1", 0)
    await session.start(0, pool)
    torrent = of_blob(Digest.of(DATA), len(DATA), len(DATA))
    fd = os.open(directory / "file", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, len(DATA))
    session.add(torrent.data, fd, [False])
    async with asyncio.timeout(20):
        await owner.ready.wait()
        session.connect(torrent.key, [("127.0.0.1", server.sockets[0].getsockname()[1])], at_once=True)
        await sent.wait()
        await asyncio.sleep(0.5)
        inject = session.injector(torrent.key)
        assert inject is not None
        await asyncio.to_thread(inject, 0, DATA)
        await owner.piece.wait()
    server.close()
    await session.close()
    assert os.pread(fd, len(DATA), 0) == DATA
    os.close(fd)
    print("whole")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        asyncio.run(main(Path(temporary)))
    sys.exit(0)
