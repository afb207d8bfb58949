"""signedIdentity: which name a signature may carry for what is pulled."""

from __future__ import annotations

import pytest

from p2pdist.errors import InvalidReference
from p2pdist.oci import Repository
from p2pdist.trust.identity import (
    ExactReference,
    ExactRepository,
    MatchExact,
    MatchRepoDigestOrExact,
    MatchRepository,
    Name,
    RemapIdentity,
    SignedIdentity,
)

D = f"sha256:{'a' * 64}"
E = f"sha256:{'b' * 64}"
REMAP = RemapIdentity("mirror.test/m", "registry.test/app")


@pytest.mark.parametrize(
    ("identity", "pulled", "signed", "accepted"),
    [
        (MatchExact(), "r.test/a:1", "r.test/a:1", True),
        (MatchExact(), "r.test/a:1", "r.test/a:2", False),
        (MatchExact(), "r.test/a:1", "r.test/a", False),
        (MatchExact(), f"r.test/a@{D}", "r.test/a:1", False),
        (MatchExact(), f"r.test/a@{D}", f"r.test/a@{D}", True),
        (MatchExact(), f"r.test/a@{D}", f"r.test/a@{E}", False),
        (MatchRepoDigestOrExact(), "r.test/a:1", "r.test/a:1", True),
        (MatchRepoDigestOrExact(), "r.test/a:1", "r.test/a:2", False),
        (MatchRepoDigestOrExact(), "r.test/a:1", "r.test/a", False),
        (MatchRepoDigestOrExact(), f"r.test/a@{D}", "r.test/a:2", True),
        (MatchRepoDigestOrExact(), f"r.test/a@{D}", "r.test/a", False),
        (MatchRepoDigestOrExact(), f"r.test/a@{D}", "r.test/b:2", False),
        (MatchRepository(), "r.test/a:1", "r.test/a", True),
        (MatchRepository(), "r.test/a:1", "r.test/a:9", True),
        (MatchRepository(), "r.test/a:1", "r.test/ab", False),
        (MatchRepository(), "r.test/a:1", "r.test:5000/a", False),
        (MatchRepository(), "docker.io/library/alpine:1", "alpine", True),
        (ExactReference(Name.parse("r.test/a:1")), "mirror.test/x:9", "r.test/a:1", True),
        (ExactReference(Name.parse("r.test/a:1")), "mirror.test/x:1", "r.test/a:2", False),
        (ExactReference(Name.parse("r.test/a:1")), "mirror.test/x:1", "r.test/a", False),
        (ExactRepository(Repository("r.test", "a")), "mirror.test/x:1", "r.test/a", True),
        (ExactRepository(Repository("r.test", "a")), "mirror.test/x:1", "r.test/b:1", False),
        (REMAP, "mirror.test/m/three:1", "registry.test/app/three:1", True),
        (REMAP, "mirror.test/m/three:1", "registry.test/app/three:2", False),
        (REMAP, "mirror.test/m/three:1", "registry.test/app/three", False),
        (REMAP, f"mirror.test/m/three@{D}", "registry.test/app/three:7", True),
        (REMAP, "mirror.test/m/three:1", "mirror.test/m/three:1", False),
        (REMAP, "mirror.test/mm/three:1", "registry.test/appm/three:1", False),
        (REMAP, "mirror.test/mm/three:1", "mirror.test/mm/three:1", True),
        (RemapIdentity("mirror.test/m", "registry.test/x"), "mirror.test/m:1", "registry.test/x:1", True),
        (RemapIdentity("mirror.test", "library"), "mirror.test/a:1", "docker.io/library/a:1", False),
    ],
)
def test_which_name_counts_for_which_pull(identity: SignedIdentity, pulled: str, signed: str, accepted: bool) -> None:
    assert identity.accepts(Name.parse(pulled), Name.parse(signed)) is accepted


@pytest.mark.parametrize(
    "text", ["", ":1", "a:b:c", "r.test/a@sha256:12", "r.test/A", "r.test/a:-1", "r.test//a", "r.test/a\n"]
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidReference):
        Name.parse(text)
