"""Root file systems out of this machine's Debian packages, so that images can be built with no registry in reach.

They stand in for the official images that the compose files name: the same programs at the paths that matter.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

# What `python:3.13-slim` has of it: an interpreter with venv and pip, a shell, certificates.
PYTHON = ["python3", "python3-minimal", "python3.11", "python3.11-minimal", "libpython3-stdlib"]
PYTHON += ["libpython3.11-minimal", "libpython3.11-stdlib", "python3-venv", "python3.11-venv", "python3-distutils"]
PYTHON += ["python3-pip", "python3-setuptools", "python3-pkg-resources", "python3-wheel"]
PYTHON += ["busybox", "libc6", "libstdc++6", "libgcc-s1"]
REGISTRY = ["docker-registry", "busybox"]
REDIS = ["redis-server", "redis-tools", "busybox"]
_TOOLS = ["sh", "cat", "chmod", "cp", "echo", "ls", "mkdir", "rm", "sleep", "test", "touch", "wget"]  # of busybox

_LEFT_OUT = re.compile(
    r"/usr/share/(doc|man|locale|info|lintian|bug|applications|pixmaps)(/|$)|/(lib|etc)/systemd/|/etc/init|/gconv/"
)
_LIBRARY = re.compile(r"(?:=>\s+)?(/\S+) \(0x")
_USERS = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nredis:x:999:999::/data:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
    "etc/group": "root:x:0:\nredis:x:999:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
}


def archive(
    packages: Sequence[str], files: Mapping[str, str] | None = None, owned: Mapping[str, int] | None = None
) -> bytes:
    """A tar archive: the packages' files, every shared library that they need, `files` (path to text) over them, and
    the directories `owned` (path to the number of user and group).
    """
    paths = _with_libraries(_files(packages)) | {Path("/etc/ssl/certs/ca-certificates.crt")}
    texts = {**_USERS, **(files or {})}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("bin", "sbin", "lib", "lib64"):  # Debian's merged /usr
            _add_link(tar, name, f"usr/{name}")
        for directory, mode, owner in [
            ("tmp", 0o1777, 0),
            *((path, 0o755, user) for path, user in (owned or {}).items()),
        ]:
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode, entry.uid, entry.gid = tarfile.DIRTYPE, mode, owner, owner
            tar.addfile(entry)
        for name, path in sorted({_merged(path): path for path in paths}.items()):
            if name not in texts:
                tar.add(path, name, recursive=False)
        for name, text in texts.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text), 0o644
            tar.addfile(entry, io.BytesIO(text.encode()))
        for name in _TOOLS:
            _add_link(tar, f"usr/bin/{name}", "busybox")
    return buffer.getvalue()


def _files(packages: Sequence[str]) -> set[Path]:
    done = subprocess.run(["dpkg", "-L", *packages], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"not all installed (tests/system/packages.sh installs them): {done.stderr}")
    paths = {Path(line) for line in done.stdout.splitlines() if line.startswith("/") and not _LEFT_OUT.search(line)}
    return {path for path in paths if not path.is_dir()}


def _with_libraries(paths: set[Path]) -> set[Path]:
    programs = [str(path) for path in paths if _is_elf(path)]
    done = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False)
    libraries = {Path(found) for found in _LIBRARY.findall(done.stdout)}
    return paths | {step for library in libraries for step in _chain(library)}


def _chain(path: Path) -> Iterator[Path]:
    """The path and what it links to, up to the file itself."""
    yield path
    while path.is_symlink():
        path = Path(os.path.normpath(path.parent / path.readlink()))
        yield path


def _is_elf(path: Path) -> bool:
    if path.is_symlink() or not (path.suffix == ".so" or ".so." in path.name or os.access(path, os.X_OK)):
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _merged(path: Path) -> str:
    text = str(path)
    return f"usr{text}" if re.match(r"/(bin|sbin|lib|lib64)/", text) else text[1:]


def _add_link(tar: tarfile.TarFile, name: str, target: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    tar.addfile(entry)
