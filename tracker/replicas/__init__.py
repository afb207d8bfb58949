"""Several replicas of one tracker: one leads and decides, the others pass on what their agents say (docs/adr/0030)."""
