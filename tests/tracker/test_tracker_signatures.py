"""What a thousand nodes ask for to judge one signed image, and how often the upstream is asked for it."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest
from tracker_driver import Driver

from p2pdist.protocol import messages as wire
from tracker.rules import ContentRules

NODES = 1000
IMAGE = hashlib.sha256(b"image").hexdigest()
HELD = {
    "listing": b'{"manifests": []}',
    "signature": b'{"layers": []}',
    "bundle": b"{}",
}
REPOSITORY = "registry.example/app/a"
KEYS = {
    f"tag {REPOSITORY}:@sha256:{IMAGE}": HELD["listing"],
    f"manifest {REPOSITORY}@sha256:{hashlib.sha256(HELD['signature']).hexdigest()}": HELD["signature"],
    f"blob {REPOSITORY}@sha256:{hashlib.sha256(HELD['bundle']).hexdigest()}": HELD["bundle"],
}


@pytest.mark.parametrize("seconds", [0.0, 9.0, 60.0])
def test_a_thousand_nodes_have_signature_objects_fetched_once_and_their_listing_once_per_interval(
    seconds: float,
) -> None:
    driver = Driver(content=ContentRules(tag_refresh=10.0))
    driver.connect(*range(1, NODES + 1))
    fetched: Counter[str] = Counter()
    answered: Counter[str] = Counter()
    for number in range(1, NODES + 1):
        driver.later(seconds / NODES)
        for ident, (key, data) in enumerate(KEYS.items()):
            said = driver.say(number, wire.Ask(ident, key))
            for _, message in said:
                if isinstance(message, wire.Fetch):
                    fetched[key] += 1
                    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
                    said = driver.say(number, wire.Offer(key, digest, "m", len(data), data))
            answered[key] += sum(isinstance(message, wire.Content) for _, message in said)
    listing, *objects = KEYS
    assert [fetched[key] for key in objects] == [1, 1]
    assert fetched[listing] <= 1 + seconds // 10
    assert all(answered[key] + fetched[key] >= NODES for key in KEYS)
