"""Why one candidate does not count. Raised and caught within this room; at its border it is a verdict's text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

MAX_TEXT = 300  # characters of one reason: it quotes what others wrote


class Refused(Exception):
    """A signature, certificate or log entry that does not count; the text says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason if len(reason) <= MAX_TEXT else reason[:MAX_TEXT] + "...")


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn whatever `cryptography` raises over bytes from outside into a Refused that names `what`."""
    try:
        yield
    except Refused:
        raise
    except InvalidSignature as error:
        raise Refused(f"{what}: the signature is not valid") from error
    except (
        ValueError,
        TypeError,
        OverflowError,
        UnsupportedAlgorithm,
        x509.DuplicateExtension,
        x509.ExtensionNotFound,
        x509.InvalidVersion,
        x509.UnsupportedGeneralNameType,
    ) as error:
        raise Refused(f"{what}: {shown(str(error) or type(error).__name__)}") from error


def shown(text: str) -> str:
    """`text` from outside, fit for a log line: short, printable ASCII."""
    printable = ascii(text)[1:-1]
    return printable if len(printable) <= 120 else printable[:120] + "..."
