"""Which images an agent may serve: the policy, the signatures, the gate. Design page "trust"."""

from p2pdist.trust.admission import Gate, OpenGate
from p2pdist.trust.explain import ScopeExplanation, explain_image, explain_policy, explain_scope
from p2pdist.trust.gate import TrustGate, open_gate
from p2pdist.trust.policy import Enforcement, Policy
from p2pdist.trust.policyfile import LoadedPolicy, load_policy
from p2pdist.trust.settings import TrustSettings
from p2pdist.trust.source import ReferrersPage, SignatureSource
from p2pdist.trust.status import Counts, GateStatus, Refusal
from p2pdist.trust.upstream import UpstreamSource, page_of
from p2pdist.trust.verdict import CandidateResult, RequirementResult, Verdict

__all__ = [
    "CandidateResult",
    "Counts",
    "Enforcement",
    "Gate",
    "GateStatus",
    "LoadedPolicy",
    "OpenGate",
    "Policy",
    "ReferrersPage",
    "Refusal",
    "RequirementResult",
    "ScopeExplanation",
    "SignatureSource",
    "TrustGate",
    "TrustSettings",
    "UpstreamSource",
    "Verdict",
    "explain_image",
    "explain_policy",
    "explain_scope",
    "load_policy",
    "open_gate",
    "page_of",
]
