"""What a libtorrent session and an SSL torrent are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import libtorrent as lt

from p2pdist.torrent.settings import TorrentTls, Wan

if TYPE_CHECKING:
    from libtorrent import settings_pack

# RFC 7919, ffdhe2048: libtorrent wants parameters though TLS 1.3 uses none.
_DH = """-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
"""


def make_session(pack: settings_pack, wan: Wan | None) -> lt.session:
    """A session that listens. Waits for libtorrent: for a thread."""
    parameters = lt.session_params()
    parameters.settings = pack
    session = lt.session(parameters)
    if wan is not None:
        wide = session.create_peer_class("wan")
        limits = session.get_peer_class(wide)
        limits["upload_limit"], limits["download_limit"] = wan.upload_limit, wan.download_limit
        session.set_peer_class(wide, limits)
        everyone = lt.ip_filter()
        for first, last in (("0.0.0.0", "255.255.255.255"), ("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")):
            everyone.add_rule(first, last, 1 << wide)
        session.set_peer_class_filter(everyone)
    return session


def certify(handle: lt.torrent_handle, tls: TorrentTls | None) -> None:
    """Give a torrent this node's certificate; new connections show it."""
    material = tls.material() if tls is not None else None
    if material is not None:
        handle.set_ssl_certificate_buffer(material.certificate, material.key, _DH)
