"""Accept, If-None-Match and Link, read and written."""

from __future__ import annotations

import pytest

from p2pdist.errors import UpstreamInvalid
from p2pdist.mirror.door import TagsAsked
from p2pdist.mirror.headers import accepts, matches, next_page
from p2pdist.oci import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Digest, Repository


@pytest.mark.parametrize(
    ("lines", "media_type", "admitted"),
    [
        ([], OCI_INDEX, True),
        ([""], OCI_INDEX, True),
        (["*/*"], OCI_INDEX, True),
        (["application/*"], OCI_INDEX, True),
        ([DOCKER_MANIFEST, OCI_MANIFEST, OCI_INDEX], OCI_INDEX, True),
        ([f"{DOCKER_MANIFEST}, {OCI_INDEX};q=0.5"], OCI_INDEX, True),
        ([f"{DOCKER_MANIFEST}, */*"], "application/x-unknown+json", True),
        ([OCI_INDEX.upper()], OCI_INDEX, True),
        ([OCI_MANIFEST], f"{OCI_MANIFEST}; charset=utf-8", True),
        ([DOCKER_MANIFEST], OCI_INDEX, False),
        (["text/*"], OCI_INDEX, False),
        ([f"{OCI_INDEX};q=0"], OCI_INDEX, False),
        ([f"{OCI_INDEX}; q=0.000"], OCI_INDEX, False),
    ],
)
def test_accept_lines_are_joined_and_understood(lines: list[str], media_type: str, admitted: bool) -> None:
    assert accepts(lines, media_type) is admitted


def test_if_none_match_names_content_by_its_digest() -> None:
    digest = Digest.of(b"x")
    assert matches([f'"{digest}"'], digest)
    assert matches(['"other"', f'"another", W/"{digest}"'], digest)
    assert matches(["*"], digest)
    assert not matches([], digest)
    assert not matches([f'"{Digest.of(b"y")}"', str(digest)], digest)


def test_the_link_to_more_tags_leads_back_to_the_mirror_and_keeps_the_registry() -> None:
    asked = TagsAsked(Repository("127.0.0.1:5000", "app"), "n=2", "/v2/app/tags/list", "127.0.0.1:5000")
    link = next_page('<https://registry.example/v2/app/tags/list?n=2&last=b&token=x>; rel="next"', asked)
    assert link == '</v2/app/tags/list?n=2&last=b&ns=127.0.0.1%3A5000>; rel="next"'
    asked = TagsAsked(Repository("ghcr.io", "app"), "n=2", "/v2/ghcr.io/app/tags/list", None)
    assert next_page("</v2/app/tags/list?last=b&n=2>; rel=next", asked) == (
        '</v2/ghcr.io/app/tags/list?n=2&last=b>; rel="next"'
    )


@pytest.mark.parametrize("link", ["", "x", "<", '</v2/app/tags/list>; rel="prev"'])
def test_a_link_that_cannot_be_read_does_not_hide_tags(link: str) -> None:
    with pytest.raises(UpstreamInvalid):
        next_page(link, TagsAsked(Repository("ghcr.io", "app"), "", "/v2/app/tags/list", None))
