"""An agent hashes what it has again: a damaged blob is found before anybody asks, counted, and fetched again."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.fleet import Fleet, until
from support.registry import FakeRegistry, noise

from p2pdist.admin import AdminClient
from p2pdist.config import StoreConfig
from p2pdist.store import Store, recheck


async def test_a_damaged_blob_is_found_before_anybody_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recheck, "SETTLED", 0.0)
    monkeypatch.setattr(recheck, "LOOK", 0.1)
    monkeypatch.setitem(Store.open.__func__.__kwdefaults__, "reverify_after", 0.0)  # everything is always due
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        image = registry.add_image("app/a", "1", [noise(300_000)])
        node = await fleet.start()
        quiet = await fleet.start(store=StoreConfig(recheck_bytes_per_second=None))
        await fleet.pull(node, image)
        await fleet.pull(quiet, image)
        layer = image.layers[0]
        (node.config.node.data_dir / "blobs" / layer.algorithm / layer.hex).write_bytes(noise(300_000, seed=9))

        await until(lambda: node.agent.status()["store"]["damaged"] == 1, 60)
        assert node.agent._store.find(layer) is None
        assert quiet.agent.status()["store"]["rechecked_bytes"] == 0
        async with AdminClient(node.config.admin_socket) as admin:
            text = await admin.metrics()
        assert "p2pdist_store_damaged_total 1.0" in text and "p2pdist_store_rechecked_bytes_total" in text
        await fleet.pull(node, image)
