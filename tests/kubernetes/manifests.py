"""What deploy/kubernetes says, as its files have it and as kustomize renders it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

DIRECTORY = Path(__file__).parents[2] / "deploy" / "kubernetes"
Document = dict[str, Any]


@cache
def documents(path: Path) -> list[Document]:
    """The objects of a file; not to be changed."""
    return [one for one in yaml.safe_load_all(path.read_text()) if one is not None]


def resources(directory: Path) -> list[Path]:
    """The files that a kustomization names."""
    (kustomization,) = documents(directory / "kustomization.yaml")
    return [directory / name for name in kustomization["resources"]]


def read(directory: Path = DIRECTORY) -> list[Document]:
    """All objects of a kustomization, unrendered."""
    return [one for path in resources(directory) for one in documents(path)]


def rendered(directory: Path = DIRECTORY) -> list[Document]:
    """As `kubectl apply -k` would send them."""
    done = subprocess.run(["kubectl", "kustomize", str(directory)], capture_output=True, text=True, check=True)
    return [one for one in yaml.safe_load_all(done.stdout) if one is not None]


def find(kind: str, name: str, among: Sequence[Document] | None = None) -> Document:
    """The one object of that kind and name."""
    (found,) = [one for one in among or read() if one["kind"] == kind and one["metadata"]["name"] == name]
    return found


def workloads() -> list[Document]:
    """Whatever makes pods."""
    return [one for one in read() if one["kind"] in {"Deployment", "DaemonSet", "StatefulSet"}]


def containers(workload: Document) -> Iterator[tuple[str, Document]]:
    """Of its pods, with those that run first; by "workload/container"."""
    pod = workload["spec"]["template"]["spec"]
    for one in [*pod.get("initContainers", []), *pod["containers"]]:
        yield f"{workload['metadata']['name']}/{one['name']}", one


def container(kind: str, workload: str, name: str) -> Document:
    """One container."""
    return dict(containers(find(kind, workload)))[f"{workload}/{name}"]
