"""Distinguished names as trust policies write them, and as certificates have them (RFC 4514; no multi-valued RDNs)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from cryptography import x509
from cryptography.x509.oid import NameOID

from p2pdist.trust.refusal import Refused, shown

MANDATORY = ("C", "ST", "O")
_SHORT = {
    NameOID.COUNTRY_NAME: "C",
    NameOID.STATE_OR_PROVINCE_NAME: "ST",
    NameOID.LOCALITY_NAME: "L",
    NameOID.ORGANIZATION_NAME: "O",
    NameOID.ORGANIZATIONAL_UNIT_NAME: "OU",
    NameOID.COMMON_NAME: "CN",
    NameOID.SERIAL_NUMBER: "SERIALNUMBER",
    NameOID.STREET_ADDRESS: "STREET",
    NameOID.POSTAL_CODE: "POSTALCODE",
}
_TYPE = re.compile(r"[A-Za-z][A-Za-z0-9-]*|[0-9]+(?:\.[0-9]+)+")
_PAIR = re.compile(r'\\([0-9A-Fa-f]{2})|\\([ "#+,;<=>\\])|([^\\"+,;<>\x00])')


def parse_name(text: str) -> dict[str, str]:
    """Attributes of the name that `text` writes, by type; `S` is `ST`.

    Raises:
        Refused: not such a name, an attribute twice, or without C, ST and O.
    """
    result: dict[str, str] = {}
    for part in _split(text):
        type_, equals, raw = part.partition("=")
        type_ = type_.strip()
        if not equals or _TYPE.fullmatch(type_) is None:
            raise Refused(f"{shown(text)} is not a distinguished name")
        _put(result, "ST" if type_ == "S" else type_, _unescape(raw, text), text)
    return _complete(result, text)


def certificate_name(certificate: x509.Certificate) -> dict[str, str]:
    """Attributes of a certificate's subject, by type; Refused as parse_name."""
    text = certificate.subject.rfc4514_string()
    result: dict[str, str] = {}
    for rdn in certificate.subject.rdns:
        attributes = list(rdn)
        if len(attributes) != 1 or attributes[0].oid not in _SHORT:
            raise Refused(f"the subject {shown(text)} has an attribute that trusted identities can't have")
        value = attributes[0].value
        if not isinstance(value, str):
            raise Refused(f"the subject {shown(text)} has an attribute that isn't text")
        _put(result, _SHORT[attributes[0].oid], value, text)
    return _complete(result, text)


def covers(trusted: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether `other` has every attribute of `trusted`, with the same value."""
    return all(other.get(type_) == value for type_, value in trusted.items())


def _put(result: dict[str, str], type_: str, value: str, text: str) -> None:
    if type_ in result:
        raise Refused(f"{shown(text)} has {type_} twice")
    result[type_] = value


def _complete(result: dict[str, str], text: str) -> dict[str, str]:
    for type_ in MANDATORY:
        if not result.get(type_):
            raise Refused(f"{shown(text)} has no {type_}; C, ST and O must be there")
    return result


def _split(text: str) -> list[str]:
    parts, start, escaped = [], 0, False
    for at, character in enumerate(text):
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif character in ",;":
            parts.append(text[start:at])
            start = at + 1
    parts.append(text[start:])
    return parts


def _unescape(raw: str, text: str) -> str:
    raw = raw.lstrip(" ")
    if raw.startswith("#"):
        raise Refused(f"{shown(text)} has a value in hexadecimal; trusted identities can't")
    end = len(raw)
    while end and raw[end - 1] == " " and not (end > 1 and raw[end - 2] == "\\"):
        end -= 1
    data, at = bytearray(), 0
    while at < end:
        match = _PAIR.match(raw, at, end)
        if match is None:
            raise Refused(f"{shown(text)} is not a distinguished name")
        if match[1]:
            data += bytes.fromhex(match[1])
        else:
            data += (match[2] or match[3]).encode("utf-8", "surrogatepass")
        at = match.end()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused(f"{shown(text)} is not UTF-8") from error
