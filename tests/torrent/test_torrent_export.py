"""Images out as OCI layouts with a torrent, and back: nothing that is not what its digest says gets either way."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import libtorrent as lt
import pytest
from support.images import Image, make_image, make_index, noise

from p2pdist.errors import ConfigError, InvalidManifest, StorageError, UpstreamInvalid
from p2pdist.oci import OCI_INDEX, Digest, Platform, Reference, Repository
from p2pdist.protocol.bencode import decode
from p2pdist.store import Store
from p2pdist.torrent.export import export_image
from p2pdist.torrent.import_ import import_layout
from p2pdist.torrent.layout import NAME, REF_NAME
from p2pdist.torrent.multifile import make_torrent, piece_size_for
from p2pdist.torrent.sources import StoreSource

REFERENCE = Reference.parse("registry.test/app/a:1")
IMAGE = make_image([noise(300_000, 1), noise(70_000, 2), noise(10, 3)])


_BAD_DIGEST = b'{"schemaVersion":2,"manifests":[{"mediaType":"a/b","digest":"sha256:../x","size":1}]}'


class Source:
    """Images in memory; `lies` are given for what they stand under."""

    def __init__(self, *images: Image, index: bytes | None = None) -> None:
        self.manifests = {str(image.digest): (image.raw, image.media_type) for image in images}
        self.blobs = {digest: data for image in images for digest, data in image.blobs.items()}
        self.manifests["1"] = (index, OCI_INDEX) if index is not None else (images[0].raw, images[0].media_type)
        self.lies: dict[Digest, bytes] = {}
        self.read: list[Digest] = []

    async def manifest(self, repository: Repository, target: str) -> tuple[bytes, str]:
        return self.manifests[target]

    async def blob(self, repository: Repository, digest: Digest) -> AsyncIterator[bytes]:
        self.read.append(digest)
        data = self.lies.get(digest, self.blobs[digest])
        for start in range(0, len(data), 65_536):
            yield data[start : start + 65_536]


async def _exported(directory: Path, image: Image = IMAGE, reference: Reference = REFERENCE) -> Path:
    return (await export_image(Source(image), reference, directory / "image.oci")).directory


def _blob(layout: Path, digest: Digest) -> Path:
    return layout / "blobs" / digest.algorithm / digest.hex


async def test_an_exported_image_comes_back_byte_for_byte_and_is_known_by_its_name(tmp_path: Path) -> None:
    layout = await _exported(tmp_path)
    store = await Store.open(tmp_path / "store")
    try:
        imported = await import_layout(store, layout)
        assert imported.images == (("registry.test/app/a:1", IMAGE.digest),)
        assert {blob.digest for blob in imported.stored} == {IMAGE.digest, *IMAGE.blobs}
        assert store.tag("registry.test/app/a", "1") is not None
        assert store.media_type(IMAGE.digest) == IMAGE.media_type
        again = await export_image(StoreSource(store), REFERENCE, tmp_path / "again" / "image.oci")
        assert again.image == IMAGE.digest
        for path in sorted(layout.rglob("*")):
            twin = again.directory / path.relative_to(layout)
            assert path.is_dir() or path.read_bytes() == twin.read_bytes()
        assert not (await import_layout(store, layout)).stored  # all of it is there already
    finally:
        await store.close()


async def test_the_same_image_gives_the_same_info_hash_on_every_node(tmp_path: Path) -> None:
    first = await export_image(Source(IMAGE), REFERENCE, tmp_path / "one" / "image.oci")
    second = await export_image(
        Source(IMAGE), REFERENCE, tmp_path / "two" / "image.oci", trackers=["http://t/announce"]
    )
    assert first.torrent.info_hash == second.torrent.info_hash
    assert first.torrent.magnet == f"magnet:?xt=urn:btih:{first.torrent.info_hash.hex()}&dn=image.oci"
    assert second.torrent.magnet.endswith("&tr=http%3A%2F%2Ft%2Fannounce")
    assert second.file.read_bytes() == second.torrent.data


async def test_of_an_index_the_platforms_asked_for_are_taken_or_all(tmp_path: Path) -> None:
    amd, arm = make_image([noise(9, 4)]), make_image([noise(9, 5)], architecture="arm64")
    index = make_index([amd, arm])
    source = Source(amd, arm, index=index)
    one = await export_image(source, REFERENCE, tmp_path / "one", platforms=[Platform("linux", "arm64")])
    assert _blob(one.directory, arm.digest).exists() and not _blob(one.directory, amd.digest).exists()
    every = await export_image(source, REFERENCE, tmp_path / "all")
    assert _blob(every.directory, amd.digest).exists()
    with pytest.raises(ConfigError, match="linux/amd64, linux/arm64"):
        await export_image(source, REFERENCE, tmp_path / "none", platforms=[Platform("plan9", "amd64")])
    store = await Store.open(tmp_path / "store")
    try:
        assert (await import_layout(store, one.directory)).images == (("registry.test/app/a:1", Digest.of(index)),)
        assert store.find(arm.digest) is not None and store.find(amd.digest) is None
    finally:
        await store.close()


@pytest.mark.parametrize("lie", [noise(300_000, 9), b"", noise(300_001, 1), noise(299_999, 1)])
async def test_a_source_that_gives_other_bytes_leaves_no_layout(tmp_path: Path, lie: bytes) -> None:
    source = Source(IMAGE)
    source.lies[IMAGE.layers[0]] = lie
    with pytest.raises((StorageError, UpstreamInvalid)):
        await export_image(source, REFERENCE, tmp_path / "image.oci")
    assert not list(tmp_path.iterdir())


async def test_a_directory_that_is_there_is_not_touched(tmp_path: Path) -> None:
    layout = await _exported(tmp_path)
    before = layout.stat().st_mtime_ns
    with pytest.raises(StorageError, match="is there already"):
        await _exported(tmp_path)
    assert layout.stat().st_mtime_ns == before


@pytest.mark.parametrize("piece_size", [None, 16 * 1024, 64 * 1024, 1024 * 1024])
async def test_libtorrent_finds_every_piece_of_the_export_right(tmp_path: Path, piece_size: int | None) -> None:
    made = await export_image(Source(IMAGE), REFERENCE, tmp_path / "image.oci", piece_size=piece_size)
    info = lt.load_torrent_buffer(made.torrent.data).ti
    assert info is not None and info.info_hashes().v1.to_bytes() == made.torrent.info_hash
    assert info.info_hashes().has_v2() is False
    layout = made.directory
    content = b"".join(path.read_bytes() for path in sorted(layout.rglob("*")) if path.is_file())
    assert info.total_size() == len(content)
    size = made.torrent.piece_size
    hashes = b"".join(hashlib.sha1(content[at : at + size]).digest() for at in range(0, len(content), size))
    body = decode(made.torrent.data)
    assert isinstance(body, dict) and body[b"info"][b"pieces"] == hashes


@pytest.mark.parametrize("piece_size", [1000, 8 * 1024, 3 * 16 * 1024, 32 * 1024 * 1024])
async def test_an_impossible_piece_size_is_refused(tmp_path: Path, piece_size: int) -> None:
    with pytest.raises(ConfigError, match="piece size"):
        make_torrent(await _exported(tmp_path), piece_size)


def test_pieces_grow_with_the_size_and_stay_within_bounds() -> None:
    assert piece_size_for(1) == 16 * 1024
    assert piece_size_for(2048 * 16 * 1024 + 1) == 32 * 1024
    assert piece_size_for(1 << 50) == 16 * 1024 * 1024


async def _refused(tmp_path: Path, layout: Path, error: type[Exception], match: str) -> None:
    store = await Store.open(tmp_path / "store")
    try:
        with pytest.raises(error, match=match):
            await import_layout(store, layout)
        assert store.tag("registry.test/app/a", "1") is None
        assert store.find(IMAGE.digest) is None  # a manifest comes after all that it names
        for blob in store.stored():
            assert IMAGE.blobs[blob.digest]  # what was proved may stay
    finally:
        await store.close()


@pytest.mark.parametrize("position", [0, 150_000, -1])
async def test_a_layer_with_one_changed_byte_is_not_taken(tmp_path: Path, position: int) -> None:
    layout = await _exported(tmp_path)
    path = _blob(layout, IMAGE.layers[0])
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    await _refused(tmp_path, layout, StorageError, "wanted sha256")


async def test_a_missing_a_short_and_a_long_layer_are_not_taken(tmp_path: Path) -> None:
    for number, change in enumerate((None, -1, 1)):
        layout = await _exported(tmp_path / str(number))
        path = _blob(layout, IMAGE.layers[1])
        data = path.read_bytes()
        if change is None:
            path.unlink()
        else:
            path.write_bytes(data[:change] if change < 0 else data + b"x")
        await _refused(tmp_path / str(number), layout, StorageError, "is not in|bytes by its manifest")


async def test_links_and_devices_in_a_layout_are_not_followed(tmp_path: Path) -> None:
    layout = await _exported(tmp_path)
    path = _blob(layout, IMAGE.layers[0])
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    await _refused(tmp_path, layout, StorageError, "symbolic links|regular")
    path.unlink()
    os.mkfifo(path)
    shutil.rmtree(tmp_path / "store")
    await _refused(tmp_path, layout, StorageError, "regular file")


async def test_a_changed_manifest_is_not_taken(tmp_path: Path) -> None:
    layout = await _exported(tmp_path)
    path = _blob(layout, IMAGE.digest)
    path.write_bytes(path.read_bytes().replace(b'"size"', b'"sizE"', 1))
    await _refused(tmp_path, layout, StorageError, "wanted sha256")


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("oci-layout", b"", InvalidManifest),
        ("oci-layout", b"[]", InvalidManifest),
        ("oci-layout", b'{"imageLayoutVersion": "2.0"}', InvalidManifest),
        ("oci-layout", b" " * 5000, InvalidManifest),
        ("oci-layout", b"[" * 4000, InvalidManifest),
        ("index.json", b"{}", InvalidManifest),
        ("index.json", b" " * (5 * 1024 * 1024), InvalidManifest),
        ("index.json", b'{"schemaVersion":2,"manifests":[]}', ConfigError),
        ("index.json", _BAD_DIGEST, InvalidManifest),
    ],
)  # fmt: skip
async def test_a_layout_that_is_none_is_refused(
    tmp_path: Path, name: str, content: bytes, error: type[Exception]
) -> None:
    layout = await _exported(tmp_path)
    (layout / name).write_bytes(content)
    await _refused(tmp_path, layout, error, r"\w")


async def test_a_layout_that_names_no_image_needs_a_name(tmp_path: Path) -> None:
    layout = await _exported(tmp_path)
    index = json.loads((layout / "index.json").read_text())
    index["manifests"][0]["annotations"] = {REF_NAME: "latest"}  # what skopeo writes: a tag of nothing
    (layout / "index.json").write_text(json.dumps(index))
    await _refused(tmp_path, layout, ConfigError, "--name")
    store = await Store.open(tmp_path / "store")
    try:
        name = Reference.parse("other.test/b:2")
        assert (await import_layout(store, layout, reference=name)).images == (("other.test/b:2", IMAGE.digest),)
        assert store.repositories(IMAGE.digest) == {"other.test/b"}
        with pytest.raises(ConfigError, match="not sha256"):
            await import_layout(store, layout, reference=Reference.parse(f"other.test/b@{Digest.of(b'')}"))
    finally:
        await store.close()


async def test_indexes_within_indexes_end_somewhere(tmp_path: Path) -> None:
    layout = await _exported(tmp_path)
    raw = IMAGE.raw
    media_type = IMAGE.media_type
    for _ in range(6):
        entry = {"mediaType": media_type, "digest": str(Digest.of(raw)), "size": len(raw)}
        raw, media_type = (
            json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}).encode(),
            OCI_INDEX,
        )
        _blob(layout, Digest.of(raw)).write_bytes(raw)
    entry = {
        "mediaType": media_type,
        "digest": str(Digest.of(raw)),
        "size": len(raw),
        "annotations": {NAME: "a.test/b:1"},
    }
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    await _refused(tmp_path, layout, InvalidManifest, "too deep")


async def test_a_partial_that_a_false_attestation_spoilt_does_not_spoil_the_import(tmp_path: Path) -> None:
    layout = await _exported(tmp_path)
    store = await Store.open(tmp_path / "store")
    try:
        staging = await store.stage(IMAGE.layers[0], 300_000, 65_536)
        staging.write(0, bytes(65_536))
        staging.prove(0, hashlib.sha256(bytes(65_536)).digest(), b"somebody said so")
        await staging.close()
        await import_layout(store, layout)
        blob = await store.open_blob(IMAGE.layers[0])
        assert blob is not None
        with blob:
            assert blob.pread(0, 300_000) == noise(300_000, 1)
    finally:
        await store.close()


async def test_a_download_directory_with_the_layout_inside_is_found(tmp_path: Path) -> None:
    await _exported(tmp_path / "downloads")
    store = await Store.open(tmp_path / "store")
    try:
        assert (await import_layout(store, tmp_path / "downloads")).images
        with pytest.raises(StorageError, match="0 OCI image layouts"):
            await import_layout(store, tmp_path / "store")
    finally:
        await store.close()
