"""Which manifests are kept, and which count as running. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from p2pdist.oci import Digest, ImagePattern

RUNNING_SHARE = 0.5  # of the store that running images may hold: the rest is for what comes


def kept_roots(
    patterns: Iterable[ImagePattern], tags: Mapping[tuple[str, str], str], noted: Mapping[Digest, Iterable[str]]
) -> set[Digest]:
    """The manifests that the patterns name now.

    Args:
        patterns: what is to be kept.
        tags: the digest that each tag of a repository was last seen to name.
        noted: in which repositories each stored manifest was seen.
    """
    roots: set[Digest] = set()
    for pattern in patterns:
        if pattern.digest is not None:
            roots.add(pattern.digest)
            continue
        roots |= {Digest.parse(text) for (name, tag), text in tags.items() if pattern.matches(name, tag, None)}
        if pattern.whole:
            roots |= {digest for digest, names in noted.items() if any(map(pattern.of, names))}
    return roots


def running_roots(pulls: Mapping[Digest, float], now: float, running_time: float) -> list[Digest]:
    """Manifests that a daemon asked for within `running_time` seconds, the latest first."""
    lately = [digest for digest, at in pulls.items() if running_time > 0 and now - at <= running_time]
    return sorted(lately, key=lambda digest: pulls[digest], reverse=True)


def within(closures: Iterable[set[Digest]], sizes: Mapping[Digest, int], room: float) -> set[Digest]:
    """The first of these closures that together take at most `room` bytes of what is stored."""
    chosen: set[Digest] = set()
    taken = 0
    for one in closures:
        new = one - chosen
        taken += sum(sizes.get(digest, 0) for digest in new)
        if taken > room:
            break
        chosen |= new
    return chosen
