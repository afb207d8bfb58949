"""kill -9 at any instant: no stored blob is lost, no proved chunk is lost, nothing wrong appears."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from store_kit import CHUNK, chunk, content, fill, names, path_of, read
from store_victim import blob

from p2pdist.oci import Digest
from p2pdist.store import Store

VICTIM = Path(__file__).parent / "store_victim.py"


class Promises:
    """What the dead were promised."""

    def __init__(self) -> None:
        self.stored: set[int] = set()
        self.small: set[int] = set()
        self.proved: defaultdict[int, set[int]] = defaultdict(set)

    def hear(self, lines: Iterable[str]) -> None:
        for line in lines:
            match line.split():
                case ["proved", seed, index]:
                    self.proved[int(seed)].add(int(index))
                case ["forgetting", seed, index]:
                    self.proved[int(seed)].discard(int(index))
                case ["stored", seed]:
                    self.stored.add(int(seed))
                case ["put", seed]:
                    self.small.add(int(seed))
                case ["removing", seed]:
                    self.stored.discard(int(seed))
                    self.proved.pop(int(seed))

    async def hold(self, directory: Path) -> None:
        """Opens the store of the dead and looks at every promise, then finishes what they began."""
        store = await Store.open(directory)
        for stored in store.stored():
            data = path_of(directory, stored.digest).read_bytes()
            assert Digest.of(data) == stored.digest
        for seed in self.stored:
            assert await read(store, Digest.of(blob(seed))) == blob(seed)
        for seed in self.small:
            assert await read(store, Digest.of(content(1000, seed))) == content(1000, seed)
        for seed in self.proved.keys() - self.stored:
            data = blob(seed)
            if await read(store, Digest.of(data)) == data:
                continue  # killed between storing and saying so
            async with await store.stage(Digest.of(data), len(data), CHUNK) as staging:
                have = {index for index in range(staging.count) if staging.have >> index & 1}
                assert have >= self.proved[seed]
                for index in have:
                    assert staging.read(index * CHUNK, CHUNK) == chunk(data, index)
                fill(staging, data, set(range(staging.count)) - have)
                await staging.commit()
            assert await read(store, Digest.of(data)) == data
            self.stored.add(seed)
        assert names(directory / "trash") == set()
        await store.close()


async def test_killed_at_every_single_change_of_a_file_nothing_promised_is_lost(tmp_path) -> None:
    subprocess.run([sys.executable, str(VICTIM), "points", str(tmp_path)], check=True, timeout=100)
    deaths = sorted(int(path.stem) for path in tmp_path.glob("*.said"))
    assert len(deaths) > 45
    for point in deaths:
        promises = Promises()
        promises.hear((tmp_path / f"{point}.said").read_text().splitlines())
        await promises.hold(tmp_path / str(point))


async def test_killed_at_random_moments_and_resumed_again_and_again_nothing_promised_is_lost(tmp_path) -> None:
    chance = random.Random(5)
    promises = Promises()
    for life in range(8):
        with subprocess.Popen(
            [sys.executable, str(VICTIM), "storm", str(tmp_path), str(life * 20)], stdout=subprocess.PIPE, text=True
        ) as victim:
            for _ in range(chance.randrange(1, 60)):
                promises.hear([victim.stdout.readline()])
            victim.kill()
            promises.hear(line for line in victim.stdout.read().splitlines(keepends=True) if line.endswith("\n"))
        await promises.hold(tmp_path)
    assert len(promises.stored) > 5
