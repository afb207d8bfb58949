"""What the tests of the policy's commands share: files to judge by, and a registry's images signed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from support.registry import FakeRegistry, Image

from p2pdist.oci import OCI_MANIFEST, parse_manifest

sys.path.insert(0, str(Path(__file__).parents[1] / "trust"))
import trust_kit as kit


def policy_file(directory: Path, scopes: dict[str, Any], default: str = "reject") -> Path:
    path = directory / "policy.json"
    path.write_text(json.dumps({"default": [{"type": default}], "transports": {"docker": scopes}}))
    return path


def signed_by(directory: Path, key: ec.EllipticCurvePrivateKey, name: str = "team.pub") -> list[dict[str, Any]]:
    (directory / name).write_bytes(kit.pem(key))
    return [{"type": "sigstoreSigned", "keyPath": name, "signedIdentity": {"type": "matchRepository"}}]


def config_file(directory: Path, registry: FakeRegistry, more: str = "") -> Path:
    path = directory / "agent.toml"
    path.write_text(
        f'[node]\ndata_dir = "data"\n{more}\n[[registries]]\nname = "{registry.name}"\nurl = "{registry.url}"\n'
    )
    return path


def sign(registry: FakeRegistry, image: Image, *keys: ec.EllipticCurvePrivateKey) -> None:
    manifest = parse_manifest(image.raw, OCI_MANIFEST)
    payload = kit.payload(manifest, f"{registry.name}/app/a:1")
    raw, blobs = kit.signature_manifest([kit.simple(key, payload) for key in keys])
    for blob in blobs:
        registry.add_blob(blob)
    registry.add_manifest("app/a", raw, OCI_MANIFEST, f"sha256-{image.digest.hex}.sig")
