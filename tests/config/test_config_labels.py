"""Labels from files as Kubernetes and clouds write them; what can't be read is said, never guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pdist.config import NodeConfig
from p2pdist.config.labels import labels_of, parse_labels
from p2pdist.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("zone=a\n\n# why\n rack = r1 \n", {"zone": "a", "rack": "r1"}),
        (
            'app="web"\ntopology.kubernetes.io/zone="eu-\\"1\\""\n',
            {"app": "web", "topology.kubernetes.io/zone": 'eu-"1"'},
        ),
        ('{"zone": "b", "cpus": 4, "nested": {}}', {"zone": "b"}),
        ("", {}),
        ("empty=", {"empty": ""}),
    ],
)
def test_both_forms_are_read(text: str, labels: dict[str, str]) -> None:
    assert parse_labels(text) == labels


@pytest.mark.parametrize("text", ["zone", "=a", '{"zone": ', "{" * 100_000, 'zone="\\x"'])
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_labels(text)


def test_the_configuration_wins_over_the_file_and_the_zone_over_kubernetes_name_for_it(tmp_path: Path) -> None:
    file = tmp_path / "labels"
    file.write_text('topology.kubernetes.io/zone="eu-1a"\nrack="r1"\n')
    config = NodeConfig(labels=("rack=r2",), labels_file=file)
    assert config.label_map == {"zone": "eu-1a", "rack": "r2", "topology.kubernetes.io/zone": "eu-1a"}
    assert NodeConfig(labels=("zone=x",), labels_file=file).label_map["zone"] == "x"


def test_a_tracker_is_told_no_more_than_it_takes_and_always_the_zone() -> None:
    many = {f"key-{number}": "v" for number in range(100)}
    told = labels_of({**many, "k" * 64: "v", "long": "v" * 256, "topology.kubernetes.io/zone": "z"})
    assert len(told) == 32 and told["zone"] == "z"
    assert all(len(key) <= 63 and len(value) <= 255 for key, value in told.items())


def test_a_file_that_cannot_be_read_is_an_error_and_not_a_node_without_a_zone(tmp_path: Path) -> None:
    for content in (None, b"\xff", b"zone", b"a=b\n" * 100_000):
        path = tmp_path / "labels"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"node\.labels_file"):
            NodeConfig(labels_file=path)
