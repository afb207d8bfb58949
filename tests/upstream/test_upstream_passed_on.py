"""A registry's challenge on its way to a client, and a client's token lent to its reads."""

from __future__ import annotations

import pytest

from p2pdist.upstream.challenge import Challenge, parse_challenges, shown_challenge
from p2pdist.upstream.loans import LOAN, MAX_LOANS, Loans

SCOPE = "repository:a/b:pull"


def test_a_challenge_is_put_together_anew_and_read_back_the_same() -> None:
    given = {"realm": "https://auth.test/token?x=1", "service": 'a "b" \\ c', "error": "insufficient_scope"}
    text = shown_challenge(Challenge("bearer", {**given, "scope": "repository:other:push", "extra": "x"}), SCOPE)
    (parsed,) = parse_challenges([text])
    assert (parsed.scheme, parsed.parameters) == ("bearer", {**given, "scope": SCOPE})


@pytest.mark.parametrize(
    "challenge",
    [
        Challenge("basic", {"realm": "registry"}),  # a password would be sent to us
        Challenge("bearer", {}),
        Challenge("bearer", {"realm": ""}),
        Challenge("bearer", {"realm": "https://a.test/\r\nSet-Cookie: x"}),
        Challenge("bearer", {"realm": "https://ä.test/"}),
        Challenge("bearer", {"realm": "https://a.test/", "service": "x" * 3000}),
    ],
)
def test_what_could_harm_a_client_is_not_passed_on(challenge: Challenge) -> None:
    assert shown_challenge(challenge, SCOPE) == ""


def test_an_error_that_is_no_word_is_left_out() -> None:
    text = shown_challenge(Challenge("bearer", {"realm": "https://a.test/", "error": 'x", realm="https://evil'}), SCOPE)
    assert "evil" not in text and "error" not in text


def test_a_clients_token_is_used_only_where_ours_is_refused_only_as_long_as_it_works_and_not_for_long() -> None:
    now = 0.0
    loans = Loans(lambda: now)
    assert loans.instead("a") is None and loans.after_refusal("a", None) is None
    loans.lend("a", "Bearer one")
    assert loans.instead("a") is None  # ours first
    assert loans.after_refusal("a", None) == "Bearer one"
    assert loans.instead("a") == "Bearer one"
    assert loans.after_refusal("a", "Bearer one") is None  # it works no longer
    assert loans.instead("a") is None
    loans.lend("a", "Bearer two")
    now = LOAN
    assert loans.after_refusal("a", None) is None
    for number in range(3 * MAX_LOANS):
        loans.lend(str(number), "Bearer x")
    assert len(loans._loans) == MAX_LOANS
    assert "Bearer" not in repr(loans._loans)
