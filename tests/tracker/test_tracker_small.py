"""Tags and small content: one node asks upstream, and nobody can poison the others."""

from __future__ import annotations

import hashlib

import pytest
from tracker_driver import Driver, of

from p2pdist.protocol import messages as wire
from tracker.rules import ContentRules

TAG = "tag registry.example/library/thing:1"
BODY = b'{"schemaVersion": 2}'


def name_of(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


MANIFEST = f"manifest registry.example/library/thing@{name_of(BODY)}"


def cluster(count: int = 4, **rules) -> Driver:
    driver = Driver(content=ContentRules(**rules))
    driver.connect(*range(1, count + 1))
    return driver


def ask(driver: Driver, number: int, key: str = TAG, ident: int = 1):
    return driver.say(number, wire.Ask(ident, key))


def offer(driver: Driver, number: int, key: str = TAG, data: bytes = BODY, **changed):
    fields = {"digest": name_of(data), "media_type": "m", "size": len(data)} | changed
    return driver.say(number, wire.Offer(key, data=data, **fields))


def refuse(driver: Driver, number: int, status: int, final: bool, key: str = TAG, retry_after: float = 0.0):
    return driver.say(number, wire.Refuse(key, status, final, retry_after))


@pytest.mark.parametrize("key", [TAG, MANIFEST])
def test_one_node_asks_upstream_and_the_others_get_its_answer(key: str) -> None:
    driver = cluster()
    assert ask(driver, 1, key) == [(1, wire.Fetch(1, key))]
    assert ask(driver, 2, key, ident=7) == ask(driver, 3, key) == []
    said = offer(driver, 1, key)
    assert sorted(number for number, _ in said) == [2, 3]
    content = dict(said)[2]
    assert content == wire.Content(7, key, name_of(BODY), "m", len(BODY), BODY)
    assert of(ask(driver, 4, key), wire.Content)


def test_a_tag_is_asked_for_again_by_one_node_after_its_interval() -> None:
    driver = cluster(tag_refresh=10.0)
    ask(driver, 1)
    offer(driver, 1)
    driver.later(9.9)
    assert of(ask(driver, 2), wire.Content)
    driver.later(0.2)
    assert of(ask(driver, 2), wire.Fetch)
    assert ask(driver, 3) == []
    moved = b'{"schemaVersion": 2, "moved": 1}'
    assert dict(offer(driver, 2, data=moved))[3].data == moved


def test_content_by_digest_stays() -> None:
    driver = cluster()
    ask(driver, 1, MANIFEST)
    offer(driver, 1, MANIFEST)
    driver.later(1e6)
    assert of(ask(driver, 2, MANIFEST), wire.Content)


@pytest.mark.parametrize(
    ("key", "changed"),
    [
        (MANIFEST, {"data": b"poison"}),
        (MANIFEST, {"data": b"poison", "digest": name_of(BODY)}),
        (MANIFEST, {"data": BODY, "size": len(BODY) + 1}),
        (MANIFEST, {"data": b"", "size": 100_000, "digest": name_of(b"other")}),
        (MANIFEST, {"data": BODY, "digest": name_of(BODY, "sha512")}),
        (TAG, {"data": b"poison", "digest": name_of(BODY)}),
        (TAG, {"data": b"", "size": 0, "digest": name_of(BODY)}),
        (TAG, {"data": BODY, "digest": "md5:" + "0" * 32}),
    ],
)
def test_poison_is_refused_and_another_node_asked(key: str, changed: dict) -> None:
    driver = cluster()
    ask(driver, 1, key)
    ask(driver, 2, key)
    said = offer(driver, 1, key, **changed)
    assert said == [(2, wire.Fetch(1, key))]
    assert driver.cluster.content.poison == 1
    assert offer(driver, 1, key) == []  # its word counts no more
    offer(driver, 2, key)
    assert ask(driver, 3, key)[0][1].data == BODY


def test_an_answer_nobody_asked_for_is_not_taken() -> None:
    driver = cluster()
    assert offer(driver, 1) == []
    ask(driver, 1)
    assert offer(driver, 2) == []
    assert ask(driver, 3) == []


def test_what_is_too_large_is_named_without_its_bytes() -> None:
    driver = cluster()
    ask(driver, 1, MANIFEST)
    ask(driver, 2, MANIFEST)
    content = dict(offer(driver, 1, MANIFEST, data=b"", digest=name_of(BODY), size=100_000))[2]
    assert content.size == 100_000 and content.data == b""


def test_an_empty_blob_is_content() -> None:
    key = f"blob registry.example/x@{name_of(b'')}"
    driver = cluster()
    ask(driver, 1, key)
    offer(driver, 1, key, data=b"")
    assert ask(driver, 2, key)[0][1].size == 0


def test_a_fetch_without_an_answer_goes_to_the_next_and_a_late_answer_is_welcome() -> None:
    driver = cluster(fetch_timeout=5.0)
    ask(driver, 1)
    ask(driver, 2)
    ask(driver, 3)
    driver.later(4.9)
    assert not driver.take(2, wire.Fetch)
    driver.later(0.2)
    assert driver.take(2, wire.Fetch)
    said = offer(driver, 1)
    assert [number for number, _ in said] == [3]


def test_the_fetch_of_a_node_that_leaves_goes_to_the_next() -> None:
    driver = cluster()
    ask(driver, 1)
    ask(driver, 2)
    ask(driver, 3)
    driver.disconnect(2)
    driver.disconnect(1)
    assert driver.take(3, wire.Fetch)


def test_absent_needs_two_and_is_soon_forgotten() -> None:
    driver = cluster(absent_time=5.0)
    for number in (1, 2, 3, 4):
        ask(driver, number)
    assert refuse(driver, 1, 404, final=True) == [(2, wire.Fetch(1, TAG))]
    said = refuse(driver, 2, 404, final=True)
    assert sorted(said) == [(3, wire.Absent(1, TAG, 404)), (4, wire.Absent(1, TAG, 404))]
    assert ask(driver, 1, ident=2) == [(1, wire.Absent(2, TAG, 404))]
    driver.later(5.1)
    assert ask(driver, 1, ident=3) == [(1, wire.Fetch(3, TAG))]  # it may have been pushed


def test_one_node_without_rights_does_not_stand_in_for_the_others() -> None:
    driver = cluster()
    ask(driver, 1)
    ask(driver, 2)
    refuse(driver, 1, 403, final=True)
    assert of(ask(driver, 1, ident=2), wire.Absent)
    offer(driver, 2)
    assert of(ask(driver, 3), wire.Content)


def test_a_stale_tag_is_better_than_none_while_the_upstream_is_away() -> None:
    driver = cluster(tag_refresh=10.0, fetch_timeout=5.0)
    ask(driver, 1)
    offer(driver, 1)
    driver.later(60.0)
    ask(driver, 2)
    ask(driver, 3)
    ((number, content),) = refuse(driver, 2, 0, final=False)
    assert number == 3 and content.stale and content.data == BODY
    assert ask(driver, 2, ident=2)[0][1].stale
    driver.later(5.1)
    assert of(ask(driver, 4), wire.Fetch)  # and the upstream is tried again


def test_a_tag_that_was_deleted_is_absent_not_stale() -> None:
    driver = cluster(tag_refresh=10.0)
    ask(driver, 1)
    offer(driver, 1)
    driver.later(60.0)
    for number in (1, 2, 3):
        ask(driver, number)
    refuse(driver, 1, 404, final=True)
    assert of(refuse(driver, 2, 404, final=True), wire.Absent)
    assert of(ask(driver, 4), wire.Absent)


def test_with_the_upstream_away_and_nothing_stale_those_who_wait_are_told_after_a_few_tries() -> None:
    driver = cluster(count=6, tries=3)
    for number in range(1, 7):
        ask(driver, number)
    assert of(refuse(driver, 1, 0, final=False), wire.Fetch) == [(2, wire.Fetch(1, TAG))]
    refuse(driver, 2, 0, final=False)
    said = refuse(driver, 3, 502, final=False)
    assert sorted(number for number, _ in said) == [4, 5, 6]
    assert all(message == wire.Absent(1, TAG, 502, final=False) for _, message in said)


def test_a_throttled_fetch_pauses_leases_from_that_registry() -> None:
    driver = cluster()
    driver.join(1, "blob", registry="registry.example")
    driver.join(2, "blob", registry="registry.example")
    ask(driver, 1)
    said = refuse(driver, 1, 429, final=False, retry_after=3.0)
    assert sorted(number for number, _ in of(said, wire.Throttle)) == [1, 2]
    refuse(driver, 3, 429, final=False, retry_after=50.0)  # who fetches nothing says nothing
    assert driver.swarms.state.registries["registry.example"].paused_until <= driver.now + 3.0


@pytest.mark.parametrize(
    "key",
    [
        "",
        "tag",
        "tag x",
        "tag x/y",
        "manifest x/y",
        "manifest x/y@sha256:12",
        "blob x/y@zzz",
        "other x/y:z",
        "tag /y:z",
    ],
)
def test_a_key_that_is_none_is_refused(key: str) -> None:
    driver = cluster()
    assert ask(driver, 1, key) == [(1, wire.Absent(1, key, 400))]
    assert driver.say(1, wire.Refuse(key, 404, True)) == []
    assert len(driver.cluster.content) == 0


def test_memory_is_bounded_and_the_least_recently_used_goes_first() -> None:
    driver = cluster(max_bytes=100_000)
    bodies = [bytes([number]) * 20_000 for number in range(8)]
    keys = [f"blob registry.example/x@{name_of(body)}" for body in bodies]
    for key, body in zip(keys, bodies, strict=True):
        ask(driver, 1, key)
        offer(driver, 1, key, data=body)
        if key != keys[0]:
            assert of(ask(driver, 2, keys[0]), wire.Content)
        assert driver.cluster.content.bytes <= 100_000
    assert of(ask(driver, 2, keys[1]), wire.Fetch)


def test_what_is_being_fetched_is_not_forgotten_for_want_of_memory() -> None:
    driver = cluster(max_bytes=30_000)
    ask(driver, 1)
    ask(driver, 2)
    for number in range(5):
        body = bytes([number]) * 20_000
        key = f"blob registry.example/x@{name_of(body)}"
        ask(driver, 3, key)
        offer(driver, 3, key, data=body)
    assert of(offer(driver, 1), wire.Content)[0][0] == 2
    driver.disconnect(1, 2, 3)


def test_many_keys_without_content_are_bounded_too() -> None:
    driver = cluster(max_bytes=50_000)
    driver.checking = False
    for number in range(1000):
        key = f"tag registry.example/x:{number}"
        ask(driver, 1, key)
        refuse(driver, 1, 404, final=True, key=key)
    assert driver.cluster.content.bytes <= 50_000 and len(driver.cluster.content) < 100


def test_questions_of_one_node_are_bounded() -> None:
    driver = cluster(max_asks_per_node=10)
    for number in range(20):
        ask(driver, 1, f"tag registry.example/x:{number}")
    for number in range(20):
        ask(driver, 2, f"tag registry.example/x:{number}", ident=number)
    assert [message.id for message in driver.take(2, wire.Absent)] == list(range(10, 20))


def test_asking_again_while_fetching_is_answered_with_the_fetch() -> None:
    driver = cluster()
    ask(driver, 1, ident=1)
    assert ask(driver, 1, ident=2) == [(1, wire.Fetch(2, TAG))]
