"""How much one decision may read, parse and take. Design page "trust", "Attacks and limits".

A declared size over its limit is refused before anything is fetched; what comes is counted while it is read.
"""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB

MANIFEST = 4 * MIB  # bytes of an image's manifest or index
SIGNATURE_MANIFEST = MIB  # bytes of a manifest that carries a signature, and of a fallback index
PAYLOAD = 64 * KIB  # bytes of a simple-signing payload, and of what gpgv may print
ENVELOPE = MIB  # bytes of a sigstore bundle, notation envelope or DSSE envelope
GPG_SIGNATURE = 128 * KIB  # bytes of one file of a GPG signature store: a payload, a signature and their packets
REFERRERS_PAGE = 4 * MIB  # bytes of one page of referrers
REFERRER_PAGES = 4
CROWD = 8_192  # commas and opening brackets in a document whose signature has not held yet: a bundle has forty
CROWD_OF_LIST = 65_536  # the same in a page of referrers
REFERRERS = 64  # candidates looked at, those that look like signatures first
SIGNATURES = 32  # signatures under one tag, or in one GPG signature store
TOTAL = 16 * MIB  # bytes fetched for one decision
SECONDS = 10.0  # for one decision, everything included
GPG_SECONDS = 2.0  # for one gpgv; it takes milliseconds
GPG_LAST_SECONDS = 1.0  # for GPG signatures where fetching has taken all the time there is
PARALLEL = 8  # requests of one decision under way at once

POLICY_FILE = MIB  # bytes of a policy file and of each file it names
TRUST_STORE_FILES = 64  # certificates' files in one notation trust store
CERTIFICATES = 16  # in one chain
LOG_ENTRIES = 8  # transparency log entries of one bundle
SCTS = 8  # of one certificate
SUBJECTS = 1024  # of one in-toto statement

NO_SIGNATURE_SECONDS = (
    20.0  # a refusal is remembered; with the 10 s of a tracker's answer, a new signature is seen in 30
)
NOT_FETCHED_SECONDS = 3.0  # the same for one because something could not be fetched
EVIDENCE_SECONDS = NO_SIGNATURE_SECONDS  # signatures fetched ahead are used for so long
