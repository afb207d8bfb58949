"""Two tests at a time (`pytest -n 2 --dist loadgroup`): files stay together, daemons of the machine come in a row."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("xdist_group") is not None:
            continue
        group = "machine" if item.get_closest_marker("system") is not None else item.location[0]
        item.add_marker(pytest.mark.xdist_group(group))
