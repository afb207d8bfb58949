"""The BitTorrent engine: libtorrent fed by leases; export to and import from any BitTorrent client.

Nothing of libtorrent leaves this package; only `session`, `settings` and `download` import it.
"""
