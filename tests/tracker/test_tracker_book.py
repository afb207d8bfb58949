"""What one replica knows of bans: in force at once, written when it can be, and nobody's evidence overwritten."""

from __future__ import annotations

import pytest

from p2pdist.errors import StorageError
from tracker.book import BanBook
from tracker.state import LocalState
from tracker.tokens import Ban, Facts

NODE = b"n" * 32
VOTED = Ban(NODE, 100.5, "votes", b"evidence")


class Broken(Facts):
    """A State that can't be reached."""

    async def ban(self, ban: Ban, *, replace: bool = True) -> None:
        raise StorageError("gone")


@pytest.fixture
async def state():
    opened = LocalState.open(None, lambda: 0.0)
    yield opened
    await opened.close()


async def test_a_ban_that_cannot_be_written_is_in_force_and_written_later(state: LocalState) -> None:
    book = BanBook(Broken(state))
    book.note(VOTED)
    with pytest.raises(StorageError):
        await book.sync(await state.version())
    assert book.until(50.0, NODE) == 100.5 and book.unwritten == 1
    book._facts = facts = Facts(state)
    assert await book.sync(await state.version())
    assert await facts.bans() == {NODE: VOTED} and book.unwritten == 0
    assert book.bans(50.0) == {NODE: VOTED} and book.bans(101.0) == {} and book.until(101.0, NODE) is None


async def test_what_another_replica_decided_is_written_if_it_could_not_and_never_over_its_record(
    state: LocalState,
) -> None:
    facts = Facts(state)
    leader, follower = BanBook(facts), BanBook(facts)
    follower.hear(0.0, NODE, 100)
    await follower.sync(await state.version())
    assert (await facts.bans())[NODE].until == 100  # the leader may be gone
    leader.note(VOTED)
    await leader.sync(await state.version())
    assert await facts.bans() == {NODE: VOTED}
    other = BanBook(facts)
    other.hear(0.0, NODE, 100)
    await other.sync(await state.version())
    assert await facts.bans() == {NODE: VOTED}


async def test_a_ban_that_was_lifted_by_others_is_over(state: LocalState) -> None:
    facts = Facts(state)
    book = BanBook(facts)
    book.note(VOTED)
    await book.sync(await state.version())
    await facts.lift(NODE)
    assert await book.sync(await state.version())
    assert book.until(0.0, NODE) is None
    assert not await book.sync(await state.version())
    book.hear(0.0, NODE, 100)
    book.hear(50.0, NODE, 50)  # the leader lets it in again
    assert book.until(0.0, NODE) is None and book.unwritten == 0


async def test_a_state_that_lost_its_data_is_told_again_who_is_shut_out(state: LocalState) -> None:
    facts = Facts(state)
    books = [BanBook(facts), BanBook(facts)]
    books[0].note(VOTED)
    for book in books:
        await book.sync(await state.version())
    for table in ("bans", "mark"):
        for key in await state.all(table):
            await state.remove(table, key)
    for book in books:
        await book.sync(await state.version())
        assert book.until(50.0, NODE) == 100.5
    assert await facts.bans() == {NODE: VOTED}
    await facts.lift(NODE)  # and that is no loss
    for book in books:
        await book.sync(await state.version())
        assert book.until(50.0, NODE) is None
