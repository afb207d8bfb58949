"""The mesh: the default engine. `decide` says what to do (pure, synchronous), `links` does it (asyncio)."""
