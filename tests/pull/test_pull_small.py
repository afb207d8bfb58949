"""Manifests and small blobs: one flight, one node reads for all, and nobody is believed without a digest."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from pull.pull_script import TAG, Script, play
from support.images import noise
from swarm.swarm_script import REPOSITORY

from p2pdist.errors import TrackerError, UpstreamDenied, UpstreamNotFound, UpstreamUnreachable
from p2pdist.oci import Digest, Repository
from p2pdist.protocol import messages as wire

SMALL = noise(1000, 1)
OTHER = Repository("registry.example", "app/b")


def test_a_hundred_requests_for_one_manifest_are_one_read(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        image = script.image(SMALL)
        found = await asyncio.gather(*(script.pull.manifest(REPOSITORY, "1") for _ in range(100)))
        assert {one.raw for one in found} == {image.raw}
        assert script.registry.asked == ["1"]
        assert script.cluster.asked == [TAG]

    play(tmp_path, case)


def test_who_was_told_to_fetch_offers_what_came(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        image = script.image(SMALL)
        await script.pull.manifest(REPOSITORY, "1")
        offer = script.cluster.got(wire.Offer)[0]
        assert (offer.key, offer.digest, offer.data) == (TAG, str(image.digest), image.raw)
        await script.pull.small(REPOSITORY, image.layers[0], len(SMALL))
        offer = script.cluster.got(wire.Offer)[1]
        assert (offer.key, offer.data) == (f"blob {REPOSITORY}@{image.layers[0]}", SMALL)

    play(tmp_path, case)


def test_what_another_node_read_is_not_asked_for_upstream(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        image = script.image(SMALL)
        script.cluster.answers[TAG] = [script.content(image)]
        blob = image.layers[0]
        script.cluster.answers[f"blob {REPOSITORY}@{blob}"] = [wire.Content(1, "", str(blob), "", len(SMALL), SMALL)]
        assert (await script.pull.manifest(REPOSITORY, "1")).raw == image.raw
        with await (await script.pull.blob(REPOSITORY, blob)).proved() as file:
            assert file.pread(0, len(SMALL)) == SMALL
        assert (script.registry.asked, script.registry.reads) == ([], [])

    play(tmp_path, case)


def test_a_client_that_leaves_cancels_nothing(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        image = script.image(SMALL)
        first = asyncio.ensure_future(script.pull.manifest(REPOSITORY, "1"))
        await asyncio.sleep(0.02)
        second = asyncio.ensure_future(script.pull.manifest(REPOSITORY, "1"))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).raw == image.raw
        assert script.registry.asked == ["1"]
        alone = asyncio.ensure_future(script.pull.small(REPOSITORY, image.layers[0], len(SMALL)))
        await asyncio.sleep(0.02)
        alone.cancel()
        await asyncio.sleep(1.0)
        assert script.store.find(image.layers[0]) is not None

    play(tmp_path, case)


@pytest.mark.parametrize("wrong", ["bytes", "digest", "no digest", "no manifest"])
def test_a_tracker_that_answers_wrong_is_not_believed_and_the_upstream_asked(tmp_path: Path, wrong: str) -> None:
    async def case(script: Script) -> None:
        image, other = script.image(SMALL), script.image(noise(2000, 2))
        script.image(SMALL)
        rubbish = b"{}"
        answer = {
            "bytes": script.content(image, data=other.raw),
            "digest": script.content(other),
            "no digest": wire.Content(1, "", "md5:00", image.media_type, 3, b"abc"),
            "no manifest": wire.Content(1, "", str(Digest.of(rubbish)), image.media_type, 2, rubbish),
        }[wrong]
        key = TAG if wrong == "no manifest" else f"manifest {REPOSITORY}@{image.digest}"
        script.cluster.answers[key] = [answer]
        target = "1" if wrong == "no manifest" else str(image.digest)
        assert (await script.pull.manifest(REPOSITORY, target)).raw == image.raw
        assert script.registry.asked == [target]

    play(tmp_path, case)


def test_small_bytes_from_the_tracker_that_are_wrong_are_read_upstream(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        image = script.image(SMALL)
        blob = image.layers[0]
        script.cluster.answers[f"blob {REPOSITORY}@{blob}"] = [wire.Content(1, "", str(blob), "", 1000, b"x" * 1000)]
        await script.pull.small(REPOSITORY, blob, len(SMALL))
        assert script.store.find(blob) is not None
        assert len(script.registry.reads) == 1

    play(tmp_path, case)


@pytest.mark.parametrize(
    ("error", "status", "final"),
    [
        (UpstreamNotFound("no", status=404), 404, True),
        (UpstreamDenied("no", status=401), 401, True),
        (UpstreamUnreachable("cut"), 0, False),
    ],
)
def test_a_fetch_that_fails_is_refused_for_those_who_wait(
    tmp_path: Path, error: Exception, status: int, final: bool
) -> None:
    async def case(script: Script) -> None:
        image = script.image(SMALL)
        script.registry.down = error
        with pytest.raises(type(error)):
            await script.pull.manifest(REPOSITORY, "1")
        with pytest.raises(type(error)):
            await script.pull.small(REPOSITORY, image.layers[0], len(SMALL))
        assert [(one.status, one.final) for one in script.cluster.got(wire.Refuse)] == [(status, final)] * 2

    play(tmp_path, case)


def test_what_the_cluster_was_told_is_missing_is_not_asked_for_again(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        script.cluster.answers[TAG] = [wire.Absent(1, TAG, 404)]
        with pytest.raises(UpstreamNotFound):
            await script.pull.manifest(REPOSITORY, "1")
        assert script.registry.asked == []

    play(tmp_path, case)


@pytest.mark.parametrize(
    "answer", [wire.Absent(1, TAG, 403), wire.Absent(1, TAG, 0, False), TrackerError("no answer")], ids=str
)
def test_what_others_could_not_get_and_a_silent_tracker_send_the_agent_upstream_itself(
    tmp_path: Path, answer: wire.Absent | TrackerError
) -> None:
    async def case(script: Script) -> None:
        image = script.image(SMALL)
        script.cluster.answers[TAG] = [answer]
        assert (await script.pull.manifest(REPOSITORY, "1")).raw == image.raw
        assert script.cluster.got(wire.Offer) == []

    play(tmp_path, case)


def test_a_client_with_its_own_credentials_shares_nothing(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        script.image(SMALL)
        await script.pull.manifest(REPOSITORY, "1", authorization="Basic abc")
        assert (script.cluster.asked, script.cluster.got(wire.Offer)) == ([], [])

    play(tmp_path, case)


def test_a_tag_is_answered_from_what_is_known_when_the_upstream_is_gone_and_not_when_it_says_no(
    tmp_path: Path,
) -> None:
    async def case(script: Script) -> None:
        image = script.image(SMALL)
        await script.pull.manifest(REPOSITORY, "1")
        script.now += 1000
        script.registry.down = UpstreamUnreachable("cut")
        assert (await script.pull.manifest(REPOSITORY, "1")).raw == image.raw
        script.registry.down = UpstreamNotFound("deleted", status=404)
        with pytest.raises(UpstreamNotFound):
            await script.pull.manifest(REPOSITORY, "1")

    play(tmp_path, case)


def test_a_stale_answer_of_the_cluster_stands_in_for_an_upstream_that_is_gone(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        image = script.image(SMALL)
        script.registry.down = UpstreamUnreachable("cut")
        script.pull.rights.accept(REPOSITORY, None)
        script.now += 1000
        script.cluster.answers[TAG] = [wire.Fetch(1, TAG), script.content(image, stale=True)]
        assert (await script.pull.manifest(REPOSITORY, "1")).raw == image.raw
        assert len(script.cluster.got(wire.Refuse)) == 1

    play(tmp_path, case)


def test_with_no_tracker_a_tag_is_asked_for_once_in_ten_seconds(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        script.image(SMALL)
        await script.pull.manifest(REPOSITORY, "1")
        script.now += 9.9
        await script.pull.manifest(REPOSITORY, "1")
        assert script.registry.asked == ["1"]
        script.now += 0.2
        newer = script.image(noise(3000, 3))
        assert (await script.pull.manifest(REPOSITORY, "1")).raw == newer.raw

    play(tmp_path, case, connected=False)


def test_a_stored_manifest_is_found_by_digest_for_its_repository_only(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        image = script.image(SMALL)
        await script.pull.manifest(REPOSITORY, str(image.digest))
        await script.pull.manifest(REPOSITORY, str(image.digest))
        assert len(script.registry.asked) == 1
        script.registry.manifests.clear()  # the other repository is not ours to read
        with pytest.raises(UpstreamNotFound):
            await script.pull.manifest(OTHER, str(image.digest))

    play(tmp_path, case)


def test_an_error_is_not_kept_for_the_next_request(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        script.registry.down = UpstreamUnreachable("cut")
        with pytest.raises(UpstreamUnreachable):
            await script.pull.manifest(REPOSITORY, "1")
        script.registry.down = None
        image = script.image(SMALL)
        assert (await script.pull.manifest(REPOSITORY, "1")).raw == image.raw

    play(tmp_path, case)


def test_a_small_blob_longer_than_its_manifest_says_is_refused(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        image = script.image(SMALL)
        with pytest.raises(Exception, match="longer than"):
            await script.pull.small(REPOSITORY, image.layers[0], 10)
        assert script.store.find(image.layers[0]) is None

    play(tmp_path, case, connected=False)
