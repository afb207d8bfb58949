"""Headers from outside: read as RFC 9110 says, or left out; nothing raises."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pdist.upstream.challenge import MAX_RETRY_AFTER, Challenge, parse_challenges, parse_retry_after

REALM = "https://auth.example/token"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([f'Bearer realm="{REALM}",service="s",scope="repository:a/b:pull"'],
         [("bearer", {"realm": REALM, "service": "s", "scope": "repository:a/b:pull"})]),
        ([f'bearer  Realm = "{REALM}" , service=s'], [("bearer", {"realm": REALM, "service": "s"})]),
        (['Basic realm="a \\"quoted\\" one"'], [("basic", {"realm": 'a "quoted" one'})]),
        (['Negotiate, Basic realm="x, Bearer y", Bearer realm="z"'],
         [("negotiate", {}), ("basic", {"realm": "x, Bearer y"}), ("bearer", {"realm": "z"})]),
        (['Basic realm="x"', 'Bearer realm="z"'], [("basic", {"realm": "x"}), ("bearer", {"realm": "z"})]),
        (['Bearer realm="first",realm="second"'], [("bearer", {"realm": "first"})]),
        (['Bearer scope="repository:a:pull,push repository:b:pull"'],
         [("bearer", {"scope": "repository:a:pull,push repository:b:pull"})]),
        (["Basic"], [("basic", {})]),
        ([""], []),
        (['="x"'], []),
        (['Bearer realm="unterminated'], [("bearer", {})]),
        ([], []),
    ],
)  # fmt: skip
def test_challenges_are_read(headers, expected) -> None:
    assert [(one.scheme, dict(one.parameters)) for one in parse_challenges(headers)] == expected


@given(
    st.lists(
        st.text(max_size=200)
        | st.from_regex(r'[A-Za-z]{1,6} ([a-z]{1,5}="?[a-z\\",]{0,9}"?,? ?){0,5}', fullmatch=True),
        max_size=4,
    )
)
def test_no_header_text_raises(headers: list[str]) -> None:
    assert all(isinstance(one, Challenge) for one in parse_challenges(headers))


@pytest.mark.parametrize(
    "header", ['Bearer realm="' + "\\" * 200_000, "a," * 100_000, "a=" * 100_000, " " * 200_000, 'a b="' * 50_000]
)
def test_a_huge_header_takes_no_long_time(header: str) -> None:
    parse_challenges([header] * 4)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0.0),
        ("17", 17.0),
        (" 17 ", 17.0),
        ("999999999999", MAX_RETRY_AFTER),
        ("-1", None),
        ("1.5", None),
        ("٣", None),
        ("soon", None),
        ("9" * 65, None),
        ("Thu, 01 Jan 1970 00:16:50 GMT", 10.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_RETRY_AFTER),
    ],
)
def test_retry_after_is_a_number_or_a_date_and_bounded(text: str | None, seconds: float | None) -> None:
    assert parse_retry_after(text, now=1000.0) == seconds


@given(st.text(max_size=70))
def test_no_retry_after_raises(text: str) -> None:
    seconds = parse_retry_after(text, 1000.0)
    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER
