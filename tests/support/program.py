"""An image that can be run: one static program that prints a line, made here."""

from __future__ import annotations

import io
import json
import struct
import tarfile

from lab.images import Content, Image

from p2pdist.oci import OCI_MANIFEST, Digest


def program_image(says: str) -> Image:
    """An image of one static program."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("hello")
        data = executable(says.encode())
        entry.size, entry.mode = len(data), 0o755
        tar.addfile(entry, io.BytesIO(data))
    layer = content(archive.getvalue(), "application/vnd.oci.image.layer.v1.tar")
    config = content(
        _dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {"Cmd": ["/hello"]},
                "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
            }
        ),
        "application/vnd.oci.image.config.v1+json",
    )
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": config.descriptor,
        "layers": [layer.descriptor],
    }
    raw = _dumps(manifest)
    return Image(raw, OCI_MANIFEST, str(Digest.of(raw)), config, (layer,), (layer.digest,), "amd64")


def executable(says: bytes) -> bytes:
    """The smallest ELF file for Linux on amd64 that prints and ends with status 0: one segment, two system calls."""
    base, start = 0x400000, 64 + 56
    code = b"\xb8\x01\x00\x00\x00\xbf\x01\x00\x00\x00\xbe%b\xba%b\x0f\x05\xb8\x3c\x00\x00\x00\x31\xff\x0f\x05"
    length = len(code % (bytes(4), bytes(4)))
    code %= (struct.pack("<I", base + start + length), struct.pack("<I", len(says)))
    size = start + length + len(says)
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, base + start, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000)
    return head + segment + code + says


def content(data: bytes, media_type: str = "application/octet-stream") -> Content:
    return Content(media_type, str(Digest.of(data)), len(data), lambda: iter([data]))


def _dumps(value: object) -> bytes:
    return json.dumps(value).encode()
