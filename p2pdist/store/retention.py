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


def within(images: Iterable[Mapping[Digest, int]], room: float) -> set[Digest]:
    """The first of these images (sizes of their parts) that together take at most `room` bytes.

    Not those behind the first one that is too many: what is pulled now must not find the store full of older images.
    """
    chosen: set[Digest] = set()
    taken = 0
    for image in images:
        taken += sum(size for digest, size in image.items() if digest not in chosen)
        if taken > room:
            break
        chosen |= image.keys()
    return chosen
