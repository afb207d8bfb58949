"""Who is blamed for wrong bytes, and who is not although they passed them on."""

from __future__ import annotations

from p2pdist.torrent.blame import BLOCK, Blame, Sender

LIAR = Sender(b"L" * 32, "10.0.0.1")
HONEST = Sender(b"H" * 32, "10.0.0.2")
STRANGER = Sender(b"", "10.0.0.3")
GOOD = bytes(4 * BLOCK)
BAD = b"\xff" * (4 * BLOCK)


def _came(blame: Blame, index: int, sender: Sender, *, claimed: bool, blocks: range = range(4)) -> None:
    for block in blocks:
        blame.asked(index, block, sender, claimed)


def _nobody(node: bytes, index: int) -> bool:
    return False


def _everybody(node: bytes, index: int) -> bool:
    return True


def test_a_node_that_sends_other_bytes_than_it_answers_for_is_accused_at_once() -> None:
    blame = Blame()
    _came(blame, 3, LIAR, claimed=True)
    verdict = blame.refused(3, BAD, 0.0)
    assert verdict is not None and verdict.sender == LIAR and verdict.index == 3 and verdict.certain


def test_a_node_that_passed_on_what_it_had_not_proved_and_disowns_it_is_not_blamed() -> None:
    blame = Blame()
    _came(blame, 3, HONEST, claimed=False)
    assert blame.refused(3, BAD, 0.0) is None
    assert blame.proved(3, GOOD, 0.5) == []
    blame.disowned(HONEST.node, 3)  # later than we proved it, and before it says that it proved it itself
    assert blame.overdue(10.0, _everybody) == []


def test_a_node_that_disowned_a_chunk_before_is_not_blamed_although_it_claims_it_now() -> None:
    blame = Blame()
    blame.disowned(HONEST.node, 3)
    _came(blame, 3, HONEST, claimed=True)
    assert blame.refused(3, BAD, 0.0) is None


def test_a_node_that_disowns_everything_it_sends_is_left_alone_in_the_end_but_not_accused() -> None:
    blame = Blame()
    verdicts = []
    for index in range(20):
        _came(blame, index, LIAR, claimed=False)
        blame.refused(index, BAD, float(index))
        blame.disowned(LIAR.node, index)
        verdicts += blame.proved(index, GOOD, float(index))
        verdicts += blame.overdue(index + 5.0, _nobody)
    assert {verdict.sender for verdict in verdicts} == {LIAR}
    assert verdicts[0].index == 8 and not any(verdict.certain for verdict in verdicts)


def test_a_node_whose_blocks_differ_from_what_it_answers_for_is_accused_once_it_had_time_to_disown_them() -> None:
    blame = Blame()
    _came(blame, 3, LIAR, claimed=False)
    assert blame.refused(3, BAD, 0.0) is None
    assert blame.proved(3, GOOD, 1.0) == []
    assert blame.overdue(3.9, _everybody) == []
    (verdict,) = blame.overdue(4.1, _everybody)
    assert verdict.sender == LIAR and verdict.certain
    assert blame.overdue(9.0, _everybody) == []


def test_a_node_that_never_answers_for_what_it_sends_is_left_alone_after_a_while() -> None:
    blame = Blame()
    for index in range(2):
        _came(blame, index, LIAR, claimed=False)
        assert blame.refused(index, BAD, 0.0) is None
    assert blame.overdue(2.9, _nobody) == []
    verdicts = blame.overdue(3.1, _nobody)
    assert [(verdict.sender, verdict.certain) for verdict in verdicts] == [(LIAR, False)]
    assert blame.overdue(4.0, _nobody) == []


def test_one_wrong_chunk_without_a_claim_is_no_proof() -> None:
    blame = Blame()
    _came(blame, 0, HONEST, claimed=False)
    blame.refused(0, BAD, 0.0)
    assert blame.overdue(100.0, _nobody) == []


def test_a_node_that_left_before_it_could_disown_is_not_accused() -> None:
    blame = Blame()
    for index in range(3):
        _came(blame, index, HONEST, claimed=False)
        blame.refused(index, BAD, 0.0)
    blame.proved(0, GOOD, 0.0)
    blame.left(HONEST.node)
    assert blame.overdue(10.0, _everybody) == []


def test_of_two_senders_the_one_whose_block_differs_is_blamed_once_the_right_bytes_are_known() -> None:
    blame = Blame()
    _came(blame, 3, HONEST, claimed=True, blocks=range(3))
    _came(blame, 3, LIAR, claimed=False, blocks=range(3, 4))
    assert blame.refused(3, GOOD[: 3 * BLOCK] + BAD[:BLOCK], 0.0) is None
    assert blame.overdue(10.0, _everybody) == []
    assert blame.proved(3, GOOD, 10.0) == []
    assert [verdict.sender for verdict in blame.overdue(20.0, _everybody)] == [LIAR]


def test_bytes_that_were_refused_by_a_false_attestation_blame_nobody_when_they_turn_out_right() -> None:
    blame = Blame()
    _came(blame, 3, HONEST, claimed=False)
    blame.refused(3, GOOD, 0.0)
    assert blame.proved(3, GOOD, 1.0) == []
    assert blame.overdue(10.0, _everybody) == []


def test_a_block_asked_of_two_peers_blames_neither_unless_it_is_known_whose_came() -> None:
    blame = Blame()
    for sender in (HONEST, LIAR):
        _came(blame, 3, sender, claimed=True)
    assert blame.refused(3, BAD, 0.0) is None
    assert blame.proved(3, GOOD, 0.0) == []
    assert blame.overdue(10.0, _everybody) == []
    for sender in (HONEST, LIAR):
        _came(blame, 4, sender, claimed=True)
    for block in range(4):
        blame.came(4, block, LIAR)
    verdict = blame.refused(4, BAD, 0.0)
    assert verdict is not None and verdict.sender == LIAR


def test_a_peer_that_only_speaks_bittorrent_is_left_alone_by_its_address() -> None:
    blame = Blame()
    verdicts = []
    for index in range(2):
        _came(blame, index, STRANGER, claimed=False)
        blame.refused(index, BAD, 0.0)
        verdicts += blame.proved(index, GOOD, 0.0)
    assert [(verdict.sender.node, verdict.sender.host) for verdict in verdicts] == [(b"", "10.0.0.3")]


def test_what_was_on_its_way_when_the_torrent_was_loaded_anew_blames_nobody() -> None:
    blame = Blame()
    _came(blame, 3, HONEST, claimed=True)
    blame.forget()
    assert blame.senders(3) == set()
    assert blame.refused(3, BAD, 0.0) is None
