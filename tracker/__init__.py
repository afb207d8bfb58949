"""The tracker: tells agents who else wants or has a blob, and leases each missing chunk to exactly one of them."""
