"""Notary Project signatures (notation): JWS and COSE envelopes, certificate chains, trust policies. Pure.

Written from the Notary Project's specifications: signature-specification.md, signature-envelope-jws.md,
signature-envelope-cose.md and trust-store-trust-policy.md.
"""

from p2pdist.trust.notation.trustpolicy import Statement, TrustPolicy
from p2pdist.trust.notation.verify import ARTIFACT_TYPE, ENVELOPE_TYPES, verify_notation

__all__ = ["ARTIFACT_TYPE", "ENVELOPE_TYPES", "Statement", "TrustPolicy", "verify_notation"]
