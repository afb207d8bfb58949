"""Who may read what: nothing cached is a way round the upstream's permission, and asking for it costs no time."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest
from pull.pull_script import Script, play
from support.images import noise
from swarm.swarm_script import REPOSITORY

from p2pdist.errors import UpstreamDenied, UpstreamNotFound, UpstreamThrottled, UpstreamUnreachable
from p2pdist.oci import Digest, Repository
from p2pdist.protocol import messages as wire
from p2pdist.pull import PullSettings
from p2pdist.pull.permits import REFUSED, Permits

SMALL = noise(3000, 1)
ALICE, MALLORY = "Bearer alice", "Bearer mallory"
NO = UpstreamDenied("no", status=401, challenge='Bearer realm="https://auth"')
PUBLIC = f"tag {REPOSITORY}:@public"


def now() -> float:
    return asyncio.get_running_loop().time()


def test_what_is_cached_is_kept_from_a_credential_that_the_upstream_refuses(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        image = script.image(SMALL)
        await script.pull.manifest(REPOSITORY, "1")
        script.registry.refuses[REPOSITORY, MALLORY] = NO
        for target in ("1", str(image.digest)):
            with pytest.raises(UpstreamDenied) as refused:
                await script.pull.manifest(REPOSITORY, target, authorization=MALLORY)
            assert refused.value.challenge == NO.challenge
        for method in (script.pull.blob, script.pull.blob_info):
            with pytest.raises(UpstreamDenied):
                await method(REPOSITORY, image.layers[0], authorization=MALLORY)
        assert (await script.pull.manifest(REPOSITORY, "1", authorization=ALICE)).raw == image.raw
        assert await script.pull.blob_info(REPOSITORY, image.layers[0], authorization=ALICE) == len(SMALL)

    play(tmp_path, case)


def test_the_upstreams_word_holds_for_five_minutes_and_is_asked_beside_the_rest(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        image = script.image(SMALL)
        script.cluster.answers[f"tag {REPOSITORY}:1"] = [script.content(image)]  # another node has read it
        began = now()
        await script.pull.manifest(REPOSITORY, "1")
        assert now() - began < 1.5 * script.registry.slow
        assert script.registry.heads == [("1", None)]
        for _ in range(3):
            script.now += 99
            began = now()
            await script.pull.manifest(REPOSITORY, str(image.digest))
            await script.pull.blob_info(REPOSITORY, image.layers[0])
            assert now() == began
        assert len(script.registry.heads) == 1
        script.now += 10
        script.registry.refuses[REPOSITORY, None] = NO
        with pytest.raises(UpstreamDenied):
            await script.pull.manifest(REPOSITORY, str(image.digest))
        assert len(script.registry.heads) == 2

    play(tmp_path, case)


def test_a_refusal_is_remembered_a_moment_only(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        image = script.image(SMALL)
        await script.pull.manifest(REPOSITORY, "1")
        script.now += 301
        script.registry.refuses[REPOSITORY, None] = NO
        for _ in range(20):
            with pytest.raises(UpstreamDenied):
                await script.pull.manifest(REPOSITORY, str(image.digest))
        assert len(script.registry.heads) <= 2
        script.registry.refuses.clear()
        script.now += REFUSED
        assert (await script.pull.manifest(REPOSITORY, str(image.digest))).raw == image.raw

    play(tmp_path, case)


@pytest.mark.parametrize("trouble", [UpstreamUnreachable("cut"), UpstreamThrottled("slow down", status=429)])
def test_an_upstream_that_cannot_be_asked_refuses_nobody_whom_it_accepted_in_the_last_day(
    tmp_path: Path, trouble: Exception
) -> None:
    async def case(script: Script) -> None:
        image = script.image(SMALL)
        target = str(image.digest)
        await script.pull.manifest(REPOSITORY, target)
        script.now += 86_000
        script.registry.down = trouble
        assert (await script.pull.manifest(REPOSITORY, target)).raw == image.raw
        with pytest.raises(type(trouble)):
            await script.pull.manifest(REPOSITORY, target, authorization=ALICE)  # never accepted
        script.now += 1000
        with pytest.raises(type(trouble)):
            await script.pull.manifest(REPOSITORY, target)
        assert script.pull.rights.counts.unreachable == 1

    play(tmp_path, case)


def test_an_upstream_that_hangs_costs_a_known_client_three_seconds_once(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        image = script.image(SMALL)
        target = str(image.digest)
        await script.pull.manifest(REPOSITORY, target)
        script.now += 400
        script.registry.slow = 1000.0
        began = now()
        await script.pull.manifest(REPOSITORY, target)
        assert now() - began == pytest.approx(3.0)
        for _ in range(5):
            await script.pull.manifest(REPOSITORY, target)
        assert now() - began == pytest.approx(3.0)

    play(tmp_path, case)


def test_without_an_upstream_images_that_were_imported_are_served_and_all_where_it_is_set(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        image = script.image(SMALL)
        target = str(image.digest)
        await script.pull.manifest(REPOSITORY, target)
        script.now += 90_000
        script.registry.down = UpstreamUnreachable("cut")
        with pytest.raises(UpstreamUnreachable):
            await script.pull.manifest(REPOSITORY, target)
        script.pull.rights.grant(REPOSITORY)
        assert (await script.pull.manifest(REPOSITORY, target)).raw == image.raw

    play(tmp_path / "imported", case)

    async def open_to_all(script: Script) -> None:
        image = script.image(SMALL)
        await script.pull.manifest(REPOSITORY, "1")
        script.registry.down = UpstreamUnreachable("cut")
        assert (await script.pull.manifest(REPOSITORY, str(image.digest), authorization=MALLORY)).raw == image.raw

    play(tmp_path / "open", open_to_all, settings=PullSettings(rights_unreachable="serve"))


def test_a_stored_blob_of_another_repository_is_asked_for_upstream(tmp_path: Path) -> None:
    """Everybody may read B; that the bytes of A's private blob are here must not give them to B's readers."""

    async def case(script: Script) -> None:
        image = script.image(SMALL)
        other = Repository(REPOSITORY.registry, "open/b")
        await script.pull.manifest(REPOSITORY, "1")
        handle = await script.pull.blob(REPOSITORY, image.layers[0])
        with await handle.proved():
            pass
        handle.release()
        assert script.store.find(image.layers[0]) is not None
        await script.pull.manifest(other, "1")
        script.registry.absent.add((other, image.layers[0]))
        with pytest.raises(UpstreamNotFound):
            await script.pull.blob_info(Repository(REPOSITORY.registry, "open/c"), Digest.of(b"nothing"))
        script.pull._plans._sizes.pop((other, image.layers[0]))  # as if B's manifest named something else
        for method in (script.pull.blob, script.pull.blob_info):
            with pytest.raises(UpstreamNotFound):
                await method(other, image.layers[0])
        script.registry.absent.clear()
        asked = len(script.registry.asked)
        assert await script.pull.blob_info(other, image.layers[0]) == len(SMALL)
        assert await script.pull.blob_info(other, image.layers[0]) == len(SMALL)
        assert len(script.registry.asked) == asked + 1

    play(tmp_path, case, connected=False)


def test_however_many_ask_for_a_blob_of_no_known_manifest_the_upstream_is_asked_once_per_credential(
    tmp_path: Path,
) -> None:
    async def case(script: Script) -> None:
        digest = script.image(SMALL).layers[0]
        asking = [script.pull.blob_info(REPOSITORY, digest, authorization=who) for who in (None, ALICE) * 50]
        assert set(await asyncio.gather(*asking)) == {len(SMALL)}
        assert script.registry.asked == [str(digest)] * 2

    play(tmp_path, case)


def test_who_waits_for_anothers_question_is_not_told_that_its_own_manifest_is_missing(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        image = script.image(SMALL)
        target = str(image.digest)
        await script.pull.manifest(REPOSITORY, target)
        script.now += 301
        missing, found = await asyncio.gather(
            script.pull.manifest(REPOSITORY, "none"),
            script.pull.manifest(REPOSITORY, target),
            return_exceptions=True,
        )
        assert isinstance(missing, UpstreamNotFound)
        assert not isinstance(found, BaseException) and found.raw == image.raw

    play(tmp_path, case, connected=False)


def test_one_node_asks_for_all_that_have_no_credentials_whether_everybody_may_read(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        image = script.image(SMALL)
        script.upstreams.without_credentials = True
        script.cluster.answers[f"tag {REPOSITORY}:1"] = [script.content(image)]
        await script.pull.manifest(REPOSITORY, "1")
        (offer,) = script.cluster.got(wire.Offer)
        assert (offer.key, len(script.registry.heads)) == (PUBLIC, 1)
        script.cluster.answers[PUBLIC] = [
            wire.Content(1, PUBLIC, offer.digest, offer.media_type, offer.size, offer.data)
        ]
        script.now += 301
        await script.pull.manifest(REPOSITORY, "1")
        assert (len(script.registry.heads), script.pull.rights.counts.shared) == (1, 1)
        script.cluster.answers[PUBLIC] = [script.content(image)]  # an answer to something else
        script.now += 301
        script.registry.refuses[REPOSITORY, None] = NO
        with pytest.raises(UpstreamDenied):
            await script.pull.manifest(REPOSITORY, "1")

    play(tmp_path, case)


def test_what_the_cluster_says_of_everybody_counts_for_nothing_where_there_are_credentials(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        image = script.image(SMALL)
        script.registry.refuses[REPOSITORY, None] = NO
        script.cluster.answers[f"tag {REPOSITORY}:1"] = [script.content(image)]
        with pytest.raises(UpstreamDenied):
            await script.pull.manifest(REPOSITORY, "1")
        assert PUBLIC not in script.cluster.asked

    play(tmp_path, case)


def test_while_the_upstream_is_gone_the_clusters_older_word_on_what_is_public_stands(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        image = script.image(SMALL)
        script.upstreams.without_credentials = True
        await script.pull.manifest(REPOSITORY, "1")
        (offer,) = [offer for offer in script.cluster.got(wire.Offer) if offer.key == PUBLIC]
        old = wire.Content(1, PUBLIC, offer.digest, offer.media_type, offer.size, offer.data, stale=True)
        script.cluster.answers[PUBLIC] = [wire.Fetch(1, PUBLIC), old]
        script.registry.down = UpstreamUnreachable("cut")
        script.now += 90_000
        assert (await script.pull.manifest(REPOSITORY, str(image.digest))).raw == image.raw

    play(tmp_path, case)


def test_what_was_accepted_outlives_a_restart_and_no_clients_credential_is_written_down(tmp_path: Path) -> None:
    kept = tmp_path / "rights.json"
    settings = PullSettings(rights_file=kept)

    async def before(script: Script) -> None:
        script.image(SMALL)
        await script.pull.manifest(REPOSITORY, "1")
        await script.pull.manifest(REPOSITORY, "1", authorization=ALICE)

    async def after(script: Script) -> None:
        image = script.image(SMALL)
        script.registry.down = UpstreamUnreachable("cut")
        script.now += 3600
        target = str(image.digest)
        assert (await script.pull.manifest(REPOSITORY, target)).raw == image.raw
        with pytest.raises(UpstreamUnreachable):
            await script.pull.manifest(REPOSITORY, target, authorization=ALICE)

    play(tmp_path, before, settings=settings)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert b"alice" not in kept.read_bytes()
    play(tmp_path, after, settings=settings)


def test_a_file_of_permissions_that_is_broken_stops_nothing(tmp_path: Path) -> None:
    kept = tmp_path / "rights.json"
    for number, broken in enumerate([b"{", b"[]", b'{"accepted": 3}', b'{"accepted": {"a": "x"}}', b"\xff"]):
        kept.write_bytes(broken)

        async def case(script: Script) -> None:
            script.image(SMALL)
            await script.pull.manifest(REPOSITORY, "1")

        play(tmp_path / str(number), case, settings=PullSettings(rights_file=kept))


def test_permits_are_bounded_hold_no_credential_and_prove_nothing_to_a_clock_that_was_set_back() -> None:
    permits = Permits(b"k" * 32, limit=10)
    for number in range(100):
        permits.accept(REPOSITORY, f"Basic secret-{number}", 1000.0)
        permits.refuse(REPOSITORY, f"Basic other-{number}", NO, 1000.0)
        permits.accept(Repository("r", f"n/{number}"), None, 1000.0)
    assert len(permits) == 20 and len(permits.own) == 10
    assert "secret-" not in repr(vars(permits)) and "other-" not in repr(vars(permits))
    assert permits.accepted(Repository("r", "n/99"), None, 1001.0, 300.0)
    assert not permits.accepted(Repository("r", "n/99"), None, 999.0, 300.0)
    assert not permits.accepted(Repository("r", "n/99"), "", 1001.0, 300.0)
    assert not permits.accepted(Repository("r", "n/0"), None, 1001.0, 300.0)  # forgotten
