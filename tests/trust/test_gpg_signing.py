"""GPG simple signing through the real gpgv. The files in `gpg/` were made by GnuPG 2.2.40 for the image `image()`.

release.gpg, release.asc: one keyring, binary and armoured. good..., expiring: by that key. The rest must not count.
"""

from __future__ import annotations

import sys
import time
from datetime import datetime
from pathlib import Path

import pytest
from trust_kit import NOW, REPOSITORY, image

from p2pdist.trust import limits
from p2pdist.trust.identity import MatchRepoDigestOrExact, Name
from p2pdist.trust.refusal import Refused
from p2pdist.trust.signatures.bundle import Signed
from p2pdist.trust.signatures.gpg import Gpgv, Opened, dearmored, verify_gpg, within

FILES = Path(__file__).parent / "gpg"
KEYRING = (FILES / "release.gpg").read_bytes()
IMAGE = image()


def verify(
    name: str, *, tag: str = "1.0", manifest: bytes = IMAGE.raw, keyring: bytes = KEYRING, now: datetime = NOW
) -> Signed:
    raw = (FILES / name).read_bytes()
    return verify_gpg(raw, manifest, Name(REPOSITORY, tag), keyring, MatchRepoDigestOrExact(), now, Gpgv())


@pytest.mark.parametrize("name", ["good", "good-armored"])
def test_a_signature_by_a_key_of_the_keyring_counts(name: str) -> None:
    signed = verify(name)
    assert signed.signer.startswith("GPG key ")
    assert signed.identity == f"{REPOSITORY}:1.0"


@pytest.mark.parametrize(
    "name",
    [
        "by-mallory",
        "two-signatures",
        "clear-signed",
        "detached",
        "expired",
        "unsigned",
        "cosign-type",
        "bomb",
        "release.gpg",
    ],
)
def test_everything_else_does_not_count(name: str) -> None:
    with pytest.raises(Refused):
        verify(name)


def test_a_signature_of_another_image_or_tag_does_not_count() -> None:
    with pytest.raises(Refused, match="another image"):
        verify("good", manifest=image("evil").raw)
    with pytest.raises(Refused, match="does not accept"):
        verify("good", tag="2.0")


def test_a_signatures_end_is_judged_by_the_given_clock() -> None:
    end = verify("expiring").expires
    assert end is not None
    with pytest.raises(Refused, match="expired"):
        verify("expiring", now=end)


def test_a_message_that_inflates_is_cut_off_early() -> None:
    begun = time.monotonic()
    with pytest.raises(Refused, match=str(limits.PAYLOAD)):
        verify("bomb")
    assert time.monotonic() - begun < 2


def test_an_armoured_keyring_is_the_same_keyring() -> None:
    assert dearmored((FILES / "release.asc").read_bytes(), "k") == KEYRING
    assert dearmored(KEYRING, "k") == KEYRING


def test_a_gpgv_that_is_missing_is_a_reason_and_no_crash() -> None:
    with pytest.raises(Refused, match="GnuPG"):
        Gpgv("/nowhere/gpgv")(KEYRING, b"x")


@pytest.mark.parametrize(
    "script",
    [
        "raise SystemExit(0)",
        "import sys; sys.stdout.write('x' * 70000)",
        "import os, sys; os.write(FD, b'[GNUPG:] ' * 20000)",
        "import os; os.write(FD, b'[GNUPG:] NEWSIG\\n[GNUPG:] PLAINTEXT\\n[GNUPG:] GOODSIG\\n[GNUPG:] VALIDSIG x\\n')",
        "import os; os.write(FD, b'\\xff\\xfe[GNUPG:]\\n[GNUPG:] \\n')",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    ],
)
def test_whatever_a_gpgv_answers_ends_in_a_refusal(tmp_path: Path, script: str) -> None:
    program = tmp_path / "gpgv"
    finds = "import sys; FD = int(sys.argv[sys.argv.index('--status-fd') + 1])\n"
    program.write_text(f"#!{sys.executable}\n{finds}{script}\n")
    program.chmod(0o755)
    with pytest.raises(Refused):
        Gpgv(str(program))(KEYRING, b"x")


def test_a_gpgv_that_hangs_is_killed_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "GPG_SECONDS", 1.0)
    program = tmp_path / "gpgv"
    program.write_text(f"#!{sys.executable}\nimport signal; signal.pause()\n")
    program.chmod(0o755)
    with pytest.raises(Refused, match="longer"):
        Gpgv(str(program))(KEYRING, b"x")


def test_many_signatures_that_take_long_end_with_the_time_there_is() -> None:
    clock = [0.0]

    def slow(_keyring: bytes, _signature: bytes) -> Opened:
        clock[0] += 2
        raise Refused("slow")

    hurried = within(slow, 5.0, lambda: clock[0])
    for _ in range(32):
        with pytest.raises(Refused):
            hurried(b"", b"")
    assert clock[0] == 6
